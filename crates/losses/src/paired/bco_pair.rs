//! Binary classifier optimisation on pairs.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Baseline, PairedLoss, Pairs};
use crate::error::positive;
use crate::{Card, Described, Error, Result};

/// BCO on pairs: each completion is classified as chosen or rejected by its reward.
///
/// `L = −log σ(βc − δ) − log σ(−(βr − δ))` with `c` and `r` the log-ratios of the chosen and the rejected completion
/// to the reference, and `δ` the running mean of all rewards `βc` and `βr` so far, this batch's included; no gradient
/// flows through it.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; `running_mean` (`true`): `false` leaves `δ` at 0.
///
/// **Errors**: [`Error::Range`] for `beta`; [`Error::Input`] without the running mean; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β σ(βr − δ)` per unit of log-probability, whatever the chosen one does; at most
/// `β`, fades as it falls.
///
/// **Reference**: S. Jung, G. Han, D. W. Nam, K.-W. On, "Binary classifier optimization for large language model
/// alignment", 2024, with `δ` the reward shift.
///
/// **Differs from the paper**: `δ` is the mean of all rewards so far, as in [`Bco`](crate::unpaired::Bco). TRL 0.24 keeps it
/// in `f32` and takes in one number per step, the mean of its batch, so that steps weigh alike; to do the same give
/// [`RunningMean`](crate::RunningMean) that mean. TRL 1.10 has none (`running_mean: false`).
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{BcoPair, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64, reference: f64| {
///     let one = |x: f64| Tensor::from_slice(&[x]);
///     Completions::from_sums(&one(logp), Some(&one(reference)), &one(5.0))
/// };
/// let mut pairs = Pairs::new(side(-10.0, -12.0)?, side(-20.0, -15.0)?)?; // c = 2, r = -5, h = 7
/// pairs.baseline = Some(-0.15); // the mean of 0.2 and -0.5
/// let value = BcoPair { beta: 0.1, running_mean: true }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 1.066764).abs() < 1e-6); // -log sigmoid(0.35) - log sigmoid(0.35)
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BcoPair {
    /// Strength of the pull to the reference; finite, above 0.
    pub beta: f64,
    /// Whether the running mean of rewards is subtracted from them; else nothing is.
    #[serde(default = "with_running_mean")]
    pub running_mean: bool,
}

/// As in the paper.
fn with_running_mean() -> bool {
    true
}

impl Described for BcoPair {
    fn card(&self) -> Card {
        Card {
            name: "bco_pair",
            summary: "each completion of a pair classified by its reward",
            formula: "−log σ(βc − δ) − log σ(−(βr − δ)), δ the running mean of rewards",
            on_negatives: "down on its own; bounded by β",
            source: "Jung et al. 2024",
        }
    }

    fn problems(&self) -> Vec<Error> {
        positive("bco_pair.beta", self.beta).into_iter().collect()
    }
}

impl PairedLoss for BcoPair {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn is_of_margin(&self) -> bool {
        false
    }

    fn baseline(&self) -> Option<Baseline> {
        self.running_mean.then_some(Baseline::RunningMeanReward)
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        let shift = match self.running_mean {
            true => pairs.wanted_baseline()?,
            false => 0.0,
        };
        let (chosen, rejected) = pairs.log_ratios()?;
        let reward = |ratio: &Tensor| -> Result<Tensor> { Ok(ratio.f_mul_scalar(self.beta)?.f_sub_scalar(shift)?) };
        let known = reward(&chosen)?.f_log_sigmoid()?;
        Ok(known.f_add(&reward(&rejected)?.f_neg()?.f_log_sigmoid()?)?.f_neg()?)
    }

    fn samples() -> Vec<Self> {
        [(0.1, true), (0.5, false)]
            .map(|(beta, running_mean)| BcoPair { beta, running_mean })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::{assert_pair, pairs};

    #[test]
    fn rewards_are_shifted_only_by_the_running_mean() {
        let loss = |running_mean| BcoPair {
            beta: 0.1,
            running_mean,
        };
        let mut one = pairs(&[[-10.0, -12.0, 5.0]], &[[-20.0, -15.0, 5.0]]);
        let text = loss(true).values(&one).unwrap_err().to_string();
        assert!(text.starts_with("baseline: expected"), "{text}");
        one.baseline = Some(-0.15);
        for (running_mean, expected) in [(true, 1.066764), (false, 1.072216)] {
            let value = loss(running_mean).values(&one).unwrap().double_value(&[0]);
            assert!((value - expected).abs() < 1e-6, "{value}");
            assert_eq!(loss(running_mean).baseline().is_some(), running_mean);
        }
        assert_pair(&loss(false), [2.0, -5.0], [1.072216, -0.0450166, 0.0377541]);
        assert_pair(&loss(false), [-1e4, 1e4], [2000.0, -0.1, 0.1]);
        let paper: BcoPair = serde_json::from_str(r#"{ "beta": 0.1 }"#).unwrap();
        assert_eq!(paper, loss(true));
    }
}
