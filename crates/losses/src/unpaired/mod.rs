//! Losses over completions that are each labelled desirable or undesirable, without a counterpart.
//!
//! A loss is the value of one completion, [`UnpairedLoss::values`]. [`Objective`] adds what holds the model to the
//! desirable ones beside it. No loss here needs both labels in a batch: training on undesirable completions alone
//! works.

mod apo_zero_unpaired;
mod bco;
mod kto;
mod labelled;
mod npo;
mod objective;
mod sequence_gradient_ascent;
mod simnpo;

use tch::Tensor;

pub use labelled::{Labelled, UnpairedCounts};
pub use objective::{Batch, Objective};

use crate::registry::registry;
use crate::{Baseline, Described, Result};

registry! {
    /// Every loss over labelled completions, in its manifest form: a map of one key, `{ kto: { beta: 0.1 } }`.
    dyn UnpairedLoss:
    ApoZeroUnpaired => apo_zero_unpaired,
    Bco => bco,
    Kto => kto,
    Npo => npo,
    SequenceGradientAscent => sequence_gradient_ascent,
    Simnpo => simnpo,
}

/// A loss over labelled completions.
///
/// Ask it what it needs; never compare its name.
pub trait UnpairedLoss: Described {
    /// Whether it compares with a frozen reference model.
    fn uses_reference(&self) -> bool;

    /// The scale of the implicit rewards that are reported.
    fn beta(&self) -> f64;

    /// Whether it divides log-probabilities by the number of tokens itself.
    fn per_token(&self) -> bool {
        false
    }

    /// The whole-batch number that it subtracts from rewards, if any.
    fn baseline(&self) -> Option<Baseline> {
        None
    }

    /// Whether desirable completions are trained by the loss itself. Where they are not their values are zero, and
    /// the loss divides by the number of undesirable ones alone.
    fn trains_desirable(&self) -> bool {
        true
    }

    /// Whether it takes a weight for every undesirable completion, [`Labelled::weights`].
    fn takes_weights(&self) -> bool {
        false
    }

    /// `[B]` the value of every completion, with its graph, not reduced.
    ///
    /// **Errors**: [`Error::Input`](crate::Error::Input) when something that it needs is missing.
    fn values(&self, labelled: &Labelled) -> Result<Tensor>;

    /// `[B]` the implicit rewards, for the log: `β` times the log-ratio to the reference, or `β` times the
    /// log-probability where there is none; no graph.
    ///
    /// **Errors**: as [`UnpairedLoss::values`].
    fn rewards(&self, labelled: &Labelled) -> Result<Tensor> {
        let completions = &labelled.completions;
        completions.reward(self.beta(), self.uses_reference(), self.per_token())
    }

    /// Settings that between them use every switch.
    fn samples() -> Vec<Self>
    where
        Self: Sized;
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::Completions;

    /// Completions of four tokens with these log-ratios to a reference of -12 each, all with baseline 0.5 and weights
    /// of 3; the leaf is their log-probability.
    pub(super) fn made(ratios: &[f64], desirable: &[bool], kind: Kind) -> (Tensor, Labelled) {
        let leaf = (Tensor::from_slice(ratios) - 12.0)
            .to_kind(kind)
            .set_requires_grad(true);
        let constant = |x: f64| leaf.full_like(x).detach();
        let completions = Completions::from_sums(&leaf, Some(&constant(-12.0)), &constant(4.0)).unwrap();
        let labelled = Labelled {
            baseline: Some(0.5),
            weights: Some(constant(3.0)),
            ..Labelled::new(completions, desirable).unwrap()
        };
        (leaf, labelled)
    }

    /// Values, and the gradient of their sum.
    pub(super) fn run(loss: &dyn UnpairedLoss, ratios: &[f64], desirable: &[bool], kind: Kind) -> [Vec<f64>; 2] {
        let (leaf, labelled) = made(ratios, desirable, kind);
        let values = loss.values(&labelled).unwrap();
        values.sum(kind).backward();
        [values, leaf.grad()].map(|t| Vec::try_from(t.detach().to_kind(Kind::Double)).unwrap())
    }

