//! The loop learns what it is asked to, on tasks with a known answer.

use crate::support::{FIRST, classifier, decoder, encode, source};
use tch::Kind;
use unsay_data::{Encoded, Label};
use unsay_losses::token::Loss;
use unsay_train::{ClassifierObjective, Examples, Fit, LanguageObjective, Schedule, Settings, StepRecord};

fn settings(steps: u64) -> Settings {
    Settings {
        warmup: 10,
        schedule: Schedule::Linear,
        ..Settings::new(steps, 16, 0.01)
    }
}

fn valid(record: &StepRecord, name: &str) -> f64 {
    record
        .valid
        .as_ref()
        .unwrap()
        .iter()
        .find(|(known, _)| known == name)
        .unwrap()
        .1
}

fn last(records: Vec<StepRecord>) -> StepRecord {
    records.into_iter().next_back().unwrap()
}

/// The completion of a prompt: a permutation of its two tokens and their sum.
fn answer(a: u32, b: u32) -> [u32; 3] {
    [b, a, FIRST + (a + b) % 8]
}

fn pairs() -> impl Iterator<Item = (u32, u32)> {
    (0..4).flat_map(|a| (4..8).map(move |b| (FIRST + a, FIRST + b)))
}

#[test]
fn a_language_model_memorises_a_small_task() {
    let all: Vec<Encoded> = pairs()
        .enumerate()
        .map(|(i, (a, b))| encode(&[a, b], &answer(a, b), Label::Unlabelled, i))
        .collect();
    let examples = Examples::new(vec![source(all.clone(), 1.0)], source(all, 1.0)).unwrap();
    let objective = LanguageObjective::new(decoder(Kind::Float), Loss::Nll(Default::default()), examples).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let fit = Fit::open(objective, &settings(200), 0, folder.path()).unwrap();
    let record = last(fit.map(Result::unwrap).collect());
    assert!(valid(&record, "token_acc_pos") > 0.999, "{record:?}");
    assert!(valid(&record, "ppl_pos") < 1.1, "{record:?}");
}

#[test]
fn cringe_unlearns_negatives_and_keeps_positives() {
    // Every prompt has a good and a bad completion; the base model gives both.
    let make = |label_of: fn(bool) -> Label| -> Vec<Encoded> {
        let both = pairs().flat_map(|(a, b)| [(a, b, true), (a, b, false)]);
        both.enumerate()
            .map(|(i, (a, b, good))| {
                let completion = if good { answer(a, b) } else { [b + 8, a + 8, FIRST + 1] };
                encode(&[a, b], &completion, label_of(good), i)
            })
            .collect()
    };
    let labelled = || make(|good| if good { Label::Positive } else { Label::Negative });
    let unlabelled = make(|_| Label::Unlabelled);
    let examples = Examples::new(vec![source(unlabelled, 1.0)], source(labelled(), 1.0)).unwrap();
    let objective = LanguageObjective::new(decoder(Kind::Float), Loss::Nll(Default::default()), examples).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut fit = Fit::open(objective, &settings(200), 0, &folder.path().join("base")).unwrap();
    let base = last(fit.by_ref().map(Result::unwrap).collect());
    // Between the two, only the first token is open.
    assert!(valid(&base, "logp_neg").exp() > 0.6, "{base:?}");

    let examples = Examples::new(vec![source(labelled(), 1.0)], source(labelled(), 1.0)).unwrap();
    let cringe: Loss = serde_json::from_str(r#"{"cringe": {"alpha": 1.0, "k": 3}}"#).unwrap();
    let objective = LanguageObjective::new(fit.into_objective().into_decoder(), cringe, examples).unwrap();
    let fit = Fit::open(objective, &settings(150), 0, &folder.path().join("cringe")).unwrap();
    let after = last(fit.map(Result::unwrap).collect());
    assert!(
        valid(&after, "logp_neg") < valid(&base, "logp_neg") - 1.0,
        "{base:?} {after:?}"
    );
    assert!(valid(&after, "token_acc_neg") < 0.3, "{after:?}");
    assert!(valid(&after, "token_acc_pos") > 0.99, "{after:?}");
    assert!(valid(&after, "ppl_pos") < valid(&base, "ppl_pos"), "{base:?} {after:?}");
}

#[test]
fn unlikelihood_of_repetition_unlearns_repeats_and_nothing_else() {
    // Every prompt has two completions, one that says the same token again.
    let say = |a: u32, b: u32, again: bool| if again { vec![a, b, b, b] } else { vec![b, a] };
    let make = |label_of: fn(bool) -> Label| -> Vec<Encoded> {
        let both = pairs().flat_map(|(a, b)| [(a, b, true), (a, b, false)]);
        both.enumerate()
            .map(|(i, (a, b, again))| encode(&[a, b], &say(a, b, again), label_of(again), i))
            .collect()
    };
    let unlabelled = make(|_| Label::Unlabelled);
    let labelled = make(|again| if again { Label::Negative } else { Label::Positive });
    let examples = Examples::new(vec![source(unlabelled, 1.0)], source(labelled.clone(), 1.0)).unwrap();
    let objective = LanguageObjective::new(decoder(Kind::Float), Loss::Nll(Default::default()), examples).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut fit = Fit::open(objective, &settings(200), 0, &folder.path().join("base")).unwrap();
    let base = last(fit.by_ref().map(Result::unwrap).collect());
    assert!(valid(&base, "logp_neg").exp() > 0.6, "{base:?}");

    let examples = Examples::new(vec![source(labelled.clone(), 1.0)], source(labelled, 1.0)).unwrap();
    let repetition = r#"{"unlikelihood_repetition": {"alpha": 1.0, "n": 1, "context_weight": 0.0}}"#;
    let loss: Loss = serde_json::from_str(repetition).unwrap();
    let objective = LanguageObjective::new(fit.into_objective().into_decoder(), loss, examples).unwrap();
    let mut fit = Fit::open(objective, &settings(100), 0, &folder.path().join("repetition")).unwrap();
    let records: Vec<StepRecord> = fit.by_ref().map(Result::unwrap).collect();
    let repeats = records.first().and_then(|first| first.metric("ul_loss")).unwrap();
    let after = last(records);
    assert!(valid(&after, "ul_loss") < 0.2 * repeats, "{repeats} {after:?}");
    assert!(
        valid(&after, "logp_neg") < valid(&base, "logp_neg") - 1.0,
        "{base:?} {after:?}"
    );
    assert!(valid(&after, "token_acc_pos") > 0.99, "{after:?}");
}

#[test]
fn a_classifier_separates_a_small_set() {
    // Positive when the completion repeats the prompt's second token.
    let all: Vec<Encoded> = pairs()
        .flat_map(|(a, b)| [(a, b, b), (a, b, a)])
        .enumerate()
        .map(|(i, (a, b, said))| {
            encode(
                &[a, b],
                &[said],
                if said == b { Label::Positive } else { Label::Negative },
                i,
            )
        })
        .collect();
    let examples = Examples::new(vec![source(all.clone(), 1.0)], source(all, 1.0)).unwrap();
    let objective = ClassifierObjective::new(classifier(Kind::Float), examples).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let fit = Fit::open(objective, &settings(100), 0, folder.path()).unwrap();
    let record = last(fit.map(Result::unwrap).collect());
    assert!(valid(&record, "accuracy") > 0.999, "{record:?}");
    assert!(record.metric("bce_loss").unwrap() < 0.1, "{record:?}");
}
