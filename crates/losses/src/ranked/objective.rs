//! A loss over several completions per prompt and what can be put around it.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Groups, Loss, RankedCounts};
use crate::paired::Logps;
use crate::{CompletionRows, Completions, Error, LossValue, Needs, Result, Retain, TokenStats};

/// A loss over several completions per prompt with everything around it: the manifest form of training on groups.
///
/// `L = (1/P) Σ ℓ(prompt) +` the terms of [`Retain`] on the completions after the negatives, with `ℓ` the loss and `P` the
/// prompts of the whole batch.
///
/// ```
/// use unsay_losses::ranked::Objective;
///
/// let text = r#"{ "loss": { "d2o": { "alpha": 0.1, "beta": 0.1 } }, "logps": "mean", "retain": { "kl": 0.1 } }"#;
/// let objective: Objective = serde_json::from_str(text).unwrap();
/// assert!(objective.problems().is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// The value of one prompt.
    pub loss: Loss,
    /// How token log-probabilities become that of a completion: `sum` or `mean`.
    #[serde(default)]
    pub logps: Logps,
    /// What holds the model to the completions after the negatives.
    #[serde(default)]
    pub retain: Retain,
}

/// One micro-batch of prompts on its way through an [`Objective`].
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Of the rows of all samples, prompt by prompt, then of the negatives in the order of the prompts, then of the
    /// completions to retain, if any.
    pub stats: &'a TokenStats,
    /// The completions that the rows belong to.
    pub rows: &'a CompletionRows,
    /// How many samples each prompt has.
    pub samples: &'a [usize],
    /// `[N]` the log-probability of every row under the reference of its kind, where the loss has references: `π⁻` for
    /// samples, `π⁺` for negatives; those of retained completions are not read.
    pub reference: Option<&'a Tensor>,
}

impl From<Loss> for Objective {
    /// The loss alone.
    fn from(loss: Loss) -> Self {
        Objective {
            loss,
            logps: Logps::Sum,
            retain: Retain::default(),
        }
    }
}

impl Objective {
    /// Every parameter outside its range and every part that does not go with the loss.
    pub fn problems(&self) -> Vec<Error> {
        let mut problems = self.loss.problems();
        if !matches!(self.logps, Logps::Sum | Logps::Mean) {
            problems.push(Error::Range {
                name: "logps",
                value: format!("{:?}", self.logps),
                range: "`sum` or `mean`, as there is no pair whose shorter completion could be the measure",
            });
        }
        problems.extend(self.retain.problems());
        problems
    }

    /// Whether the references' log-probabilities are needed.
    pub fn uses_reference(&self) -> bool {
        self.loss.uses_reference()
    }

    /// What it reads from the op.
    pub fn needs(&self) -> Needs {
        self.retain.needs()
    }

    /// The completions of a micro-batch by prompt.
    ///
    /// **Errors**: [`Error::Input`] when the parts do not fit together or one is missing, [`Error::Empty`] without
    /// prompts.
    pub fn groups(&self, batch: &Batch<'_>) -> Result<Groups> {
        let reference = match (self.uses_reference(), batch.reference) {
            (true, None) => {
                let expected = "the log-probability of every row under the reference of its kind";
                return Err(Error::input("reference", expected, "none"));
            }
            (true, reference) => reference,
            (false, _) => None,
        };
        let mut completions = Completions::of(batch.stats, batch.rows, reference, None)?;
        if self.logps == Logps::Mean {
            completions = completions.per_token()?;
        }
        Groups::split(&completions, batch.samples)
    }

    /// The value on one micro-batch, divided by counts of the whole batch. Its examples are the prompts and then the
    /// retained completions.
    ///
    /// Terms for the log, means over prompts: `reward_samples`, `reward_negative`, `reward_margin` and `reward_accuracy`
    /// (the samples strictly above the negative), `log_ratio_samples` and `log_ratio_negative` to the references,
    /// `logp_samples` and `logp_negative` (sums per completion); those of samples are means over the samples of a
    /// prompt. Where they are part of the objective, `retain_nll` and `retain_kl`, means over tokens of retained
    /// completions.
    ///
    /// **Errors**: [`Error::Range`] for a parameter outside its range or a part that does not go with the loss;
    /// [`Error::Input`] when the parts of the batch do not fit together or one is missing; [`Error::Empty`] without
    /// prompts.
    pub fn evaluate(&self, batch: &Batch<'_>, counts: &RankedCounts) -> Result<LossValue> {
        if let Some(problem) = self.problems().into_iter().next() {
            return Err(problem);
        }
        let own = RankedCounts::of(batch.rows, batch.samples)?;
        // Not `any(>)`: a NaN must not pass.
        if !(own.prompts <= counts.prompts && own.retained_tokens <= counts.retained_tokens) {
            return Err(Error::input(
                "counts",
                format!("sizes of the whole batch, at least this part's {own:?}"),
                format!("{counts:?}"),
            ));
        }
        let groups = self.groups(batch)?;
        let mut values = self.loss.values(&groups)?.f_div_scalar(counts.prompts)?;
        let mut terms = self.terms(batch, &groups, counts)?;
        let first = groups.samples.n() + groups.negatives.n();
        let b = batch.rows.n_completions() as i64;
        let kept = Tensor::f_arange(b, (tch::Kind::Int64, values.device()))?.f_ge(first)?;
        let retained = self
            .retain
            .evaluate(batch.stats, batch.rows, &kept, counts.retained_tokens)?;
        let others = match &retained.values {
            Some(values) => values.f_narrow(0, first, b - first)?,
            None => values.f_new_zeros([b - first], (values.f_kind()?, values.device()))?,
        };
        values = Tensor::f_cat(&[values, others], 0)?;
        terms.extend(retained.terms);
        Ok(LossValue {
            total: values.f_sum(None)?,
            per_example: values.f_detach()?,
            terms,
        })
    }

    fn terms(&self, batch: &Batch<'_>, groups: &Groups, counts: &RankedCounts) -> Result<Vec<(&'static str, Tensor)>> {
        let mean = |t: &Tensor| -> Result<Tensor> { Ok(t.f_sum(None)?.f_div_scalar(counts.prompts)?) };
        let (samples, negative) = self.loss.rewards(groups)?;
        let ahead = samples.f_gt_tensor(&negative)?.f_to_kind(samples.f_kind()?)?;
        let mut terms = vec![
            ("reward_samples", mean(&samples)?),
            ("reward_negative", mean(&negative)?),
            ("reward_margin", mean(&samples.f_sub(&negative)?)?),
            ("reward_accuracy", mean(&ahead)?),
        ];
        if self.uses_reference() {
            let (samples, negative) = groups.ratios()?;
            terms.push(("log_ratio_samples", mean(&samples.f_detach()?)?));
            terms.push(("log_ratio_negative", mean(&negative.f_detach()?)?));
        }
        let logp = batch.rows.sums(&batch.stats.logp.f_detach()?)?;
        let (s, p) = (groups.samples.n(), groups.negatives.n());
        terms.push(("logp_samples", mean(&groups.means(&logp.f_narrow(0, 0, s)?)?)?));
        terms.push(("logp_negative", mean(&logp.f_narrow(0, s, p)?)?));
        Ok(terms)
    }
}
