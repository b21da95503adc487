//! Values and gradients stay finite where a training run may end up.

use std::cell::Cell;

use tch::Kind;

use crate::batch::Batch;
use crate::every;
use crate::subject::{How, Subject};

/// IPO squares the margin, and these divergences make the margin of the exponent of a log-ratio: `e^80` has no square in
/// `f32`.
fn squares_an_exponent(subject: &Subject) -> bool {
    let exponent = ["divergence: ForwardKl", "divergence: Alpha"];
    subject.name == "ipo" && exponent.iter().any(|divergence| subject.text.contains(divergence))
}

/// Logits of ±1e4, targets with probability 1 − 1e-12 and 1e-12, log-ratios of ±1e4, ±59 and ±39, for every role and every
/// combination over the completions of a pair. What clips a gradient adds up its squares, which must still fit.
#[test]
fn margins_of_ten_thousand_and_certain_tokens_stay_finite_in_value_and_gradient() {
    let without_norm = Cell::new(0);
    every(|subject| {
        let batch = Batch::extreme(&|unit| subject.setting.roles(unit));
        for kind in [Kind::Double, Kind::Float] {
            let ours = subject.whole(&batch, How { kind, ..How::default() }).unwrap();
            let strange: Vec<usize> = (0..ours.per_unit.len())
                .filter(|&u| !ours.per_unit[u].is_finite())
                .collect();
            assert!(ours.all_finite(), "{kind:?}: {:?}, units {strange:?}", ours.terms);
            if kind == Kind::Float && squares_an_exponent(subject) {
                without_norm.set(without_norm.get() + 1);
                continue;
            }
            let squares = ours.gradients.iter().map(|gradient| gradient.square().sum(kind));
            let norm = squares.reduce(|a, b| a + b).unwrap();
            assert!(norm.isfinite().int64_value(&[]) == 1, "{kind:?}: the norm is {norm:?}");
        }
    });
    assert_eq!(without_norm.into_inner(), 2);
}
