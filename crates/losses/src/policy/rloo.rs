//! REINFORCE leave-one-out.

use serde::{Deserialize, Serialize};

use super::surrogate::clipped_whole;
use super::{PolicyLoss, Surrogate, Tokens};
use crate::error::{positive, some_share};
use crate::{Card, Described, Error, Result};

/// RLOO: the ratio of each whole completion to the policy that sampled it, clipped.
///
/// `ℓ = max(−A ρ, −A clip(ρ, 1 − ε₋, 1 + ε₊))` with `ρ = π(y)/π_old(y) = exp(Σ_t log(π(y_t)/π_old(y_t)))` and `A` from
/// [`leave_one_out`](super::leave_one_out), the same for all tokens of a completion; others are refused.
///
/// **Shapes**: see [`Tokens`]. The value of a completion stands at each of its rows, so the only aggregate that makes
/// sense is [`Aggregate::SequenceMean`](super::Aggregate::SequenceMean); others are refused.
///
/// **Parameters**: `clip_low` `ε₋` (required), in `(0, 1]`; `clip_high` `ε₊` (required), finite and above 0.
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: a completion with `A < 0` is pushed down by `|A| ρ` per unit of its log-probability until
/// `ρ < 1 − ε₋`; above, the push grows with `ρ` without a bound.
///
/// **Reference**: A. Ahmadian, C. Cremer, M. Gallé, M. Fadaee, J. Kreutzer, O. Pietquin, A. Üstün, S. Hooker, "Back to
/// basics: Revisiting REINFORCE-style optimization for learning from human feedback in LLMs", 2024.
///
/// **Differs from the paper**: the paper takes one step per batch and has no ratio; there `ρ = 1` and the gradient is the
/// same, `−A ∇ log π(y)`. Ratio and clipping are those of TRL. Log-ratios of completions above 40 are held there,
/// with no gradient: a bad completion that became `e^40` times likelier is no longer pushed.
///
/// ```
/// use tch::{Device, Tensor};
/// use unsay_losses::CompletionRows;
/// use unsay_losses::policy::{PolicyLoss, Rloo, Tokens};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let rows = CompletionRows::new(&[2], Device::Cpu)?;
/// let logp = Tensor::from_slice(&[1.1f64.ln(), 1.05f64.ln()]); // of ratios, as the old ones are 0
/// let old = Tensor::from_slice(&[0.0f64; 2]);
/// let advantage = Tensor::from_slice(&[-2.0f64; 2]);
/// let rloo = Rloo { clip_low: 0.2, clip_high: 0.2 };
/// let values = rloo.surrogate(&Tokens::new(&logp, &old, &advantage, &rows)?)?.values;
/// assert!((values.double_value(&[0]) - 2.31).abs() < 1e-12); // 2 * 1.1 * 1.05, and the same at the second token
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rloo {
    /// How far the ratio may fall below 1, in `(0, 1]`; released code has 0.2.
    pub clip_low: f64,
    /// How far the ratio may rise above 1; finite, above 0; released code has 0.2.
    pub clip_high: f64,
}

impl Described for Rloo {
    fn card(&self) -> Card {
        Card {
            name: "rloo",
            summary: "ratio of each whole completion to the sampling policy, clipped",
            formula: "max(−A ρ, −A clip(ρ, 1 − ε₋, 1 + ε₊)), ρ = π(y)/π_old(y)",
            on_negatives: "A < 0: down until ρ < 1 − ε₋; unbounded above",
            source: "Ahmadian et al. 2024",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let low = some_share("rloo.clip_low", self.clip_low);
        low.into_iter()
            .chain(positive("rloo.clip_high", self.clip_high))
            .collect()
    }
}

impl PolicyLoss for Rloo {
    fn per_completion(&self) -> bool {
        true
    }

    fn surrogate(&self, tokens: &Tokens<'_>) -> Result<Surrogate> {
        let sums = tokens.rows.sums(&tokens.log_ratio()?)?;
        clipped_whole(tokens, &sums, (self.clip_low, self.clip_high))
    }

    fn samples() -> Vec<Self> {
        vec![Rloo {
            clip_low: 0.2,
            clip_high: 0.25,
        }]
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Tensor};

    use super::super::surrogate::tests::{near, trial};
    use super::*;
    use crate::CompletionRows;

    const LOSS: Rloo = Rloo {
        clip_low: 0.1,
        clip_high: 0.2,
    };

    #[test]
    fn the_ratio_of_a_completion_is_the_product_of_its_tokens() {
        // Ratios 4 and 1/2, so 2 for both tokens; then 1.1 alone. The value stands at each row.
        let log_ratio = [4f64.ln(), 0.5f64.ln(), 1.1f64.ln()];
        let bad = trial(&LOSS, &[2, 1], &log_ratio, &[-1.0, -1.0, -2.0]);
        assert!(near(&bad.values, &[2.0, 2.0, 2.2]), "{:?}", bad.values);
        // Two copies of the value here; the mean over the completion's rows makes it one again.
        assert!(near(&bad.slopes, &[4.0, 4.0, 2.2]), "{:?}", bad.slopes);
        let good = trial(&LOSS, &[2, 1], &log_ratio, &[1.0, 1.0, 2.0]);
        assert!(near(&good.values, &[-1.2, -1.2, -2.2]) && near(&good.slopes, &[0.0, 0.0, -2.2]));
        assert_eq!(good.clipped.unwrap(), [true, true, false]);
        assert!(LOSS.per_completion());
    }

    #[test]
    fn the_advantage_is_that_of_the_completion() {
        let rows = CompletionRows::new(&[2], Device::Cpu).unwrap();
        let (zeros, varied) = (Tensor::from_slice(&[0.0f64; 2]), Tensor::from_slice(&[1.0f64, 3.0]));
        let tokens = Tokens::new(&zeros, &zeros, &varied, &rows).unwrap();
        let text = LOSS.surrogate(&tokens).unwrap_err().to_string();
        assert!(
            text.starts_with("advantage: expected one for all tokens of a completion"),
            "{text}"
        );
    }

    #[test]
    fn ranges() {
        let loss = Rloo {
            clip_low: 1.5,
            clip_high: f64::INFINITY,
        };
        let text: Vec<String> = loss.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "`rloo.clip_low` is 1.5, expected a number above 0, at most 1",
                "`rloo.clip_high` is inf, expected a finite number above 0",
            ]
        );
        assert!(LOSS.problems().is_empty());
    }
}
