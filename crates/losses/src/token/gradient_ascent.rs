//! Gradient ascent on negatives.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::TokenLoss;
use super::nll::likelihood;
use crate::error::not_negative;
use crate::value::Part;
use crate::{Card, Described, Error, LossValue, Needs, Result, TokenCounts, TokenRows, TokenStats};

/// The log-probability of negatives, to be minimised, beside the likelihood of positives.
///
/// `L = ρ (1/n₊) Σ₊ −log p(y_t) + (1/n₋) Σ₋ log p(y_t)`, with `n₊` the tokens of positive and unlabelled examples and
/// `n₋` those of negative ones, each in the whole batch. A side without tokens adds nothing.
///
/// **Shapes**: see [`TokenLoss::evaluate`].
///
/// **Parameters**: `retain` (required), the weight `ρ` of the likelihood, finite and at least 0; with 0 positives are
/// not trained at all.
///
/// **Errors**: [`Error::Range`] for `retain`; [`Error::NothingToLearn`] for a whole batch without negatives when
/// `retain` is 0; otherwise those of [`TokenLoss::evaluate`].
///
/// **On negatives**: pushed down, and **not bounded**: the value falls for ever, and the push `(1 − p)/n₋` on the target's
/// logit grows towards `1/n₋` as the token becomes unlikely instead of fading. Train briefly, with a small learning
/// rate, and watch the positives: it destroys models. It is here as the baseline that the bounded losses improve on.
///
/// **Reference**: R. Zhang, L. Lin, Y. Bai, S. Mei, "Negative Preference Optimization: From Catastrophic Collapse to
/// Effective Unlearning", 2024: the baselines GA and, with `retain` above 0, GA with a retain set.
///
/// **Differs from the paper**: a mean over tokens of the whole batch, not over completions.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use unsay_losses::token::{GradientAscent, TokenLoss};
/// use unsay_losses::{TokenCounts, TokenOp, TokenRows};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let loss = GradientAscent { retain: 2.0 };
/// let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0]).view([1, 4]).repeat([2, 1]);
/// let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
/// let rows = TokenRows::new(&[0, 1], &[false; 2], &[1, 0], Device::Cpu)?; // the same token, wanted and not wanted
///
/// let stats = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[0i64, 0]), &loss.needs())?.forward()?;
/// let value = loss.evaluate(&stats, &rows, &TokenCounts::of(&rows)?, None)?;
/// assert!((value.total.double_value(&[]) - 0.440190).abs() < 1e-6); // (2 - 1) · -ln 0.6439
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GradientAscent {
    /// Weight of the likelihood of positives against the ascent; finite, at least 0. Published runs use 1.
    pub retain: f64,
}

impl Described for GradientAscent {
    fn card(&self) -> Card {
        Card {
            name: "gradient_ascent",
            summary: "log-probability of negatives, minimised without a bound, beside the likelihood of positives",
            formula: "−retain · log p(y) on positives; log p(y) on negatives",
            on_negatives: "down, the other tokens up in proportion; not bounded",
            source: "Zhang et al. 2024, baseline GA",
        }
    }

    fn problems(&self) -> Vec<Error> {
        not_negative("gradient_ascent.retain", self.retain)
            .into_iter()
            .collect()
    }
}

impl TokenLoss for GradientAscent {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn rows_trained(&self, counts: &TokenCounts) -> f64 {
        match self.retain > 0.0 {
            true => counts.total(),
            false => counts.negative,
        }
    }

    fn hint(&self) -> &'static str {
        "`gradient_ascent` learns from negatives, and from other examples only with `retain` above 0"
    }

    fn value(
        &self,
        stats: &TokenStats,
        rows: &TokenRows,
        counts: &TokenCounts,
        _: Option<&Tensor>,
    ) -> Result<LossValue> {
        let ascent = Part::mean("ga_loss", &stats.logp, &rows.label.f_eq(0)?, counts.negative)?;
        LossValue::from_parts(&[(self.retain, likelihood(stats, rows, counts)?), (1.0, ascent)], rows)
    }

    fn samples() -> Vec<Self> {
        vec![GradientAscent { retain: 1.0 }, GradientAscent { retain: 0.25 }]
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::TokenOp;

    fn evaluate(loss: GradientAscent, labels: [i8; 3]) -> Result<(f64, Vec<f64>)> {
        let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0])
            .view([1, 4])
            .repeat([3, 1]);
        let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
        let rows = TokenRows::new(&[0, 1, 2], &[false; 3], &labels, Device::Cpu)?;
        let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[0i64, 1, 3]), &loss.needs())?;
        let stats = op.forward()?;
        let value = loss.evaluate(&stats, &rows, &TokenCounts::of(&rows)?, None)?;
        value.total.backward();
        let pull = Vec::<f64>::try_from(stats.logp.grad()).unwrap();
        Ok((value.total.double_value(&[]), pull))
    }

    #[test]
    fn the_range_is_checked() {
        assert!(GradientAscent { retain: 0.0 }.check().is_ok());
        assert_eq!(
            GradientAscent { retain: -1.0 }.check().unwrap_err().to_string(),
            "`gradient_ascent.retain` is -1, expected a finite number, at least 0"
        );
    }

    #[test]
    fn negatives_ascend_and_positives_are_retained() {
        // log p = -.4401897, -1.4401897, -3.4401897.
        let (value, pull) = evaluate(GradientAscent { retain: 0.5 }, [1, 0, 0]).unwrap();
        assert!((value - (0.5 * 0.4401897 - (1.4401897 + 3.4401897) / 2.0)).abs() < 1e-7);
        assert_eq!(pull, [-0.5, 0.5, 0.5]);
        let (value, pull) = evaluate(GradientAscent { retain: 0.5 }, [1, -1, 0]).unwrap();
        assert!((value - (0.25 * (0.4401897 + 1.4401897) - 3.4401897)).abs() < 1e-7);
        assert_eq!(pull, [-0.25, -0.25, 1.0]);
    }

    #[test]
    fn without_a_retain_weight_only_negatives_are_trained() {
        let (value, pull) = evaluate(GradientAscent { retain: 0.0 }, [1, 1, 0]).unwrap();
        assert!((value + 3.4401897).abs() < 1e-7);
        assert_eq!(pull, [0.0, 0.0, 1.0]);
        let error = evaluate(GradientAscent { retain: 0.0 }, [1, 1, -1])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "`gradient_ascent` has nothing to learn from: 2 positive, 0 negative and 1 unlabelled tokens\n\
             hint: `gradient_ascent` learns from negatives, and from other examples only with `retain` above 0"
        );
    }
}
