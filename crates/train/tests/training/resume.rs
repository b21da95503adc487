//! A run that is stopped and opened again equals one that is not, byte for byte.

use std::path::Path;

use crate::support::{self, classifier, decoder, files, mixed};
use tch::Kind;
use unsay_data::Label;
use unsay_losses::token::Loss;
use unsay_train::{ClassifierObjective, Examples, Fit, LanguageObjective, Objective, Schedule, Settings, read_steps};

fn cringe() -> Loss {
    serde_json::from_str(r#"{"cringe": {"alpha": 1.0, "k": 3}}"#).unwrap()
}

fn language() -> LanguageObjective {
    LanguageObjective::new(decoder(Kind::Float), cringe(), mixed()).unwrap()
}

fn classify() -> ClassifierObjective {
    let labels = [Label::Positive, Label::Negative];
    let examples = Examples::new(vec![support::assorted(9, &labels)], support::assorted(4, &labels)).unwrap();
    ClassifierObjective::new(classifier(Kind::Float), examples).unwrap()
}

fn settings() -> Settings {
    Settings {
        micro_batch: Some(3),
        warmup: 3,
        schedule: Schedule::Cosine,
        weight_decay: 0.1,
        eval_every: Some(2),
        checkpoint_every: Some(3),
        ..Settings::new(14, 6, 0.02)
    }
}

fn open<O: Objective>(objective: O, folder: &Path) -> Fit<O> {
    Fit::open(objective, &settings(), 4, folder).unwrap()
}

/// Drops the run after each number of steps in `stops`, then lets it finish.
fn interrupted<O: Objective>(make: impl Fn() -> O, stops: &[usize], folder: &Path) {
    for &stop in stops {
        let mut fit = open(make(), folder);
        for record in fit.by_ref().take(stop) {
            record.unwrap();
        }
        // A caller that is asked to stop writes a checkpoint; a killed one does not.
        if stop == 5 {
            fit.save().unwrap();
        }
    }
    let mut fit = open(make(), folder);
    fit.by_ref().for_each(|record| drop(record.unwrap()));
    assert_eq!(fit.step(), settings().steps);
}

pub(crate) fn assert_resumes_exactly<O: Objective>(make: impl Fn() -> O, n_files: usize, plans: &[Vec<usize>]) {
    let whole = tempfile::tempdir().unwrap();
    interrupted(&make, &[], whole.path());
    let expected = files(whole.path());
    assert_eq!(expected.len(), n_files, "{:?}", expected.keys());
    assert_eq!(read_steps(&whole.path().join("steps.jsonl")).unwrap().len(), 14);
    for stops in plans {
        let folder = tempfile::tempdir().unwrap();
        interrupted(&make, stops, folder.path());
        let found = files(folder.path());
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>(),
            "{stops:?}"
        );
        for (name, content) in &found {
            assert!(*content == expected[name], "{name} after {stops:?}");
        }
    }
}

#[test]
fn a_language_run_resumes_exactly() {
    // Before the first checkpoint, at one, between best weights and the next checkpoint, more than once, at the end.
    let mut plans: Vec<Vec<usize>> = [1, 3, 4, 5, 8, 13, 14].map(|stop| vec![stop]).into();
    plans.extend([vec![2, 4, 5], vec![4, 4, 4, 4]]);
    assert_resumes_exactly(language, 7, &plans);
}

#[test]
fn a_classifier_run_resumes_exactly() {
    assert_resumes_exactly(classify, 7, &[vec![5], vec![7, 4]]);
}

/// What is validated on is not what is learnt, so the best step comes early and its weights outlive many checkpoints.
#[test]
fn best_weights_survive_checkpoints_and_interruptions() {
    let make = || {
        let labels = [Label::Positive];
        let examples = Examples::new(vec![support::assorted(3, &labels)], support::assorted(12, &labels)).unwrap();
        let nll = Loss::Nll(Default::default());
        let settings = Settings {
            lr: 0.05,
            eval_every: Some(1),
            checkpoint_every: Some(2),
            ..settings()
        };
        (
            LanguageObjective::new(decoder(Kind::Float), nll, examples).unwrap(),
            settings,
        )
    };
    let run = |stops: &[usize], folder: &Path| {
        for &stop in stops.iter().chain(&[usize::MAX]) {
            let (objective, settings) = make();
            for record in Fit::open(objective, &settings, 4, folder).unwrap().take(stop) {
                record.unwrap();
            }
        }
        let (objective, settings) = make();
        let fit = Fit::open(objective, &settings, 4, folder).unwrap();
        let records = fit.records().unwrap();
        let loss = |r: &unsay_train::StepRecord| r.valid.as_ref().map(|v| v[0].1);
        let losses: Vec<f64> = records.iter().filter_map(loss).collect();
        let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
        let first = losses.iter().position(|&loss| loss <= lowest).unwrap() as u64 + 1;
        assert_eq!(fit.best().unwrap().step, first);
        assert_eq!(fit.best().unwrap().loss.to_bits(), lowest.to_bits());
        assert!(fit.best_folder().unwrap().join("model.safetensors").exists());
        assert!(fit.last_folder().unwrap().join("model.safetensors").exists());
        first
    };
    let whole = tempfile::tempdir().unwrap();
    let best = run(&[], whole.path());
    assert!((2..10).contains(&best), "the best step is {best}");
    let folder = tempfile::tempdir().unwrap();
    run(&[1, 2, 3, 5], folder.path());
    assert_eq!(files(whole.path()), files(folder.path()));
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    interrupted(language, &[], folder.path());
    let refused = |objective: LanguageObjective, settings: &Settings, seed| {
        Fit::open(objective, settings, seed, folder.path())
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let longer = Settings {
        steps: 20,
        ..settings()
    };
    assert!(refused(language(), &longer, 4).contains("other settings"));
    assert!(refused(language(), &settings(), 5).contains("other settings"));
    let nll = LanguageObjective::new(decoder(Kind::Float), Loss::Nll(Default::default()), mixed()).unwrap();
    assert!(refused(nll, &settings(), 4).contains("hint: remove"));
    // The refusals changed nothing: the run itself still opens, finished.
    assert!(open(language(), folder.path()).next().is_none());
}

#[test]
fn settings_out_of_range_are_refused_together_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let settings = Settings {
        lr: -1.0,
        betas: (0.9, 1.0),
        ..settings()
    };
    let error = Fit::open(language(), &settings, 4, &path)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("`lr`") && error.contains("`betas[1]`"), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_checkpoint_can_be_written_at_any_step() {
    let folder = tempfile::tempdir().unwrap();
    let mut fit = open(language(), folder.path());
    fit.next().unwrap().unwrap();
    fit.save().unwrap();
    fit.save().unwrap();
    drop(fit);
    assert_eq!(open(language(), folder.path()).step(), 1);
}
