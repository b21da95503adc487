//! Losses over scalar scores: reward models and classifiers.
//!
//! What people gave decides what a batch holds, [`Scores`]: a label per score, a choice between two, or the best of
//! several. A loss is the value of one such answer, [`ScoreLoss::values`]; [`ScoreLoss::evaluate`] divides by the answers
//! of the whole batch and reports how often the scores agree with the answers.

mod batch;
mod best_choice;
mod bradley_terry;
mod pointwise;

use tch::Tensor;

pub use batch::{Feedback, ScoreCounts, Scores};
pub use pointwise::pointwise;

use crate::counts::Counts;
use crate::registry::registry;
use crate::{Described, LossValue, Result};

registry! {
    /// Every loss over scores, in its manifest form: a map of one key, `{ bradley_terry: {} }`.
    ///
    /// ```
    /// use unsay_losses::{Described, scores::Loss};
    ///
    /// let loss: Loss = serde_json::from_str(r#"{ "bradley_terry": { "centre": 0.01 } }"#).unwrap();
    /// assert!(loss.check().is_ok());
    /// ```
    dyn ScoreLoss:
    BestChoice => best_choice,
    BradleyTerry => bradley_terry,
    Pointwise => pointwise,
}

/// A loss over scores.
///
/// Ask it what it needs; never compare its name.
pub trait ScoreLoss: Described {
    /// Which kind of answers it learns from.
    fn feedback(&self) -> Feedback;

    /// `[B]` the value of every answer, with its graph, not reduced.
    ///
    /// **Errors**: [`Error::Input`](crate::Error::Input) for answers of another kind or parts that do not fit together,
    /// [`Error::Empty`](crate::Error::Empty) without answers.
    fn values(&self, scores: &Scores<'_>) -> Result<Tensor>;

    /// The value on one micro-batch, divided by the answers of the whole batch.
    ///
    /// Terms for the log, means over answers: `accuracy`, the share of answers that the scores agree with, where a tie is
    /// no agreement; for choices also `score_chosen`, `score_rejected` (the mean of those not chosen) and `score_margin`,
    /// their difference; for labels `score`.
    ///
    /// **Errors**: [`Error::Range`](crate::Error::Range) for a parameter outside its range,
    /// [`Error::Input`](crate::Error::Input) for counts below those of this part or not finite; otherwise those of
    /// [`ScoreLoss::values`].
    fn evaluate(&self, scores: &Scores<'_>, counts: &ScoreCounts) -> Result<LossValue> {
        self.check()?;
        let values = self.values(scores)?;
        counts.check_covers(&ScoreCounts::of(scores))?;
        let values = values.f_div_scalar(counts.answers)?;
        Ok(LossValue {
            total: values.f_sum(None)?,
            per_example: values.f_detach()?,
            terms: scores.terms(counts)?,
        })
    }

    /// Settings that between them use every switch.
    fn samples() -> Vec<Self>
    where
        Self: Sized;
}
