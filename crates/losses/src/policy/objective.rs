//! A policy loss and what goes around any of them.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::kl::{KlClamp, KlEstimator};
use super::surrogate::column;
use super::{Aggregate, Loss, PolicyCounts, Tokens};
use crate::error::not_negative;
use crate::token::wanted;
use crate::{CompletionRows, Error, Kl, LossValue, Needs, Result, TokenStats};

/// A penalty on leaving the reference, as a part of the loss.
///
/// Not to be had twice: where it is part of the rewards, as in most of PPO, the loss has none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KlPenalty {
    /// What is taken for the divergence of a token; GRPO has `k3`, and `full` is the divergence itself.
    pub estimator: KlEstimator,
    /// Its weight; finite, at least 0. Published runs use 0.001 to 0.04.
    pub coefficient: f64,
    /// Limits of the estimate; `full` has none of `log_ratio`.
    #[serde(default)]
    pub clamp: KlClamp,
}

/// A policy loss with everything around it: the manifest form of a step on sampled completions.
///
/// `L = Σ_it w_it (ℓ_it + β k_it − c H_it)` with `ℓ` the loss, `w` the [`Aggregate`], `k` the estimate of the divergence from
/// the reference or that itself, `H` the entropy of the policy's distribution at that token.
///
/// ```
/// use unsay_losses::policy::Objective;
///
/// let text = r#"{
///     "loss": { "grpo": { "clip_low": 0.2, "clip_high": 0.28 } }, "aggregate": "token_mean",
///     "kl": { "estimator": "k3", "coefficient": 0.04 }
/// }"#;
/// let objective: Objective = serde_json::from_str(text).unwrap();
/// assert!(objective.problems().is_empty() && objective.uses_reference());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// The value of one token.
    pub loss: Loss,
    /// How the values of tokens become one number.
    pub aggregate: Aggregate,
    /// A penalty on leaving the reference.
    #[serde(default)]
    pub kl: Option<KlPenalty>,
    /// Weight `c` of the entropy bonus; finite, at least 0. 0 is none.
    #[serde(default)]
    pub entropy: f64,
}

/// One micro-batch of sampled completions on its way through an [`Objective`]. All but `stats` are taken as constants.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// The policy's, from an op with [`Objective::needs`]. An `entropy` that no bonus asked for is logged.
    pub stats: &'a TokenStats,
    /// `[N]` log-probability of every row under the policy that sampled; `stats.logp` itself where each batch is used for
    /// one step.
    pub old: &'a Tensor,
    /// `[N]` the advantage of every row.
    pub advantage: &'a Tensor,
    /// `[N]` the reference's log-probability of every row, where the objective [has a use for
    /// it](Objective::uses_reference).
    pub reference: Option<&'a Tensor>,
    /// The completions that the rows belong to.
    pub rows: &'a CompletionRows,
}

impl Objective {
    /// The loss with an aggregate and nothing else.
    pub fn new(loss: Loss, aggregate: Aggregate) -> Self {
        Objective {
            loss,
            aggregate,
            kl: None,
            entropy: 0.0,
        }
    }

    /// Every parameter outside its range and every part that does not go with the loss.
    pub fn problems(&self) -> Vec<Error> {
        let mut problems = self.loss.problems();
        problems.extend(self.aggregate.problem());
        if self.loss.per_completion() && self.aggregate != Aggregate::SequenceMean {
            problems.push(Error::Range {
                name: "aggregate",
                value: self.aggregate.to_string(),
                range: "`sequence_mean`, as the loss has one value per completion",
            });
        }
        if let Some(kl) = &self.kl {
            problems.extend(not_negative("kl.coefficient", kl.coefficient));
            problems.extend(kl.clamp.problems());
            if let (KlEstimator::Full, Some(bound)) = (kl.estimator, kl.clamp.log_ratio) {
                problems.push(Error::Range {
                    name: "kl.clamp.log_ratio",
                    value: bound.to_string(),
                    range: "none, as `full` is not made of the log-ratio of one token",
                });
            }
        }
        problems.extend(not_negative("entropy", self.entropy));
        problems
    }

