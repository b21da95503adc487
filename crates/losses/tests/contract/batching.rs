//! How a batch is laid out, ordered and cut changes nothing.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::every;
use crate::subject::{How, Outcome, Subject};

const N: usize = 6;

#[test]
fn order_and_padding_change_nothing() {
    every(|subject| {
        let batch = subject.batch(5, N);
        let whole = subject.whole(&batch, How::default()).unwrap();
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12 * (1.0 + b.abs());
        assert!(near(whole.per_unit.iter().sum(), whole.total()));
        let order = [3, 0, 5, 1, 4, 2];
        let ours = subject.run(&batch, &order, How::default()).unwrap();
        assert!(near(ours.total(), whole.total()), "{} {}", ours.total(), whole.total());
        assert!(ours.difference(&whole) < 1e-12, "{}", ours.difference(&whole));
        for (place, unit) in order.into_iter().enumerate() {
            assert!(near(ours.per_unit[place], whole.per_unit[unit]), "unit {unit}");
        }
        let padded = subject
            .whole(
                &batch,
                How {
                    padded: true,
                    ..How::default()
                },
            )
            .unwrap();
        assert!(near(padded.total(), whole.total()) && padded.difference(&whole) < 1e-14);
    });
}

/// The values, terms and gradients of the parts, added up.
fn added_up(subject: &Subject, batch: &crate::batch::Batch, part_of: &[usize]) -> Outcome {
    let mut sum: Option<Outcome> = None;
    for part in 0..4 {
        let units: Vec<usize> = (0..N).filter(|&u| part_of[u] == part).collect();
        if units.is_empty() {
            continue;
        }
        let ours = subject.run(batch, &units, How::default()).unwrap();
        let mut per_unit = vec![0.0; N];
        for (value, &unit) in ours.per_unit.iter().zip(&units) {
            per_unit[unit] = *value;
        }
        sum = Some(match sum {
            None => Outcome { per_unit, ..ours },
            Some(before) => Outcome {
                total: before.total + ours.total,
                per_unit: before.per_unit.iter().zip(per_unit).map(|(a, b)| a + b).collect(),
                gradients: [0, 1, 2, 3, 4].map(|i| &before.gradients[i] + &ours.gradients[i]),
                terms: before
                    .terms
                    .iter()
                    .zip(&ours.terms)
                    .map(|(a, b)| {
                        assert_eq!(a.0, b.0, "{}", subject.text);
                        (a.0, a.1 + b.1)
                    })
                    .collect(),
            },
        });
    }
    sum.unwrap()
}

#[test]
fn any_split_into_micro_batches_adds_up() {
    let (split, refused) = (Cell::new(0), Cell::new(0));
    let all = every(|subject| {
        if subject.setting.couples_units() {
            refused.set(refused.get() + 1);
            let part = subject.run(&subject.batch(0, N), &[0, 1], How::default());
            let text = part.err().unwrap().to_string();
            assert!(text.starts_with("batch: expected all pairs at once"), "{text}");
            return;
        }
        split.set(split.get() + 1);
        let mut runner = TestRunner::new(Config {
            failure_persistence: None,
            ..Config::with_cases(4)
        });
        let cases = (any::<u64>(), prop::collection::vec(0usize..4, N));
        let tried = runner.run(&cases, |(seed, part_of)| {
            let batch = subject.batch(seed, N);
            let whole = subject.whole(&batch, How::default()).unwrap();
            let ours = added_up(subject, &batch, &part_of);
            let near = |a: f64, b: f64| (a - b).abs() < 1e-12 * (1.0 + b.abs());
            prop_assert!(near(ours.total(), whole.total()));
            prop_assert!(ours.difference(&whole) < 1e-12);
            prop_assert_eq!(ours.terms.len(), whole.terms.len());
            let values = ours.per_unit.iter().zip(&whole.per_unit);
            let terms = ours.terms.iter().zip(&whole.terms).map(|(a, b)| (&a.1, &b.1));
            for (ours, whole) in values.chain(terms) {
                prop_assert!(near(*ours, *whole));
            }
            Ok(())
        });
        if let Err(error) = tried {
            panic!("{error}");
        }
    });
    assert!(split.get() + refused.get() == all && refused.get() > 0);
}
