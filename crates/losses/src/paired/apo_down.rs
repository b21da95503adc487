//! Anchored preference optimisation, down.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs};
use crate::error::positive;
use crate::{Card, Described, Error, Result};

/// APO-down: both completions below the reference, the rejected one further; for chosen completions worse than the
/// model's own.
///
/// `L = σ(βc) + 1 − σ(βh)` with `h = c − r`, `c` and `r` the log-ratios of the chosen and the rejected completion to
/// the reference.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0.
///
/// **Errors**: [`Error::Range`] for `beta`; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β σ(βh) σ(−βh)` per unit of log-probability, at most `β/4`; fades as the margin
/// grows to either side. The chosen one gets `β [σ(βc) σ(−βc) − σ(βh) σ(−βh)]`: nothing at the reference, down while the
/// margin is larger than its own log-ratio in size (`|h| > |c|`), up where it is smaller.
///
/// **Reference**: K. D'Oosterlinck, W. Xu, C. Develder, T. Demeester, A. Singh, C. Potts, D. Kiela, S. Mehri,
/// "Anchored preference optimization and contrastive revisions: Addressing underspecification in alignment", 2024,
/// APO-down.
///
/// **Differs from the paper**: no.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{ApoDown, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64, reference: f64| {
///     let one = |x: f64| Tensor::from_slice(&[x]);
///     Completions::from_sums(&one(logp), Some(&one(reference)), &one(5.0))
/// };
/// let pairs = Pairs::new(side(-10.0, -12.0)?, side(-20.0, -15.0)?)?; // c = 2, r = -5, h = 7
/// let value = ApoDown { beta: 0.1 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 0.881646).abs() < 1e-6); // 0.549834 + 1 - 0.668188
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApoDown {
    /// Strength of the pull to the reference; finite, above 0.
    pub beta: f64,
}

impl Described for ApoDown {
    fn card(&self) -> Card {
        Card {
            name: "apo_down",
            summary: "both below the reference, the rejected one further",
            formula: "σ(βc) + 1 − σ(β(c − r))",
            on_negatives: "down relative to the chosen one, which goes down too once |c − r| > |c|; bounded by β/4, fades on both sides",
            source: "D'Oosterlinck et al. 2024, APO-down",
        }
    }

    fn problems(&self) -> Vec<Error> {
        positive("apo_down.beta", self.beta).into_iter().collect()
    }
}

impl PairedLoss for ApoDown {
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
        let (chosen, _) = pairs.log_ratios()?;
        let likely = chosen.f_mul_scalar(self.beta)?.f_sigmoid()?;
        // 1 − σ(x) = σ(−x), without the rounding beside 1.
        Ok(likely.f_add(&pairs.margin()?.f_mul_scalar(-self.beta)?.f_sigmoid()?)?)
    }

    fn samples() -> Vec<Self> {
        [0.1, 0.5].map(|beta| ApoDown { beta }).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::assert_pair;

    #[test]
    fn both_go_down_and_the_rejected_one_further() {
        let loss = ApoDown { beta: 0.1 };
        assert_pair(&loss, [2.0, -5.0], [0.881646, 0.0025804, 0.0221713]);
        assert_pair(&loss, [0.0, 0.0], [1.0, 0.0, 0.025]);
        assert_pair(&loss, [-1e4, 1e4], [1.0, 0.0, 0.0]);
        assert_pair(&loss, [1e4, -1e4], [1.0, 0.0, 0.0]);
    }
}
