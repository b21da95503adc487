//! Group sequence policy optimisation.

use serde::{Deserialize, Serialize};

use super::surrogate::clipped_whole;
use super::{PolicyLoss, Surrogate, Tokens};
use crate::error::{positive, some_share};
use crate::{Card, Described, Error, Result};

/// GSPO: as [`Grpo`](super::Grpo), with one ratio for all tokens of a completion, the geometric mean of theirs.
///
/// `ℓ = max(−A s, −A clip(s, 1 − ε₋, 1 + ε₊))` with `s = exp((1/n) Σ_t log(π(y_t)/π_old(y_t)))` over the completion's `n`
/// tokens.
///
/// **Shapes**: see [`Tokens`]; one advantage for all tokens of a completion, others are refused.
///
/// **Parameters**: `clip_low` `ε₋` (required), in `(0, 1]`; `clip_high` `ε₊` (required), finite and above 0. As `s` moves
/// much less than a token's ratio, both are far smaller than in PPO.
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: a completion with `A < 0` is pushed down as a whole, every token alike, until `s < 1 − ε₋`; above,
/// the push grows with `s` without a bound.
///
/// **Reference**: C. Zheng et al., "Group sequence policy optimization", 2025, eqs. 5 and 7.
///
/// **Differs from the paper**: the mean over completions of eq. 5 is
/// [`Aggregate::SequenceMean`](super::Aggregate::SequenceMean); others are allowed, as in TRL. Mean log-ratios above 40 are
/// held there, with no gradient. OpenRLHF takes advantages that differ within a completion, which averages them.
///
/// ```
/// use tch::{Device, Tensor};
/// use unsay_losses::CompletionRows;
/// use unsay_losses::policy::{Gspo, PolicyLoss, Tokens};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let rows = CompletionRows::new(&[2], Device::Cpu)?;
/// let logp = Tensor::from_slice(&[2f64.ln(), 0.5f64.ln()]); // of ratios, as the old ones are 0
/// let old = Tensor::from_slice(&[0.0f64; 2]);
/// let advantage = Tensor::from_slice(&[1.0f64; 2]);
/// let gspo = Gspo { clip_low: 0.01, clip_high: 0.01 };
/// let values = gspo.surrogate(&Tokens::new(&logp, &old, &advantage, &rows)?)?.values;
/// // Single ratios of 2 and 1/2 would be clipped; together they are 1.
/// assert!((values.double_value(&[0]) + 1.0).abs() < 1e-12 && (values.double_value(&[1]) + 1.0).abs() < 1e-12);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gspo {
    /// How far the ratio may fall below 1, in `(0, 1]`; the paper has 3e-4.
    pub clip_low: f64,
    /// How far the ratio may rise above 1; finite, above 0; the paper has 4e-4.
    pub clip_high: f64,
}

impl Described for Gspo {
    fn card(&self) -> Card {
        Card {
            name: "gspo",
            summary: "geometric mean of a completion's ratios to the sampling policy, clipped",
            formula: "max(−A s, −A clip(s, 1 − ε₋, 1 + ε₊)), s = exp(mean log ρ)",
            on_negatives: "A < 0: down as a whole until s < 1 − ε₋; unbounded above",
            source: "Zheng et al. 2025, eqs. 5, 7",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let low = some_share("gspo.clip_low", self.clip_low);
        low.into_iter()
            .chain(positive("gspo.clip_high", self.clip_high))
            .collect()
    }
}

impl PolicyLoss for Gspo {
    fn surrogate(&self, tokens: &Tokens<'_>) -> Result<Surrogate> {
        let sums = tokens.rows.sums(&tokens.log_ratio()?)?;
        let means = sums.f_div(&tokens.rows.tokens(sums.f_kind()?)?)?;
        clipped_whole(tokens, &means, (self.clip_low, self.clip_high))
    }

    fn samples() -> Vec<Self> {
        vec![Gspo {
            clip_low: 0.1,
            clip_high: 0.15,
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::super::surrogate::tests::{near, trial};
    use super::*;

    const LOSS: Gspo = Gspo {
        clip_low: 0.1,
        clip_high: 0.2,
    };

    #[test]
    fn the_ratio_of_a_completion_is_the_geometric_mean_of_its_tokens() {
        // Ratios 4 and 1, so 2 for both tokens; then 1.1 alone.
        let log_ratio = [4f64.ln(), 0.0, 1.1f64.ln()];
        let bad = trial(&LOSS, &[2, 1], &log_ratio, &[-3.0, -3.0, -2.0]);
        assert!(near(&bad.values, &[6.0, 6.0, 2.2]), "{:?}", bad.values);
        // Each token's value is 2 |A|, and each token moves the mean by half: (3 + 3) * 2 / 2.
        assert!(near(&bad.slopes, &[6.0, 6.0, 2.2]), "{:?}", bad.slopes);
        assert!(near(&bad.ratio, &[2.0, 2.0, 1.1]));
        let good = trial(&LOSS, &[2, 1], &log_ratio, &[1.0, 1.0, 2.0]);
        assert!(near(&good.values, &[-1.2, -1.2, -2.2]) && near(&good.slopes, &[0.0, 0.0, -2.2]));
        assert_eq!(good.clipped.unwrap(), [true, true, false]);
    }

    #[test]
    fn ranges() {
        let loss = Gspo {
            clip_low: -0.1,
            clip_high: f64::NAN,
        };
        let text: Vec<String> = loss.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "`gspo.clip_low` is -0.1, expected a number above 0, at most 1",
                "`gspo.clip_high` is NaN, expected a finite number above 0",
            ]
        );
        assert!(LOSS.problems().is_empty());
    }
}
