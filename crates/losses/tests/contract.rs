//! What every registered loss promises.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod plain;

use plain::{Made, Text, all_finite, difference, numbers};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use unsay_losses::token::{Loss, Nll};
use unsay_losses::{TokenCounts, TokenRows};

const MIXED: [i8; 5] = [1, 0, -1, 0, 1];
const LENGTHS: [usize; 5] = [3, 4, 2, 1, 5];

/// Every loss in every setting that its file lists; the count guards the loops below against an empty list.
fn losses() -> Vec<Loss> {
    tch::set_num_threads(1);
    let all = Loss::samples();
    assert_eq!((Loss::NAMES.len(), all.len()), (8, 19));
    all
}

fn batch(seed: u64) -> Made {
    Made::new(seed, &LENGTHS, &MIXED, 6, 17)
}

#[test]
fn names_are_the_manifest_keys_and_settings_survive_a_round_trip() {
    for loss in losses() {
        let text = serde_json::to_value(&loss).unwrap();
        let keys: Vec<&String> = text.as_object().unwrap().keys().collect();
        assert_eq!(keys, [loss.name()]);
        assert!(Loss::NAMES.contains(&loss.name()) && !loss.card().summary.is_empty());
        assert_eq!(serde_json::from_value::<Loss>(text).unwrap(), loss);
        loss.check().unwrap();
    }
}

