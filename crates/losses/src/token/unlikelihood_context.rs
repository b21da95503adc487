//! Unlikelihood of what was said before.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::nll::likelihood;
use super::{TokenLoss, wanted};
use crate::error::not_negative;
use crate::value::Part;
use crate::{Card, Described, Error, LossValue, Needs, Result, TokenCounts, TokenRows, TokenStats};

/// Likelihood of positives plus unlikelihood of the tokens that came before: against repetition, without negatives.
///
/// `L = (1/n₊) Σ₊ [ −log p(y_t) + α Σ_{c ∈ C_t} −log(1 − p(c)) ]`, over the tokens of positive and unlabelled examples, `n₊`
/// their number in the whole batch. `C_t` is the set of the tokens that the completion has before `t`, without `y_t`; with
/// `include_prompt` those of the prompt, too, special tokens as the model reads them.
///
/// **Shapes**: see [`TokenLoss::evaluate`]; the candidates of [`TokenLoss::marks`] go to the op, by
/// [`TokenOp::with_candidates`](crate::TokenOp::with_candidates).
///
/// **Parameters**: `alpha` (required), the weight of the unlikelihood, finite and at least 0; `include_prompt` (`false`).
///
/// **Errors**: [`Error::Range`] for `alpha`; [`Error::NothingToLearn`] when the whole batch is negative; the op refuses to
/// go without candidates; otherwise those of [`TokenLoss::evaluate`].
///
/// **On negatives**: ignored, as by [`Nll`](super::Nll). The earlier tokens of positives are pushed down, and bounded:
/// `dL/dz_c = α p_c/n₊` for one candidate, which fades as `p_c → 0`.
///
/// **Reference**: S. Welleck, I. Kulikov, S. Roller, E. Dinan, K. Cho, J. Weston, "Neural text generation with
/// unlikelihood training", 2019: the token-level objective.
///
/// **Differs from the paper**: no. The released code differs from both: it flattens the batch, so that an example sees the
/// tokens of those before it as candidates, makes the padding a candidate everywhere, and clamps `1 − p` at 1e-5,
/// which makes the gradient zero exactly where the model is surest of repeating itself. Here `log(1 − p)` is exact.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use unsay_losses::token::{TokenLoss, UnlikelihoodContext};
/// use unsay_losses::{TokenCounts, TokenOp, TokenRows};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let loss = UnlikelihoodContext { alpha: 1.0, include_prompt: false };
/// let (prompt, completion) = ([3], [0, 1]);
/// let marks = loss.marks(&prompt, &completion).unwrap_or_default();
/// let rows = TokenRows::new(&[0, 0], &[false, true], &[1], Device::Cpu)?.with_marks([&marks])?;
///
/// let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0]).view([1, 4]).repeat([2, 1]);
/// let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
/// let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&completion.map(i64::from)), &loss.needs())?;
/// let stats = op.with_candidates(rows.candidates.as_ref().unwrap())?.forward()?;
/// let value = loss.evaluate(&stats, &rows, &TokenCounts::of(&rows)?, None)?;
/// // -ln .6439 for the first token; -ln .2369 - ln(1 - .6439) for the second, which should not be the first again.
/// assert!((value.total.double_value(&[]) - (0.440190 + 1.440190 + 1.032583) / 2.0).abs() < 1e-6);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlikelihoodContext {
    /// Weight of the unlikelihood against the likelihood; finite, at least 0. Published runs use 0.5 to 1.
    pub alpha: f64,
    /// Whether tokens of the prompt are candidates, too.
    #[serde(default)]
    pub include_prompt: bool,
}

impl Described for UnlikelihoodContext {
    fn card(&self) -> Card {
        Card {
            name: "unlikelihood_context",
            summary: "likelihood of positives plus -log(1 - p) of every token said before",
            formula: "−log p(y) − α Σ log(1 − p(c)) over earlier tokens c on positives",
            on_negatives: "ignored; earlier tokens of positives down, bounded by α/n₊ each",
            source: "Welleck et al. 2019, token level",
        }
    }

    fn problems(&self) -> Vec<Error> {
        not_negative("unlikelihood_context.alpha", self.alpha)
            .into_iter()
            .collect()
    }
}

impl TokenLoss for UnlikelihoodContext {
    fn needs(&self) -> Needs {
        Needs {
            candidate_log1m_p: true,
            ..Needs::default()
        }
    }

    fn candidates(&self, prompt: &[i64], completion: &[i64]) -> Option<Vec<Vec<i64>>> {
        let mut before: BTreeSet<i64> = if self.include_prompt { prompt } else { &[] }.iter().copied().collect();
        let candidates = completion.iter().map(|target| {
            let others = before.iter().copied().filter(|id| id != target).collect();
            before.insert(*target);
            others
        });
        Some(candidates.collect())
    }

    fn rows_trained(&self, counts: &TokenCounts) -> f64 {
        counts.positive + counts.unlabelled
    }

