//! Group-relative policy optimisation.

use serde::{Deserialize, Serialize};

use super::surrogate::clipped;
use super::{PolicyLoss, Surrogate, Tokens};
use crate::error::{positive, some_share};
use crate::{Card, Described, Error, Result};

/// GRPO: PPO's clipped ratio of each token, with one advantage for all tokens of a completion.
///
/// `ℓ = max(−A min(ρ, δ), −A clip(ρ, 1 − ε₋, 1 + ε₊))` with `ρ = π(y_t)/π_old(y_t)` and `A` from
/// [`group_normalised`](super::group_normalised); `δ` only where it is set. It moves bad tokens alone and is the
/// `dual_clip` of [`Ppo`](super::Ppo).
///
/// **Shapes**: see [`Tokens`].
///
/// **Parameters**: `clip_low` `ε₋` (required), in `(0, 1]`; `clip_high` `ε₊` (required), finite and above 0; `delta` `δ`
/// (none), finite and at least `1 + ε₊`: a smaller one would hold good tokens below their bound and not reach bad ones.
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: a completion below its group's mean is pushed down, each token by `|A| ρ` per unit of log-probability
/// until `ρ < 1 − ε₋`. Above, the push grows with `ρ` without a bound; with `delta` it is zero where `ρ > δ`.
///
/// **Reference**: Z. Shao et al., "DeepSeekMath: Pushing the limits of mathematical reasoning in open language models",
/// 2024, eq. 3; two bounds: Q. Yu et al., "DAPO: An open-source LLM reinforcement learning system at scale", 2025, eq. 10;
/// `delta`: Prime Intellect Team, "INTELLECT-2: A reasoning model trained through globally decentralized reinforcement
/// learning", 2025.
///
/// **Differs from the paper**: its penalty on leaving the reference is `kl` of the [`Objective`](super::Objective), `k3`
/// there, and its mean is [`Aggregate::SequenceMean`](super::Aggregate::SequenceMean). Log-ratios above 40 are held there, as
/// in [`Ppo`](super::Ppo). TRL takes any `delta`; from `1 + ε₊` on values and gradients are the same.
///
/// ```
/// use tch::{Device, Tensor};
/// use unsay_losses::CompletionRows;
/// use unsay_losses::policy::{Grpo, PolicyLoss, Tokens};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let rows = CompletionRows::new(&[2], Device::Cpu)?;
/// let logp = Tensor::from_slice(&[1.1f64.ln(), 5f64.ln()]); // of ratios, as the old ones are 0
/// let old = Tensor::from_slice(&[0.0f64; 2]);
/// let advantage = Tensor::from_slice(&[-1.0f64; 2]);
/// let grpo = Grpo { clip_low: 0.2, clip_high: 0.2, delta: Some(4.0) };
/// let values = grpo.surrogate(&Tokens::new(&logp, &old, &advantage, &rows)?)?.values;
/// assert!((values.double_value(&[0]) - 1.1).abs() < 1e-12 && (values.double_value(&[1]) - 4.0).abs() < 1e-12);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grpo {
    /// How far the ratio may fall below 1, in `(0, 1]`; published runs use 0.2.
    pub clip_low: f64,
    /// How far the ratio may rise above 1; finite, above 0; published runs use 0.2 to 0.28.
    pub clip_high: f64,
    /// The largest ratio that a bad token counts with; finite, at least `1 + clip_high`.
    #[serde(default)]
    pub delta: Option<f64>,
}

impl Described for Grpo {
    fn card(&self) -> Card {
        Card {
            name: "grpo",
            summary: "ratio of each token to the sampling policy, clipped, for advantages within groups",
            formula: "max(−A min(ρ, δ), −A clip(ρ, 1 − ε₋, 1 + ε₊))",
            on_negatives: "A < 0: down until ρ < 1 − ε₋; unbounded above, bounded by δ|A| with `delta`",
            source: "Shao et al. 2024, eq. 3",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let fine = |delta: &f64| delta.is_finite() && *delta >= 1.0 + self.clip_high;
        let delta = self.delta.filter(|delta| !fine(delta)).map(|delta| Error::Range {
            name: "grpo.delta",
            value: delta.to_string(),
            range: "a finite number, at least 1 + `clip_high`",
        });
        some_share("grpo.clip_low", self.clip_low)
            .into_iter()
            .chain(positive("grpo.clip_high", self.clip_high))
            .chain(delta)
            .collect()
    }
}

impl PolicyLoss for Grpo {
    fn surrogate(&self, tokens: &Tokens<'_>) -> Result<Surrogate> {
        let bounds = (self.clip_low, self.clip_high);
        clipped(&tokens.log_ratio()?, &tokens.advantage, bounds, self.delta)
    }

