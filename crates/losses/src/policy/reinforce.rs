//! REINFORCE.

use serde::{Deserialize, Serialize};

use super::surrogate::ratio;
use super::{PolicyLoss, Surrogate, Tokens};
use crate::{Card, Described, Error, Result};

/// REINFORCE: the log-probability of each token, weighted by its advantage.
///
/// `ℓ = −A log π(y_t)`.
///
/// **Shapes**: see [`Tokens`]; the policy that sampled is read for the log alone.
///
/// **Parameters**: none.
///
/// **Errors**: those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: a token with `A < 0` is pushed down by `|A|` per unit of log-probability, however unlikely it already
/// is: the value has no lower bound. Only the first step after sampling follows the gradient of the expected reward.
///
/// **Reference**: R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
/// learning", 1992, theorem 1.
///
/// **Differs from the paper**: no.
///
/// ```
/// use tch::{Device, Tensor};
/// use unsay_losses::CompletionRows;
/// use unsay_losses::policy::{PolicyLoss, Reinforce, Tokens};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let rows = CompletionRows::new(&[1], Device::Cpu)?;
/// let (logp, advantage) = (Tensor::from_slice(&[-3.0f64]), Tensor::from_slice(&[-0.5f64]));
/// let values = Reinforce {}.surrogate(&Tokens::new(&logp, &logp, &advantage, &rows)?)?.values;
/// assert_eq!(values.double_value(&[0]), -1.5);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reinforce {}

impl Described for Reinforce {
    fn card(&self) -> Card {
        Card {
            name: "reinforce",
            summary: "log-probability of each token weighted by its advantage",
            formula: "−A log π(y)",
            on_negatives: "A < 0: down, without a bound",
            source: "Williams 1992, theorem 1",
        }
    }

    fn problems(&self) -> Vec<Error> {
        Vec::new()
    }
}

impl PolicyLoss for Reinforce {
    fn surrogate(&self, tokens: &Tokens<'_>) -> Result<Surrogate> {
        Ok(Surrogate {
            values: tokens.advantage.f_mul(&tokens.logp)?.f_neg()?,
            ratio: ratio(&tokens.log_ratio()?.f_detach()?)?,
            clipped: None,
            dual_clipped: None,
        })
    }

    fn samples() -> Vec<Self> {
        vec![Reinforce {}]
    }
}

#[cfg(test)]
mod tests {
    use super::super::surrogate::tests::{near, trial};
    use super::*;

    #[test]
    fn the_gradient_is_minus_the_advantage_wherever_the_policy_is() {
        // Log-probabilities are these minus 1.
        let ours = trial(&Reinforce {}, &[3], &[0.0, 2f64.ln(), -3.0], &[2.0, -1.0, -0.5]);
        assert!(near(&ours.values, &[2.0, 2f64.ln() - 1.0, -2.0]), "{:?}", ours.values);
        assert!(near(&ours.slopes, &[-2.0, 1.0, 0.5]));
        assert!(near(&ours.ratio, &[1.0, 2.0, (-3f64).exp()]));
        assert!(ours.clipped.is_none() && ours.dual_clipped.is_none());
    }
}
