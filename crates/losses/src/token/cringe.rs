//! CRINGE: contrast every token of a negative with one the model would rather say.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{TokenLoss, wanted};
use crate::error::not_negative;
use crate::value::{select, term};
use crate::{Card, Described, Error, LossValue, Needs, Result, TokenCounts, TokenRows, TokenStats};

/// Likelihood of positives plus a contrast of every negative token with a sampled likely one.
///
/// `L = (1/n) [ Σ₊ −log p(y_t) + α Σ₋ softplus(z(y_t) − z(s_t)) ]`. Per token of a negative, `s_t` is drawn from the
/// softmax of `k` candidate logits: the `k + 1` largest without `y_t`, or without the smallest of them where `y_t` is
/// not among them. `n` is the number of tokens trained by either part in the whole batch: positives and negatives share
/// one denominator, so the weight of the negatives follows their share of the tokens.
///
/// **Shapes**: see [`TokenLoss::evaluate`]; `draws` `[N, 1]`.
///
/// **Parameters**: `alpha` (required), weight of the contrast, finite and at least 0; `k` (required), candidates, 1 to
/// 65536 and below the vocabulary size; `detach_positives` (`false`), `contrast_on_positives` (`false`), `ce_on_positives`
/// (`true`), `count_eos` (`true`): see the fields.
///
/// **Errors**: [`Error::Range`] for `alpha` and `k`; the op refuses a vocabulary smaller than `k + 1`;
/// otherwise those of [`TokenLoss::evaluate`].
///
/// **On negatives**: `z(y)` is pushed down and `z(s)` up by the same `σ(z(y) − z(s))·α/n`; bounded by `α/n`, and it
/// fades once `s` is clearly preferred. All other logits get nothing.
///
/// **Reference**: L. Adolphs, T. Gao, J. Xu, K. Shuster, S. Sukhbaatar, J. Weston, "The CRINGE Loss: Learning what
/// language not to model", 2022: the CRINGE loss. The switches and the shared denominator are those of the released
/// code.
///
/// **Differs from the paper**: no. It differs from the released code in two places that the paper does not want: no
/// ignore index leaks into the contrast (there it silently drops the contrast on positives, or on negatives, depending on
/// the padding id), and the excluded candidate is taken out instead of getting a logit 1e10 lower, which is the
/// same draw without overflow in half precision.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use unsay_losses::token::{Cringe, TokenLoss};
/// use unsay_losses::{TokenCounts, TokenOp, TokenRows};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let loss = Cringe::new(1.0, 1);
/// let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0]).view([1, 4]).set_requires_grad(true);
/// let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
/// let rows = TokenRows::new(&[0], &[false], &[0], Device::Cpu)?; // a negative whose token is the model's favourite
/// let draws = Tensor::from_slice(&[0.5f64]).view([1, 1]);
///
/// let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[0i64]), &loss.needs())?;
/// let stats = op.forward()?;
/// let value = loss.evaluate(&stats, &rows, &TokenCounts::of(&rows)?, Some(&draws))?;
/// assert!((value.total.double_value(&[]) - 1.31326).abs() < 1e-5); // softplus(2 - 1)
/// value.total.backward();
/// op.surrogate(&stats)?.backward();
/// let push = Vec::<f64>::try_from(logits.grad().view([-1])).unwrap();
/// assert!((push[0] - 0.73106).abs() < 1e-5 && (push[1] + 0.73106).abs() < 1e-5);
/// assert_eq!(push[2..], [0.0, 0.0]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cringe {
    /// Weight of the contrast against the likelihood; finite, at least 0. Published runs use 0.5 to 5.
    pub alpha: f64,
    /// Candidates to draw from; at least 1. Published runs use 5; 1 is deterministic.
    pub k: usize,
    /// Whether the sampled token's logit gets no gradient, so that the negative is only pushed down.
    #[serde(default)]
    pub detach_positives: bool,
    /// Whether tokens of positive examples are contrasted too, as the better side:
    /// `softplus(z(s) − z(y))`. Unlabelled examples never are.
    #[serde(default)]
    pub contrast_on_positives: bool,
    /// Whether positive examples train the likelihood; unlabelled ones always do.
    #[serde(default = "yes")]
    pub ce_on_positives: bool,
    /// Whether the end of a completion is contrasted like its other tokens. If not, ends that would only be
    /// contrasted do not count in the denominator either.
    #[serde(default = "yes")]
    pub count_eos: bool,
}

