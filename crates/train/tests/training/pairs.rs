//! Losses over pairs in the loop: prompts computed once, references from files and models, micro-batches, resume.

use std::path::Path;

use crate::accumulation::{Seen, assert_same, places, seen};
use crate::resume::assert_resumes_exactly;
use crate::support::{self, config, decoder, largest_difference, lora, numbers, pair, pairs_source, some_pairs};
use tch::{Device, Kind};
use unsay_data::{EncodedPair, stream};
use unsay_losses::paired::{Loss, Objective as Loss_};
use unsay_model::{Decoder, Precision};
use unsay_train::{
    Examples, Fit, Objective, PairedObjective, Place, Reference, ReferenceLogps, Schedule, Settings, StepRecord,
};

fn loss(text: &str) -> Loss_ {
    serde_json::from_str(text).unwrap()
}

fn dpo() -> Loss_ {
    loss(r#"{"loss": {"dpo": {"beta": 0.3}}}"#)
}

/// A model that differs from [`decoder`].
fn other(kind: Kind) -> Decoder {
    Decoder::init_kind(&config(), &mut stream(6, "init", 0), Device::Cpu, kind).unwrap()
}

fn model(kind: Kind) -> Reference {
    Reference::Model(Box::new(other(kind)))
}

/// The reference that a loss takes.
fn wanted(loss: &Loss_, kind: Kind) -> Reference {
    match loss.uses_reference() {
        true => model(kind),
        false => Reference::None,
    }
}

fn objective(loss: Loss_, kind: Kind) -> PairedObjective {
    let reference = wanted(&loss, kind);
    PairedObjective::new(decoder(kind), loss, some_pairs(), reference).unwrap()
}

fn all(objective: &PairedObjective) -> Vec<Place> {
    let picks: Vec<usize> = (0..9).map(|i| i * 2).collect();
    places(objective.examples(), &picks)
}

fn whole(objective: &PairedObjective) -> Seen {
    let places = all(objective);
    seen(objective, &places, places.len())
}

fn assert_equal(a: &Seen, b: &Seen, tolerance: f64) {
    assert!((a.loss - b.loss).abs() < tolerance, "{} {}", a.loss, b.loss);
    let scale = a.gradients.iter().fold(1.0_f64, |most, g| most.max(g.abs()));
    assert!(largest_difference(&a.gradients, &b.gradients) < tolerance * scale);
    assert!(a.gradients.iter().any(|g| g.abs() > 1e-6));
    assert_eq!(a.named.len(), b.named.len());
    for ((name, x), (other, y)) in a.named.iter().zip(&b.named) {
        assert!(
            name == other && (x - y).abs() < tolerance * x.abs().max(1.0),
            "{name}: {x} {y}"
        );
    }
}

#[test]
fn a_prompt_computed_once_gives_the_same_values_and_gradients() {
    let losses = [
        dpo(),
        loss(r#"{"loss": {"simpo": {"beta": 2.0, "gamma": 0.5}}, "nll": 0.3}"#),
        loss(
            r#"{"loss": {"dpo": {"beta": 0.1}}, "logps": {"ld": {"alpha": 0.5}}, "weighting": {"wpo": {"clamp": true}}}"#,
        ),
    ];
    let mut compared = 0;
    for loss in losses {
        let reference = || wanted(&loss, Kind::Double);
        let plain = |adapted: bool| match adapted {
            false => decoder(Kind::Double),
            true => decoder(Kind::Double)
                .with_trained(&lora(1), &mut stream(1, "adapter", 0))
                .unwrap(),
        };
        for adapted in [false, true] {
            let new = || PairedObjective::new(plain(adapted), loss.clone(), some_pairs(), reference()).unwrap();
            let apart = whole(&new().with_prompts_apart());
            assert_equal(&apart, &whole(&new()), 1e-10);
            let replayed = Settings {
                checkpoint_activations: true,
                ..Settings::new(1, 9, 0.1)
            };
            assert_equal(&apart, &whole(&new().configure(&replayed).unwrap()), 1e-10);
            compared += 2;
        }
    }
    assert_eq!(compared, 12);
}

#[test]
fn every_paired_loss_trains_in_any_split_that_it_allows() {
    let losses = Loss::samples();
    let (mut split, mut coupled) = (0, 0);
    for loss in losses {
        let objective = objective(loss.clone().into(), Kind::Double);
        if loss.couples_pairs() {
            coupled += 1;
            continue;
        }
        let picks: Vec<usize> = (0..9).map(|i| i * 2).collect();
        for micro_batch in [1, 4] {
            if loss.baseline().is_some() {
                // The mean of all rewards moves with each batch: both begin with none.
                let places = all(&objective);
                let fresh = || self::objective(loss.clone().into(), Kind::Double);
                let whole = seen(&fresh(), &places, places.len());
                assert_equal(&whole, &seen(&fresh(), &places, micro_batch), 1e-10);
            } else {
                assert_same(&objective, &picks, micro_batch, 1e-10);
            }
            split += 1;
        }
    }
    assert!(split >= 2 * 25 && coupled >= 2, "{split} {coupled}");
}

/// AOT sorts the rewards of a whole batch.
#[test]
fn a_loss_that_couples_pairs_refuses_micro_batches_and_validates_all_at_once() {
    let aot = || loss(r#"{"loss": {"aot": {"beta": 0.3}}}"#);
    let folder = tempfile::tempdir().unwrap();
    let settings = |micro_batch| Settings {
        micro_batch,
        ..Settings::new(2, 4, 0.01)
    };
    let refused = Fit::open(objective(aot(), Kind::Double), &settings(Some(2)), 1, folder.path());
    let error = refused.map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("`aot`") && error.contains("a micro-batch of 4, got 2"),
        "{error}"
    );
    let objective = objective(aot(), Kind::Double);
    let valid = |micro_batch| {
        let batch = unsay_train::LogicalBatch {
            places: objective.examples().valid_places(),
            micro_batch,
            draws: unsay_train::Draws {
                seed: 1,
                purpose: "valid-draws",
                position: 0,
            },
            train: false,
        };
        let outcome = objective.run(&batch).unwrap();
        let per_example = Vec::<f64>::try_from(&outcome.per_example).unwrap();
        (outcome.loss.double_value(&[]), per_example)
    };
    let (loss, per_example) = valid(6);
    for micro_batch in [1, 4] {
        let (split, of_split) = valid(micro_batch);
        assert!((loss - split).abs() < 1e-10);
        // Its terms belong to ranks, not to pairs.
        assert_eq!(per_example.len(), of_split.len());
    }
    let mut fit = Fit::open(objective, &settings(None), 1, folder.path()).unwrap();
    assert!(fit.all(|record| record.is_ok()));
}

fn written(folder: &Path, decoder: &Decoder, examples: &Examples<EncodedPair>) -> Vec<ReferenceLogps> {
    std::fs::create_dir_all(folder).unwrap();
    let sets = examples.sources().iter().chain([examples.valid()]);
    let write = |(i, set): (usize, &unsay_train::Source<EncodedPair>)| {
        let path = folder.join(format!("{i}.logps"));
        assert!(ReferenceLogps::write(&path, decoder, &set.encoded, &mut |_| (), &|| false).unwrap());
        ReferenceLogps::open(&path, &set.encoded).unwrap()
    };
    sets.enumerate().map(write).collect()
}

#[test]
fn a_reference_from_files_is_that_of_the_model_and_of_the_model_below_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let new = |reference| PairedObjective::new(decoder(Kind::Double), dpo(), some_pairs(), reference).unwrap();
    let files = written(folder.path(), &other(Kind::Double), &some_pairs());
    files
        .iter()
        .for_each(|file| file.check_model(&other(Kind::Double)).unwrap());
    assert_equal(
        &whole(&new(model(Kind::Double))),
        &whole(&new(Reference::Logps(files))),
        1e-10,
    );

    // An adapter that changes something: its B is zero at first.
    let adapted = || {
        let model = decoder(Kind::Double)
            .with_trained(&lora(1), &mut stream(1, "adapter", 0))
            .unwrap();
        for (name, tensor) in model.params().iter().filter(|(name, _)| name.contains("lora_B")) {
            let _ = tch::no_grad(|| tensor.shallow_clone().fill_(0.1 + name.len() as f64 * 1e-3));
        }
        model
    };
    let new = |reference| PairedObjective::new(adapted(), dpo(), some_pairs(), reference).unwrap();
    let off = whole(&new(Reference::AdapterOff));
    let below = whole(&new(Reference::Model(Box::new(decoder(Kind::Double)))));
    assert_equal(&off, &below, 1e-10);
    let files = written(&folder.path().join("adapted"), &adapted(), &some_pairs());
    files
        .iter()
        .for_each(|file| file.check_model(&decoder(Kind::Double)).unwrap());
    assert_equal(&off, &whole(&new(Reference::Logps(files))), 1e-10);
    let margin = off.named.iter().find(|(name, _)| name == "rewards/margins").unwrap().1;
    assert!(margin.abs() > 1e-4, "{margin}");
}

#[test]
fn files_that_do_not_fit_and_references_that_are_not_wanted_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let examples = some_pairs();
    let pairs = &examples.sources()[0].encoded;
    let path = folder.path().join("logps");
    let base = decoder(Kind::Float);
    assert!(!ReferenceLogps::write(&path, &base, pairs, &mut |_| (), &|| true).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let mut told = 0;
    assert!(ReferenceLogps::write(&path, &base, pairs, &mut |done| told = done, &|| false).unwrap());
    assert_eq!(told, 11);
    let opened = |pairs: &[EncodedPair]| ReferenceLogps::open(&path, pairs).map(|_| ()).unwrap_err().to_string();
    assert!(opened(&pairs[1..]).contains("expected those of 10 pairs, got 11"));
    let mut changed = pairs.clone();
    changed[3].rejected.ids[0] += 1;
    assert!(opened(&changed).contains("made of other tokens"));
    let mut changed = pairs.clone();
    changed[1].chosen.n_learnt -= 1;
    assert!(opened(&changed).contains("made of other tokens"));
    let bytes = std::fs::read(&path).unwrap();
    for (bytes, expected) in [
        (&bytes[..bytes.len() - 1], "it is cut short"),
        (&bytes[..20], "a header of"),
        (
            b"\x08\0\0\0\0\0\0\0notjson!".as_slice(),
            "not a file of log-probabilities",
        ),
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert!(opened(pairs).contains(expected), "{}", opened(pairs));
    }
    std::fs::write(&path, &bytes).unwrap();
    let file = || ReferenceLogps::open(&path, pairs).unwrap();
    assert!(file().check_model(&base).is_ok());
    assert!(
        file()
            .check_model(&other(Kind::Float))
            .unwrap_err()
            .to_string()
            .contains("other weights")
    );
    let error = file().check_model(&decoder(Kind::Double)).unwrap_err().to_string();
    assert!(
        error.contains("expected f64, as the model computes, got f32"),
        "{error}"
    );

    let new = |loss: Loss_, reference| {
        let found = PairedObjective::new(decoder(Kind::Float), loss, some_pairs(), reference);
        found.map(|_| ()).unwrap_err().to_string()
    };
    let simpo = || loss(r#"{"loss": {"simpo": {"beta": 2.0, "gamma": 0.5}}}"#);
    assert!(new(dpo(), Reference::None).contains("`dpo` compares with a reference, got none\nhint: "));
    assert!(new(simpo(), model(Kind::Float)).contains("`simpo` compares with no reference"));
    assert!(new(dpo(), Reference::AdapterOff).contains("without the adapter"));
    assert!(new(dpo(), Reference::Logps(vec![file()])).contains("expected 3 files"));
    let wrong = (0..3).map(|_| file()).collect();
    assert!(new(dpo(), Reference::Logps(wrong)).contains("expected those of 5 pairs, got 11"));
    let bad = loss(r#"{"loss": {"dpo": {"beta": 0.1}}, "nll": -1.0}"#);
    assert!(new(bad, model(Kind::Float)).contains("`nll`"));
    // A run in bf16 does not take files that were made in f32.
    let files = written(folder.path(), &base, &some_pairs());
    let objective = PairedObjective::new(decoder(Kind::Float), dpo(), some_pairs(), Reference::Logps(files)).unwrap();
    let settings = Settings {
        precision: Precision::Bf16 { even_if_slower: true },
        ..Settings::new(1, 2, 0.1)
    };
    let error = objective.configure(&settings).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("expected bf16, as the model computes, got f32"),
        "{error}"
    );
}

fn resumed(loss: &Loss_, files: Option<&Path>) -> PairedObjective {
    let examples = some_pairs();
    let reference = match files {
        Some(folder) => Reference::Logps(written(folder, &other(Kind::Float), &examples)),
        None => wanted(loss, Kind::Float),
    };
    PairedObjective::new(decoder(Kind::Float), loss.clone(), examples, reference).unwrap()
}

#[test]
fn a_paired_run_resumes_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    assert_resumes_exactly(|| resumed(&dpo(), Some(&files)), 7, &[vec![1], vec![5], vec![7, 4]]);
    // Draws, and the mean of all rewards so far, which each of the two folders of weights has beside them.
    let cringe = Loss::samples()
        .into_iter()
        .find(|loss| loss.draws_per_row() > 0 && !loss.uses_reference() && !loss.couples_pairs())
        .unwrap();
    assert_resumes_exactly(|| resumed(&cringe.clone().into(), None), 7, &[vec![5], vec![7, 4]]);
    let bco = loss(r#"{"loss": {"bco_pair": {"beta": 0.3}}}"#);
    assert_resumes_exactly(|| resumed(&bco, None), 9, &[vec![1], vec![5], vec![7, 4]]);
}

/// Every prompt has two answers, both as likely at first.
fn preferences() -> Examples<EncodedPair> {
    let one = |i: usize| {
        let (a, b) = (support::FIRST + (i / 4) as u32, support::FIRST + 4 + (i % 4) as u32);
        pair(&[a, b], &[b, a], &[a, b + 8], i)
    };
    let source = || pairs_source((0..16).map(one).collect());
    Examples::new(vec![source()], source()).unwrap()
}

#[test]
fn dpo_learns_to_prefer_and_says_where_likelihood_went() {
    for precision in [Precision::default(), Precision::Bf16 { even_if_slower: true }] {
        let reference = Reference::Model(Box::new(decoder(Kind::Float)));
        let objective = PairedObjective::new(decoder(Kind::Float), dpo(), preferences(), reference).unwrap();
        let settings = Settings {
            warmup: 5,
            schedule: Schedule::Linear,
            precision,
            ..Settings::new(60, 8, 0.01)
        };
        let folder = tempfile::tempdir().unwrap();
        let fit = Fit::open(objective, &settings, 0, folder.path()).unwrap();
        let records: Vec<StepRecord> = fit.map(Result::unwrap).collect();
        let first = records.first().unwrap();
        // Nothing has moved yet: no margin, and no completion is less likely than it was.
        assert!((first.metric("loss").unwrap() - 2f64.ln()).abs() < 1e-2, "{first:?}");
        let last = records.last().unwrap().valid.clone().unwrap();
        let of = |name: &str| last.iter().find(|(known, _)| known == name).unwrap().1;
        assert!(
            of("rewards/accuracies") > 0.99 && of("rewards/margins") > 1.0,
            "{last:?}"
        );
        assert!(of("rewards/margins") - (of("rewards/chosen") - of("rewards/rejected")) < 1e-6);
        assert!(of("logps/rejected") < of("logps/chosen"), "{last:?}");
        let displaced = of("logps/chosen_below_reference");
        assert!((0.0..=1.0).contains(&displaced), "{last:?}");
    }
}

/// Unlearning both sides is seen in the share of chosen completions that have become less likely.
#[test]
fn displaced_likelihood_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let examples = preferences();
    let files = written(folder.path(), &decoder(Kind::Double), &examples);
    let policy = decoder(Kind::Double);
    let share = |policy: Decoder, files| {
        let objective = PairedObjective::new(policy, dpo(), preferences(), Reference::Logps(files)).unwrap();
        let seen = seen(&objective, &objective.examples().valid_places(), 5);
        let named = |name: &str| seen.named.iter().find(|(known, _)| known == name).unwrap().1;
        (named("logps/chosen_below_reference"), named("rewards/chosen"))
    };
    // Sharper logits make what is unlikely less likely.
    for (name, tensor) in policy.params().iter() {
        if name == "model.norm.weight" {
            let _ = tch::no_grad(|| tensor.shallow_clone().g_mul_scalar_(30.0));
        }
    }
    let (share, reward) = share(policy, files);
    assert!(share > 0.5 && reward < 0.0, "{share} {reward}");
    let start = numbers(decoder(Kind::Double).params());
    assert!(start.iter().all(|x| x.is_finite()));
}
