//! DPO that corrects for flipped labels.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs, dpo::logistic};
use crate::error::{positive, smoothing};
use crate::{Card, Described, Error, Result};

/// Robust DPO: the logistic loss made unbiased under labels that are flipped at a known rate.
///
/// `L = [−(1 − ε) log σ(βh) + ε log σ(−βh)] / (1 − 2ε)` with `h = c − r`, `c` and `r` the log-ratios of the chosen
/// and the rejected completion to the reference.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; `label_smoothing` `ε` (`0`), in `[0, 0.5)`.
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β [σ(−βh) + ε/(1 − 2ε)]` per unit of log-probability, at most `β (1 − ε)/(1 −
/// 2ε)`. With `ε > 0` the push never fades and the value falls below zero without end: it is an estimate that is
/// right on average over flips, not a bound.
///
/// **Reference**: S. R. Chowdhury, A. Kini, N. Natarajan, "Provably robust DPO: Aligning language models with noisy
/// feedback", 2024, the unbiased loss of rDPO.
///
/// **Differs from the paper**: no.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{Robust, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64, reference: f64| {
///     let one = |x: f64| Tensor::from_slice(&[x]);
///     Completions::from_sums(&one(logp), Some(&one(reference)), &one(5.0))
/// };
/// let pairs = Pairs::new(side(-10.0, -12.0)?, side(-20.0, -15.0)?)?; // c = 2, r = -5, h = 7
/// let value = Robust { beta: 0.1, label_smoothing: 0.1 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 0.315686).abs() < 1e-6); // 0.403186 - 0.1 * 0.7 / 0.8
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Robust {
    /// Strength of the pull to the reference; finite, above 0.
    pub beta: f64,
    /// Share of labels known to be flipped, in `[0, 0.5)`.
    #[serde(default)]
    pub label_smoothing: f64,
}

impl Described for Robust {
    fn card(&self) -> Card {
        Card {
            name: "robust",
            summary: "DPO corrected for labels that are flipped at a known rate",
            formula: "[−(1 − ε) log σ(β(c − r)) + ε log σ(−β(c − r))] / (1 − 2ε)",
            on_negatives: "down relative to the chosen one; bounded by β(1 − ε)/(1 − 2ε), and never fades with ε > 0",
            source: "Chowdhury et al. 2024, rDPO",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let beta = positive("robust.beta", self.beta);
        beta.into_iter()
            .chain(smoothing("robust.label_smoothing", self.label_smoothing))
            .collect()
    }
}

impl PairedLoss for Robust {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        // Dividing by 1 − 2ε leaves weights that sum to one, the second of them negative.
        let flipped = -self.label_smoothing / (1.0 - 2.0 * self.label_smoothing);
        logistic(&pairs.margin()?.f_mul_scalar(self.beta)?, flipped)
    }

    fn samples() -> Vec<Self> {
        [(0.1, 0.0), (0.5, 0.2)]
            .map(|(beta, label_smoothing)| Robust { beta, label_smoothing })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::assert_pair;

    #[test]
    fn flips_raise_the_push_and_never_let_it_fade() {
        let loss = |label_smoothing| Robust {
            beta: 0.1,
            label_smoothing,
        };
        assert_pair(&loss(0.0), [2.0, -5.0], [0.403186, -0.0331812, 0.0331812]);
        // x = 0.7: σ(−x) + 0.1/0.8 = 0.331812 + 0.125
        assert_pair(&loss(0.1), [2.0, -5.0], [0.315686, -0.0456812, 0.0456812]);
        assert_pair(&loss(0.1), [1e4, -1e4], [-250.0, -0.0125, 0.0125]);
        assert_pair(&loss(0.1), [-1e4, 1e4], [2250.0, -0.1125, 0.1125]);
    }
}
