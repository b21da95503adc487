//! The log-ratio modulated loss found by a language model.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs, dpo::logistic};
use crate::error::positive;
use crate::{Card, Described, Error, Result};

/// DiscoPOP: a logistic loss where the pair is wrong, an exponential one where it is right.
///
/// `L = (1 − m) (−log σ(βh)) + m e^{−βh}` with `m = σ(βh/τ)`, `h = c − r`, `c` and `r` the log-ratios of the chosen
/// and the rejected completion to the reference.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; `tau` `τ` (`0.05`), in `[0.001, 1]`: above 1 the value
/// would grow exponentially with how wrong a pair is.
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by about `β` where the pair is wrong and by `β e^{−βh}` where it is right; bounded,
/// not convex. With `τ = 0.05` the sign turns round near zero: for `−0.119 < βh < 0.072` the rejected one is pushed
/// **up**, by at most `0.82 β`.
///
/// **Reference**: C. Lu, S. Holt, C. Fanconi, A. J. Chan, J. Foerster, M. van der Schaar, R. T. Lange, "Discovering
/// preference optimization algorithms with and for large language models", 2024, eq. 5.
///
/// **Differs from the paper**: formula no; numerics yes. As written, `e^{−βh}` overflows where a pair is very wrong,
/// and its weight of zero makes that a NaN. Here both are one exponential of `log σ(βh/τ) − βh`, which is at most 0
/// wherever `h` is negative.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{Discopop, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64, reference: f64| {
///     let one = |x: f64| Tensor::from_slice(&[x]);
///     Completions::from_sums(&one(logp), Some(&one(reference)), &one(5.0))
/// };
/// let pairs = Pairs::new(side(-10.0, -12.0)?, side(-20.0, -15.0)?)?; // c = 2, r = -5, h = 7
/// let value = Discopop { beta: 0.1, tau: 0.05 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 0.496585).abs() < 1e-6); // exp(-0.7), as m = sigmoid(14) is nearly 1
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discopop {
    /// Strength of the pull to the reference; finite, above 0.
    pub beta: f64,
    /// Width of the change from logistic to exponential, in `[0.001, 1]`.
    #[serde(default = "paper_tau")]
    pub tau: f64,
}

/// The one value that the paper trained with.
fn paper_tau() -> f64 {
    0.05
}

impl Described for Discopop {
    fn card(&self) -> Card {
        Card {
            name: "discopop",
            summary: "blend of a logistic and an exponential loss by the size of the margin",
            formula: "(1 − m)(−log σ(βh)) + m e^{−βh}, m = σ(βh/τ), h = c − r",
            on_negatives: "down relative to the chosen one, but up for margins near zero; bounded",
            source: "Lu et al. 2024, eq. 5",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let tau = (!(0.001..=1.0).contains(&self.tau)).then(|| Error::Range {
            name: "discopop.tau",
            value: self.tau.to_string(),
            range: "a number from 0.001 to 1",
        });
        positive("discopop.beta", self.beta).into_iter().chain(tau).collect()
    }
}

impl PairedLoss for Discopop {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        let x = pairs.margin()?.f_mul_scalar(self.beta)?;
        let modulation = x.f_mul_scalar(1.0 / self.tau)?;
        let wrong = modulation.f_neg()?.f_sigmoid()?.f_mul(&logistic(&x, 0.0)?)?;
        let right = modulation.f_log_sigmoid()?.f_sub(&x)?.f_exp()?;
        Ok(wrong.f_add(&right)?)
    }

    fn samples() -> Vec<Self> {
        [(0.1, 0.05), (0.5, 1.0)]
            .map(|(beta, tau)| Discopop { beta, tau })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::assert_pair;

    #[test]
    fn blends_two_losses_and_turns_round_near_zero() {
        let loss = Discopop { beta: 0.1, tau: 0.05 };
        assert_pair(&loss, [2.0, -5.0], [0.496585, -0.0496584, 0.0496584]);
        // At h = 0: (ln 2 + 1)/2, and a slope of 5 (1 − ln 2) − 1/4 − 1/2.
        let slope = 5.0 * (1.0 - 2f64.ln()) - 0.75;
        assert_pair(&loss, [3.0, 3.0], [0.5 * (2f64.ln() + 1.0), 0.1 * slope, -0.1 * slope]);
        assert_pair(&loss, [-1.0, 1.0], [0.805752, -0.0412393, 0.0412393]);
        assert_pair(&loss, [-1e4, 1e4], [2000.0, -0.1, 0.1]);
        assert_pair(&loss, [1e4, -1e4], [0.0, 0.0, 0.0]);
        // τ = 1: (1 − σ(x)) (−log σ(x)) + 1 − σ(x)
        let even = Discopop { beta: 0.1, tau: 1.0 };
        assert_pair(&even, [2.0, -5.0], [0.331812 * 1.403186, -0.0421204, 0.0421204]);
        assert_pair(&even, [-1e4, 1e4], [2001.0, -0.1, 0.1]);
    }

    #[test]
    fn tau_has_the_papers_default_and_a_range() {
        let loss: Discopop = serde_json::from_str(r#"{ "beta": 0.1 }"#).unwrap();
        assert_eq!(loss, Discopop { beta: 0.1, tau: 0.05 });
        for (tau, fine) in [
            (0.001, true),
            (1.0, true),
            (0.0009, false),
            (1.1, false),
            (f64::NAN, false),
        ] {
            assert_eq!(Discopop { beta: 0.1, tau }.problems().is_empty(), fine);
        }
        assert_eq!(
            Discopop { beta: 0.0, tau: 2.0 }.problems()[1].to_string(),
            "`discopop.tau` is 2, expected a number from 0.001 to 1"
        );
    }
}
