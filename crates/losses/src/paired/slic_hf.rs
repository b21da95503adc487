//! Sequence likelihood calibration with human feedback.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::hinge::hinge;
use super::{PairedLoss, Pairs};
use crate::error::{not_negative, positive};
use crate::{Card, Described, Error, Result};

/// SLiC-HF: a margin between the log-probabilities of a pair, without a reference, plus the likelihood of the chosen
/// one.
///
/// `L = max(0, δ − log π(y_w) + log π(y_l)) + λ NLL(y_w)`; the likelihood is a mean over the tokens of chosen
/// completions in the whole batch, see [`Objective`](super::Objective).
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `delta` (required), the margin in nats, finite and above 0; `lambda` (required), finite and at least
/// 0.
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by exactly 1 per unit of log-probability until it is `δ` less likely than the chosen
/// one, then not at all. Sums favour short completions; [`Logps::Mean`](super::Logps::Mean) gives the length-normalised
/// form.
///
/// **Reference**: Y. Zhao, R. Joshi, T. Liu, M. Khalman, M. Saleh, P. J. Liu, "SLiC-HF: Sequence likelihood calibration
/// with human feedback", 2023, the calibration loss and its regulariser.
///
/// **Differs from the paper**: the likelihood is that of the chosen completion; the paper also takes it of the
/// completions of supervised fine-tuning. What some libraries call SLiC compares with a reference model and has no
/// likelihood.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{PairedLoss, Pairs, SlicHf};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let two = |x: [f64; 2]| Tensor::from_slice(&x);
/// let side = |logp: [f64; 2]| Completions::from_sums(&two(logp), None, &two([5.0, 5.0]));
/// let pairs = Pairs::new(side([-10.0, -10.0])?, side([-10.4, -12.0])?)?;
/// let value = SlicHf { delta: 1.0, lambda: 0.0 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 0.6).abs() < 1e-12); // 1 + 10 - 10.4
/// assert_eq!(value.double_value(&[1]), 0.0); // 2 apart is more than enough
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlicHf {
    /// How much more likely the chosen completion should be, in nats; finite, above 0.
    pub delta: f64,
    /// Weight of the likelihood of the chosen completion; finite, at least 0.
    pub lambda: f64,
}

impl Described for SlicHf {
    fn card(&self) -> Card {
        Card {
            name: "slic_hf",
            summary: "margin between the log-probabilities of a pair plus likelihood of the chosen one, no reference",
            formula: "max(0, δ − log π(y_w) + log π(y_l)) + λ NLL(y_w)",
            on_negatives: "down by 1 until δ below the chosen one, then nothing",
            source: "Zhao et al. 2023",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let delta = positive("slic_hf.delta", self.delta);
        delta
            .into_iter()
            .chain(not_negative("slic_hf.lambda", self.lambda))
            .collect()
    }
}

impl PairedLoss for SlicHf {
    fn uses_reference(&self) -> bool {
        false
    }

    fn beta(&self) -> f64 {
        1.0
    }

    fn nll(&self) -> f64 {
        self.lambda
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        hinge(&pairs.chosen.logp.f_sub(&pairs.rejected.logp)?, self.delta)
    }

    fn samples() -> Vec<Self> {
        [(1.0, 0.0), (0.5, 0.1)]
            .map(|(delta, lambda)| SlicHf { delta, lambda })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Completions;
    use crate::paired::pairs::tests::numbers;

    /// Short of the margin, at its corner, past it and at both extremes.
    #[test]
    fn pushes_by_one_until_delta_apart_and_then_not_at_all() {
        let chosen = Tensor::from_slice(&[-10.0f64, -10.0, -10.0, -1e4, 0.0]).set_requires_grad(true);
        let rejected = Tensor::from_slice(&[-9.0f64, -10.5, -12.0, 0.0, -1e4]).set_requires_grad(true);
        let side = |logp: &Tensor| Completions::from_sums(logp, None, &Tensor::from_slice(&[2.0f64; 5])).unwrap();
        let pairs = Pairs::new(side(&chosen), side(&rejected)).unwrap();
        let loss = SlicHf {
            delta: 0.5,
            lambda: 0.25,
        };
        let values = loss.values(&pairs).unwrap();
        assert_eq!(numbers(&values), [1.5, 0.0, 0.0, 1e4 + 0.5, 0.0]);
        values.sum(tch::Kind::Double).backward();
        assert_eq!(numbers(&chosen.grad()), [-1.0, 0.0, 0.0, -1.0, 0.0]);
        assert_eq!(numbers(&rejected.grad()), [1.0, 0.0, 0.0, 1.0, 0.0]);
        let (reward, _) = loss.rewards(&pairs).unwrap();
        assert_eq!(numbers(&reward), [-10.0, -10.0, -10.0, -1e4, 0.0]);
    }

    #[test]
    fn says_what_it_is_and_what_is_out_of_range() {
        let loss = SlicHf {
            delta: 1.0,
            lambda: 0.25,
        };
        assert!(!loss.uses_reference() && !loss.per_token() && loss.problems().is_empty());
        assert!((loss.nll() - 0.25).abs() < 1e-15);
        let bad = SlicHf {
            delta: 0.0,
            lambda: -1.0,
        };
        let problems: Vec<String> = bad.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "`slic_hf.delta` is 0, expected a finite number above 0",
                "`slic_hf.lambda` is -1, expected a finite number, at least 0",
            ]
        );
    }
}
