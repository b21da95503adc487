//! Negative preference optimisation without a reference.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::npo::fading_ascent;
use super::{Labelled, UnpairedLoss};
use crate::error::{not_negative, positive};
use crate::{Card, Described, Error, Result};

/// SimNPO: NPO on the mean log-probability per token, without a reference.
///
/// `L = −(2/β) log σ(β(−a − δ))` with `a` the mean log-probability per token of an undesirable completion. The mean
/// is over undesirable completions; desirable ones are trained by [`Retain`](crate::Retain) alone.
///
/// **Shapes**: see [`UnpairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; `delta` (`0`), finite, at least 0: the negative
/// log-likelihood per token at which half of the push is left.
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `2σ(β(a + δ))/n` per unit of log-probability, `n` the number of tokens: less than
/// `2/n`; fades as the completion becomes unlikely.
///
/// **Reference**: C. Fan, J. Liu, L. Lin, J. Jia, R. Zhang, S. Mei, S. Liu, "Simplicity prevails: Rethinking negative
/// preference optimization for LLM unlearning", 2024, the SimNPO loss.
///
/// **Differs from the paper**: the paper subtracts a margin `γ = βδ` outside of `β`; this is the parameter of
/// OpenUnlearning, which also counts a first label that no logit predicts. Here `n` is the number of tokens that are
/// predicted.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::unpaired::{Labelled, Simnpo, UnpairedLoss};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let completions = Completions::from_sums(&Tensor::from_slice(&[-10.0f64]), None, &Tensor::from_slice(&[5.0f64]))?;
/// let value = Simnpo { beta: 2.0, delta: 1.5 }.values(&Labelled::new(completions, &[false])?)?;
/// assert!((value.double_value(&[0]) - 0.313262).abs() < 1e-6); // -log sigmoid(2 (10/5 - 1.5))
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Simnpo {
    /// How soon the push fades; finite, above 0. It scales nats per token, so it is larger than that of NPO.
    pub beta: f64,
    /// Margin in nats per token; finite, at least 0.
    #[serde(default)]
    pub delta: f64,
}

impl Described for Simnpo {
    fn card(&self) -> Card {
        Card {
            name: "simnpo",
            summary: "NPO on mean log-probabilities per token, without a reference",
            formula: "−(2/β) log σ(β(−a − δ))",
            on_negatives: "down; bounded by 2/n, fades as the completion becomes unlikely",
            source: "Fan et al. 2024",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let beta = positive("simnpo.beta", self.beta);
        beta.into_iter()
            .chain(not_negative("simnpo.delta", self.delta))
            .collect()
    }
}

impl UnpairedLoss for Simnpo {
    fn uses_reference(&self) -> bool {
        false
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn per_token(&self) -> bool {
        true
    }

    fn trains_desirable(&self) -> bool {
        false
    }

    fn values(&self, labelled: &Labelled) -> Result<Tensor> {
        let surprise = labelled.completions.mean_logp()?.f_neg()?;
        fading_ascent(labelled, &surprise.f_sub_scalar(self.delta)?, self.beta)
    }

    fn samples() -> Vec<Self> {
        [(2.5, 0.0), (1.0, 1.5)]
            .map(|(beta, delta)| Simnpo { beta, delta })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::unpaired::tests::{near, problems, run, sigmoid};

    #[test]
    fn half_of_the_push_is_left_at_delta_nats_per_token() {
        // Log-probabilities -6 and -14 over four tokens: 1.5 and 3.5 nats per token, margins 0 and 2.
        let loss = Simnpo { beta: 2.0, delta: 1.5 };
        let [values, gradient] = run(&loss, &[6.0, -2.0, 6.0], &[false, false, true], Kind::Double);
        assert!(near(&values, &[2f64.ln(), -sigmoid(4.0).ln(), 0.0]), "{values:?}");
        assert!(near(&gradient, &[0.25, 0.5 * sigmoid(-4.0), 0.0]), "{gradient:?}");
        let plain: Simnpo = serde_json::from_str(r#"{"beta": 2.0}"#).unwrap();
        assert!(plain.delta.abs() <= 0.0 && plain.per_token());
    }

    #[test]
    fn ranges_are_checked() {
        assert_eq!(
            problems(r#"{"simnpo": {"beta": 0.0, "delta": -1.0}}"#),
            [
                "`simnpo.beta` is 0, expected a finite number above 0",
                "`simnpo.delta` is -1, expected a finite number, at least 0",
            ]
        );
    }
}
