//! An unpaired loss and what holds the model beside it.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Labelled, Loss, UnpairedCounts};
use crate::completions::wanted_reference;
use crate::counts::Counts;
use crate::error::first;
use crate::value::term;
use crate::{CompletionRows, Completions, Error, LossValue, Needs, Result, Retain, TokenStats};

/// A loss over labelled completions with what holds the model beside it: the manifest form of training on labels.
///
/// `L = (1/n) Σ ℓ(y_i) +` the terms of [`Retain`] on the desirable completions, with `ℓ` the loss and `n` all
/// completions of the whole batch, or the undesirable ones where the loss trains no others
/// ([`trains_desirable`](super::UnpairedLoss::trains_desirable)).
///
/// ```
/// use unsay_losses::unpaired::Objective;
///
/// let text = r#"{ "loss": { "npo": { "beta": 0.1 } }, "retain": { "nll": 1.0 } }"#;
/// let objective: Objective = serde_json::from_str(text).unwrap();
/// assert!(objective.problems().is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// The value of one completion.
    pub loss: Loss,
    /// What holds the model to the desirable completions.
    #[serde(default)]
    pub retain: Retain,
}

/// One micro-batch of labelled completions on its way through an [`Objective`].
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Of the rows of all completions.
    pub stats: &'a TokenStats,
    /// The `B` completions that the rows belong to.
    pub rows: &'a CompletionRows,
    /// Whether each is desirable, one label per completion.
    pub desirable: &'a [bool],
    /// `[N]` the reference's log-probability of every row, where the loss has a reference.
    pub reference: Option<&'a Tensor>,
    /// The whole-batch number that [`UnpairedLoss::baseline`](super::UnpairedLoss::baseline) asks for.
    pub baseline: Option<f64>,
    /// `[B]` a weight for every completion, where [`UnpairedLoss::takes_weights`](super::UnpairedLoss::takes_weights);
    /// those of desirable ones are not read.
    pub weights: Option<&'a Tensor>,
}

impl From<Loss> for Objective {
    /// The loss alone.
    fn from(loss: Loss) -> Self {
        Objective {
            loss,
            retain: Retain::default(),
        }
    }
}

impl Objective {
    /// Every parameter outside its range.
    pub fn problems(&self) -> Vec<Error> {
        let mut problems = self.loss.problems();
        problems.extend(self.retain.problems());
        problems
    }

    /// Whether the reference's log-probabilities are needed.
    pub fn uses_reference(&self) -> bool {
        self.loss.uses_reference()
    }

    /// What it reads from the op.
    pub fn needs(&self) -> Needs {
        self.retain.needs()
    }

    /// The completions of a micro-batch with their labels.
    ///
    /// A loss whose baseline is the running mean of rewards takes two passes over the batch: first
    /// `loss.rewards(&objective.labelled(&batch)?)` of every micro-batch into [`RunningMean`](crate::RunningMean), then
    /// [`Objective::evaluate`] with its mean.
    ///
    /// **Errors**: [`Error::Input`] when the parts do not fit together or one is missing.
    pub fn labelled(&self, batch: &Batch<'_>) -> Result<Labelled> {
        let reference = wanted_reference(self.uses_reference(), batch.reference)?;
        let completions = Completions::of(batch.stats, batch.rows, reference, None)?;
        let labelled = Labelled {
            baseline: batch.baseline,
            ..Labelled::new(completions, batch.desirable)?
        };
        match (self.loss.takes_weights(), batch.weights) {
            (true, Some(weights)) => labelled.with_weights(weights),
            (true, None) => Err(Error::input("weights", "one for each completion", "none")),
            (false, _) => Ok(labelled),
        }
    }

    /// The value on one micro-batch, divided by counts of the whole batch.
    ///
    /// Terms for the log: `reward_desirable` and `logp_desirable` (a sum per completion), means over desirable
    /// completions; the same of undesirable ones; `reward_margin`, the difference of the two rewards; `retain_nll` and
    /// `retain_kl`, means over tokens of desirable completions, where they are part of the objective. What concerns no
    /// completion of the whole batch is left out.
    ///
    /// **Errors**: [`Error::Range`] for a parameter outside its range; [`Error::Input`] when the parts of the batch
    /// do not fit together or one is missing; [`Error::NothingToLearn`] when the whole batch has no completion that
    /// the loss or a term of [`Retain`] trains.
    pub fn evaluate(&self, batch: &Batch<'_>, counts: &UnpairedCounts) -> Result<LossValue> {
        first(self.problems())?;
        counts.check_covers(&UnpairedCounts::of(batch.rows, batch.desirable)?)?;
        let trained = match self.loss.trains_desirable() {
            true => counts.desirable + counts.undesirable,
            false => counts.undesirable,
        };
        if trained == 0.0 && !self.retain.is_on() {
            return Err(Error::NothingToLearn {
                loss: self.loss.name(),
                found: format!("{} desirable and no undesirable completions", counts.desirable),
                hint: "add undesirable completions to every batch, or a weight under `retain`",
            });
        }
        let labelled = self.labelled(batch)?;
        let mut values = self.loss.values(&labelled)?;
        // Without completions that it trains all values are zero, and need no denominator.
        if trained > 0.0 {
            values = values.f_div_scalar(trained)?;
        }
        let mut terms = self.terms(batch, &labelled, counts)?;
        let retained = self
            .retain
            .evaluate(batch.stats, batch.rows, &labelled.desirable, counts.desirable_tokens)?;
        if let Some(more) = &retained.values {
            values = values.f_add(more)?;
        }
        terms.extend(retained.terms);
        Ok(LossValue {
            total: values.f_sum(None)?,
            per_example: values.f_detach()?,
            terms,
        })
    }

    fn terms(
        &self,
        batch: &Batch<'_>,
        labelled: &Labelled,
        counts: &UnpairedCounts,
    ) -> Result<Vec<(&'static str, Tensor)>> {
        let reward = self.loss.rewards(labelled)?;
        let logp = batch.rows.sums(&batch.stats.logp)?;
        let desirable = &labelled.desirable;
        let undesirable = desirable.f_logical_not()?;
        let rewards = [
            term("reward_desirable", &reward, desirable, counts.desirable)?,
            term("reward_undesirable", &reward, &undesirable, counts.undesirable)?,
        ];
        let margin = match &rewards {
            [Some((_, desirable)), Some((_, undesirable))] => Some(("reward_margin", desirable.f_sub(undesirable)?)),
            _ => None,
        };
        let logps = [
            term("logp_desirable", &logp, desirable, counts.desirable)?,
            term("logp_undesirable", &logp, &undesirable, counts.undesirable)?,
        ];
        Ok(rewards.into_iter().chain([margin]).chain(logps).flatten().collect())
    }
}
