//! The target token of a negative as a yes-or-no question.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::nll::likelihood;
use super::{TokenLoss, wanted};
use crate::error::not_negative;
use crate::value::Part;
use crate::{Card, Described, Error, LossValue, Needs, Result, TokenCounts, TokenRows, TokenStats};

/// Likelihood of positives plus a logistic loss that says no to every token of negatives.
///
/// `L = (1/n₊) Σ₊ −log p(y_t) + α (1/n₋) Σ₋ −log(1 − σ(z(y_t)))`, with `z` the logits, `n₊` the tokens of positive and
/// unlabelled examples and `n₋` those of negative ones, each in the whole batch. A side without tokens adds nothing.
/// With `sigmoid_on_positives` the tokens of positive examples add `−log σ(z(y_t))` instead of `−log p(y_t)`; those of
/// unlabelled ones stay with the likelihood.
///
/// **Shapes**: see [`TokenLoss::evaluate`].
///
/// **Parameters**: `alpha` (required), the weight of the negatives, finite and at least 0; `sigmoid_on_positives`
/// (`false`).
///
/// **Errors**: [`Error::Range`] for `alpha`; otherwise those of [`TokenLoss::evaluate`].
///
/// **On negatives**: the target's logit is pushed down by `α σ(z)/n₋`, at most `α/n₋`, which fades as the logit falls below
/// zero; no other logit is touched. Zero is a fixed place: logits have none of their own (adding a number to all leaves
/// `p` as it is), so the push depends on where the model happens to keep them.
///
/// **Reference**: a baseline of L. Adolphs, T. Gao, J. Xu, K. Shuster, S. Sukhbaatar, J. Weston, "The CRINGE Loss:
/// Learning what language not to model", 2022.
///
/// **Differs from the paper**: not known. There is no released code to compare with; this is the plain form of the
/// loss, with the denominators of [`Unlikelihood`](super::Unlikelihood).
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use unsay_losses::token::{Sigmoid, TokenLoss};
/// use unsay_losses::{TokenCounts, TokenOp, TokenRows};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let loss = Sigmoid { alpha: 1.0, sigmoid_on_positives: false };
/// let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0]).view([1, 4]).set_requires_grad(true);
/// let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
/// let rows = TokenRows::new(&[0], &[false], &[0], Device::Cpu)?;
///
/// let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[0i64]), &loss.needs())?;
/// let stats = op.forward()?;
/// let value = loss.evaluate(&stats, &rows, &TokenCounts::of(&rows)?, None)?;
/// assert!((value.total.double_value(&[]) - 2.126928).abs() < 1e-6); // ln(1 + e^2)
/// value.total.backward();
/// op.surrogate(&stats)?.backward();
/// let push = Vec::<f64>::try_from(logits.grad().view([-1])).unwrap();
/// assert!((push[0] - 0.880797).abs() < 1e-6 && push[1..] == [0.0; 3]); // σ(2) on the target alone
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sigmoid {
    /// Weight of the negatives against the positives; finite, at least 0.
    pub alpha: f64,
    /// Whether tokens of positive examples are a yes to the same question instead of training the likelihood.
    #[serde(default)]
    pub sigmoid_on_positives: bool,
}

impl Described for Sigmoid {
    fn card(&self) -> Card {
        Card {
            name: "sigmoid",
            summary: "likelihood of positives plus a logistic loss on the logit of every token of negatives",
            formula: "−log p(y) on positives; −α log(1 − σ(z(y))) on negatives",
            on_negatives: "down, no other token up; bounded by α/n₋",
            source: "Adolphs et al. 2022, a baseline",
        }
    }

    fn problems(&self) -> Vec<Error> {
        not_negative("sigmoid.alpha", self.alpha).into_iter().collect()
    }
}

impl TokenLoss for Sigmoid {
    fn needs(&self) -> Needs {
        Needs {
            target_logit: true,
            ..Needs::default()
        }
    }

    fn rows_trained(&self, counts: &TokenCounts) -> f64 {
        counts.total()
    }

