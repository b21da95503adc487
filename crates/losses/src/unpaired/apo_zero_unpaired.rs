//! Anchored preference optimisation without pairs.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::kto::{self, Kto, one};
use super::{Labelled, UnpairedLoss};
use crate::error::{not_negative, positive};
use crate::{Card, Described, Error, Result};

/// APO-zero on completions without a counterpart: KTO with the reference itself as the baseline.
///
/// `L = w_d (1 − σ(βu))` for a desirable completion, `w_u σ(βu)` for an undesirable one, with `u` its log-ratio to the
/// reference. The mean is over all completions.
///
/// **Shapes**: see [`UnpairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; `desirable_weight` and `undesirable_weight` (`1`), finite, at
/// least 0.
///
/// **Errors**: [`Error::Range`] for a parameter; [`Error::Input`] without a reference; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `w_u β σ(βu)(1 − σ(βu))` per unit of log-probability: at most `w_u β/4`, where the
/// policy equals the reference; fades on both sides.
///
/// **Reference**: K. D'Oosterlinck, W. Xu, C. Develder, T. Demeester, A. Singh, C. Potts, D. Kiela, S. Mehri, "Anchored
/// preference optimization and contrastive revisions: Addressing underspecification in alignment", 2024, APO-zero.
///
/// **Differs from the paper**: the paper sums the two values over a pair; here each completion stands alone and has a
/// weight, as TRL 0.24's `apo_zero_unpaired` does it.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::unpaired::{ApoZeroUnpaired, Labelled, UnpairedLoss};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let (logp, reference) = (Tensor::from_slice(&[-10.0f64, -15.0]), Tensor::from_slice(&[-12.0f64, -12.0]));
/// let completions = Completions::from_sums(&logp, Some(&reference), &Tensor::from_slice(&[5.0f64, 5.0]))?;
/// let loss: ApoZeroUnpaired = serde_json::from_str(r#"{ "beta": 0.5 }"#).unwrap();
/// let value = loss.values(&Labelled::new(completions, &[true, false])?)?;
/// assert!((value.double_value(&[0]) - 0.268941).abs() < 1e-6); // 1 - sigmoid(0.5 · 2)
/// assert!((value.double_value(&[1]) - 0.182426).abs() < 1e-6); // sigmoid(0.5 · -3)
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApoZeroUnpaired {
    /// Steepness around the reference; finite, above 0.
    pub beta: f64,
    /// Weight of desirable completions; finite, at least 0.
    #[serde(default = "one")]
    pub desirable_weight: f64,
    /// Weight of undesirable completions; finite, at least 0.
    #[serde(default = "one")]
    pub undesirable_weight: f64,
}

impl Described for ApoZeroUnpaired {
    fn card(&self) -> Card {
        Card {
            name: "apo_zero_unpaired",
            summary: "as KTO, with the reference itself as the baseline",
            formula: "w_d (1 − σ(βc)) or w_u σ(βr)",
            on_negatives: "down; bounded by w_u β/4, fades on both sides of the reference",
            source: "D'Oosterlinck et al. 2024, APO-zero",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let beta = positive("apo_zero_unpaired.beta", self.beta);
        beta.into_iter()
            .chain(not_negative(
                "apo_zero_unpaired.desirable_weight",
                self.desirable_weight,
            ))
            .chain(not_negative(
                "apo_zero_unpaired.undesirable_weight",
                self.undesirable_weight,
            ))
            .collect()
    }
}

impl UnpairedLoss for ApoZeroUnpaired {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn values(&self, labelled: &Labelled) -> Result<Tensor> {
        let same = Kto {
            beta: self.beta,
            desirable_weight: self.desirable_weight,
            undesirable_weight: self.undesirable_weight,
        };
        kto::values(&same, labelled, 0.0)
    }

    fn samples() -> Vec<Self> {
        [(0.1, 1.0, 1.0), (0.3, 2.0, 0.5)]
            .map(|(beta, desirable_weight, undesirable_weight)| ApoZeroUnpaired {
                beta,
                desirable_weight,
                undesirable_weight,
            })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::unpaired::tests::{near, problems, run, sigmoid};

    #[test]
    fn the_reference_is_the_baseline_whatever_else_is_given() {
        let loss = ApoZeroUnpaired {
            beta: 0.5,
            desirable_weight: 2.0,
            undesirable_weight: 0.25,
        };
        let (good, bad) = (sigmoid(1.0), sigmoid(-1.5));
        let [values, gradient] = run(&loss, &[2.0, -3.0], &[true, false], Kind::Double);
        assert!(near(&values, &[2.0 * (1.0 - good), 0.25 * bad]), "{values:?}");
        let slopes = [-2.0 * 0.5 * good * (1.0 - good), 0.25 * 0.5 * bad * (1.0 - bad)];
        assert!(near(&gradient, &slopes), "{gradient:?}");
        assert_eq!(loss.baseline(), None);
    }

    #[test]
    fn ranges_are_checked() {
        let text = r#"{"apo_zero_unpaired": {"beta": -0.1, "desirable_weight": -1.0, "undesirable_weight": -2.0}}"#;
        assert_eq!(
            problems(text),
            [
                "`apo_zero_unpaired.beta` is -0.1, expected a finite number above 0",
                "`apo_zero_unpaired.desirable_weight` is -1, expected a finite number, at least 0",
                "`apo_zero_unpaired.undesirable_weight` is -2, expected a finite number, at least 0",
            ]
        );
    }
}
