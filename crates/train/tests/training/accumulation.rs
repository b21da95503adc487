//! Any split of a logical batch gives the same loss, gradients and update.

use crate::support::{classifier, decoder, encode, largest_difference, mixed, numbers, source};
use proptest::prelude::*;
use tch::Kind;
use unsay_data::{Label, stream};
use unsay_losses::token::Loss;
use unsay_model::Params;
use unsay_train::{
    ClassifierObjective, Draws, Examples, Fit, LanguageObjective, LogicalBatch, Objective, Place, Sample, Settings,
};

pub(crate) struct Seen {
    pub(crate) loss: f64,
    pub(crate) named: Vec<(String, f64)>,
    per_example: Vec<f64>,
    pub(crate) gradients: Vec<f64>,
}

fn gradients(params: &Params) -> Vec<f64> {
    let mut all = Vec::new();
    for (_, tensor) in params.iter() {
        // What no gradient has reached, such as weights below an adapter, has none.
        let gradient = tensor.grad();
        if gradient.defined() {
            all.extend(Vec::<f64>::try_from(gradient.to_kind(Kind::Double).view(-1)).unwrap());
        }
    }
    params.zero_grad().unwrap();
    all
}

pub(crate) fn seen(objective: &impl Objective, places: &[Place], micro_batch: usize) -> Seen {
    let draws = Draws {
        seed: 3,
        purpose: "loss-draws",
        position: 9,
    };
    let batch = LogicalBatch {
        places: places.to_vec(),
        micro_batch,
        draws,
        train: true,
    };
    let outcome = objective.run(&batch).unwrap();
    let named = outcome.terms.iter().chain(&outcome.metrics);
    Seen {
        loss: outcome.loss.double_value(&[]),
        named: named
            .map(|(name, value)| ((*name).to_owned(), value.double_value(&[])))
            .collect(),
        per_example: Vec::try_from(outcome.per_example).unwrap(),
        gradients: gradients(objective.params()),
    }
}

pub(crate) fn places<E: Sample>(examples: &Examples<E>, picks: &[usize]) -> Vec<Place> {
    let all: Vec<Place> = examples
        .sources()
        .iter()
        .enumerate()
        .flat_map(|(source, s)| (0..s.encoded.len()).map(move |index| Place::Train { source, index }))
        .collect();
    picks.iter().map(|&pick| all[pick % all.len()]).collect()
}

pub(crate) fn assert_same(objective: &impl Objective, picks: &[usize], micro_batch: usize, tolerance: f64) {
    let places = places(objective.examples(), picks);
    let whole = seen(objective, &places, places.len());
    let split = seen(objective, &places, micro_batch);
    let scale = whole.gradients.iter().fold(1.0_f64, |most, g| most.max(g.abs()));
    assert!(largest_difference(&whole.gradients, &split.gradients) < tolerance * scale);
    assert!((whole.loss - split.loss).abs() < tolerance * whole.loss.abs().max(1.0));
    assert!(largest_difference(&whole.per_example, &split.per_example) < tolerance);
    assert!((whole.per_example.iter().sum::<f64>() - whole.loss).abs() < tolerance * whole.loss.abs().max(1.0));
    let mut names: Vec<&str> = whole.named.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    for name in names {
        let of = |seen: &Seen| seen.named.iter().find(|(known, _)| known == name).unwrap().1;
        assert!(
            (of(&whole) - of(&split)).abs() < tolerance * of(&whole).abs().max(1.0),
            "{name}"
        );
    }
    assert_eq!(whole.named.len(), split.named.len());
    assert!(whole.gradients.iter().any(|g| g.abs() > 1e-6));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_gradients(
        picks in proptest::collection::vec(0_usize..1000, 3..9),
        micro_batch in 1_usize..8,
        loss in 0..Loss::samples().len(),
    ) {
        // One example of each label, whatever is picked.
        let picks: Vec<usize> = [0, 1, 2].into_iter().chain(picks).collect();
        for (kind, tolerance) in [(Kind::Double, 1e-10), (Kind::Float, 1e-6)] {
            let objective = LanguageObjective::new(decoder(kind), Loss::samples().swap_remove(loss), mixed()).unwrap();
            assert_same(&objective, &picks, micro_batch, tolerance);
        }
    }

    #[test]
    fn any_split_gives_a_classifier_the_same_gradients(
        picks in proptest::collection::vec(0_usize..1000, 2..9),
        micro_batch in 1_usize..8,
    ) {
        for (kind, tolerance) in [(Kind::Double, 1e-10), (Kind::Float, 1e-6)] {
            let labels = [Label::Positive, Label::Negative];
            let examples = Examples::new(vec![crate::support::assorted(9, &labels)], crate::support::assorted(4, &labels)).unwrap();
            let objective = ClassifierObjective::new(classifier(kind), examples).unwrap();
            assert_same(&objective, &picks, micro_batch, tolerance);
        }
    }
}