    /// Whether the reference's log-probabilities of the sampled tokens are needed: for every penalty but `full`, for which
    /// the op is given the reference.
    pub fn uses_reference(&self) -> bool {
        self.kl.is_some_and(|kl| kl.estimator != KlEstimator::Full)
    }

    /// What it reads from the op beyond log-probabilities.
    pub fn needs(&self) -> Needs {
        let full = self.kl.is_some_and(|kl| kl.estimator == KlEstimator::Full);
        Needs {
            entropy: self.entropy > 0.0,
            kl: full.then_some(Kl::Reverse),
            ..Needs::default()
        }
    }

    /// The value on one micro-batch, divided by counts of the whole batch.
    ///
    /// Terms for the log: `policy_loss`, the value without penalty and bonus; and means over the tokens of the whole batch:
    /// `ratio` to the policy that sampled, as the loss takes it, `log_ratio` and `approx_kl`, half the mean square of the
    /// tokens' log-ratios; `clip_fraction` where the loss clips (a token counts where clipping made its value strictly
    /// larger), `dual_clip_fraction` where it bounds the ratio of bad tokens (a token counts where that made its value strictly
    /// smaller); `kl`, the estimate, and `entropy`.
    ///
    /// **Errors**: [`Error::Range`] for a parameter outside its range or a part that does not go with the loss;
    /// [`Error::Input`] when the parts of the batch do not fit together or one is missing.
    pub fn evaluate(&self, batch: &Batch<'_>, counts: &PolicyCounts) -> Result<LossValue> {
        crate::error::first(self.problems())?;
        let (stats, rows) = (batch.stats, batch.rows);
        counts.check(rows)?;
        for (what, asked) in [("stats.entropy", &stats.entropy), ("stats.kl", &stats.kl)] {
            if let Some(values) = asked {
                column(what, values, rows)?;
            }
        }
        let tokens = Tokens::new(&stats.logp, batch.old, batch.advantage, rows)?;
        let kind = tokens.logp.f_kind()?;
        let surrogate = self.loss.surrogate(&tokens)?;
        let log_ratio = tokens.log_ratio()?.f_detach()?;
        let alone = self
            .aggregate
            .reduce(&surrogate.values.f_detach()?, rows, counts, Vec::new())?;
        let mut terms = vec![
            ("policy_loss", alone.total),
            ("ratio", counts.token_mean(&surrogate.ratio)?),
            ("log_ratio", counts.token_mean(&log_ratio)?),
            (
                "approx_kl",
                counts.token_mean(&log_ratio.f_square()?.f_mul_scalar(0.5)?)?,
            ),
        ];
        if let Some(clipped) = &surrogate.clipped {
            terms.push(("clip_fraction", counts.share(clipped, kind)?));
        }
        if let Some(clipped) = &surrogate.dual_clipped {
            terms.push(("dual_clip_fraction", counts.share(clipped, kind)?));
        }
        let mut values = surrogate.values;
        if let Some(kl) = &self.kl {
            let estimate = kl.estimator.of_rows(stats, batch.reference, &kl.clamp)?;
            terms.push(("kl", counts.token_mean(&estimate)?));
            values = values.f_add(&estimate.f_mul_scalar(kl.coefficient)?)?;
        }
        if let Some(entropy) = &stats.entropy {
            terms.push(("entropy", counts.token_mean(entropy)?));
        }
        if self.entropy > 0.0 {
            let bonus = wanted("stats.entropy", &stats.entropy)?.f_mul_scalar(self.entropy)?;
            values = values.f_sub(&bonus)?;
        }
        self.aggregate.reduce(&values, rows, counts, terms)
    }
}

#[cfg(test)]
mod tests;