/// Far beyond any use, and small enough for every integer type between here and libtorch.
const MAX_K: usize = 1 << 16;

fn yes() -> bool {
    true
}

impl Cringe {
    /// With the switches of the released code.
    pub fn new(alpha: f64, k: usize) -> Self {
        Cringe {
            alpha,
            k,
            detach_positives: false,
            contrast_on_positives: false,
            ce_on_positives: true,
            count_eos: true,
        }
    }

    /// How many rows train the likelihood, and how many the contrast.
    fn parts(&self, counts: &TokenCounts) -> (f64, f64) {
        let likelihood = counts.unlabelled + if self.ce_on_positives { counts.positive } else { 0.0 };
        let (positive, negative) = self.contrasted(counts);
        (likelihood, positive + negative)
    }

    /// How many rows of positives are contrasted, and how many of negatives.
    fn contrasted(&self, counts: &TokenCounts) -> (f64, f64) {
        let contrasted = |rows: f64, ends: f64| if self.count_eos { rows } else { rows - ends };
        let positive = contrasted(counts.positive, counts.positive_eos);
        (
            if self.contrast_on_positives { positive } else { 0.0 },
            contrasted(counts.negative, counts.negative_eos),
        )
    }

    /// `[N]` the rows that are contrasted.
    fn contrasted_rows(&self, rows: &TokenRows) -> Result<Tensor> {
        let negative = rows.label.f_eq(0)?;
        let either = match self.contrast_on_positives {
            true => negative.f_logical_or(&rows.label.f_eq(1)?)?,
            false => negative,
        };
        Ok(match self.count_eos {
            true => either,
            false => either.f_logical_and(&rows.is_eos.f_logical_not()?)?,
        })
    }
}

/// What [`contrast`] reads from the op.
pub(crate) fn contrast_needs(k: usize) -> Needs {
    Needs {
        top_k: k.saturating_add(1),
        target_logit: true,
        ..Needs::default()
    }
}

/// Whether there are as many candidates as [`contrast`] can draw from.
pub(crate) fn candidates(name: &'static str, k: usize) -> Option<Error> {
    (k == 0 || k > MAX_K).then(|| Error::Range {
        name,
        value: k.to_string(),
        range: "a whole number from 1 to 65536",
    })
}

/// `[N]` the contrast of every row with its drawn candidate: `softplus` of the worse logit minus the better one.
///
/// The target is the worse one, except where `targets_better` `[N]` says otherwise. `detach_drawn` keeps the gradient from
/// the drawn logit. The `draws`, one per row, were checked.
pub(crate) fn contrast(
    stats: &TokenStats,
    k: usize,
    detach_drawn: bool,
    targets_better: Option<&Tensor>,
    draws: Option<&Tensor>,
) -> Result<Tensor> {
    let draws = draws.ok_or_else(|| Error::input("draws", "one per row", "none"))?;
    let target = wanted("stats.target_logit", &stats.target_logit)?;
    let top = wanted("stats.top_logits", &stats.top_logits)?;
    let ids = wanted("stats.top_ids", &stats.top_ids)?;
    let wanted_size = [stats.n_rows(), k as i64 + 1];
    for (what, column, wanted_size) in [
        ("stats.target_logit", target, &wanted_size[..1]),
        ("stats.top_logits", top, &wanted_size),
        ("stats.top_ids", ids, &wanted_size),
    ] {
        if column.size() != wanted_size {
            let got = format!("{:?}", column.size());
            return Err(Error::input(what, format!("{wanted_size:?}"), got));
        }
    }
    let place = draw(top, ids, &stats.targets, draws)?;
    let drawn = top.f_gather(1, &place, false)?.f_squeeze_dim(1)?;
    let drawn = if detach_drawn { drawn.f_detach()? } else { drawn };
    let target_minus_drawn = target.f_sub(&drawn)?;
    let better_minus_worse = match targets_better {
        Some(better) => target_minus_drawn.f_where_self(better, &target_minus_drawn.f_neg()?)?,
        None => target_minus_drawn.f_neg()?,
    };
    // softplus(−x) = −log σ(x), exact for every x; libtorch's softplus turns linear past 20.
    Ok(better_minus_worse.f_log_sigmoid()?.f_neg()?)
}