/// Random picks may leave a loss out: each trains here, those that read the text too, and its own part is there.
#[test]
fn every_token_loss_trains_in_any_split() {
    // Texts of several lengths that say things again, in every label.
    let labels = [Label::Positive, Label::Negative, Label::Unlabelled];
    let one = |i: usize| {
        let said: Vec<u32> = (0..3 + i % 5).map(|t| 5 + ((i + t) % 2) as u32).collect();
        encode(&[9, 5, 6 + i as u32 % 3], &said, labels[i % 3], i)
    };
    let texts = || source((0..12).map(one).collect(), 1.0);
    let losses = Loss::samples();
    assert_eq!(losses.len(), 19);
    let mut own_parts = 0;
    for loss in losses {
        let examples = Examples::new(vec![texts()], texts()).unwrap();
        let objective = LanguageObjective::new(decoder(Kind::Double), loss.clone(), examples).unwrap();
        let picks: Vec<usize> = (0..12).collect();
        let whole = seen(&objective, &places(objective.examples(), &picks), picks.len());
        for micro_batch in [1, 5] {
            assert_same(&objective, &picks, micro_batch, 1e-10);
        }
        let own = whole
            .named
            .iter()
            .filter(|(name, _)| name.ends_with("_loss") && name != "ce_loss");
        for (name, value) in own {
            assert!(value.abs() > 1e-4, "{loss:?}: {name} is {value}");
            own_parts += 1;
        }
    }
    // All but `nll` have one; with `sigmoid_on_positives` both sides are.
    assert_eq!(own_parts, 19);
}

#[test]
fn any_split_gives_the_same_weights_and_records() {
    let cringe: Loss = serde_json::from_str(r#"{"cringe": {"alpha": 1.0, "k": 3}}"#).unwrap();
    let run = |micro_batch| {
        let folder = tempfile::tempdir().unwrap();
        let objective = LanguageObjective::new(decoder(Kind::Double), cringe.clone(), mixed()).unwrap();
        let settings = Settings {
            micro_batch: Some(micro_batch),
            eval_every: Some(2),
            ..Settings::new(5, 8, 0.01)
        };
        let mut fit = Fit::open(objective, &settings, 1, folder.path()).unwrap();
        let records: Vec<_> = fit.by_ref().map(Result::unwrap).collect();
        (numbers(fit.objective().params()), records)
    };
    let (whole, whole_records) = run(8);
    for micro_batch in [1, 3, 5] {
        let (split, split_records) = run(micro_batch);
        assert!(largest_difference(&whole, &split) < 1e-10);
        for (a, b) in whole_records.iter().zip(&split_records) {
            assert!((a.metric("loss").unwrap() - b.metric("loss").unwrap()).abs() < 1e-10);
        }
    }
    let start = numbers(decoder(Kind::Double).params());
    assert!(largest_difference(&whole, &start) > 1e-3);
}

#[test]
fn draws_differ_between_steps_and_examples() {
    let draws = |position| {
        Draws {
            seed: 1,
            purpose: "loss-draws",
            position,
        }
        .uniform(100)
    };
    assert_ne!(draws(0), draws(1));
    let mut rng = stream(1, "loss-draws", 0);
    assert!(rand::Rng::random::<f32>(&mut rng).to_bits() == draws(0)[0].to_bits());
}
