//! Plain likelihood.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::TokenLoss;
use crate::value::Part;
use crate::{Card, Described, Error, LossValue, Needs, Result, TokenCounts, TokenRows, TokenStats};

/// Negative log-likelihood of positive and unlabelled completions: plain fine-tuning.
///
/// `L = (1/n) Σ −log p(y_t)` over the tokens of positive and unlabelled examples, `n` their number in the whole
/// batch. A mean over tokens, not over sequences.
///
/// **Shapes**: see [`TokenLoss::evaluate`].
///
/// **Parameters**: none; `{ nll: {} }`.
///
/// **Errors**: [`Error::NothingToLearn`] when the whole batch is negative.
///
/// **On negatives**: ignored. They get no gradient and do not count in the denominator, so dropping them from the
/// batch gives the same value.
///
/// **Reference**: the maximum-likelihood baseline of L. Adolphs, T. Gao, J. Xu, K. Shuster, S. Sukhbaatar, J. Weston,
/// "The CRINGE Loss: Learning what language not to model", 2022.
///
/// **Differs from the paper**: no.
///
/// ```
/// use tch::{Device, Tensor};
/// use unsay_losses::token::{Nll, TokenLoss};
/// use unsay_losses::{TokenCounts, TokenOp, TokenRows};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// // As embedding the identity, so that hidden states are logits.
/// let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0, 2.0, 1.0, 0.0, -1.0]).view([2, 4]);
/// let identity = Tensor::eye(4, (tch::Kind::Double, Device::Cpu));
/// let targets = Tensor::from_slice(&[0i64, 1]);
/// let rows = TokenRows::new(&[0, 1], &[false, false], &[1, 0], Device::Cpu)?;
///
/// let stats = TokenOp::new(&logits, &identity, &targets, &Nll {}.needs())?.forward()?;
/// let value = Nll {}.evaluate(&stats, &rows, &TokenCounts::of(&rows)?, None)?;
/// assert!((value.total.double_value(&[]) - 0.440190).abs() < 1e-6); // -ln 0.6439, the positive row alone
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nll {}

/// The mean of `−log p(y)` over the tokens of positive and unlabelled examples of the whole batch.
pub(super) fn likelihood(stats: &TokenStats, rows: &TokenRows, counts: &TokenCounts) -> Result<Part> {
    let count = counts.positive + counts.unlabelled;
    Part::mean("ce_loss", &stats.logp.f_neg()?, &rows.label.f_ne(0)?, count)
}

impl Described for Nll {
    fn card(&self) -> Card {
        Card {
            name: "nll",
            summary: "likelihood of positive and unlabelled completions; negatives are ignored",
            formula: "−log p(y) on positives",
            on_negatives: "ignored",
            source: "Adolphs et al. 2022, positives",
        }
    }

    fn problems(&self) -> Vec<Error> {
        Vec::new()
    }
}

impl TokenLoss for Nll {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn rows_trained(&self, counts: &TokenCounts) -> f64 {
        counts.positive + counts.unlabelled
    }

    fn hint(&self) -> &'static str {
        "`nll` learns from positive and unlabelled examples; add some to every batch"
    }

    fn value(
        &self,
        stats: &TokenStats,
        rows: &TokenRows,
        counts: &TokenCounts,
        _: Option<&Tensor>,
    ) -> Result<LossValue> {
        LossValue::from_parts(&[(1.0, likelihood(stats, rows, counts)?)], rows)
    }

    fn samples() -> Vec<Self> {
        vec![Nll {}]
    }
}
