//! Self-play preference optimisation.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs, ipo::squared};
use crate::error::positive;
use crate::{Card, Described, Error, Result};

/// SPPO with hard labels: each log-ratio is drawn to a fixed place.
///
/// `L = (c − 1/(2β))² + (r + 1/(2β))²` with `c` and `r` the log-ratios of the chosen and the rejected completion to
/// the reference.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0.
///
/// **Errors**: [`Error::Range`] for `beta`; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: drawn to a log-ratio of `−1/(2β)`: pushed down by `2 (r + 1/(2β))` above it, up below it. Grows
/// with the distance, not bounded.
///
/// **Reference**: Y. Wu, Z. Sun, H. Yuan, K. Ji, Y. Yang, Q. Gu, "Self-play preference optimization for language
/// model alignment", 2024, eq. 4.7 with `η = 1/β` and probabilities of winning of 1 and 0.
///
/// **Differs from the paper**: one round on given pairs, without the game that samples new ones. TRL: `sppo_hard`.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{Sppo, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64, reference: f64| {
///     let one = |x: f64| Tensor::from_slice(&[x]);
///     Completions::from_sums(&one(logp), Some(&one(reference)), &one(5.0))
/// };
/// let pairs = Pairs::new(side(-10.0, -12.0)?, side(-20.0, -15.0)?)?; // c = 2, r = -5, h = 7
/// let value = Sppo { beta: 0.1 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 9.0).abs() < 1e-6); // (2 - 5)^2 + (-5 + 5)^2
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sppo {
    /// Strength of the pull to the reference; finite, above 0. The targets are `±1/(2β)`.
    pub beta: f64,
}

impl Described for Sppo {
    fn card(&self) -> Card {
        Card {
            name: "sppo",
            summary: "squared distance of each log-ratio to ±1/(2β)",
            formula: "(c − 1/(2β))² + (r + 1/(2β))²",
            on_negatives: "down to a log-ratio of −1/(2β), up below; not bounded",
            source: "Wu et al. 2024, eq. 4.7",
        }
    }

    fn problems(&self) -> Vec<Error> {
        positive("sppo.beta", self.beta).into_iter().collect()
    }
}

impl PairedLoss for Sppo {
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
        let target = 0.5 / self.beta;
        Ok(squared(&chosen, target)?.f_add(&squared(&rejected, -target)?)?)
    }

    fn samples() -> Vec<Self> {
        [0.1, 0.5].map(|beta| Sppo { beta }).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::assert_pair;

    #[test]
    fn each_log_ratio_is_drawn_to_its_own_target() {
        let loss = Sppo { beta: 0.1 };
        assert_pair(&loss, [2.0, -5.0], [9.0, -6.0, 0.0]);
        assert_pair(&loss, [7.0, -9.0], [20.0, 4.0, -8.0]);
        assert_pair(&loss, [1e4, 1e4], [2e8 + 50.0, 19990.0, 20010.0]);
    }
}