/// `[N, 1]` the place among the `k + 1` largest logits that each draw picks: inverse distribution function of the
/// softmax over the `k` candidates, in `f64`.
///
/// The one that is no candidate, the target or else the last, is taken out of the row before the draw, so no rounding can
/// pick it. A draw below 1 times the function's end rounds to below that end: there is always a place that exceeds it.
fn draw(top: &Tensor, ids: &Tensor, targets: &Tensor, draws: &Tensor) -> Result<Tensor> {
    let k = ids.size()[1] - 1;
    let places = Tensor::f_arange(k + 1, (Kind::Int64, ids.device()))?.f_unsqueeze(0)?;
    let is_target = ids.f_eq_tensor(&targets.f_unsqueeze(1)?)?;
    let out = places
        .f_where_scalarother(&is_target, k)?
        .f_amin([1i64].as_slice(), true)?;
    let candidates = places.f_narrow(1, 0, k)?;
    let candidates = candidates.f_add(&candidates.f_ge_tensor(&out)?.f_to_kind(Kind::Int64)?)?;
    let logits = top
        .f_detach()?
        .f_to_kind(Kind::Double)?
        .f_gather(1, &candidates, false)?;
    let reached = logits.f_softmax(-1, None)?.f_cumsum(-1, None)?;
    let draws = draws.f_to_kind(Kind::Double)?.f_mul(&reached.f_narrow(1, k - 1, 1)?)?;
    let passed = reached.f_le_tensor(&draws)?;
    let drawn = passed.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Int64)?;
    Ok(candidates.f_gather(1, &drawn, false)?)
}

impl Described for Cringe {
    fn card(&self) -> Card {
        Card {
            name: "cringe",
            summary: "likelihood of positives plus a contrast of every negative token with a sampled likely one",
            formula: "−log p(y) on positives; α softplus(z(y) − z(s)) on negatives, s drawn from the top k",
            on_negatives: "down, and the drawn token up by as much; bounded by α/n",
            source: "Adolphs et al. 2022",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let alpha = not_negative("cringe.alpha", self.alpha);
        alpha.into_iter().chain(candidates("cringe.k", self.k)).collect()
    }
}

impl TokenLoss for Cringe {
    fn needs(&self) -> Needs {
        contrast_needs(self.k)
    }

    fn draws_per_row(&self) -> usize {
        1
    }

    fn top_rows(&self, rows: &TokenRows) -> Result<Option<Tensor>> {
        self.contrasted_rows(rows).map(Some)
    }

    fn rows_trained(&self, counts: &TokenCounts) -> f64 {
        let (positive, negative) = self.contrasted(counts);
        let positive = if self.ce_on_positives {
            counts.positive
        } else {
            positive
        };
        counts.unlabelled + positive + negative
    }

    fn hint(&self) -> &'static str {
        "see `ce_on_positives`, `contrast_on_positives` and `count_eos`"
    }

