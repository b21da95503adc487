//! Identity preference optimisation.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs};
use crate::error::positive;
use crate::{Card, Described, Error, Result};

/// IPO: the margin between the log-ratios of a pair is drawn to a fixed distance.
///
/// `L = (h − 1/(2β))²` with `h = c − r`, `c` and `r` the log-ratios of the chosen and the rejected completion to the
/// reference, **sums** over tokens. [`IpoMean`](super::IpoMean) is the form with means.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0.
///
/// **Errors**: [`Error::Range`] for `beta`; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `2 (1/(2β) − h)` while the margin is short of `1/(2β)`, up beyond it. Grows with
/// the distance, not bounded.
///
/// **Reference**: M. G. Azar, M. Rowland, B. Piot, D. Guo, D. Calandriello, M. Valko, R. Munos, "A general
/// theoretical paradigm to understand learning from human preferences", 2023, eq. 17, whose `τ` is `beta`.
///
/// **Differs from the paper**: no. TRL and HALOs divide log-ratios by numbers of tokens: [`IpoMean`](super::IpoMean).
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{Ipo, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64, reference: f64| {
///     let one = |x: f64| Tensor::from_slice(&[x]);
///     Completions::from_sums(&one(logp), Some(&one(reference)), &one(5.0))
/// };
/// let pairs = Pairs::new(side(-10.0, -12.0)?, side(-20.0, -15.0)?)?; // c = 2, r = -5, h = 7
/// let value = Ipo { beta: 0.1 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 4.0).abs() < 1e-6); // (7 - 5)^2
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipo {
    /// Strength of the pull to the reference; finite, above 0. The target margin is `1/(2β)`.
    pub beta: f64,
}

/// `[B]` `(x − target)²`: the squared loss that IPO and its relatives share.
pub(crate) fn squared(x: &Tensor, target: f64) -> Result<Tensor> {
    let distance = x.f_sub_scalar(target)?;
    Ok(distance.f_mul(&distance)?)
}

impl Described for Ipo {
    fn card(&self) -> Card {
        Card {
            name: "ipo",
            summary: "squared distance of the pair's margin to 1/(2β), sums over tokens",
            formula: "(c − r − 1/(2β))²",
            on_negatives: "down to a margin of 1/(2β), up beyond; not bounded",
            source: "Azar et al. 2023, eq. 17",
        }
    }

    fn problems(&self) -> Vec<Error> {
        positive("ipo.beta", self.beta).into_iter().collect()
    }
}

impl PairedLoss for Ipo {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        squared(&pairs.margin()?, 0.5 / self.beta)
    }

    fn samples() -> Vec<Self> {
        [0.1, 0.5].map(|beta| Ipo { beta }).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::assert_pair;

    #[test]
    fn draws_the_margin_to_its_target_from_both_sides() {
        let loss = Ipo { beta: 0.1 };
        assert_pair(&loss, [2.0, -5.0], [4.0, 4.0, -4.0]);
        assert_pair(&loss, [2.0, 1.0], [16.0, -8.0, 8.0]);
        assert_pair(&loss, [1e4, -1e4], [19995.0 * 19995.0, 39990.0, -39990.0]);
    }
}