    fn samples() -> Vec<Self> {
        [None, Some(1.5)]
            .map(|delta| Grpo {
                clip_low: 0.2,
                clip_high: 0.28,
                delta,
            })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ppo;
    use super::super::surrogate::tests::{near, trial};
    use super::*;

    const RATIOS: [f64; 4] = [5.0, 5.0, 1.4, 0.5];
    const ADVANTAGES: [f64; 4] = [1.0, -1.0, -1.0, 1.0];

    #[test]
    fn delta_bounds_what_is_not_clipped() {
        let loss = Grpo {
            clip_low: 0.2,
            clip_high: 0.3,
            delta: Some(1.5),
        };
        let ours = trial(&loss, &[4], &RATIOS.map(f64::ln), &ADVANTAGES);
        assert!(near(&ours.values, &[-1.3, 1.5, 1.4, -0.5]), "{:?}", ours.values);
        assert!(near(&ours.slopes, &[0.0, 0.0, 1.4, -0.5]), "{:?}", ours.slopes);
        assert!(near(&ours.ratio, &RATIOS));
        assert_eq!(ours.clipped.unwrap(), [true, false, false, false]);
        assert_eq!(ours.dual_clipped.unwrap(), [false, true, false, false]);
    }

    #[test]
    fn delta_is_the_dual_clip_of_ppo() {
        // From the smallest that is allowed on, and with ratios on both sides of each bound.
        let ratios = [0.1f64, 0.75, 0.9, 1.1, 1.25, 1.35, 2.9, 3.1, 50.0, 1e20].map(f64::ln);
        for bound in [1.3, 1.5, 3.0] {
            let loss = Grpo {
                clip_low: 0.2,
                clip_high: 0.3,
                delta: Some(bound),
            };
            let ppo = Ppo {
                clip_low: 0.2,
                clip_high: 0.3,
                dual_clip: Some(bound),
                log_ratio_clamp: None,
            };
            assert!(loss.problems().is_empty());
            for advantage in [[0.7; 10], [-0.7; 10]] {
                let ours = trial(&loss, &[10], &ratios, &advantage);
                let theirs = trial(&ppo, &[10], &ratios, &advantage);
                assert_eq!((ours.values, ours.slopes), (theirs.values, theirs.slopes));
                let beyond = ratios.map(|x| advantage[0] < 0.0 && x > f64::ln(bound));
                assert_eq!(ours.dual_clipped.unwrap(), beyond);
                assert_eq!(theirs.dual_clipped.unwrap(), beyond);
            }
        }
    }

    #[test]
    fn without_delta_it_is_ppo() {
        let loss = Grpo {
            clip_low: 0.2,
            clip_high: 0.3,
            delta: None,
        };
        let ppo = Ppo {
            clip_low: 0.2,
            clip_high: 0.3,
            dual_clip: None,
            log_ratio_clamp: None,
        };
        let ours = trial(&loss, &[4], &RATIOS.map(f64::ln), &ADVANTAGES);
        let theirs = trial(&ppo, &[4], &RATIOS.map(f64::ln), &ADVANTAGES);
        assert_eq!((ours.values, ours.slopes), (theirs.values, theirs.slopes));
    }

    #[test]
    fn ranges() {
        let loss = Grpo {
            clip_low: 2.0,
            clip_high: -1.0,
            delta: Some(-0.5),
        };
        let text: Vec<String> = loss.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "`grpo.clip_low` is 2, expected a number above 0, at most 1",
                "`grpo.clip_high` is -1, expected a finite number above 0",
                "`grpo.delta` is -0.5, expected a finite number, at least 1 + `clip_high`",
            ]
        );
        let delta = |delta| {
            let loss = Grpo {
                clip_low: 0.2,
                clip_high: 0.3,
                delta: Some(delta),
            };
            loss.problems().len()
        };
        assert_eq!((delta(1.3), delta(1.29), delta(1.0)), (0, 1, 1));
        assert_eq!((delta(f64::INFINITY), delta(f64::NAN)), (1, 1));
    }
}
