//! Reward models from comparisons of two.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Feedback, ScoreLoss, Scores};
use crate::error::not_negative;
use crate::{Card, Described, Error, Result};

/// The logistic loss of the lead of the chosen over the rejected score.
///
/// `L = −log σ(r_w − r_l − m) + c (r_w + r_l)²` with `r_w`, `r_l` the scores of the chosen and the rejected completion and
/// `m` the pair's margin, 0 where people did not say how much better it is.
///
/// **Shapes**: [`Scores::Pairs`]; see [`ScoreLoss::values`].
///
/// **Parameters**: `centre` `c` (`0`), finite and at least 0: comparisons leave the level of the scores free, and this
/// draws it to zero.
///
/// **Errors**: [`Error::Range`] for `centre`; otherwise those of [`ScoreLoss::evaluate`].
///
/// **On negatives**: the rejected score is pushed down by `σ(r_l − r_w + m)`, at most 1, and the chosen one up by as much;
/// fades as the lead grows. With `c > 0` both are also drawn to levels that add up to zero, without a bound.
///
/// **Reference**: R. A. Bradley, M. E. Terry, "Rank analysis of incomplete block designs", 1952; as a loss of reward
/// models: N. Stiennon, L. Ouyang, J. Wu, D. M. Ziegler, R. Lowe, C. Voss, A. Radford, D. Amodei, P. Christiano, "Learning
/// to summarize from human feedback", 2020, §3.4; margins: H. Touvron et al., "Llama 2: Open foundation and fine-tuned
/// chat models", 2023, eq. 2; centring: J. Eisenstein et al., "Helping or herding? Reward model ensembles mitigate but do
/// not eliminate reward hacking", 2023.
///
/// **Differs from the paper**: no. A released variant computes `log(1 + exp(r_l − r_w))`, which overflows.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::scores::{BradleyTerry, ScoreLoss, Scores};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let (chosen, rejected) = (Tensor::from_slice(&[2.0f64]), Tensor::from_slice(&[1.0f64]));
/// let scores = Scores::Pairs { chosen: &chosen, rejected: &rejected, margin: None };
/// let value = BradleyTerry { centre: 0.1 }.values(&scores)?;
/// assert!((value.double_value(&[0]) - 1.213262).abs() < 1e-6); // -log sigmoid(1) + 0.1 * 9
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BradleyTerry {
    /// Weight of the square of the scores' sum; finite, at least 0. Released code suggests 0.01.
    #[serde(default)]
    pub centre: f64,
}

impl Described for BradleyTerry {
    fn card(&self) -> Card {
        Card {
            name: "bradley_terry",
            summary: "logistic loss of the lead of the chosen over the rejected score",
            formula: "−log σ(r_w − r_l − m) + c (r_w + r_l)²",
            on_negatives: "score down relative to the chosen one; bounded by 1, without a bound where c > 0",
            source: "Bradley, Terry 1952; Stiennon et al. 2020, §3.4",
        }
    }

    fn problems(&self) -> Vec<Error> {
        not_negative("bradley_terry.centre", self.centre).into_iter().collect()
    }
}

impl ScoreLoss for BradleyTerry {
    fn feedback(&self) -> Feedback {
        Feedback::Pairs
    }

    fn values(&self, scores: &Scores<'_>) -> Result<Tensor> {
        let (chosen, rejected, margin) = scores.pairs()?;
        let mut lead = chosen.f_sub(rejected)?;
        if let Some(margin) = margin {
            lead = lead.f_sub(&margin.f_detach()?.f_to_kind(lead.f_kind()?)?)?;
        }
        let centre = chosen.f_add(rejected)?.f_square()?.f_mul_scalar(self.centre)?;
        Ok(centre.f_sub(&lead.f_log_sigmoid()?)?)
    }

    fn samples() -> Vec<Self> {
        vec![BradleyTerry { centre: 0.0 }, BradleyTerry { centre: 0.05 }]
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn equals_the_definition_and_stays_finite_at_the_ends() {
        // Per pair: scores, margin, value and d/d chosen, by hand: lead 1 - 3; lead ±2e4, as -ls(-x) is x for large x.
        let cases = [
            (2.0, 1.0, 3.0, 2.126928 + 0.9, -0.880797 + 0.6),
            (1e4, -1e4, 0.0, 0.0, 0.0),
            (-1e4, 1e4, 0.0, 2e4, -1.0),
        ];
        for (chosen, rejected, margin, value, slope) in cases {
            let one = |x: f64| Tensor::from_slice(&[x]).set_requires_grad(true);
            let (chosen, rejected, margin) = (one(chosen), one(rejected), one(margin));
            let scores = Scores::Pairs {
                chosen: &chosen,
                rejected: &rejected,
                margin: Some(&margin),
            };
            let ours = BradleyTerry { centre: 0.1 }.values(&scores).unwrap();
            ours.sum(Kind::Double).backward();
            assert!((ours.double_value(&[0]) - value).abs() < 1e-6, "{ours:?}");
            assert!((chosen.grad().double_value(&[0]) - slope).abs() < 1e-6);
            assert!(!margin.grad().defined(), "margins are given");
        }
    }
}