    fn hint(&self) -> &'static str {
        "`unlikelihood_context` learns from positive and unlabelled examples; add some to every batch"
    }

    fn value(
        &self,
        stats: &TokenStats,
        rows: &TokenRows,
        counts: &TokenCounts,
        _: Option<&Tensor>,
    ) -> Result<LossValue> {
        let unlikelihood = wanted("stats.candidate_log1m_p", &stats.candidate_log1m_p)?
            .f_sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)?
            .f_neg()?;
        let push = Part::mean(
            "ul_loss",
            &unlikelihood,
            &rows.label.f_ne(0)?,
            self.rows_trained(counts),
        )?;
        LossValue::from_parts(&[(1.0, likelihood(stats, rows, counts)?), (self.alpha, push)], rows)
    }

    fn samples() -> Vec<Self> {
        let base = UnlikelihoodContext {
            alpha: 1.0,
            include_prompt: false,
        };
        vec![
            base,
            UnlikelihoodContext {
                alpha: 0.25,
                include_prompt: true,
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::TokenOp;
    use crate::token::Marks;

    fn loss(alpha: f64, include_prompt: bool) -> UnlikelihoodContext {
        UnlikelihoodContext { alpha, include_prompt }
    }

    #[test]
    fn candidates_are_the_set_of_earlier_tokens_without_the_target() {
        let candidates = |include_prompt| {
            let marks = loss(1.0, include_prompt)
                .marks(&[1, 9, 9], &[5, 6, 5, 5, 9, 2])
                .unwrap();
            assert!(marks.weights.is_none());
            marks.candidates.unwrap()
        };
        let (none, all): (Vec<i64>, Vec<i64>) = (vec![], vec![5, 6, 9]);
        assert_eq!(candidates(false), [none, vec![5], vec![6], vec![6], vec![5, 6], all]);
        let with_prompt = candidates(true);
        assert_eq!(with_prompt[0], [1, 9]);
        assert_eq!(with_prompt[4], [1, 5, 6], "the prompt has the target, too");
        assert_eq!(with_prompt[5], [1, 5, 6, 9]);
    }

    #[test]
    fn ranges_and_what_a_manifest_leaves_out() {
        let of = |text: &str| serde_json::from_str::<UnlikelihoodContext>(text).unwrap();
        assert_eq!(of(r#"{"alpha": 1.0}"#), loss(1.0, false));
        assert!(loss(0.0, true).check().is_ok());
        assert_eq!(
            loss(f64::NAN, false).check().unwrap_err().to_string(),
            "`unlikelihood_context.alpha` is NaN, expected a finite number, at least 0"
        );
    }

    #[test]
    fn the_op_refuses_to_go_without_candidates() {
        let logits = Tensor::zeros([1, 4], (Kind::Double, Device::Cpu));
        let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
        let needs = loss(1.0, false).needs();
        let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[0i64]), &needs).unwrap();
        let error = op.forward().unwrap_err().to_string();
        assert!(
            error.starts_with("candidates: expected ids by `with_candidates`"),
            "{error}"
        );
    }

    /// One candidate `k` at `alpha` 1: `d/dz_k = p_k`, `d/dz_j = −p_k p_j/(1 − p_k)`; negatives get nothing.
    #[test]
    fn one_candidate_pushes_as_worked_out_by_hand_and_negatives_are_ignored() {
        let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0])
            .view([1, 4])
            .repeat([3, 1])
            .set_requires_grad(true);
        let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
        let candidates = |ids: &[i64]| Marks {
            weights: None,
            candidates: Some(ids.iter().map(|&id| vec![id]).collect()),
        };
        let rows = TokenRows::new(&[0, 1, 2], &[false; 3], &[1, 0, -1], Device::Cpu)
            .unwrap()
            .with_marks([&candidates(&[0]), &candidates(&[0]), &candidates(&[3])])
            .unwrap();
        let loss = loss(0.5, false);
        let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[1i64, 1, 1]), &loss.needs()).unwrap();
        let op = op.with_candidates(rows.candidates.as_ref().unwrap()).unwrap();
        let stats = op.forward().unwrap();
        let counts = TokenCounts::of(&rows).unwrap();
        assert!((loss.rows_trained(&counts) - 2.0).abs() < 1e-15);
        let value = loss.evaluate(&stats, &rows, &counts, None).unwrap();
        let p = [
            0.6439142598879722f64,
            0.2368828180899101,
            0.08714431874203257,
            0.03205860328008499,
        ];
        let ce = -p[1].ln();
        let (first, last) = (-(1.0 - p[0]).ln(), -(1.0 - p[3]).ln());
        let expected = (2.0 * ce + 0.5 * (first + last)) / 2.0;
        assert!((value.total.double_value(&[]) - expected).abs() < 1e-12);
        assert_eq!(value.terms.len(), 2);
        assert!((value.terms[0].1.double_value(&[]) - ce).abs() < 1e-12);
        assert!((value.terms[1].1.double_value(&[]) - (first + last) / 2.0).abs() < 1e-12);
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        for (row, candidate) in [(0, 0usize), (2, 3)] {
            let gradient = Vec::<f64>::try_from(logits.grad().get(row)).unwrap();
            for (v, gradient) in gradient.into_iter().enumerate() {
                let likelihood = p[v] - f64::from(u8::from(v == 1));
                let push = match v == candidate {
                    true => p[v],
                    false => -p[candidate] * p[v] / (1.0 - p[candidate]),
                };
                assert!((gradient - (likelihood + 0.5 * push) / 2.0).abs() < 1e-12);
            }
        }
        assert!(logits.grad().get(1).abs().max().double_value(&[]) < 1e-15);
    }
}
