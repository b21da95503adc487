//! Contrast of every target with the tokens just before it.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::nll::likelihood;
use super::{TokenLoss, marks, wanted};
use crate::error::{not_negative, some_share};
use crate::value::Part;
use crate::{Card, Described, Error, LossValue, Needs, Result, TokenCounts, TokenRows, TokenStats};

/// Likelihood of positives plus a contrast of every target with the tokens just before it: against repetition, without
/// negatives.
///
/// `L = (1/n₊) Σ₊ −log p(y_t) + α (1/m) Σ₊ log(1 + Σ_{c ∈ S_t} exp(z(c) − z(y_t)))`, over the tokens of positive and
/// unlabelled examples, `n₊` their number in the whole batch. The second sum is over the first `length·T` tokens of each
/// completion of `T` tokens, `m` their number in the whole batch. `S_t` is the list of the `M` tokens of the completion before
/// `t`, `M = window·length·T`, without those equal to `y_t`; a token that is there twice counts twice. The numbers of tokens are
/// rounded to whole ones, at least 1.
///
/// **Shapes**: see [`TokenLoss::evaluate`]; the candidates of [`TokenLoss::marks`] go to the op, by
/// [`TokenOp::with_candidates`](crate::TokenOp::with_candidates), its weights (1 where a token is contrasted, else 0) with the
/// rows.
///
/// **Parameters**: `alpha` (required), the weight of the contrast, finite and at least 0; `length` (`0.25`) and `window`
/// (`0.5`), above 0 and at most 1.
///
/// **Errors**: [`Error::Range`] for the three; [`Error::NothingToLearn`] when the whole batch is negative; [`Error::Input`] when
/// the rows have no weights; the op refuses to go without candidates; otherwise those of [`TokenLoss::evaluate`].
///
/// **On negatives**: ignored, as by [`Nll`](super::Nll). On positives each earlier token is pushed down by its share of the
/// sum, `α exp(z(c))/(exp(z(y)) + Σ exp(z(c)))/m`, and the target up by as much as they are together: less than `α/m`, and
/// it fades once the target leads. All other logits get nothing.
///
/// **Reference**: S. Jiang, R. Zhang, S. Vakulenko, M. de Rijke, "A Simple Contrastive Learning Objective for Alleviating
/// Neural Text Degeneration", 2022, the contrastive token (CT) loss; the shares are those of the released code.
///
/// **Differs from the paper**: shares are of each completion, where the released code takes them of the padded batch, so
/// that there an example's loss depends on the longest beside it; a share never rounds to no token at all, and halves round up,
/// not to even. Released recipes also give the two as absolute numbers of tokens, which is not here. The released
/// code takes the exponentials apart and overflows at large logits; here the sum is taken safely.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use unsay_losses::token::{ContrastiveToken, TokenLoss};
/// use unsay_losses::{TokenCounts, TokenOp, TokenRows};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let loss = ContrastiveToken { alpha: 1.0, length: 1.0, window: 1.0 };
/// let completion = [0i64, 1];
/// let marks = loss.marks(&[], &completion).unwrap_or_default();
/// let rows = TokenRows::new(&[0, 0], &[false, true], &[1], Device::Cpu)?.with_marks([&marks])?;
///
/// let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0]).view([1, 4]).repeat([2, 1]);
/// let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
/// let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&completion), &loss.needs())?;
/// let stats = op.with_candidates(rows.candidates.as_ref().unwrap())?.forward()?;
/// let value = loss.evaluate(&stats, &rows, &TokenCounts::of(&rows)?, None)?;
/// // -ln .6439, -ln .2369 and, for the second token against the first, ln(1 + e^(2 - 1)); the first has nothing before it.
/// assert!((value.total.double_value(&[]) - (0.440190 + 1.440190 + 1.313262) / 2.0).abs() < 1e-6);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContrastiveToken {
    /// Weight of the contrast against the likelihood; finite, at least 0. Published runs use 1.
    pub alpha: f64,
    /// The share of a completion, from its start, whose tokens are contrasted; above 0, at most 1.
    #[serde(default = "quarter")]
    pub length: f64,
    /// How far back the contrast looks, as a share of the tokens contrasted; above 0, at most 1.
    #[serde(default = "half")]
    pub window: f64,
}