    fn hint(&self) -> &'static str {
        "give `sigmoid` at least one completion that is not empty"
    }

    fn value(
        &self,
        stats: &TokenStats,
        rows: &TokenRows,
        counts: &TokenCounts,
        _: Option<&Tensor>,
    ) -> Result<LossValue> {
        let logit = wanted("stats.target_logit", &stats.target_logit)?;
        // 1 − σ(z) = σ(−z).
        let no = logit.f_neg()?.f_log_sigmoid()?.f_neg()?;
        let push = Part::mean("sigmoid_loss", &no, &rows.label.f_eq(0)?, counts.negative)?;
        let positive = if self.sigmoid_on_positives {
            let yes = logit.f_log_sigmoid()?;
            let mixed = yes.f_where_self(&rows.label.f_eq(1)?, &stats.logp)?.f_neg()?;
            let count = counts.positive + counts.unlabelled;
            Part::mean("positive_loss", &mixed, &rows.label.f_ne(0)?, count)?
        } else {
            likelihood(stats, rows, counts)?
        };
        LossValue::from_parts(&[(1.0, positive), (self.alpha, push)], rows)
    }

    fn samples() -> Vec<Self> {
        let base = Sigmoid {
            alpha: 0.5,
            sigmoid_on_positives: false,
        };
        vec![
            base,
            Sigmoid {
                sigmoid_on_positives: true,
                ..base
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::TokenOp;

    #[test]
    fn ranges_and_what_a_manifest_leaves_out() {
        let sigmoid: Sigmoid = serde_json::from_str(r#"{"alpha": -0.5}"#).unwrap();
        assert!(!sigmoid.sigmoid_on_positives);
        assert_eq!(
            sigmoid.check().unwrap_err().to_string(),
            "`sigmoid.alpha` is -0.5, expected a finite number, at least 0"
        );
    }

    /// Positive, negative and unlabelled rows of the same logits against the definition.
    #[test]
    fn the_switch_changes_positives_and_nothing_else() {
        let logits = [2.0f64, 1.0, 0.0, -1.0];
        let (labels, targets) = ([1i8, 1, 0, 0, 0, -1], [0usize, 3, 0, 1, 3, 2]);
        let log_sum = logits.iter().map(|z| z.exp()).sum::<f64>().ln();
        for sigmoid_on_positives in [false, true] {
            let loss = Sigmoid {
                alpha: 0.7,
                sigmoid_on_positives,
            };
            let expected: Vec<f64> = (labels.iter().zip(targets))
                .map(|(label, target)| match label {
                    0 => 0.7 * logits[target].exp().ln_1p() / 3.0,
                    1 if sigmoid_on_positives => (-logits[target]).exp().ln_1p() / 3.0,
                    _ => (log_sum - logits[target]) / 3.0,
                })
                .collect();
            let rows = TokenRows::new(&[0, 1, 2, 3, 4, 5], &[false; 6], &labels, Device::Cpu).unwrap();
            let states = Tensor::from_slice(&logits).view([1, 4]).repeat([6, 1]);
            let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
            let targets = Tensor::from_slice(&targets.map(|t| t as i64));
            let op = TokenOp::new(&states, &identity, &targets, &loss.needs()).unwrap();
            let stats = op.forward().unwrap();
            let value = loss
                .evaluate(&stats, &rows, &TokenCounts::of(&rows).unwrap(), None)
                .unwrap();
            let ours = Vec::<f64>::try_from(&value.per_example).unwrap();
            for (ours, expected) in ours.iter().zip(&expected) {
                assert!((ours - expected).abs() < 1e-14, "{loss:?}: {ours} is not {expected}");
            }
            let total: f64 = expected.iter().sum();
            assert!((value.total.double_value(&[]) - total).abs() < 1e-14);
            let names: Vec<&str> = value.terms.iter().map(|(name, _)| *name).collect();
            let positive = if sigmoid_on_positives {
                "positive_loss"
            } else {
                "ce_loss"
            };
            assert_eq!(names, [positive, "sigmoid_loss"]);
            // Terms are means before weighting.
            let mean = value.terms[1].1.double_value(&[]);
            assert!((mean * 0.7 - expected[2..5].iter().sum::<f64>()).abs() < 1e-14);
            value.total.backward();
            let push = Vec::<f64>::try_from(stats.target_logit.unwrap().grad()).unwrap();
            for (row, z) in [(2, 2.0f64), (3, 1.0), (4, -1.0)] {
                assert!((push[row] - 0.7 / 3.0 / (1.0 + (-z).exp())).abs() < 1e-14);
            }
            let yes = if sigmoid_on_positives {
                -1.0 / (1.0 + 2f64.exp()) / 3.0
            } else {
                0.0
            };
            assert!((push[0] - yes).abs() < 1e-14 && push[5].abs() < 1e-15);
        }
    }
}
