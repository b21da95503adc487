//! Anchored preference optimisation, up and down.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs};
use crate::error::positive;
use crate::{Card, Described, Error, Result};

/// APO-zero: the chosen completion above the reference, the rejected one below; for chosen completions better than
/// the model's own.
///
/// `L = 1 − σ(βc) + σ(βr)` with `c` and `r` the log-ratios of the chosen and the rejected completion to the
/// reference.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0.
///
/// **Errors**: [`Error::Range`] for `beta`; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β σ(βr) σ(−βr)` per unit of log-probability, whatever the chosen one does; at
/// most `β/4` at the reference, and fades on both sides: one far above the reference is hardly pushed.
///
/// **Reference**: K. D'Oosterlinck, W. Xu, C. Develder, T. Demeester, A. Singh, C. Potts, D. Kiela, S. Mehri,
/// "Anchored preference optimization and contrastive revisions: Addressing underspecification in alignment", 2024,
/// eq. 7.
///
/// **Differs from the paper**: no.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{ApoZero, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64, reference: f64| {
///     let one = |x: f64| Tensor::from_slice(&[x]);
///     Completions::from_sums(&one(logp), Some(&one(reference)), &one(5.0))
/// };
/// let pairs = Pairs::new(side(-10.0, -12.0)?, side(-20.0, -15.0)?)?; // c = 2, r = -5, h = 7
/// let value = ApoZero { beta: 0.1 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 0.827707).abs() < 1e-6); // 1 - 0.549834 + 0.377541
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApoZero {
    /// Strength of the pull to the reference; finite, above 0.
    pub beta: f64,
}

impl Described for ApoZero {
    fn card(&self) -> Card {
        Card {
            name: "apo_zero",
            summary: "chosen above the reference, rejected below it, each on its own",
            formula: "1 − σ(βc) + σ(βr)",
            on_negatives: "down on its own; bounded by β/4, fades on both sides",
            source: "D'Oosterlinck et al. 2024, eq. 7",
        }
    }

    fn problems(&self) -> Vec<Error> {
        positive("apo_zero.beta", self.beta).into_iter().collect()
    }
}

impl PairedLoss for ApoZero {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn is_of_margin(&self) -> bool {
        false
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        let (chosen, rejected) = pairs.log_ratios()?;
        // 1 − σ(x) = σ(−x), without the rounding beside 1.
        let missing = chosen.f_mul_scalar(-self.beta)?.f_sigmoid()?;
        Ok(missing.f_add(&rejected.f_mul_scalar(self.beta)?.f_sigmoid()?)?)
    }

    fn samples() -> Vec<Self> {
        [0.1, 0.5].map(|beta| ApoZero { beta }).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::assert_pair;

    #[test]
    fn each_side_is_pushed_away_from_the_reference() {
        let loss = ApoZero { beta: 0.1 };
        assert_pair(&loss, [2.0, -5.0], [0.827707, -0.0247517, 0.0235004]);
        assert_pair(&loss, [0.0, 0.0], [1.0, -0.025, 0.025]);
        assert_pair(&loss, [1e4, -1e4], [0.0, 0.0, 0.0]);
        assert_pair(&loss, [-1e4, 1e4], [2.0, 0.0, 0.0]);
    }
}