/// Stands for the logit of a candidate that is not there, relative to the target's: no real one is as low.
const NOWHERE: f64 = -1e30;

fn quarter() -> f64 {
    0.25
}

fn half() -> f64 {
    0.5
}

impl ContrastiveToken {
    /// `log(1 + Σ exp(z(c) − z(y)))` per row, 0 where there is no candidate.
    fn contrast(stats: &TokenStats) -> Result<Tensor> {
        let target = wanted("stats.target_logit", &stats.target_logit)?.f_unsqueeze(1)?;
        let candidates = wanted("stats.candidate_logits", &stats.candidate_logits)?;
        // Clamped from -inf: a row of nothing but that would give a gradient that is not a number.
        let lead = candidates.f_sub(&target)?.f_clamp_min(NOWHERE)?;
        let lead = lead.f_logsumexp([1i64].as_slice(), false)?;
        // log(1 + e^x) = −log σ(−x), exact for every x.
        Ok(lead.f_neg()?.f_log_sigmoid()?.f_neg()?)
    }
}

/// A share of `n` tokens: the nearest whole number, at least 1.
fn tokens(share: f64, n: usize) -> usize {
    ((share * n as f64).round() as usize).max(1)
}

impl Described for ContrastiveToken {
    fn card(&self) -> Card {
        Card {
            name: "contrastive_token",
            summary: "likelihood of positives plus a contrast of every target with the tokens just before it",
            formula: "−log p(y) + α log(1 + Σ exp(z(c) − z(y))) over earlier tokens c on positives",
            on_negatives: "ignored; earlier tokens of positives down and the target up, bounded by α/m",
            source: "Jiang et al. 2022, the CT loss",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let shares = [
            some_share("contrastive_token.length", self.length),
            some_share("contrastive_token.window", self.window),
        ];
        not_negative("contrastive_token.alpha", self.alpha)
            .into_iter()
            .chain(shares.into_iter().flatten())
            .collect()
    }
}

impl TokenLoss for ContrastiveToken {
    fn needs(&self) -> Needs {
        Needs {
            target_logit: true,
            candidates: true,
            ..Needs::default()
        }
    }

    fn weights(&self, _: &[i64], completion: &[i64]) -> Option<Vec<f64>> {
        let contrasted = tokens(self.length, completion.len());
        let weights = (0..completion.len()).map(|t| f64::from(u8::from(t < contrasted)));
        Some(weights.collect())
    }

    fn candidates(&self, _: &[i64], completion: &[i64]) -> Option<Vec<Vec<i64>>> {
        let contrasted = tokens(self.length, completion.len());
        let window = tokens(self.window, contrasted);
        let before = |(t, target): (usize, &i64)| {
            let before = if t < contrasted {
                &completion[t.saturating_sub(window)..t]
            } else {
                &[]
            };
            before.iter().copied().filter(|id| id != target).collect()
        };
        Some(completion.iter().enumerate().map(before).collect())
    }

    fn rows_trained(&self, counts: &TokenCounts) -> f64 {
        counts.positive + counts.unlabelled
    }

    fn hint(&self) -> &'static str {
        "`contrastive_token` learns from positive and unlabelled examples; add some to every batch"
    }

    fn value(
        &self,
        stats: &TokenStats,
        rows: &TokenRows,
        counts: &TokenCounts,
        _: Option<&Tensor>,
    ) -> Result<LossValue> {
        let weight = marks::weights(rows, &stats.logp)?;
        let contrasted = rows.label.f_ne(0)?.f_logical_and(&weight.f_gt(0.0)?)?;
        let contrast = ContrastiveToken::contrast(stats)?.f_mul(&weight)?;
        let count = counts.positive_weight + counts.unlabelled_weight;
        let contrast = Part::mean("ct_loss", &contrast, &contrasted, count)?;
        LossValue::from_parts(&[(1.0, likelihood(stats, rows, counts)?), (self.alpha, contrast)], rows)
    }