    fn value(
        &self,
        stats: &TokenStats,
        rows: &TokenRows,
        counts: &TokenCounts,
        draws: Option<&Tensor>,
    ) -> Result<LossValue> {
        let n = self.rows_trained(counts);
        let (n_likelihood, n_contrast) = self.parts(counts);
        let positive = rows.label.f_eq(1)?;
        let likely = match self.ce_on_positives {
            true => rows.label.f_ne(0)?,
            false => rows.label.f_eq(-1)?,
        };
        let contrasted = self.contrasted_rows(rows)?;
        let nll = stats.logp.f_neg()?;
        let contrast = contrast(stats, self.k, self.detach_positives, Some(&positive), draws)?;
        let values = select(&nll, &likely)?.f_add(&select(&contrast, &contrasted)?.f_mul_scalar(self.alpha)?)?;
        let terms = [
            term("ce_loss", &nll, &likely, n_likelihood)?,
            term("ct_loss", &contrast, &contrasted, n_contrast)?,
        ];
        LossValue::from_rows(&values.f_div_scalar(n)?, rows, terms.into_iter().flatten().collect())
    }

    fn samples() -> Vec<Self> {
        let base = Cringe::new(1.0, 5);
        vec![
            base,
            Cringe {
                k: 1,
                alpha: 0.5,
                ..base
            },
            Cringe {
                detach_positives: true,
                ..base
            },
            Cringe {
                contrast_on_positives: true,
                ce_on_positives: false,
                ..base
            },
            Cringe {
                count_eos: false,
                ..base
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::TokenOp;

    /// All settings of the switches against the definition, row by row, on one row of every kind. With `k` 1 the
    /// contrasted token is the largest logit, or the second where that is the target.
    #[test]
    fn every_switch_changes_what_it_says_and_the_denominator_counts_rows_trained_by_either_part() {
        let logits = [2.0f64, 1.0, 0.0, -1.0];
        let log_sum = logits.iter().map(|z| z.exp()).sum::<f64>().ln();
        let labels = [1i8, 1, 0, 0, -1, -1];
        let ends = [false, true, false, true, false, true];
        let targets = [0i64, 1, 2, 0, 3, 0];
        let mut tried = 0;
        for switches in 0..16 {
            let on = |bit: i32| switches >> bit & 1 == 1;
            let loss = Cringe {
                alpha: 0.7,
                k: 1,
                detach_positives: on(0),
                contrast_on_positives: on(1),
                ce_on_positives: on(2),
                count_eos: on(3),
            };
            let (mut sum, mut trained, mut pushes) = (0.0, 0.0, Vec::new());
            let (mut likelihoods, mut contrasts) = (Vec::new(), Vec::new());
            for ((label, end), target) in labels.into_iter().zip(ends).zip(targets) {
                let (target, sampled) = (target as usize, usize::from(target == 0));
                let likely = label == -1 || label == 1 && loss.ce_on_positives;
                let contrasted = (label == 0 || label == 1 && loss.contrast_on_positives) && (loss.count_eos || !end);
                let sign = if label == 1 { -1.0 } else { 1.0 };
                let lead: f64 = sign * (logits[target] - logits[sampled]);
                sum += f64::from(u8::from(likely)) * (log_sum - logits[target]);
                sum += f64::from(u8::from(contrasted)) * loss.alpha * lead.exp().ln_1p();
                trained += f64::from(u8::from(likely || contrasted));
                likelihoods.extend(likely.then_some(log_sum - logits[target]));
                contrasts.extend(contrasted.then_some(lead.exp().ln_1p()));
                let push = f64::from(u8::from(contrasted)) * loss.alpha * sign / (1.0 + (-lead).exp());
                pushes.push((push, if loss.detach_positives { 0.0 } else { -push }));
            }

            let rows = TokenRows::new(&[0, 1, 2, 3, 4, 5], &ends, &labels, Device::Cpu).unwrap();
            let states = Tensor::from_slice(&logits).view([1, 4]).repeat([6, 1]);
            let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
            let op = TokenOp::new(&states, &identity, &Tensor::from_slice(&targets), &loss.needs()).unwrap();
            let (stats, counts) = (op.forward().unwrap(), TokenCounts::of(&rows).unwrap());
            let draws = Tensor::zeros([6, 1], (Kind::Double, Device::Cpu));
            let value = loss.evaluate(&stats, &rows, &counts, Some(&draws)).unwrap();
            value.total.backward();

            assert!((loss.rows_trained(&counts) - trained).abs() < 1e-12, "{loss:?}");
            assert!(
                (value.total.double_value(&[]) - sum / trained).abs() < 1e-12,
                "{loss:?}"
            );
            assert_eq!(value.terms.len(), 2);
            for ((name, term), parts) in value.terms.iter().zip([likelihoods, contrasts]) {
                let mean = parts.iter().sum::<f64>() / parts.len() as f64;
                assert!((term.double_value(&[]) - mean).abs() < 1e-12, "{loss:?} {name}");
            }
            let down = stats.target_logit.as_ref().unwrap().grad();
            for (row, (target, sampled)) in pushes.into_iter().enumerate() {
                assert!(
                    (down.double_value(&[row as i64]) - target / trained).abs() < 1e-12,
                    "{loss:?} row {row}"
                );
                let top = stats.top_logits.as_ref().unwrap().grad();
                let up = if top.defined() {
                    top.get(row as i64).sum(Kind::Double).double_value(&[])
                } else {
                    0.0
                };
                assert!((up - sampled / trained).abs() < 1e-12, "{loss:?} row {row}");
            }
            tried += 1;
        }
        assert_eq!(tried, 16);
    }

    #[test]
    fn a_column_of_another_size_is_not_stretched() {
        let loss = Cringe::new(1.0, 1);
        let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0]).view([2, 2]);
        let identity = Tensor::eye(2, (Kind::Double, Device::Cpu));
        let targets = Tensor::from_slice(&[0i64, 1]);
        let rows = TokenRows::new(&[0, 0], &[false; 2], &[0], Device::Cpu).unwrap();
        let draws = Tensor::zeros([2, 1], (Kind::Double, Device::Cpu));
        let made = || {
            TokenOp::new(&logits, &identity, &targets, &loss.needs())
                .unwrap()
                .forward()
                .unwrap()
        };
        let text = |stats: &TokenStats| {
            let counts = TokenCounts::of(&rows).unwrap();
            loss.evaluate(stats, &rows, &counts, Some(&draws))
                .unwrap_err()
                .to_string()
        };
        let part = |column: &Option<Tensor>| column.as_ref().map(|t| t.narrow(0, 0, 1));
        let mut stats = made();
        stats.target_logit = part(&stats.target_logit);
        assert_eq!(text(&stats), "stats.target_logit: expected [2], got [1]");
        let mut stats = made();
        stats.top_logits = part(&stats.top_logits);
        assert_eq!(text(&stats), "stats.top_logits: expected [2, 2], got [1, 2]");
        let mut stats = made();
        stats.top_ids = part(&stats.top_ids);
        assert_eq!(text(&stats), "stats.top_ids: expected [2, 2], got [1, 2]");
    }

    #[test]
    fn a_manifest_without_switches_is_the_released_code() {
        let loss: Cringe = serde_json::from_str(r#"{ "alpha": 1.0, "k": 5 }"#).unwrap();
        assert_eq!(loss, Cringe::new(1.0, 5));
    }

    #[test]
    fn candidates_are_one_to_65536() {
        let text = |k: usize| candidates("cringe.k", k).map(|error| error.to_string());
        assert_eq!((text(1), text(65536)), (None, None));
        assert_eq!(
            (text(0).is_some(), text(65537).unwrap().as_str()),
            (true, "`cringe.k` is 65537, expected a whole number from 1 to 65536")
        );
    }
}
