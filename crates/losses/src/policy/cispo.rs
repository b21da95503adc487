//! Clipped importance-sampling policy optimisation.

use serde::{Deserialize, Serialize};

use super::surrogate::ratio;
use super::{PolicyLoss, Surrogate, Tokens};
use crate::error::above_one;
use crate::{Card, Described, Error, Result};

/// CISPO: the log-probability of each token, weighted by its advantage and by its ratio, which is held from above.
///
/// `ℓ = −sg[min(ρ, m)] A log π(y_t)` with `ρ = π(y_t)/π_old(y_t)`; `sg` means no gradient.
///
/// **Shapes**: see [`Tokens`].
///
/// **Parameters**: `max_ratio` `m` (required), finite and above 1: the bound itself, not its distance from 1.
///
/// **Errors**: [`Error::Range`] for `max_ratio`; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: a token with `A < 0` is pushed down by `|A| min(ρ, m)` per unit of log-probability: bounded by `m|A|`,
/// and fading with `ρ`. No token is left without a gradient, as clipping in PPO does.
///
/// **Reference**: MiniMax, "MiniMax-M1: Scaling test-time compute efficiently with lightning attention", 2025, eqs. 4, 5.
///
/// **Differs from the paper**: no bound from below, which the paper has but leaves open; as in TRL, whose `epsilon_high`
/// is the bound itself too.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use unsay_losses::CompletionRows;
/// use unsay_losses::policy::{Cispo, PolicyLoss, Tokens};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let rows = CompletionRows::new(&[2], Device::Cpu)?;
/// let logp = Tensor::from_slice(&[-1.0f64, -1.0]).set_requires_grad(true);
/// let old = Tensor::from_slice(&[-1.0 - 2f64.ln(), -1.0 - 8f64.ln()]); // ratios 2 and 8
/// let advantage = Tensor::from_slice(&[-1.0f64; 2]);
/// let values = Cispo { max_ratio: 5.0 }.surrogate(&Tokens::new(&logp, &old, &advantage, &rows)?)?.values;
/// values.sum(Kind::Double).backward();
/// let gradient = Vec::<f64>::try_from(logp.grad()).unwrap();
/// assert!((gradient[0] - 2.0).abs() < 1e-12 && gradient[1] == 5.0);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cispo {
    /// The largest ratio that a token counts with; finite, above 1; published runs use 5.
    pub max_ratio: f64,
}

impl Described for Cispo {
    fn card(&self) -> Card {
        Card {
            name: "cispo",
            summary: "log-probability of each token weighted by advantage and a ratio held from above",
            formula: "−sg[min(ρ, m)] A log π(y)",
            on_negatives: "A < 0: down; bounded by m|A|, fades with ρ",
            source: "MiniMax 2025, eqs. 4, 5",
        }
    }

    fn problems(&self) -> Vec<Error> {
        above_one("cispo.max_ratio", self.max_ratio).into_iter().collect()
    }
}

impl PolicyLoss for Cispo {
    fn surrogate(&self, tokens: &Tokens<'_>) -> Result<Surrogate> {
        let ratio = ratio(&tokens.log_ratio()?.f_detach()?)?;
        let weight = ratio.f_clamp_max(self.max_ratio)?.f_mul(&tokens.advantage)?;
        Ok(Surrogate {
            values: weight.f_mul(&tokens.logp)?.f_neg()?,
            clipped: Some(ratio.f_gt(self.max_ratio)?),
            ratio,
            dual_clipped: None,
        })
    }

    fn samples() -> Vec<Self> {
        vec![Cispo { max_ratio: 5.0 }]
    }
}

#[cfg(test)]
mod tests {
    use super::super::surrogate::tests::{near, trial};
    use super::*;

    const LOSS: Cispo = Cispo { max_ratio: 3.0 };

    #[test]
    fn the_ratio_is_a_weight_without_a_gradient() {
        // Log-probabilities are these minus 1; ratios 2, 4, 1/2.
        let log_ratio = [2f64, 4.0, 0.5].map(f64::ln);
        let ours = trial(&LOSS, &[3], &log_ratio, &[1.0, -1.0, -2.0]);
        let expected = [-2.0 * (2f64.ln() - 1.0), 3.0 * (4f64.ln() - 1.0), 0.5f64.ln() - 1.0];
        assert!(near(&ours.values, &expected), "{:?}", ours.values);
        assert!(near(&ours.slopes, &[-2.0, 3.0, 1.0]), "{:?}", ours.slopes);
        assert!(near(&ours.ratio, &[2.0, 4.0, 0.5]));
        assert_eq!(ours.clipped.unwrap(), [false, true, false]);
    }

    #[test]
    fn ranges() {
        let text = Cispo { max_ratio: 1.0 }.problems()[0].to_string();
        assert_eq!(text, "`cispo.max_ratio` is 1, expected a finite number above 1");
        assert!(LOSS.problems().is_empty());
    }
}