    pub(super) fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    pub(super) fn near(ours: &[f64], expected: &[f64]) -> bool {
        ours.len() == expected.len() && ours.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12)
    }

    /// The texts of all problems of a loss in its manifest form.
    pub(super) fn problems(text: &str) -> Vec<String> {
        let loss: Loss = serde_json::from_str(text).unwrap();
        loss.problems().iter().map(ToString::to_string).collect()
    }

    fn samples() -> Vec<Loss> {
        tch::set_num_threads(1);
        let all = Loss::samples();
        assert_eq!((Loss::NAMES.len(), all.len()), (6, 11));
        all
    }

    #[test]
    fn every_gradient_is_that_of_the_value() {
        let (ratios, desirable) = ([2.0, -3.0, -1.0, 4.0], [true, false, true, false]);
        for loss in samples() {
            let [_, gradient] = run(&*loss, &ratios, &desirable, Kind::Double);
            for at in 0..ratios.len() {
                let moved = |by: f64| {
                    let mut ratios = ratios;
                    ratios[at] += by;
                    run(&*loss, &ratios, &desirable, Kind::Double)[0].iter().sum::<f64>()
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!(
                    (slope - gradient[at]).abs() < 1e-8,
                    "{loss:?}: {slope} is not {}",
                    gradient[at]
                );
            }
        }
    }

    #[test]
    fn every_loss_stays_finite_at_margins_of_ten_thousand() {
        for loss in samples() {
            for kind in [Kind::Double, Kind::Float] {
                let ratios = [1e4, -1e4, 1e4, -1e4, 0.0, 0.0];
                let desirable = [true, true, false, false, true, false];
                let [values, gradient] = run(&*loss, &ratios, &desirable, kind);
                assert!(
                    values.iter().chain(&gradient).all(|x| x.is_finite()),
                    "{loss:?} {kind:?}"
                );
                // A negative is never pushed up, a desirable one never down.
                let wrong = gradient
                    .iter()
                    .zip(desirable)
                    .any(|(g, good)| if good { *g > 0.0 } else { *g < 0.0 });
                assert!(!wrong, "{loss:?} {kind:?}: {gradient:?}");
            }
        }
    }

    #[test]
    fn losses_that_leave_desirable_completions_alone_say_so() {
        let mut alone = Vec::new();
        for loss in samples() {
            // A completion that is not trained may even have no reference.
            let (leaf, labelled) = made(&[2.0, -3.0], &[true, false], Kind::Double);
            let hole = Tensor::from_slice(&[f64::NAN, -12.0]);
            let completions = Completions::from_sums(&leaf, Some(&hole), &leaf.full_like(4.0).detach()).unwrap();
            let values = loss
                .values(&Labelled {
                    completions,
                    ..labelled
                })
                .unwrap();
            values.get(1).backward();
            let gradient = Vec::<f64>::try_from(leaf.grad()).unwrap();
            let value = values.double_value(&[0]);
            assert!(gradient[1] > 0.0, "{loss:?}: {gradient:?}");
            if !loss.trains_desirable() {
                assert!(value.abs() + gradient[0].abs() <= 0.0, "{loss:?}: {value} {gradient:?}");
                alone.push(loss.name());
            } else {
                assert!(value.is_nan(), "{loss:?}: {value}");
            }
        }
        alone.dedup();
        assert_eq!(alone, ["npo", "sequence_gradient_ascent", "simnpo"]);
    }

    #[test]
    fn rewards_are_those_of_the_loss_and_carry_no_graph() {
        let rewards = |text: &str| {
            let loss: Loss = serde_json::from_str(text).unwrap();
            let (_, labelled) = made(&[2.0, -3.0], &[true, false], Kind::Double);
            let rewards = loss.rewards(&labelled).unwrap();
            assert!(!rewards.requires_grad());
            Vec::<f64>::try_from(rewards).unwrap()
        };
        for text in [
            r#"{"kto": {"beta": 0.5}}"#,
            r#"{"apo_zero_unpaired": {"beta": 0.5}}"#,
            r#"{"bco": {"beta": 0.5}}"#,
            r#"{"npo": {"beta": 0.5}}"#,
        ] {
            assert!(near(&rewards(text), &[1.0, -1.5]), "{text}");
        }
        // -10 and -15 over four tokens.
        assert!(near(&rewards(r#"{"simnpo": {"beta": 0.5}}"#), &[-1.25, -1.875]));
        assert!(near(&rewards(r#"{"sequence_gradient_ascent": {}}"#), &[-10.0, -15.0]));
    }

    #[test]
    fn every_sample_survives_the_manifest() {
        for loss in samples() {
            loss.check().unwrap();
            let text = serde_json::to_string(&loss).unwrap();
            assert!(text.starts_with(&format!("{{\"{}\":", loss.name())), "{text}");
            assert_eq!(serde_json::from_str::<Loss>(&text).unwrap(), loss);
        }
        let typo = serde_json::from_str::<Loss>(r#"{"kto": {"beta": 0.1, "weight": 1.0}}"#);
        assert!(typo.unwrap_err().to_string().starts_with("unknown field `weight`"));
    }
}
