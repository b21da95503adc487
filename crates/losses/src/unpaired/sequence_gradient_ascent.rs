//! Gradient ascent on whole completions.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Labelled, UnpairedLoss};
use crate::{Card, Described, Error, Result};

/// Gradient ascent: plain fine-tuning with the sign turned round, the limit of [`Npo`](super::Npo) as `β → 0`.
///
/// `L = log π(y)`, the sum over the tokens of an undesirable completion. The mean is over undesirable completions;
/// desirable ones are trained by [`Retain`](crate::Retain) alone.
///
/// **Shapes**: see [`UnpairedLoss::values`].
///
/// **Parameters**: none; `{ sequence_gradient_ascent: {} }`.
///
/// **Errors**: those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by 1 per unit of log-probability, always. Unbounded: the value has no minimum, and
/// the model falls apart unless training stops in time. A longer completion is pushed more; the mean over tokens is a
/// token loss.
///
/// **Reference**: R. Zhang, L. Lin, Y. Bai, S. Mei, "Negative preference optimization: From catastrophic collapse to
/// effective unlearning", 2024, §2.
///
/// **Differs from the paper**: no; the released code takes the mean over tokens instead of the sum.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::unpaired::{Labelled, SequenceGradientAscent, UnpairedLoss};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let tokens = Tensor::from_slice(&[5.0f64, 5.0]);
/// let completions = Completions::from_sums(&Tensor::from_slice(&[-10.0f64, -3.0]), None, &tokens)?;
/// let value = SequenceGradientAscent {}.values(&Labelled::new(completions, &[false, true])?)?;
/// assert_eq!(Vec::<f64>::try_from(&value).unwrap(), [-10.0, 0.0]); // the second one is desirable
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceGradientAscent {}

impl Described for SequenceGradientAscent {
    fn card(&self) -> Card {
        Card {
            name: "sequence_gradient_ascent",
            summary: "likelihood with the sign turned round on undesirable completions; unbounded",
            formula: "log π(y) on undesirable completions",
            on_negatives: "down; unbounded, never fades",
            source: "Zhang et al. 2024, §2",
        }
    }

    fn problems(&self) -> Vec<Error> {
        Vec::new()
    }
}

impl UnpairedLoss for SequenceGradientAscent {
    fn uses_reference(&self) -> bool {
        false
    }

    fn beta(&self) -> f64 {
        1.0
    }

    fn trains_desirable(&self) -> bool {
        false
    }

    fn values(&self, labelled: &Labelled) -> Result<Tensor> {
        labelled.of_undesirable(&labelled.completions.logp)
    }

    fn samples() -> Vec<Self> {
        vec![SequenceGradientAscent {}]
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::unpaired::tests::{near, run};

    #[test]
    fn the_push_never_fades() {
        let loss = SequenceGradientAscent {};
        let [values, gradient] = run(&loss, &[2.0, -988.0, 2.0], &[false, false, true], Kind::Double);
        assert!(near(&values, &[-10.0, -1000.0, 0.0]), "{values:?}");
        assert!(near(&gradient, &[1.0, 1.0, 0.0]), "{gradient:?}");
        assert!(loss.problems().is_empty());
    }
}
