//! Negative preference optimisation.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Labelled, UnpairedLoss};
use crate::error::positive;
use crate::{Card, Described, Error, Result};

/// NPO: gradient ascent that fades once a completion has become less likely than under the reference.
///
/// `L = −(2/β) log σ(−βu)` with `u` the log-ratio of an undesirable completion to the reference. The mean is over
/// undesirable completions; desirable ones are trained by [`Retain`](crate::Retain) alone.
///
/// **Shapes**: see [`UnpairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; as it tends to 0 the gradient tends to that of
/// [`SequenceGradientAscent`](super::SequenceGradientAscent).
///
/// **Errors**: [`Error::Range`] for the parameter; [`Error::Input`] without a reference; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `2σ(βu)` per unit of log-probability: 1 at the reference, less than 2 always; fades
/// as the completion becomes less likely than under the reference.
///
/// **Reference**: R. Zhang, L. Lin, Y. Bai, S. Mei, "Negative preference optimization: From catastrophic collapse to
/// effective unlearning", 2024, eq. 3.
///
/// **Differs from the paper**: no.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::unpaired::{Labelled, Npo, UnpairedLoss};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let (logp, reference) = (Tensor::from_slice(&[-12.0f64, -22.0]), Tensor::from_slice(&[-12.0f64, -12.0]));
/// let completions = Completions::from_sums(&logp, Some(&reference), &Tensor::from_slice(&[5.0f64, 5.0]))?;
/// let value = Npo { beta: 0.1 }.values(&Labelled::new(completions, &[false, false])?)?;
/// assert!((value.double_value(&[0]) - 13.862944).abs() < 1e-6); // 20 ln 2
/// assert!((value.double_value(&[1]) - 6.265233).abs() < 1e-6); // -20 log sigmoid(1)
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Npo {
    /// How soon the push fades; finite, above 0. Published runs use 0.1.
    pub beta: f64,
}

/// `[B]` `−(2/β) log σ(βx)` for undesirable completions, 0 for desirable ones: what NPO and SimNPO share.
pub(super) fn fading_ascent(labelled: &Labelled, x: &Tensor, beta: f64) -> Result<Tensor> {
    // Selected before too: whatever a desirable completion holds, its gradient is 0.
    let x = labelled.of_undesirable(x)?;
    let values = x.f_mul_scalar(beta)?.f_log_sigmoid()?.f_mul_scalar(-2.0 / beta)?;
    labelled.of_undesirable(&values)
}

impl Described for Npo {
    fn card(&self) -> Card {
        Card {
            name: "npo",
            summary: "gradient ascent on undesirable completions that fades below the reference",
            formula: "−(2/β) log σ(−βr)",
            on_negatives: "down; bounded by 2, fades below the reference",
            source: "Zhang et al. 2024, eq. 3",
        }
    }

    fn problems(&self) -> Vec<Error> {
        positive("npo.beta", self.beta).into_iter().collect()
    }
}

impl UnpairedLoss for Npo {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn trains_desirable(&self) -> bool {
        false
    }

    fn values(&self, labelled: &Labelled) -> Result<Tensor> {
        fading_ascent(labelled, &labelled.completions.log_ratio()?.f_neg()?, self.beta)
    }

    fn samples() -> Vec<Self> {
        [0.1, 1.0].map(|beta| Npo { beta }).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::unpaired::tests::{near, problems, run, sigmoid};

    #[test]
    fn the_push_is_twice_the_share_of_the_policy() {
        // W = 2 π^β / (π^β + π_ref^β), which is 1 at the reference and .537883 ten nats below it.
        let [values, gradient] = run(
            &Npo { beta: 0.1 },
            &[0.0, -10.0, 7.0],
            &[false, false, true],
            Kind::Double,
        );
        assert!(
            near(&values, &[20.0 * 2f64.ln(), -20.0 * sigmoid(1.0).ln(), 0.0]),
            "{values:?}"
        );
        assert!(near(&gradient, &[1.0, 2.0 * sigmoid(-1.0), 0.0]), "{gradient:?}");
        assert!((gradient[1] - 0.537883).abs() < 1e-6);
    }

    #[test]
    fn ranges_are_checked() {
        assert_eq!(
            problems(r#"{"npo": {"beta": -1.0}}"#),
            ["`npo.beta` is -1, expected a finite number above 0"]
        );
    }
}
