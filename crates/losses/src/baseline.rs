//! Numbers that a loss subtracts from its rewards.

use tch::{Kind, Tensor};

use crate::{Error, Result};

/// A whole-batch number that a loss subtracts from its rewards; the caller computes it over **all** micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    /// The running mean of all rewards so far, this batch's included: [`RunningMean`](crate::RunningMean).
    RunningMeanReward,
    /// `max(0, mean log-ratio)` of prompts with completions of other prompts: [`mismatched_kl`].
    MismatchedKl,
}

/// The number for a loss that asked for one.
///
/// **Errors**: [`Error::Input`] when it is missing or not finite.
pub(crate) fn wanted_baseline(given: Option<f64>) -> Result<f64> {
    let finite = given.filter(|baseline| baseline.is_finite());
    finite.ok_or_else(|| {
        let expected = "the finite whole-batch number that the loss subtracts from rewards";
        let got = given.map_or("none".to_owned(), |number| number.to_string());
        Error::input("baseline", expected, got)
    })
}

/// An estimate of the divergence from the reference, from completions that answer other prompts: KTO's baseline.
///
/// `z₀ = max(0, (1/B) Σ_i [log π(y_j | x_i) − log π_ref(y_j | x_i)])`, `y_j` the completion of another prompt; a
/// number, so no gradient.
///
/// **Shapes**: both `[B]`, sums over the completion's tokens, of the **whole** batch over all its micro-batches. A
/// batch of one has no other prompt.
///
/// **Errors**: [`Error::Empty`] without completions; [`Error::Input`] when the shapes differ or the mean is not a
/// number.
///
/// **Reference**: K. Ethayarajh, W. Xu, N. Muennighoff, D. Jurafsky, D. Kiela, "KTO: Model alignment as prospect
/// theoretic optimization", 2024, §4.1.
///
/// **Differs from the paper**: no. TRL 0.24 pairs neighbours once, when the data is prepared. HALOs leaves out rows
/// whose log-ratio is exactly 0; drop them before to do the same.
///
/// ```
/// use tch::Tensor;
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let (policy, reference) = (Tensor::from_slice(&[-9.0f64, -4.0]), Tensor::from_slice(&[-12.0f64, -3.0]));
/// let z0 = unsay_losses::mismatched_kl(&policy, &reference)?;
/// assert!((z0 - 1.0).abs() < 1e-12); // (3 - 1) / 2
/// let z0 = unsay_losses::mismatched_kl(&reference, &policy)?;
/// assert!(z0.abs() < 1e-12); // held at 0
/// # Ok(()) }
/// ```
pub fn mismatched_kl(logp: &Tensor, reference: &Tensor) -> Result<f64> {
    let size = logp.size();
    if size == [0] {
        return Err(Error::Empty {
            what: "the batch of mismatched completions",
        });
    }
    if size.len() != 1 || reference.size() != size || reference.device() != logp.device() {
        return Err(Error::input(
            "mismatched completions",
            "log-probabilities [B] of policy and reference on one device",
            format!(
                "{size:?} on {:?} and {:?} on {:?}",
                logp.device(),
                reference.size(),
                reference.device()
            ),
        ));
    }
    let ratio = logp
        .f_to_kind(Kind::Double)?
        .f_sub(&reference.f_to_kind(Kind::Double)?)?;
    let mean = ratio.f_mean(None)?.double_value(&[]);
    // Before the maximum, which would turn NaN into 0.
    if !mean.is_finite() {
        return Err(Error::input("mismatched completions", "a finite mean log-ratio", mean));
    }
    Ok(mean.max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_an_error() {
        let text = |a: &[f64], b: &[f64]| {
            mismatched_kl(&Tensor::from_slice(a), &Tensor::from_slice(b))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(text(&[], &[]), "the batch of mismatched completions is empty");
        let shapes = "mismatched completions: expected log-probabilities [B] of policy and reference on one device";
        assert_eq!(
            text(&[1.0, 2.0], &[1.0]),
            format!("{shapes}, got [2] on Cpu and [1] on Cpu")
        );
        let matrix = Tensor::from_slice(&[1.0f64, 2.0]).view([1, 2]);
        assert_eq!(
            mismatched_kl(&matrix, &matrix).unwrap_err().to_string(),
            format!("{shapes}, got [1, 2] on Cpu and [1, 2] on Cpu")
        );
        assert_eq!(
            text(&[f64::NAN, 1.0], &[0.0, 0.0]),
            "mismatched completions: expected a finite mean log-ratio, got NaN"
        );
    }
}
