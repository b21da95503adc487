//! Efficient exact optimisation.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs};
use crate::error::{inner_smoothing, positive};
use crate::{Card, Described, Error, Result};

/// EXO for pairs: the reverse KL between what policy and labels say about which of the two is better.
///
/// `L = σ(βh) [log σ(βh) − log(1 − ε)] + σ(−βh) [log σ(−βh) − log ε]` with `h = c − r`, `c` and `r` the log-ratios of
/// the chosen and the rejected completion to the reference. The gradient flows through the weights `σ(±βh)` too.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; `label_smoothing` `ε` (required), in `(0, 0.5)`: at 0 the
/// KL is infinite.
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β σ(βh) σ(−βh) (log((1 − ε)/ε) − βh)` per unit of log-probability: towards a
/// margin of `log((1 − ε)/ε)/β`, and up beyond it. Bounded, and fades on both sides: a pair that is very wrong is
/// hardly moved.
///
/// **Reference**: H. Ji, C. Lu, Y. Niu, P. Ke, H. Wang, J. Zhu, J. Tang, M. Huang, "Towards efficient exact
/// optimization of language model alignment", 2024, eq. 16.
///
/// **Differs from the paper**: no. TRL 0.24 reads an `ε` of 0 as 0.001 without a word; here it is an error. The paper
/// uses 0.001.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{Exo, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64, reference: f64| {
///     let one = |x: f64| Tensor::from_slice(&[x]);
///     Completions::from_sums(&one(logp), Some(&one(reference)), &one(5.0))
/// };
/// let pairs = Pairs::new(side(-10.0, -12.0)?, side(-20.0, -15.0)?)?; // c = 2, r = -5, h = 7
/// let value = Exo { beta: 0.1, label_smoothing: 0.1 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 0.198972).abs() < 1e-6); // 0.668188 * -0.297826 + 0.331812 * 1.199399
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exo {
    /// Strength of the pull to the reference; finite, above 0.
    pub beta: f64,
    /// Share of labels believed to be wrong, in `(0, 0.5)`; the paper uses 0.001.
    pub label_smoothing: f64,
}

impl Described for Exo {
    fn card(&self) -> Card {
        Card {
            name: "exo",
            summary: "reverse KL between policy and smoothed labels about which of a pair is better",
            formula: "σ(βh) [log σ(βh) − log(1 − ε)] + σ(−βh) [log σ(−βh) − log ε], h = c − r",
            on_negatives: "down to a margin of log((1 − ε)/ε)/β, up beyond; bounded, fades on both sides",
            source: "Ji et al. 2024, eq. 16",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let beta = positive("exo.beta", self.beta);
        beta.into_iter()
            .chain(inner_smoothing("exo.label_smoothing", self.label_smoothing))
            .collect()
    }
}

impl PairedLoss for Exo {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        let x = pairs.margin()?.f_mul_scalar(self.beta)?;
        let part = |x: &Tensor, share: f64| -> Result<Tensor> {
            Ok(x.f_sigmoid()?.f_mul(&x.f_log_sigmoid()?.f_sub_scalar(share.ln())?)?)
        };
        Ok(part(&x, 1.0 - self.label_smoothing)?.f_add(&part(&x.f_neg()?, self.label_smoothing)?)?)
    }

    fn samples() -> Vec<Self> {
        [(0.1, 0.001), (0.5, 0.2)]
            .map(|(beta, label_smoothing)| Exo { beta, label_smoothing })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::assert_pair;

    #[test]
    fn draws_to_the_labels_and_fades_on_both_sides() {
        let loss = Exo {
            beta: 0.1,
            label_smoothing: 0.1,
        };
        // 0.668188 * 0.331812 * (0.7 − ln 9) = −0.331954
        assert_pair(&loss, [2.0, -5.0], [0.198972, -0.0331954, 0.0331954]);
        // At the labels' own share both vanish.
        assert_pair(&loss, [10.0 * 9f64.ln(), 0.0], [0.0, 0.0, 0.0]);
        assert_pair(&loss, [1e4, -1e4], [-(0.9f64.ln()), 0.0, 0.0]);
        assert_pair(&loss, [-1e4, 1e4], [-(0.1f64.ln()), 0.0, 0.0]);
    }

    #[test]
    fn labels_without_doubt_are_refused() {
        let text = |label_smoothing| {
            let loss = Exo {
                beta: 0.1,
                label_smoothing,
            };
            loss.check().map_err(|error| error.to_string())
        };
        assert_eq!(
            text(0.0).unwrap_err(),
            "`exo.label_smoothing` is 0, expected a number above 0 and below 0.5"
        );
        assert!(text(0.5).is_err() && text(f64::NAN).is_err() && text(1e-9).is_ok() && text(0.499).is_ok());
    }
}
