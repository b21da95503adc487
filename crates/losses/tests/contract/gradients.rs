//! Gradients are those of the value, and the op gives what full logits give.

use std::cell::{Cell, RefCell};

use tch::Tensor;
use unsay_losses::token;

use crate::every;
use crate::plain::Numbers;
use crate::subject::{How, Outcome, SAMPLED_TOKEN, Subject, Way};

const N: usize = 7;

#[test]
fn value_and_gradient_equal_full_logits_at_every_chunk_size() {
    let fused = Cell::new(0);
    every(|subject| {
        let batch = subject.batch(3, N);
        let run = |way, chunk_rows| {
            let how = How {
                way,
                chunk_rows,
                ..How::default()
            };
            subject.whole(&batch, how).unwrap()
        };
        let plain = run(Way::Plain, None);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-11 * (1.0 + b.abs());
        let both = [Way::Op, Way::Fused];
        let ways = if subject.family == "token" {
            &both[..]
        } else {
            &both[..1]
        };
        for &way in ways {
            for chunk_rows in [None, Some(1), Some(4)] {
                let ours = run(way, chunk_rows);
                assert!(near(ours.total(), plain.total()), "{} {}", ours.total(), plain.total());
                assert!(ours.difference(&plain) < 1e-11, "{}", ours.difference(&plain));
                assert!(ours.per_unit.iter().zip(&plain.per_unit).all(|(a, b)| near(*a, *b)));
                assert_eq!(ours.terms.len(), plain.terms.len());
                for (name, value) in &plain.terms {
                    let found = ours.terms.iter().find(|(known, _)| known == name).unwrap();
                    assert!(near(found.1, *value), "{name}");
                }
            }
            fused.set(fused.get() + usize::from(way == Way::Fused));
        }
    });
    assert_eq!(fused.into_inner(), token::Loss::samples().len());
}

/// What every leaf is moved by: states, embedding, second embedding, scale, bias.
type Direction = [Tensor; 5];

/// The value of the batch that this seed makes, with everything moved; what was measured before stays as it was, and so
/// does what is detached.
fn moved(subject: &Subject, seed: u64, direction: &Direction, by: f64) -> f64 {
    let (mut batch, still) = (subject.batch(seed, N), subject.batch(seed, N));
    batch.states += &direction[0] * by;
    batch.embedding += &direction[1] * by;
    batch.second += &direction[2] * by;
    batch.scale += direction[3].double_value(&[]) * by;
    batch.bias += direction[4].double_value(&[]) * by;
    let still = subject.setting.detaches().map(|_| &still);
    let how = How {
        still,
        ..How::default()
    };
    subject.whole(&batch, how).unwrap().total()
}

fn slope(ours: &Outcome, direction: &Direction) -> f64 {
    let parts = ours.gradients.iter().zip(direction);
    parts
        .map(|(gradient, direction)| (gradient * direction).sum(tch::Kind::Double).double_value(&[]))
        .sum()
}

/// In random directions of everything, then of the states alone; a wrong sign or factor anywhere shows. What is detached is
/// held where it was; where the gradient is that of another value, that one is differenced.
#[test]
fn gradient_equals_central_finite_differences() {
    let (step, seed) = (1e-5, 11);
    let (held, of_another) = (RefCell::new(Vec::new()), Cell::new(0));
    every(|subject| {
        held.borrow_mut().extend(subject.setting.detaches());
        let another = subject.setting.differentiated().map(|setting| Subject {
            text: subject.text.clone(),
            setting,
            ..*subject
        });
        of_another.set(of_another.get() + usize::from(another.is_some()));
        let valued = another.as_ref().unwrap_or(subject);
        let batch = subject.batch(seed, N);
        let chunked = How {
            chunk_rows: Some(4),
            ..How::default()
        };
        let ours = subject.whole(&batch, chunked).unwrap();
        let sizes = [
            batch.states.size(),
            batch.embedding.size(),
            batch.second.size(),
            vec![],
            vec![],
        ];
        let mut steepest = 0f64;
        for which in 0..4 {
            let mut numbers = Numbers::new(which);
            let direction = [0, 1, 2, 3, 4].map(|part| {
                let scale = if which < 2 || part == 0 { 1.0 } else { 0.0 };
                numbers.tensor(&sizes[part], scale)
            });
            let at = |by: f64| moved(valued, seed, &direction, by);
            let (found, exact) = ((at(step) - at(-step)) / (2.0 * step), slope(&ours, &direction));
            // Both ends of the step round the value in its last place.
            let rounding = 1e-10 * (1.0 + ours.total().abs());
            assert!(
                (found - exact).abs() < 1e-6 * exact.abs() + rounding,
                "{found} is not {exact}"
            );
            steepest = steepest.max(exact.abs());
        }
        assert!(
            steepest > 1e-4,
            "nothing was compared: the slopes are {steepest} at most"
        );
    });
    let mut held = held.into_inner();
    held.sort_unstable();
    held.dedup();
    assert_eq!(
        held,
        [
            "the gate of the pair",
            "the ratio, a weight",
            SAMPLED_TOKEN,
            "the weights of the pairs",
            "the weights of the pairs, and the gate",
        ]
    );
    assert!(of_another.into_inner() > 0);
}
