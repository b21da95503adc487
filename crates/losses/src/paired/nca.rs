//! Noise contrastive alignment for pairs.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs};
use crate::error::positive;
use crate::{Card, Described, Error, Result};

/// NCA for pairs: each completion is told from noise by its own log-ratio.
///
/// `L = −log σ(βc) − ½ log σ(−βc) − ½ log σ(−βr)` with `c` and `r` the log-ratios of the chosen and the rejected
/// completion to the reference.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0.
///
/// **Errors**: [`Error::Range`] for `beta`; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `½ β σ(βr)` per unit of log-probability, whatever the chosen one does; at most
/// `β/2`, fades as it falls. The chosen one is pushed up while `σ(βc) < 2/3`, so its likelihood cannot slide away
/// with the rejected one's.
///
/// **Reference**: H. Chen, G. He, L. Yuan, G. Cui, H. Su, J. Zhu, "Noise contrastive alignment of language models
/// with explicit rewards", 2024, NCA for preferences.
///
/// **Differs from the paper**: no.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{Nca, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64, reference: f64| {
///     let one = |x: f64| Tensor::from_slice(&[x]);
///     Completions::from_sums(&one(logp), Some(&one(reference)), &one(5.0))
/// };
/// let pairs = Pairs::new(side(-10.0, -12.0)?, side(-20.0, -15.0)?)?; // c = 2, r = -5, h = 7
/// let value = Nca { beta: 0.1 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 1.234247).abs() < 1e-6); // 0.598139 + 0.798139 / 2 + 0.474077 / 2
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nca {
    /// Strength of the pull to the reference; finite, above 0.
    pub beta: f64,
}

impl Described for Nca {
    fn card(&self) -> Card {
        Card {
            name: "nca",
            summary: "each completion of a pair told from noise by its own log-ratio",
            formula: "−log σ(βc) − ½ log σ(−βc) − ½ log σ(−βr)",
            on_negatives: "down on its own; bounded by β/2",
            source: "Chen et al. 2024, NCA",
        }
    }

    fn problems(&self) -> Vec<Error> {
        positive("nca.beta", self.beta).into_iter().collect()
    }
}

impl PairedLoss for Nca {
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
        let half =
            |x: &Tensor| -> Result<Tensor> { Ok(x.f_mul_scalar(-self.beta)?.f_log_sigmoid()?.f_mul_scalar(-0.5)?) };
        let known = chosen.f_mul_scalar(self.beta)?.f_log_sigmoid()?.f_neg()?;
        Ok(known.f_add(&half(&chosen)?)?.f_add(&half(&rejected)?)?)
    }

    fn samples() -> Vec<Self> {
        [0.1, 0.5].map(|beta| Nca { beta }).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::assert_pair;

    #[test]
    fn each_side_has_a_push_of_its_own() {
        let loss = Nca { beta: 0.1 };
        assert_pair(&loss, [2.0, -5.0], [1.234247, -0.0175249, 0.0188770]);
        assert_pair(&loss, [1e4, 1e4], [1000.0, 0.05, 0.05]);
        assert_pair(&loss, [-1e4, -1e4], [1000.0, -0.1, 0.0]);
        // σ(βc) = 2/3: the chosen one is where it should be.
        let at_rest = [10.0 * 2f64.ln(), 0.0];
        assert_pair(
            &loss,
            at_rest,
            [1.5f64.ln() + 0.5 * 3f64.ln() + 0.5 * 2f64.ln(), 0.0, 0.025],
        );
    }
}
