//! Reward models from the best of several.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Feedback, ScoreLoss, Scores};
use crate::{Card, Described, Error, Result};

/// Softmax cross-entropy of the one that people chose among `K`.
///
/// `L = −log (e^{r_b} / Σ_k e^{r_k})` with `r_k` the scores and `b` the chosen one; with `K = 2` it is
/// [`BradleyTerry`](super::BradleyTerry) without centring and margins.
///
/// **Shapes**: [`Scores::Choices`]; see [`ScoreLoss::values`].
///
/// **Parameters**: none.
///
/// **Errors**: those of [`ScoreLoss::evaluate`].
///
/// **On negatives**: each score that was not chosen is pushed down by its softmax probability, together at most 1; fades
/// as the chosen one leads.
///
/// **Reference**: D. M. Ziegler, N. Stiennon, J. Wu, T. B. Brown, A. Radford, D. Amodei, P. Christiano, G. Irving,
/// "Fine-tuning language models from human preferences", 2019, eq. 1.
///
/// **Differs from the paper**: no; the paper has `K = 4`.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::scores::{BestChoice, ScoreLoss, Scores};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let scores = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0]).view([1, 4]);
/// let best = Tensor::from_slice(&[1i64]);
/// let value = BestChoice {}.values(&Scores::Choices { scores: &scores, best: &best })?;
/// assert!((value.double_value(&[0]) - 1.440190).abs() < 1e-6); // -ln 0.236883
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestChoice {}

impl Described for BestChoice {
    fn card(&self) -> Card {
        Card {
            name: "best_choice",
            summary: "softmax cross-entropy of the one chosen among several scores",
            formula: "−log softmax(r)_b",
            on_negatives: "scores down relative to the chosen one; together bounded by 1",
            source: "Ziegler et al. 2019, eq. 1",
        }
    }

    fn problems(&self) -> Vec<Error> {
        Vec::new()
    }
}

impl ScoreLoss for BestChoice {
    fn feedback(&self) -> Feedback {
        Feedback::Choices
    }

    fn values(&self, scores: &Scores<'_>) -> Result<Tensor> {
        let (scores, best) = scores.choices()?;
        let logp = scores.f_log_softmax(-1, None)?.f_gather(1, &best, false)?;
        Ok(logp.f_squeeze_dim(1)?.f_neg()?)
    }

    fn samples() -> Vec<Self> {
        vec![BestChoice {}]
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::scores::BradleyTerry;

    #[test]
    fn two_candidates_are_a_pair_also_at_the_ends() {
        let chosen = Tensor::from_slice(&[0.7f64, -1e4, 1e4, 1e4]).set_requires_grad(true);
        let rejected = Tensor::from_slice(&[0.9f64, 1e4, -1e4, 1e4]);
        let pairs = Scores::Pairs {
            chosen: &chosen,
            rejected: &rejected,
            margin: None,
        };
        let scores = Tensor::stack(&[&rejected, &chosen], 1);
        let best = Tensor::from_slice(&[1i64; 4]);
        let choices = Scores::Choices {
            scores: &scores,
            best: &best,
        };
        let run = |values: Tensor| {
            values.sum(Kind::Double).backward();
            let gradient = Vec::<f64>::try_from(chosen.grad()).unwrap();
            let _ = chosen.grad().zero_();
            (Vec::<f64>::try_from(values).unwrap(), gradient)
        };
        let (a, b) = (
            run(BradleyTerry { centre: 0.0 }.values(&pairs).unwrap()),
            run(BestChoice {}.values(&choices).unwrap()),
        );
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near(&a.0, &b.0) && near(&a.1, &b.1), "{a:?} {b:?}");
        assert!(near(&a.0[1..], &[2e4, 0.0, 2f64.ln()]) && near(&a.1[1..], &[-1.0, 0.0, -0.5]));
    }
}