    fn samples() -> Vec<Self> {
        vec![
            ContrastiveToken {
                alpha: 1.0,
                length: quarter(),
                window: half(),
            },
            ContrastiveToken {
                alpha: 0.5,
                length: 1.0,
                window: 1.0,
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::TokenOp;
    use crate::token::Marks;

    fn loss(alpha: f64, length: f64, window: f64) -> ContrastiveToken {
        ContrastiveToken { alpha, length, window }
    }

    #[test]
    fn candidates_are_the_window_before_without_copies_of_the_target() {
        let marks = |length, window, completion: &[i64]| {
            let marks = loss(1.0, length, window).marks(&[9], completion).unwrap();
            (marks.weights.unwrap(), marks.candidates.unwrap())
        };
        let (weights, candidates) = marks(1.0, 0.5, &[5, 6, 5, 5, 7, 5]);
        assert_eq!(weights, [1.0; 6]);
        // The fifth sees the three before it, copies included; the last sees them without its own.
        let expected = [vec![], vec![5], vec![6], vec![6], vec![6, 5, 5], vec![7]];
        assert_eq!(candidates, expected);
        // Half of 6 tokens is 3, half of those 2: rounded up from 1.5.
        let (weights, candidates) = marks(0.5, 0.5, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(weights, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(candidates, [vec![], vec![1], vec![1, 2], vec![], vec![], vec![]]);
        // At least one token, whatever the share.
        let (weights, candidates) = marks(0.25, 0.5, &[1]);
        assert_eq!((weights, candidates), (vec![1.0], vec![vec![]]));
        let (weights, _) = marks(0.25, 0.5, &[]);
        assert_eq!(weights, [0.0; 0]);
        let (_, candidates) = marks(1.0, 0.1, &[1, 2, 3]);
        assert_eq!(candidates, [vec![], vec![1], vec![2]]);
    }

    /// Rows of one kind each against the definition, with a candidate that is there twice and one that is not there.
    #[test]
    fn value_and_pushes_are_as_worked_out_by_hand() {
        let z = [2.0f64, 1.0, 0.0, -1.0];
        let logits = Tensor::from_slice(&z)
            .view([1, 4])
            .repeat([5, 1])
            .set_requires_grad(true);
        let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
        let marks = |weight: f64, ids: &[i64]| Marks {
            weights: Some(vec![weight]),
            candidates: Some(vec![ids.to_vec()]),
        };
        let all = [
            marks(1.0, &[0, 3, 0]),
            marks(1.0, &[0]),
            marks(1.0, &[]),
            marks(0.0, &[0, 2]),
            marks(1.0, &[2]),
        ];
        let rows = TokenRows::new(&[0, 1, 2, 3, 4], &[false; 5], &[1, 0, 1, -1, -1], Device::Cpu)
            .unwrap()
            .with_marks(&all)
            .unwrap();
        let loss = loss(0.5, 1.0, 1.0);
        let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[1i64; 5]), &loss.needs()).unwrap();
        let op = op.with_candidates(rows.candidates.as_ref().unwrap()).unwrap();
        let stats = op.forward().unwrap();
        let counts = TokenCounts::of(&rows).unwrap();
        let known = TokenCounts::count([(1, false), (1, true), (1, false), (0, false), (-1, false)]);
        assert!((loss.rows_trained(&known) - 4.0).abs() < 1e-15);
        let value = loss.evaluate(&stats, &rows, &counts, None).unwrap();
        // Against token 1: twice e^1 and once e^-2; once e^-1; nothing for the others. Three rows are contrasted.
        let (first, last) = (2.0 * 1f64.exp() + (-2f64).exp(), (-1f64).exp());
        let (ce, ct) = (1.4401896985611953, (first.ln_1p() + last.ln_1p()) / 3.0);
        assert!((value.total.double_value(&[]) - (ce + 0.5 * ct)).abs() < 1e-12);
        assert_eq!(value.terms[1].0, "ct_loss");
        assert!((value.terms[1].1.double_value(&[]) - ct).abs() < 1e-12);
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        let p = [
            0.6439142598879722,
            0.2368828180899101,
            0.08714431874203257,
            0.03205860328008499,
        ];
        let scale = 0.5 / 3.0;
        let pushes = [
            [
                2.0 * 1f64.exp() / (1.0 + first),
                -first / (1.0 + first),
                0.0,
                (-2f64).exp() / (1.0 + first),
            ],
            [0.0; 4],
            [0.0; 4],
            [0.0; 4],
            [0.0, -last / (1.0 + last), last / (1.0 + last), 0.0],
        ];
        for (row, pushes) in pushes.iter().enumerate() {
            let gradient = Vec::<f64>::try_from(logits.grad().get(row as i64)).unwrap();
            for v in 0..4 {
                let likely = p[v] - f64::from(u8::from(v == 1));
                let expected = if row == 1 {
                    0.0
                } else {
                    likely / 4.0 + scale * pushes[v]
                };
                assert!(
                    (gradient[v] - expected).abs() < 1e-12,
                    "row {row} token {v}: {}",
                    gradient[v]
                );
            }
        }
    }

    /// In single precision, with candidates far above and far below the target, and none.
    #[test]
    fn margins_of_ten_thousand_stay_finite() {
        let logits = Tensor::from_slice(&[1e4f32, -1e4, 0.0, 9e3]);
        for target in 0..4i64 {
            let states = logits.view([1, 4]).repeat([3, 1]).set_requires_grad(true);
            let identity = Tensor::eye(4, (Kind::Float, Device::Cpu));
            let marks = Marks {
                weights: Some(vec![1.0; 3]),
                candidates: Some(vec![vec![0, 1, 2, 3], vec![(target + 1) % 4], vec![]]),
            };
            let rows = TokenRows::new(&[0; 3], &[false; 3], &[1], Device::Cpu).unwrap();
            let rows = rows.with_marks([&marks]).unwrap();
            let loss = loss(1.0, 1.0, 1.0);
            let op = TokenOp::new(&states, &identity, &Tensor::from_slice(&[target; 3]), &loss.needs()).unwrap();
            let op = op.with_candidates(rows.candidates.as_ref().unwrap()).unwrap();
            let stats = op.forward().unwrap();
            let value = loss
                .evaluate(&stats, &rows, &TokenCounts::of(&rows).unwrap(), None)
                .unwrap();
            value.total.backward();
            op.surrogate(&stats).unwrap().backward();
            assert!(value.total.double_value(&[]).is_finite());
            assert!(states.grad().isfinite().all().int64_value(&[]) == 1, "target {target}");
        }
    }

    #[test]
    fn a_token_without_weight_is_out_whatever_its_candidates() {
        let column = |values: &[f64]| Tensor::from_slice(values).set_requires_grad(true);
        let mut stats = TokenStats::new(
            Tensor::from_slice(&[0i64, 0]),
            column(&[-1.0, -1.0]),
            Tensor::from_slice(&[true, false]),
        );
        stats.target_logit = Some(column(&[0.0, 0.0]));
        stats.candidate_logits = Some(Tensor::from_slice(&[f64::INFINITY, 0.0]).view([2, 1]));
        let marks = Marks {
            weights: Some(vec![0.0, 1.0]),
            candidates: None,
        };
        let rows = TokenRows::new(&[0, 0], &[false; 2], &[1], Device::Cpu).unwrap();
        let rows = rows.with_marks([&marks]).unwrap();
        let counts = TokenCounts::of(&rows).unwrap();
        let value = loss(1.0, 1.0, 1.0).evaluate(&stats, &rows, &counts, None).unwrap();
        assert!((value.total.double_value(&[]) - 1.0 - 2f64.ln()).abs() < 1e-15);
    }

    #[test]
    fn ranges_are_checked() {
        let problems = loss(-1.0, 0.0, 1.5).problems();
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "`contrastive_token.alpha` is -1, expected a finite number, at least 0",
                "`contrastive_token.length` is 0, expected a number above 0, at most 1",
                "`contrastive_token.window` is 1.5, expected a number above 0, at most 1",
            ]
        );
        let of = |text: &str| serde_json::from_str::<ContrastiveToken>(text).unwrap();
        assert_eq!(of(r#"{"alpha": 2.0}"#), loss(2.0, 0.25, 0.5));
        assert!(loss(0.0, 1.0, f64::MIN_POSITIVE).check().is_ok());
        assert!(loss(0.0, f64::NAN, 1.0).check().is_err());
    }
}
