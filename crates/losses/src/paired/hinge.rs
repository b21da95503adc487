//! Hinge loss of the margin to the reference.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs};
use crate::error::positive;
use crate::{Card, Described, Error, Result};

/// The hinge loss on the margin between the log-ratios of a pair.
///
/// `L = max(0, 1 − βh)` with `h = c − r`, `c` and `r` the log-ratios of the chosen and the rejected completion to the
/// reference.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0.
///
/// **Errors**: [`Error::Range`] for `beta`; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β` per unit of log-probability until `βh` is 1, then not at all; bounded by `β`.
///
/// **Reference**: T. Liu, Y. Zhao, R. Joshi, M. Khalman, M. Saleh, P. J. Liu, J. Liu, "Statistical rejection sampling
/// improves preference optimization", 2023, the normalised hinge loss.
///
/// **Differs from the paper**: no. SLiC-HF (Y. Zhao et al. 2023), to which TRL credits this loss, has no reference
/// and a likelihood term.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{Hinge, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64, reference: f64| {
///     let one = |x: f64| Tensor::from_slice(&[x]);
///     Completions::from_sums(&one(logp), Some(&one(reference)), &one(5.0))
/// };
/// let pairs = Pairs::new(side(-10.0, -12.0)?, side(-20.0, -15.0)?)?; // c = 2, r = -5, h = 7
/// let value = Hinge { beta: 0.1 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 0.3).abs() < 1e-6); // 1 - 0.7
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hinge {
    /// Strength of the pull to the reference; finite, above 0.
    pub beta: f64,
}

/// `max(0, enough − margin)`, of any shape; at the corner the gradient is zero.
pub(super) fn hinge(margin: &Tensor, enough: f64) -> Result<Tensor> {
    Ok(margin.f_neg()?.f_add_scalar(enough)?.f_relu()?)
}

impl Described for Hinge {
    fn card(&self) -> Card {
        Card {
            name: "hinge",
            summary: "hinge loss of the margin between the log-ratios of a pair",
            formula: "max(0, 1 − β(c − r))",
            on_negatives: "down relative to the chosen one until the margin is 1/β; bounded by β",
            source: "Liu et al. 2023, normalised hinge loss",
        }
    }

    fn problems(&self) -> Vec<Error> {
        positive("hinge.beta", self.beta).into_iter().collect()
    }
}

impl PairedLoss for Hinge {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        hinge(&pairs.margin()?.f_mul_scalar(self.beta)?, 1.0)
    }

    fn samples() -> Vec<Self> {
        [0.1, 0.5].map(|beta| Hinge { beta }).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::assert_pair;

    #[test]
    fn the_push_is_constant_up_to_the_margin_and_zero_beyond() {
        let loss = Hinge { beta: 0.1 };
        assert_pair(&loss, [2.0, -5.0], [0.3, -0.1, 0.1]);
        assert_pair(&loss, [2.0, -9.0], [0.0, 0.0, 0.0]);
        assert_pair(&loss, [-1e4, 1e4], [2001.0, -0.1, 0.1]);
    }
}