#[test]
fn what_a_manifest_gets_wrong_is_named() {
    let cases = [
        (r#"{"cringe": {"alpha": 1.0}}"#, "missing field `k`"),
        (r#"{"cringe": {"k": 5}}"#, "missing field `alpha`"),
        (
            r#"{"cringe": {"alpha": 1.0, "k": -5}}"#,
            "invalid value: integer `-5`, expected usize",
        ),
        (
            r#"{"cringe": {"alpha": 1.0, "k": 5, "kk": 1}}"#,
            "unknown field `kk`, expected one of `alpha`, `k`",
        ),
        (r#"{"unlikelihood": {}}"#, "missing field `alpha`"),
        (r#"{"nll": {"alpha": 1.0}}"#, "unknown field `alpha`"),
        (
            r#"{"mle": {}}"#,
            "unknown variant `mle`, expected one of `contrastive_token`, `cringe`, `gradient_ascent`, `nll`, `sigmoid`",
        ),
    ];
    for (text, expected) in cases {
        let error = serde_json::from_str::<Loss>(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
    let ranges = [
        (
            r#"{"cringe": {"alpha": -1.0, "k": 0}}"#,
            "`cringe.alpha` is -1, expected a finite number, at least 0",
            2,
        ),
        (
            r#"{"cringe": {"alpha": 1.0, "k": 0}}"#,
            "`cringe.k` is 0, expected a whole number from 1 to 65536",
            1,
        ),
        (
            r#"{"unlikelihood": {"alpha": -0.5}}"#,
            "`unlikelihood.alpha` is -0.5, expected a finite number, at least 0",
            1,
        ),
    ];
    for (text, expected, problems) in ranges {
        let loss: Loss = serde_json::from_str(text).unwrap();
        assert_eq!(loss.check().unwrap_err().to_string(), expected);
        assert_eq!(loss.problems().len(), problems);
        let made = batch(1);
        let stats = plain::stats(
            &Tensor::zeros([15, 4], (Kind::Double, Device::Cpu)),
            &Tensor::zeros([15], (Kind::Int64, Device::Cpu)),
            &Default::default(),
        );
        let error = loss
            .evaluate(&stats, &made.token_rows(), &made.counts(), None)
            .unwrap_err();
        assert_eq!(error.to_string(), expected, "a loss outside its range computes nothing");
    }
}

#[test]
fn value_and_gradient_equal_full_logits() {
    for (at, loss) in losses().iter().enumerate() {
        let made = batch(at as u64);
        let plain = made.through_logits(loss, &made.counts());
        for chunk in [None, Some(1), Some(4)] {
            let op = made.through_op(loss, &made.counts(), chunk);
            assert!((op.total() - plain.total()).abs() < 1e-12, "{loss:?}");
            assert!(difference(&op.hidden, &plain.hidden) < 1e-12, "{loss:?}");
            assert!(difference(&op.embedding, &plain.embedding) < 1e-12, "{loss:?}");
        }
        for chunk in [1, 4, 100] {
            let fused = made.fused(loss, &made.counts(), chunk);
            assert!((fused.total() - plain.total()).abs() < 1e-12, "{loss:?}");
            assert!(difference(&fused.hidden, &plain.hidden) < 1e-12, "{loss:?}");
            assert!(difference(&fused.embedding, &plain.embedding) < 1e-12, "{loss:?}");
            assert!(
                difference(&fused.value.per_example, &plain.value.per_example) < 1e-12,
                "{loss:?}"
            );
        }
    }
}

#[test]
fn gradient_equals_finite_differences() {
    let step = 1e-5;
    let mut compared = 0;
    for loss in losses() {
        // Detached on purpose: its gradient is not that of its value. The golden cases cover it.
        if matches!(&loss, Loss::Cringe(cringe) if cringe.detach_positives) {
            continue;
        }
        let made = batch(11);
        let counts = made.counts();
        let ours = made.through_op(&loss, &counts, Some(4));
        let moved = |made: &Made, on_hidden: bool, index: i64, by: f64| {
            let parameter = if on_hidden { &made.hidden } else { &made.embedding };
            let nudge = Tensor::zeros(parameter.size(), (Kind::Double, Device::Cpu));
            let _ = nudge.view([-1]).get(index).fill_(by);
            let mut made = made.rows(&(0..made.n_rows()).collect::<Vec<_>>());
            if on_hidden {
                made.hidden = &made.hidden + nudge;
            } else {
                made.embedding = &made.embedding + nudge;
            }
            made.through_op(&loss, &counts, None).total()
        };
        // With the draws held, the value has no jump where no candidate changes place.
        for (on_hidden, gradient) in [(true, &ours.hidden), (false, &ours.embedding)] {
            for (index, exact) in numbers(gradient).into_iter().enumerate().step_by(7) {
                let index = index as i64;
                let slope =
                    (moved(&made, on_hidden, index, step) - moved(&made, on_hidden, index, -step)) / (2.0 * step);
                assert!((slope - exact).abs() < 1e-8, "{loss:?}: {slope} is not {exact}");
            }
        }
        compared += 1;
    }
    assert_eq!(compared, 18);
}

#[test]
fn logits_of_ten_thousand_stay_finite_in_value_and_gradient() {
    for loss in losses() {
        for kind in [Kind::Double, Kind::Float] {
            for target in 0..7i64 {
                for label in [1i8, 0, -1] {
                    let logits = Tensor::from_slice(&[1e4, -1e4, 0.0, 0.0, 1e4, 3.0, 9.9e3]).view([1, 7]);
                    let made = Made {
                        hidden: Tensor::cat(&[&logits, &logits.neg()], 0).to_kind(kind),
                        embedding: Tensor::eye(7, (kind, Device::Cpu)),
                        targets: vec![target, target],
                        // A positive row beside it, so that every loss has something to learn.
                        example: vec![0, 1],
                        is_eos: vec![false, false],
                        labels: vec![label, 1],
                        draws: vec![0.0, 0.999],
                        // Everything was said before.
                        text: Text {
                            prompts: vec![(0..7).collect(), (0..7).collect()],
                            completions: vec![vec![5, target], vec![target]],
                            position: vec![1, 0],
                        },
                    };
                    let mut with_unlabelled = made.counts();
                    with_unlabelled.unlabelled += 1.0;
                    let ours = made.through_op(&loss, &with_unlabelled, None);
                    let finite =
                        all_finite(&ours.value.total) && all_finite(&ours.hidden) && all_finite(&ours.embedding);
                    assert!(finite, "{loss:?} {kind:?} target {target} label {label}");
                }
            }
        }
    }
}

#[test]
fn order_and_padding_change_nothing() {
    for loss in losses() {
        let made = batch(5);
        let whole = made.through_op(&loss, &made.counts(), None);
        let reversed: Vec<usize> = (0..made.n_rows()).rev().collect();
        let ours = made.rows(&reversed).through_op(&loss, &made.counts(), None);
        assert!((ours.total() - whole.total()).abs() < 1e-12);
        assert!(difference(&ours.hidden.flip([0]), &whole.hidden) < 1e-12);
        assert!(difference(&ours.embedding, &whole.embedding) < 1e-12);
        assert!(difference(&ours.value.per_example, &whole.value.per_example) < 1e-12);

        // States that predict nothing are never rows of an op: whatever they hold, here NaN, does not matter.
        let padded =
            Tensor::cat(&[made.hidden.shallow_clone(), made.hidden.full_like(f64::NAN)], 0).set_requires_grad(true);
        let picked = padded.narrow(0, 0, made.n_rows() as i64);
        let rows = made.rows_for(&loss);
        let op = made.op(&loss, &picked, &made.embedding, &rows);
        let stats = op.forward().unwrap();
        let value = loss
            .evaluate(
                &stats,
                &rows,
                &made.weighted(&loss, &made.counts()),
                Some(&made.draws()),
            )
            .unwrap();
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        assert!((value.total.double_value(&[]) - whole.total()).abs() < 1e-15);
        assert!(difference(&padded.grad().narrow(0, 0, made.n_rows() as i64), &whole.hidden) < 1e-15);
        assert!(
            numbers(&padded.grad().narrow(0, made.n_rows() as i64, made.n_rows() as i64))
                .iter()
                .all(|g| g.abs() == 0.0)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_split_into_micro_batches_adds_up(seed: u64, parts in prop::collection::vec(0usize..4, 15), labels in prop::collection::vec(-1i8..=1, 5)) {
        let mut labels = labels;
        labels[0] = -1; // unlabelled trains every loss in every setting
        let made = Made::new(seed, &LENGTHS, &labels, 6, 17);
        let counts = made.counts();
        for loss in losses() {
            let whole = made.through_op(&loss, &counts, None);
            let per_example = numbers(&whole.value.per_example);
            prop_assert!((per_example.iter().sum::<f64>() - whole.total()).abs() < 1e-12);

            let mut total = 0.0;
            let mut shares = made.hidden.new_zeros([5], (Kind::Double, Device::Cpu));
            let mut hidden = made.hidden.zeros_like();
            let mut embedding = made.embedding.zeros_like();
            let mut terms = vec![0.0; whole.value.terms.len()];
            for part in 0..4 {
                let picked: Vec<usize> = (0..made.n_rows()).filter(|&i| parts[i] == part).collect();
                if picked.is_empty() {
                    continue;
                }
                let ours = made.rows(&picked).through_op(&loss, &counts, None);
                total += ours.total();
                shares += &ours.value.per_example;
                embedding += &ours.embedding;
                let index = Tensor::from_slice(&picked.iter().map(|&i| i as i64).collect::<Vec<_>>());
                let _ = hidden.index_add_(0, &index, &ours.hidden);
                prop_assert_eq!(ours.value.terms.len(), terms.len());
                for (at, (name, value)) in ours.value.terms.iter().enumerate() {
                    prop_assert_eq!(*name, whole.value.terms[at].0);
                    terms[at] += value.double_value(&[]);
                }
            }
            prop_assert!((total - whole.total()).abs() < 1e-12);
            prop_assert!(difference(&shares, &whole.value.per_example) < 1e-12);
            prop_assert!(difference(&hidden, &whole.hidden) < 1e-12);
            prop_assert!(difference(&embedding, &whole.embedding) < 1e-12);
            for (ours, (_, value)) in terms.iter().zip(&whole.value.terms) {
                prop_assert!((ours - value.double_value(&[])).abs() < 1e-12);
            }
        }
    }
}

#[test]
fn an_empty_batch_is_an_error() {
    let error = TokenRows::new(&[], &[], &[], Device::Cpu).unwrap_err();
    assert_eq!(error.to_string(), "the batch of token rows is empty");
    let made = batch(1);
    for loss in losses() {
        let none = Tensor::zeros([0, 17], (Kind::Double, Device::Cpu));
        let stats = plain::stats(
            &none,
            &Tensor::zeros([0], (Kind::Int64, Device::Cpu)),
            &Default::default(),
        );
        let error = loss
            .evaluate(&stats, &made.token_rows(), &made.counts(), None)
            .unwrap_err();
        assert_eq!(error.to_string(), "the batch of token rows is empty");
    }
}

#[test]
fn a_batch_of_only_positives_is_plain_likelihood() {
    let made = Made::new(3, &LENGTHS, &[1, -1, 1, 1, -1], 6, 17);
    let expected = made.through_op(&Loss::Nll(Nll {}), &made.counts(), None);
    let more_on_positives = |loss: &Loss| match loss {
        Loss::Cringe(cringe) => cringe.contrast_on_positives,
        Loss::Sigmoid(sigmoid) => sigmoid.sigmoid_on_positives,
        Loss::GradientAscent(ascent) => ascent.retain < 1.0,
        Loss::ContrastiveToken(_) | Loss::UnlikelihoodContext(_) => true,
        Loss::Nll(_) | Loss::Unlikelihood(_) | Loss::UnlikelihoodRepetition(_) => false,
    };
    for loss in losses() {
        if more_on_positives(&loss) {
            continue;
        }
        let ours = made.through_op(&loss, &made.counts(), None);
        assert!((ours.total() - expected.total()).abs() < 1e-12, "{loss:?}");
        assert!(difference(&ours.hidden, &expected.hidden) < 1e-12, "{loss:?}");
        let terms: Vec<&str> = ours.value.terms.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            terms,
            ["ce_loss"],
            "no row for a contrast or an unlikelihood: the term is left out"
        );
    }
}

#[test]
fn a_batch_with_nothing_to_learn_from_is_an_error_with_a_hint() {
    let negative = Made::new(3, &[2, 3], &[0, 0], 6, 17);
    let evaluate = |loss: &Loss, made: &Made| {
        let rows = made.rows_for(loss);
        let op = made.op(loss, &made.hidden, &made.embedding, &rows);
        let counts = made.weighted(loss, &made.counts());
        loss.evaluate(&op.forward().unwrap(), &rows, &counts, Some(&made.draws()))
    };
    for loss in losses() {
        let result = evaluate(&loss, &negative);
        if loss.rows_trained(&negative.counts()) > 0.0 {
            assert!(all_finite(&result.unwrap().total));
            continue;
        }
        let name = loss.name();
        assert_eq!(
            result.unwrap_err().to_string(),
            format!(
                "`{name}` has nothing to learn from: 0 positive, 5 negative and 0 unlabelled tokens\n\
                 hint: `{name}` learns from positive and unlabelled examples; add some to every batch"
            )
        );
    }
    let only_ends: Loss = serde_json::from_str(r#"{"cringe": {"alpha": 1.0, "k": 2, "count_eos": false}}"#).unwrap();
    let error = evaluate(&only_ends, &Made::new(3, &[1, 1], &[0, 0], 6, 17))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("`cringe` has nothing to learn from: 0 positive, 2 negative"),
        "{error}"
    );
}

#[test]
fn counts_and_rows_that_do_not_fit_are_errors() {
    let made = batch(1);
    for loss in losses() {
        let rows = made.rows_for(&loss);
        let stats = made.op(&loss, &made.hidden, &made.embedding, &rows).forward().unwrap();
        let counts = made.weighted(&loss, &made.counts());
        let error = |rows: &TokenRows, counts: &TokenCounts| {
            loss.evaluate(&stats, rows, counts, Some(&made.draws()))
                .unwrap_err()
                .to_string()
        };
        let few = TokenCounts {
            negative: 4.0,
            ..counts
        };
        assert!(error(&rows, &few).starts_with("counts: expected rows of the whole batch, at least"));
        let nan = TokenCounts {
            negative: f64::NAN,
            ..counts
        };
        assert!(error(&rows, &nan).starts_with("counts: expected rows of the whole batch, at least"));
        let short = made.rows(&[0, 1]).rows_for(&loss);
        assert_eq!(
            error(&short, &counts),
            "example: expected [15] of Int64, as `stats` has 15 rows, got [2] of Int64"
        );
        let strange = TokenRows {
            label: rows.label.shallow_clone() + 1,
            ..made.rows_for(&loss)
        };
        assert_eq!(
            error(&strange, &counts),
            "label: expected 1 (positive), 0 (negative) or -1 (unlabelled), got 2"
        );
        let outside = TokenRows {
            n_examples: 3,
            ..made.rows_for(&loss)
        };
        assert_eq!(error(&outside, &counts), "example: expected 0..3, got 4");
        if loss.draws_per_row() > 0 {
            for draws in [
                None,
                Some(Tensor::zeros([15, 2], (Kind::Double, Device::Cpu))),
                Some(made.draws() + 1.0),
            ] {
                let error = loss.evaluate(&stats, &rows, &counts, draws.as_ref()).unwrap_err();
                assert!(
                    error
                        .to_string()
                        .starts_with("draws: expected [15, 1], uniform in [0, 1)"),
                    "{error}"
                );
            }
        }
    }
}
