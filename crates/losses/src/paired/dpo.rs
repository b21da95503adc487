//! Direct preference optimisation.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs};
use crate::error::{positive, smoothing};
use crate::{Card, Described, Error, Result};

/// DPO, and with label smoothing its conservative form cDPO.
///
/// `L = −(1 − ε) log σ(β h) − ε log σ(−β h)` with `h = c − r`, `c` and `r` the log-ratios of the chosen and the rejected
/// completion to the reference. With [`Logps::Mean`](super::Logps::Mean) it is length-normalised DPO.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; `label_smoothing` `ε` (`0`), in `[0, 0.5)`.
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β σ(−βh)` per unit of log-probability, at most `β`; fades as the margin grows, and
/// with `ε > 0` turns round past `βh = log((1 − ε)/ε)`. Only the difference is constrained: both log-probabilities may fall.
///
/// **Reference**: R. Rafailov, A. Sharma, E. Mitchell, S. Ermon, C. D. Manning, C. Finn, "Direct preference optimization:
/// Your language model is secretly a reward model", 2023, eq. 7; label smoothing: E. Mitchell, "A note on DPO with noisy
/// preferences and relationship to IPO", 2023.
///
/// **Differs from the paper**: no. TRL 1.10 ignores label smoothing for this loss; here it counts.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{Dpo, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64, reference: f64| {
///     let one = |x: f64| Tensor::from_slice(&[x]);
///     Completions::from_sums(&one(logp), Some(&one(reference)), &one(5.0))
/// };
/// let pairs = Pairs::new(side(-10.0, -12.0)?, side(-20.0, -15.0)?)?; // h = 2 - (-5) = 7
/// let value = Dpo { beta: 0.1, label_smoothing: 0.0 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 0.403186).abs() < 1e-6); // -log sigmoid(0.7)
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dpo {
    /// Strength of the pull to the reference; finite, above 0. Published runs use 0.01 to 0.5.
    pub beta: f64,
    /// Share of labels believed to be wrong, in `[0, 0.5)`.
    #[serde(default)]
    pub label_smoothing: f64,
}

/// `[B]` `−(1 − ε) log σ(x) − ε log σ(−x)`: the smoothed logistic loss that DPO and its relatives share, for any `ε`.
pub(crate) fn logistic(x: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let right = x.f_log_sigmoid()?.f_mul_scalar(label_smoothing - 1.0)?;
    let wrong = x.f_neg()?.f_log_sigmoid()?.f_mul_scalar(label_smoothing)?;
    Ok(right.f_sub(&wrong)?)
}

impl Described for Dpo {
    fn card(&self) -> Card {
        Card {
            name: "dpo",
            summary: "logistic loss of the margin between the log-ratios of a pair",
            formula: "−(1 − ε) log σ(β(c − r)) − ε log σ(−β(c − r))",
            on_negatives: "down relative to the chosen one; bounded by β",
            source: "Rafailov et al. 2023, eq. 7; Mitchell 2023",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let beta = positive("dpo.beta", self.beta);
        beta.into_iter()
            .chain(smoothing("dpo.label_smoothing", self.label_smoothing))
            .collect()
    }
}

impl PairedLoss for Dpo {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        logistic(&pairs.margin()?.f_mul_scalar(self.beta)?, self.label_smoothing)
    }

    fn samples() -> Vec<Self> {
        [(0.1, 0.0), (0.5, 0.2)]
            .map(|(beta, label_smoothing)| Dpo { beta, label_smoothing })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::assert_pair;

    #[test]
    fn smoothing_turns_the_push_round_where_the_labels_are_sure_enough() {
        let loss = |label_smoothing| Dpo {
            beta: 0.1,
            label_smoothing,
        };
        assert_pair(&loss(0.0), [2.0, -5.0], [0.403186, -0.0331812, 0.0331812]);
        assert_pair(&loss(0.1), [2.0, -5.0], [0.473186, -0.0231812, 0.0231812]);
        let certain = 10.0 * 9f64.ln();
        assert_pair(
            &loss(0.1),
            [certain, 0.0],
            [-0.9 * 0.9f64.ln() - 0.1 * 0.1f64.ln(), 0.0, 0.0],
        );
        assert_pair(&loss(0.1), [1e4, -1e4], [200.0, 0.01, -0.01]);
        assert_pair(&loss(0.0), [-1e4, 1e4], [2000.0, -0.1, 0.1]);
    }
}
