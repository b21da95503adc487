//! Alignment via optimal transport, unpaired.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs, aot::same_rank, dpo::logistic};
use crate::error::{positive, smoothing};
use crate::{Card, Described, Error, Result};

/// Unpaired AOT: over the batch, the distribution of the chosen log-ratios should lie above that of the rejected
/// ones.
///
/// `L_i = −(1 − ε) log σ(β x_i) − ε log σ(−β x_i)` with `x_i = c_i − r′_i`: `c_i` the log-ratio of a chosen
/// completion to the reference, `r′_i` that of the rejected completion **of the same rank** in the batch, whatever
/// its prompt. The sum over the batch is that over the two sorted lists. Equal log-ratios rank in their order; the
/// gradient takes the ranks as given.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; `label_smoothing` `ε` (`0`), in `[0, 0.5)`.
///
/// **Errors**: [`Error::Range`] for a parameter, also for weights per pair; [`Error::Input`] for a part of a batch;
/// otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β σ(−βx)` per unit of log-probability, at most `β`; fades as `x` grows. A batch
/// of one is DPO.
///
/// **Reference**: I. Melnyk, Y. Mroueh, B. Belgodere, M. Rigotti, A. Nitsure, M. Yurochkin, K. Greenewald, J.
/// Navratil, J. Ross, "Distributional preference alignment of LLMs via optimal transport", 2024, unpaired AOT.
///
/// **Differs from the paper**: no. The value of a rank is reported with the pair whose chosen log-ratio has it. TRL
/// 0.24 calls it `aot_pair`.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{AotUnpaired, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logps: [f64; 2], references: [f64; 2]| {
///     let two = |x: [f64; 2]| Tensor::from_slice(&x);
///     Completions::from_sums(&two(logps), Some(&two(references)), &two([5.0, 5.0]))
/// };
/// let pairs = Pairs::new(side([-10.0, -9.0], [-12.0, -9.0])?, side([-11.0, -12.0], [-13.0, -8.0])?)?;
/// // c = 2 and 0; r = 2 and -4: 2 meets 2, 0 meets -4.
/// let value = AotUnpaired { beta: 0.1, label_smoothing: 0.0 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 2f64.ln()).abs() < 1e-12);
/// assert!((value.double_value(&[1]) - 0.513015).abs() < 1e-6); // -log sigmoid(0.4)
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AotUnpaired {
    /// Strength of the pull to the reference; finite, above 0.
    pub beta: f64,
    /// Share of labels believed to be wrong, in `[0, 0.5)`.
    #[serde(default)]
    pub label_smoothing: f64,
}

impl Described for AotUnpaired {
    fn card(&self) -> Card {
        Card {
            name: "aot_unpaired",
            summary: "logistic loss between the sorted log-ratios of chosen and rejected over the batch",
            formula: "−(1 − ε) log σ(βx) − ε log σ(−βx), x = sort(c) − sort(r)",
            on_negatives: "down relative to the chosen ones; bounded by β",
            source: "Melnyk et al. 2024, unpaired AOT",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let beta = positive("aot_unpaired.beta", self.beta);
        beta.into_iter()
            .chain(smoothing("aot_unpaired.label_smoothing", self.label_smoothing))
            .collect()
    }
}

impl PairedLoss for AotUnpaired {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn couples_pairs(&self) -> bool {
        true
    }

    fn takes_divergence(&self) -> bool {
        // As released code has it: the method is about the distributions of log-ratios.
        false
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        let (chosen, rejected) = pairs.log_ratios()?;
        let x = chosen.f_sub(&same_rank(&chosen, &rejected)?)?;
        logistic(&x.f_mul_scalar(self.beta)?, self.label_smoothing)
    }

    fn samples() -> Vec<Self> {
        [(0.1, 0.0), (0.5, 0.2)]
            .map(|(beta, label_smoothing)| AotUnpaired { beta, label_smoothing })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::{assert_pair, numbers, pairs};

    #[test]
    fn log_ratios_meet_by_rank() {
        let loss = |label_smoothing| AotUnpaired {
            beta: 0.1,
            label_smoothing,
        };
        assert_pair(&loss(0.1), [2.0, -5.0], [0.473186, -0.0231812, 0.0231812]);
        assert_pair(&loss(0.0), [-1e4, 1e4], [2000.0, -0.1, 0.1]);
        // c = 2, 0; r = 2, -4: 2 meets 2, 0 meets -4.
        let two = pairs(
            &[[-10.0, -12.0, 5.0], [-9.0, -9.0, 5.0]],
            &[[-11.0, -13.0, 5.0], [-12.0, -8.0, 5.0]],
        );
        let values = numbers(&loss(0.0).values(&two).unwrap());
        assert!((values[0] - 2f64.ln()).abs() < 1e-12 && (values[1] - 0.513015).abs() < 1e-6);
    }
}
