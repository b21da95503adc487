//! What does not fit is an error that says so.

use std::cell::RefCell;
use tch::{Device, Kind, Tensor};

use unsay_losses::{CompletionRows, TokenOp, TokenRows};

use crate::every;
use crate::subject::{How, Missing};

#[test]
fn an_empty_batch_is_an_error() {
    let error = TokenRows::new(&[], &[], &[], Device::Cpu).unwrap_err();
    assert_eq!(error.to_string(), "the batch of token rows is empty");
    let error = CompletionRows::new(&[], Device::Cpu).unwrap_err();
    assert_eq!(error.to_string(), "the batch of completions is empty");
    let none = |n: i64| Tensor::zeros([n, 3], (Kind::Double, Device::Cpu));
    let targets = Tensor::zeros([0], (Kind::Int64, Device::Cpu));
    let error = TokenOp::new(&none(0), &none(4), &targets, &Default::default()).unwrap_err();
    assert_eq!(error.to_string(), "the batch of hidden states is empty");
}

#[test]
fn counts_that_are_nan_or_too_small_are_errors() {
    every(|subject| {
        let batch = subject.batch(1, 6);
        let wrong: [fn(f64) -> f64; 4] = [|n| n - 1.0, |_| f64::NAN, |n| -n, |_| 0.0];
        for count in wrong {
            let text = subject
                .whole(
                    &batch,
                    How {
                        count,
                        ..How::default()
                    },
                )
                .err()
                .unwrap()
                .to_string();
            assert!(text.starts_with("counts: expected"), "{text}");
        }
    });
}

/// What can be missing, and how the error about it begins; it ends in what was found.
const WANTED: [(Missing, &[&str]); 6] = [
    (Missing::Reference, &["reference: expected"]),
    (Missing::Draws, &["draws: expected"]),
    (Missing::Baseline, &["baseline: expected"]),
    (Missing::Marks, &["candidates: expected", "rows.weight: expected"]),
    (Missing::Weights, &["weights: expected"]),
    (Missing::Old, &["old: expected"]),
];

#[test]
fn what_is_missing_is_named() {
    let asked = RefCell::new([0; 6]);
    every(|subject| {
        let batch = subject.batch(1, 6);
        let wants = subject.setting.asks_for();
        for (at, (missing, names)) in WANTED.into_iter().enumerate() {
            let outcome = subject.whole(
                &batch,
                How {
                    without: Some(missing),
                    ..How::default()
                },
            );
            if !wants.contains(&missing) {
                assert!(outcome.unwrap().all_finite());
                continue;
            }
            asked.borrow_mut()[at] += 1;
            let text = outcome.err().unwrap().to_string();
            assert!(
                names.iter().any(|name| text.starts_with(name)) && text.ends_with("one"),
                "{text}"
            );
        }
    });
    let asked = asked.into_inner();
    assert!(!asked.contains(&0), "{asked:?}");
}
