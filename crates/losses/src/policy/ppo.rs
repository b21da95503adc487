//! Proximal policy optimisation.

use serde::{Deserialize, Serialize};

use super::surrogate::clipped;
use super::{PolicyLoss, Surrogate, Tokens};
use crate::error::{above_one, positive, some_share};
use crate::{Card, Described, Error, Result};

/// PPO: the ratio of each token to the policy that sampled it, clipped.
///
/// `ℓ = max(−A ρ, −A clip(ρ, 1 − ε₋, 1 + ε₊))` with `ρ = π(y_t)/π_old(y_t)`, `A` the token's advantage. With `dual_clip`
/// `c`, `ℓ` is at most `−A c` where `A < 0`; from `1 + ε₊` on it is what [`Grpo`](super::Grpo) calls `delta`.
///
/// **Shapes**: see [`Tokens`].
///
/// **Parameters**: `clip_low` `ε₋` (required), in `(0, 1]`, where 1 does not clip from below; `clip_high` `ε₊` (required),
/// finite and above 0; `dual_clip` `c` (none), finite and above 1; `log_ratio_clamp` (none), finite and above 0, holds
/// `log ρ` between both signs of it before anything else.
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: a token with `A < 0` is pushed down by `|A| ρ` per unit of log-probability until `ρ < 1 − ε₋`, then
/// not at all. Above, the push grows with `ρ` without a bound; `dual_clip` makes it zero where `ρ > c`.
///
/// **Reference**: J. Schulman, F. Wolski, P. Dhariwal, A. Radford, O. Klimov, "Proximal policy optimization algorithms",
/// 2017, eq. 7; two bounds: Q. Yu et al., "DAPO: An open-source LLM reinforcement learning system at scale", 2025, eq. 10;
/// dual clip: D. Ye et al., "Mastering complex control in MOBA games with deep reinforcement learning", 2020.
///
/// **Differs from the paper**: log-ratios above 40 are held there, where the gradient is zero, so that both stay finite;
/// this concerns only bad tokens that became `e^40` times likelier. OpenRLHF and verl clamp log-ratios at ±20,
/// which is `log_ratio_clamp: 20`, and verl always has `dual_clip: 3`. TRL 0.11 multiplies the loss of a batch by 0 when
/// its mean ratio exceeds 10; that is not done here, the mean is the term `ratio`. HALOs adds a multiple of the mean
/// log-ratio, which is `kl` with `k1` and the sampling policy as the reference.
///
/// ```
/// use tch::{Device, Tensor};
/// use unsay_losses::CompletionRows;
/// use unsay_losses::policy::{PolicyLoss, Ppo, Tokens};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let rows = CompletionRows::new(&[3], Device::Cpu)?;
/// let logp = Tensor::from_slice(&[1.5f64.ln(), 0.5f64.ln(), 5f64.ln()]); // of ratios, as the old ones are 0
/// let old = Tensor::from_slice(&[0.0f64; 3]);
/// let advantage = Tensor::from_slice(&[2.0f64, -1.0, -1.0]);
/// let ppo = Ppo { clip_low: 0.2, clip_high: 0.3, dual_clip: Some(3.0), log_ratio_clamp: None };
/// let values = ppo.surrogate(&Tokens::new(&logp, &old, &advantage, &rows)?)?.values;
/// // -2 * 1.3; 0.8, larger than 0.5; 3, less than 5
/// let expected = [-2.6, 0.8, 3.0];
/// assert!(expected.iter().enumerate().all(|(at, x)| (values.double_value(&[at as i64]) - x).abs() < 1e-12));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ppo {
    /// How far the ratio may fall below 1, in `(0, 1]`; published runs use 0.2.
    pub clip_low: f64,
    /// How far the ratio may rise above 1; finite, above 0; published runs use 0.2 to 0.28.
    pub clip_high: f64,
    /// The largest ratio that a bad token counts with; finite, above 1; published runs use 3.
    #[serde(default)]
    pub dual_clip: Option<f64>,
    /// The largest absolute log-ratio; finite, above 0; released code uses 20.
    #[serde(default)]
    pub log_ratio_clamp: Option<f64>,
}

impl Described for Ppo {
    fn card(&self) -> Card {
        Card {
            name: "ppo",
            summary: "ratio of each token to the sampling policy, clipped",
            formula: "max(−A ρ, −A clip(ρ, 1 − ε₋, 1 + ε₊))",
            on_negatives: "A < 0: down until ρ < 1 − ε₋; unbounded above, bounded by c|A| with dual clip",
            source: "Schulman et al. 2017, eq. 7",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let dual_clip = self.dual_clip.and_then(|c| above_one("ppo.dual_clip", c));
        let clamp = self.log_ratio_clamp.and_then(|c| positive("ppo.log_ratio_clamp", c));
        some_share("ppo.clip_low", self.clip_low)
            .into_iter()
            .chain(positive("ppo.clip_high", self.clip_high))
            .chain(dual_clip)
            .chain(clamp)
            .collect()
    }
}

impl PolicyLoss for Ppo {
    fn surrogate(&self, tokens: &Tokens<'_>) -> Result<Surrogate> {
        let mut log_ratio = tokens.log_ratio()?;
        if let Some(bound) = self.log_ratio_clamp {
            log_ratio = log_ratio.f_clamp(-bound, bound)?;
        }
        let bounds = (self.clip_low, self.clip_high);
        clipped(&log_ratio, &tokens.advantage, bounds, self.dual_clip)
    }

