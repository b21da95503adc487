//! Identity preference optimisation per token.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs, ipo::squared};
use crate::error::positive;
use crate::{Card, Described, Error, Result};

/// IPO as libraries train it: log-ratios are means over tokens.
///
/// `L = (c/n_w − r/n_l − 1/(2β))²` with `c` and `r` the log-ratios of the chosen and the rejected completion to the
/// reference, `n_w` and `n_l` their numbers of tokens.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0. It is not the `beta` of [`Ipo`](super::Ipo): the target is
/// a margin per token.
///
/// **Errors**: [`Error::Range`] for `beta`; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `2 (1/(2β) − h)/n_l`, `h` the margin per token, while it is short of `1/(2β)`, up
/// beyond it. Grows with the distance, not bounded; a long completion is pushed less per token.
///
/// **Reference**: M. G. Azar, M. Rowland, B. Piot, D. Guo, D. Calandriello, M. Valko, R. Munos, "A general
/// theoretical paradigm to understand learning from human preferences", 2023, eq. 17, with means in place of sums as
/// in TRL.
///
/// **Differs from the paper**: yes, in the means. HALOs counts only tokens whose log-ratio is not zero; here all
/// count.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{IpoMean, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64, reference: f64| {
///     let one = |x: f64| Tensor::from_slice(&[x]);
///     Completions::from_sums(&one(logp), Some(&one(reference)), &one(5.0))
/// };
/// let pairs = Pairs::new(side(-10.0, -12.0)?, side(-20.0, -15.0)?)?; // c = 2, r = -5, h = 7
/// let value = IpoMean { beta: 0.1 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 12.96).abs() < 1e-6); // (2/5 + 5/5 - 5)^2
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpoMean {
    /// Strength of the pull to the reference; finite, above 0. The target margin per token is `1/(2β)`.
    pub beta: f64,
}

impl Described for IpoMean {
    fn card(&self) -> Card {
        Card {
            name: "ipo_mean",
            summary: "squared distance of the pair's margin per token to 1/(2β)",
            formula: "(c/n_w − r/n_l − 1/(2β))²",
            on_negatives: "down to a margin per token of 1/(2β), up beyond; not bounded",
            source: "Azar et al. 2023, eq. 17, per token as in TRL",
        }
    }

    fn problems(&self) -> Vec<Error> {
        positive("ipo_mean.beta", self.beta).into_iter().collect()
    }
}

impl PairedLoss for IpoMean {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn per_token(&self) -> bool {
        true
    }

    fn takes_divergence(&self) -> bool {
        // A constant in the scores would not cancel once each side is divided by its own number of tokens.
        false
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        let (chosen, rejected) = pairs.log_ratios()?;
        let per_token = chosen
            .f_div(&pairs.chosen.tokens)?
            .f_sub(&rejected.f_div(&pairs.rejected.tokens)?)?;
        squared(&per_token, 0.5 / self.beta)
    }

    fn samples() -> Vec<Self> {
        [0.1, 0.5].map(|beta| IpoMean { beta }).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::assert_pair;

    #[test]
    fn each_side_is_divided_by_its_own_tokens() {
        // 4 and 10 tokens: 2/4 + 5/10 − 5 = −4
        assert_pair(&IpoMean { beta: 0.1 }, [2.0, -5.0], [16.0, -2.0, 0.8]);
        assert_pair(&IpoMean { beta: 0.5 }, [8.0, -5.0], [2.25, 0.75, -0.3]);
    }
}
