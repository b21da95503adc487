//! Unlikelihood of labelled negatives.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::nll::likelihood;
use super::{TokenLoss, wanted};
use crate::error::not_negative;
use crate::value::Part;
use crate::{Card, Described, Error, LossValue, Needs, Result, TokenCounts, TokenRows, TokenStats};

/// Likelihood of positives plus unlikelihood of the tokens of negatives.
///
/// `L = (1/n₊) Σ₊ −log p(y_t) + α (1/n₋) Σ₋ −log(1 − p(y_t))`, with `n₊` the tokens of positive and unlabelled
/// examples and `n₋` those of negative ones, each in the whole batch. A side without tokens adds nothing.
///
/// **Shapes**: see [`TokenLoss::evaluate`].
///
/// **Parameters**: `alpha` (required), the weight of the unlikelihood, finite and at least 0.
///
/// **Errors**: [`Error::Range`] for `alpha`; otherwise those of [`TokenLoss::evaluate`].
///
/// **On negatives**: pushed down, and bounded: `dL/dz_y = α p/n₋` is at most `α/n₋` and fades as `p → 0`. The
/// probability goes to the other tokens in proportion to what they have.
///
/// **Reference**: S. Welleck, I. Kulikov, S. Roller, E. Dinan, K. Cho, J. Weston, "Neural text generation with
/// unlikelihood training", 2019, in the form for labelled sequences of M. Li, S. Roller, I. Kulikov,
/// S. Welleck, Y-L. Boureau, K. Cho, J. Weston, "Don't say that! Making inconsistent dialogue unlikely with
/// unlikelihood training", 2020.
///
/// **Differs from the paper**: formula no; numerics yes. Released code clamps `1 − p` at 1e-20 (1e-6 in half
/// precision), which makes the gradient zero exactly where the model is surest of the token to unlearn. Here
/// `log(1 − p)` comes from the logits of the other tokens, so value and gradient are exact there too: with `p`
/// rounded to 1 the gradient is `α/n₋`, not 0.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use unsay_losses::token::{TokenLoss, Unlikelihood};
/// use unsay_losses::{TokenCounts, TokenOp, TokenRows};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let loss = Unlikelihood { alpha: 1.0 };
/// // The model is sure of the first token of a negative: 1 - p is below what a double next to 1 can hold.
/// let logits = Tensor::from_slice(&[60.0f64, 0.0, 0.0]).view([1, 3]).set_requires_grad(true);
/// let identity = Tensor::eye(3, (Kind::Double, Device::Cpu));
/// let rows = TokenRows::new(&[0], &[false], &[0], Device::Cpu)?;
///
/// let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[0i64]), &loss.needs())?;
/// let stats = op.forward()?;
/// let value = loss.evaluate(&stats, &rows, &TokenCounts::of(&rows)?, None)?;
/// assert!((value.total.double_value(&[]) - (60.0 - 2f64.ln())).abs() < 1e-12);
/// value.total.backward();
/// op.surrogate(&stats)?.backward();
/// assert_eq!(Vec::<f64>::try_from(logits.grad().view([-1])).unwrap(), [1.0, -0.5, -0.5]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unlikelihood {
    /// Weight of the unlikelihood against the likelihood; finite, at least 0. Published runs use 0.1 to 5.
    pub alpha: f64,
}

impl Described for Unlikelihood {
    fn card(&self) -> Card {
        Card {
            name: "unlikelihood",
            summary: "likelihood of positives plus -log(1 - p) of every token of negatives",
            formula: "−log p(y) on positives; −α log(1 − p(y)) on negatives",
            on_negatives: "down, the other tokens up in proportion; bounded by α/n₋",
            source: "Welleck et al. 2019; Li et al. 2020",
        }
    }

    fn problems(&self) -> Vec<Error> {
        not_negative("unlikelihood.alpha", self.alpha).into_iter().collect()
    }
}

impl TokenLoss for Unlikelihood {
    fn needs(&self) -> Needs {
        Needs {
            log1m_p: true,
            ..Needs::default()
        }
    }

    fn rows_trained(&self, counts: &TokenCounts) -> f64 {
        counts.total()
    }

    fn hint(&self) -> &'static str {
        "give `unlikelihood` at least one completion that is not empty"
    }

    fn value(
        &self,
        stats: &TokenStats,
        rows: &TokenRows,
        counts: &TokenCounts,
        _: Option<&Tensor>,
    ) -> Result<LossValue> {
        let unlikelihood = wanted("stats.log1m_p", &stats.log1m_p)?.f_neg()?;
        let push = Part::mean("ul_loss", &unlikelihood, &rows.label.f_eq(0)?, counts.negative)?;
        LossValue::from_parts(&[(1.0, likelihood(stats, rows, counts)?), (self.alpha, push)], rows)
    }

    fn samples() -> Vec<Self> {
        vec![Unlikelihood { alpha: 1.0 }, Unlikelihood { alpha: 0.25 }]
    }
}