    fn samples() -> Vec<Self> {
        let plain = Ppo {
            clip_low: 0.2,
            clip_high: 0.28,
            dual_clip: None,
            log_ratio_clamp: None,
        };
        vec![
            plain,
            Ppo {
                dual_clip: Some(3.0),
                log_ratio_clamp: Some(20.0),
                ..plain
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::surrogate::tests::{near, trial};
    use super::*;

    const PLAIN: Ppo = Ppo {
        clip_low: 0.2,
        clip_high: 0.3,
        dual_clip: None,
        log_ratio_clamp: None,
    };

    #[test]
    fn each_side_is_clipped_where_it_went_far_enough() {
        // Ratios 0.5, 1.1, 2 of good and bad tokens.
        let ratios = [0.5f64, 1.1, 2.0, 0.5, 1.1, 2.0].map(f64::ln);
        let ours = trial(&PLAIN, &[6], &ratios, &[2.0, 2.0, 2.0, -2.0, -2.0, -2.0]);
        assert!(
            near(&ours.values, &[-1.0, -2.2, -2.6, 1.6, 2.2, 4.0]),
            "{:?}",
            ours.values
        );
        assert!(
            near(&ours.slopes, &[-1.0, -2.2, 0.0, 0.0, 2.2, 4.0]),
            "{:?}",
            ours.slopes
        );
        assert!(near(&ours.ratio, &[0.5, 1.1, 2.0, 0.5, 1.1, 2.0]));
        assert_eq!(ours.clipped.unwrap(), [false, false, true, true, false, false]);
        assert!(ours.dual_clipped.is_none());
    }

    #[test]
    fn a_dual_clip_bounds_bad_tokens_alone() {
        let loss = Ppo {
            dual_clip: Some(3.0),
            ..PLAIN
        };
        let ratios = [5f64, 5.0, 2.0, 0.5].map(f64::ln);
        let ours = trial(&loss, &[4], &ratios, &[1.0, -1.0, -1.0, -1.0]);
        assert!(near(&ours.values, &[-1.3, 3.0, 2.0, 0.8]), "{:?}", ours.values);
        assert!(near(&ours.slopes, &[0.0, 0.0, 2.0, 0.0]), "{:?}", ours.slopes);
        assert_eq!(ours.dual_clipped.unwrap(), [false, true, false, false]);
        assert_eq!(ours.clipped.unwrap(), [true, false, false, true]);
    }

    #[test]
    fn a_clamp_of_the_log_ratio_comes_first() {
        let loss = Ppo {
            log_ratio_clamp: Some(2.0),
            clip_low: 1.0,
            ..PLAIN
        };
        let ours = trial(&loss, &[3], &[-5.0, -1.0, 5.0], &[1.0, 1.0, -1.0]);
        let (low, high) = ((-2f64).exp(), 2f64.exp());
        let one = (-1f64).exp();
        assert!(near(&ours.values, &[-low, -one, high]), "{:?}", ours.values);
        assert!(near(&ours.slopes, &[0.0, -one, 0.0]), "{:?}", ours.slopes);
        assert!(near(&ours.ratio, &[low, one, high]));
    }

    #[test]
    fn ranges() {
        let text = |loss: Ppo| loss.problems().iter().map(ToString::to_string).collect::<Vec<_>>();
        let wrong = Ppo {
            clip_low: 0.0,
            clip_high: 0.0,
            dual_clip: Some(1.0),
            log_ratio_clamp: Some(-1.0),
        };
        assert_eq!(
            text(wrong),
            [
                "`ppo.clip_low` is 0, expected a number above 0, at most 1",
                "`ppo.clip_high` is 0, expected a finite number above 0",
                "`ppo.dual_clip` is 1, expected a finite number above 1",
                "`ppo.log_ratio_clamp` is -1, expected a finite number above 0",
            ]
        );
        let low = |clip_low| text(Ppo { clip_low, ..PLAIN }).len();
        assert_eq!((low(1.0), low(1.01), low(f64::NAN), low(1e-9)), (0, 1, 1, 0));
        let dual = |c| {
            text(Ppo {
                dual_clip: Some(c),
                ..PLAIN
            })
            .len()
        };
        assert_eq!((dual(1.01), dual(f64::INFINITY), dual(f64::NAN)), (0, 1, 1));
    }
}
