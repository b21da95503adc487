//! Losses of reinforcement learning: completions that the policy sampled, each token with an advantage.
//!
//! A loss is the value of every token, [`PolicyLoss::surrogate`]: most compare the policy with the one that sampled, by a
//! ratio per token or per completion that is held near 1. How the values of tokens become one number, the penalty on
//! leaving the reference and the entropy bonus are in [`Objective`]. [`ValueLoss`] trains a critic on the same rows, and
//! [`leave_one_out`] and [`group_normalised`] make advantages of the rewards of groups.

mod advantages;
mod aggregate;
mod cispo;
mod grpo;
mod gspo;
pub mod kl;
mod objective;
mod ppo;
mod reinforce;
mod rloo;
mod surrogate;
mod value;

use crate::registry::registry;
use crate::{Described, Result};

pub use advantages::{Combination, Deviation, Normalisation, Scale, batch_normalised, group_normalised, leave_one_out};
pub use aggregate::{Aggregate, PolicyCounts};
pub use objective::{Batch, KlPenalty, Objective};
pub use surrogate::{Surrogate, Tokens};
pub use value::{ValueBatch, ValueLoss};

registry! {
    /// Every loss over sampled completions, in its manifest form: a map of one key,
    /// `{ ppo: { clip_low: 0.2, clip_high: 0.2 } }`.
    dyn PolicyLoss:
    Cispo => cispo,
    Grpo => grpo,
    Gspo => gspo,
    Ppo => ppo,
    Reinforce => reinforce,
    Rloo => rloo,
}

/// A loss over sampled completions.
///
/// Ask it what it needs; never compare its name.
pub trait PolicyLoss: Described {
    /// Whether it has one value per completion, so that only [`Aggregate::SequenceMean`] makes sense.
    fn per_completion(&self) -> bool {
        false
    }

    /// The value of every token, with its graph, not reduced, and what is logged of it.
    ///
    /// **Errors**: [`Error::Input`](crate::Error::Input) where a loss over whole completions is given advantages that differ within one; otherwise
    /// only libtorch's, as [`Tokens::new`] has checked the inputs.
    fn surrogate(&self, tokens: &Tokens<'_>) -> Result<Surrogate>;

    /// Settings that between them use every switch.
    fn samples() -> Vec<Self>
    where
        Self: Sized;
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::kl::{KlClamp, KlEstimator};
    use super::*;
    use crate::{CompletionRows, TokenStats};

    pub(in crate::policy) fn tensor(values: &[f64]) -> Tensor {
        Tensor::from_slice(values)
    }

    /// What an op would have said of these log-probabilities.
    pub(in crate::policy) fn stats(logp: &Tensor) -> TokenStats {
        let whole = |kind| Tensor::zeros(logp.size(), (kind, Device::Cpu));
        TokenStats::new(whole(Kind::Int64), logp.shallow_clone(), whole(Kind::Bool))
    }

    pub(in crate::policy) fn floats(t: &Tensor) -> Vec<f64> {
        Vec::try_from(t.detach().to_kind(Kind::Double).reshape([-1])).unwrap()
    }

    pub(in crate::policy) fn near(ours: &[f64], by_hand: &[f64]) -> bool {
        ours.len() == by_hand.len() && ours.iter().zip(by_hand).all(|(a, b)| (a - b).abs() < 1e-12)
    }

    /// Every loss in every setting of its file, with the aggregates that go with it.
    pub(in crate::policy) fn objectives() -> Vec<Objective> {
        let aggregates = [
            Aggregate::SequenceMean,
            Aggregate::TokenMean,
            Aggregate::SequenceSum,
            Aggregate::FixedLength { length: 7 },
        ];
        let all = Loss::samples().into_iter().flat_map(|loss| {
            let n = if loss.per_completion() { 1 } else { aggregates.len() };
            aggregates[..n].iter().map(move |a| Objective::new(loss.clone(), *a))
        });
        let all: Vec<Objective> = all.collect();
        // Seven settings of five losses with four aggregates, and one of RLOO.
        assert_eq!((Loss::NAMES.len(), all.len()), (6, 7 * 4 + 1));
        all
    }

    #[test]
    fn before_the_first_update_the_gradient_is_that_of_the_expected_reward() {
        let n = 4.0;
        let advantage = [0.5, -1.0, 2.0, -0.25];
        let rows = CompletionRows::new(&[1, 1, 1, 1], Device::Cpu).unwrap();
        let mut ratios = 0;
        for objective in objectives() {
            if !matches!(objective.aggregate, Aggregate::SequenceMean | Aggregate::TokenMean) {
                continue;
            }
            let logp = tensor(&[-1.0, -0.3, -2.0, -0.7]).set_requires_grad(true);
            let batch = Batch {
                stats: &stats(&logp),
                old: &logp,
                advantage: &tensor(&advantage),
                reference: None,
                rows: &rows,
            };
            let value = objective.evaluate(&batch, &PolicyCounts::of(&rows)).unwrap();
            value.total.backward();
            assert!(near(&floats(&logp.grad()), &advantage.map(|a| -a / n)), "{objective:?}");
            if matches!(objective.loss, Loss::Reinforce(_) | Loss::Cispo(_)) {
                continue;
            }
            let mean = advantage.iter().sum::<f64>() / n;
            assert!((value.total.double_value(&[]) + mean).abs() < 1e-12, "{objective:?}");
            let of = |name: &str| {
                value
                    .terms
                    .iter()
                    .find(|(own, _)| *own == name)
                    .unwrap()
                    .1
                    .double_value(&[])
            };
            assert!(
                (of("ratio") - 1.0).abs() < 1e-12 && of("clip_fraction").abs() < 1e-12 && of("approx_kl").abs() < 1e-12
            );
            ratios += 1;
        }
        assert_eq!(ratios, 5 * 2 + 1);
    }

    #[test]
    fn extreme_log_ratios_stay_finite() {
        let log_ratio = [1e4, -1e4, 1e4, -1e4, 88.0, 700.0];
        let estimators = [
            KlEstimator::K1,
            KlEstimator::K2,
            KlEstimator::K3,
            KlEstimator::K3WithK2Gradient,
        ];
        let mut runs = 0;
        for (kind, plain) in [Kind::Float, Kind::Double]
            .into_iter()
            .flat_map(|k| objectives().into_iter().map(move |o| (k, o)))
        {
            for estimator in estimators {
                let objective = Objective {
                    kl: Some(KlPenalty {
                        estimator,
                        coefficient: 0.1,
                        clamp: KlClamp::default(),
                    }),
                    ..plain.clone()
                };
                let rows = CompletionRows::new(&[1, 1, 2, 2], Device::Cpu).unwrap();
                let logp = tensor(&log_ratio).to_kind(kind).set_requires_grad(true);
                let batch = Batch {
                    stats: &stats(&logp),
                    old: &tensor(&[0.0; 6]),
                    advantage: &tensor(&[-1.0, -1.0, 1.0, 1.0, -2.0, -2.0]),
                    reference: Some(&tensor(&[0.0; 6])),
                    rows: &rows,
                };
                let value = objective.evaluate(&batch, &PolicyCounts::of(&rows)).unwrap();
                value.total.backward();
                let finite = |t: &Tensor| floats(t).iter().all(|x| x.is_finite());
                assert!(finite(&value.total) && finite(&logp.grad()), "{kind:?} {objective:?}");
                assert!(
                    value.terms.iter().all(|(_, t)| finite(t)),
                    "{kind:?} {objective:?} {:?}",
                    value.terms
                );
                runs += 1;
            }
        }
        assert_eq!(runs, 2 * 29 * 4);
    }
}
