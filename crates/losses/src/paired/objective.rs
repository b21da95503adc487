//! A paired loss and what can be put around any of them.

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Divergence, Loss, PairCounts, Pairs};
use crate::completions::wanted_reference;
use crate::counts::Counts;
use crate::error::{first, not_negative, share};
use crate::token::wanted;
use crate::{CompletionRows, Completions, Error, LossValue, Needs, Result, TokenStats};

/// How the log-probabilities of tokens become that of a completion, for the policy and the reference alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Logps {
    /// Their sum.
    #[default]
    Sum,
    /// Their mean: length-normalised preference losses, such as TRL's `sigmoid_norm`. It changes the meaning of `beta`.
    Mean,
    /// Their sum, with the tokens beyond the length of the pair's shorter completion weighted by `alpha`, and so is a
    /// loss's own term for every row ([`PairedLoss::token_term`](super::PairedLoss::token_term)):
    /// W. Liu, Y. Bai, C. Han, R. Weng, J. Xu, X. Cao, J. Wang, X. Cai, "Length desensitization in direct preference
    /// optimization", 2024. TRL 0.24 weights the policy alone.
    Ld {
        /// In `[0, 1]`; 1 is the sum.
        alpha: f64,
    },
}

impl fmt::Display for Logps {
    /// As the manifest spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Logps::Sum => f.write_str("sum"),
            Logps::Mean => f.write_str("mean"),
            Logps::Ld { alpha } => write!(f, "{{ ld: {{ alpha: {alpha} }} }}"),
        }
    }
}

/// Weights of the pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Weighting {
    /// All alike.
    #[default]
    None,
    /// How likely the policy is to say both completions, detached: `exp(Σ_sides mean_t [log p(y_t) − log Σ_v p(v)²])`.
    /// W. Zhou, R. Agrawal, S. Zhang, S. R. Indurthi, S. Zhao, K. Song, S. Xu, C. Zhu, "WPO: Enhancing RLHF with
    /// weighted preference optimization", 2024.
    Wpo {
        /// Whether a pair's weight is held at 1, as TRL 0.24 does and TRL 1.10 does not.
        clamp: bool,
    },
}

impl fmt::Display for Weighting {
    /// As the manifest spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Weighting::None => f.write_str("none"),
            Weighting::Wpo { clamp } => write!(f, "{{ wpo: {{ clamp: {clamp} }} }}"),
        }
    }
}

/// A loss over pairs with everything around it: the manifest form of training on pairs.
///
/// `L = (1/B) Σ w_i ℓ(c_i, r_i) + (a / n₊) Σ₊ −log p(y_t)` with `ℓ` the loss, `B` the pairs of the whole batch, `w` the
/// [`Weighting`], `a` the sum of [`Objective::nll`] and the loss's own, `n₊` the tokens of chosen completions in the
/// whole batch. A part that does not go with the loss is an error, not ignored.
///
/// ```
/// use unsay_losses::paired::Objective;
///
/// let text = r#"{ "loss": { "dpo": { "beta": 0.1 } }, "logps": { "ld": { "alpha": 0.5 } }, "nll": 0.2 }"#;
/// let objective: Objective = serde_json::from_str(text).unwrap();
/// assert!(objective.problems().is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// The value of one pair.
    pub loss: Loss,
    /// How token log-probabilities become that of a completion.
    #[serde(default)]
    pub logps: Logps,
    /// The divergence behind the implicit rewards.
    #[serde(default)]
    pub divergence: Divergence,
    /// Whether log-ratios are log-probabilities, as if the reference gave all completions the same probability. Only for
    /// losses that compare with a reference, and the two sides with each other alone.
    #[serde(default)]
    pub reference_free: bool,
    /// Weights of the pairs.
    #[serde(default)]
    pub weighting: Weighting,
    /// Weight of the likelihood of the chosen completions; finite, at least 0. Some call it the RPO or SFT term.
    #[serde(default)]
    pub nll: f64,
}

/// One micro-batch of pairs on its way through an [`Objective`].
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Of the rows of the chosen completions, then of the rejected ones.
    pub stats: &'a TokenStats,
    /// The `2B` completions that the rows belong to.
    pub rows: &'a CompletionRows,
    /// `[N]` the reference's log-probability of every row, where the loss has a reference.
    pub reference: Option<&'a Tensor>,
    /// `[N, draws_per_row]`, uniform in `[0, 1)`.
    pub draws: Option<&'a Tensor>,
    /// The whole-batch number that [`PairedLoss::baseline`](super::PairedLoss::baseline) asks for.
    pub baseline: Option<f64>,
}

impl From<Loss> for Objective {
    /// The loss alone.
    fn from(loss: Loss) -> Self {
        Objective {
            loss,
            logps: Logps::Sum,
            divergence: Divergence::ReverseKl,
            reference_free: false,
            weighting: Weighting::None,
            nll: 0.0,
        }
    }
}

impl Objective {
    /// Every parameter outside its range and every part that does not go with the loss.
    pub fn problems(&self) -> Vec<Error> {
        let mut problems = self.loss.problems();
        problems.extend(self.divergence.problem());
        problems.extend(not_negative("nll", self.nll));
        if let Logps::Ld { alpha } = self.logps {
            problems.extend(share("logps.ld.alpha", alpha));
        }
        let mut refuse = |name: &'static str, value: String, range: &'static str| {
            problems.push(Error::Range { name, value, range });
        };
        if self.logps != Logps::Sum && self.loss.per_token() {
            let range = "`sum`, as the loss divides by the number of tokens itself";
            refuse("logps", self.logps.to_string(), range);
        }
        if self.divergence != Divergence::ReverseKl && !self.loss.takes_divergence() {
            let range = "`reverse_kl`, as the loss is not one of the difference of two log-ratios";
            refuse("divergence", self.divergence.to_string(), range);
        }
        if self.weighting != Weighting::None && self.loss.couples_pairs() {
            let range = "`none`, as the loss compares whole batches and its terms belong to no pair";
            refuse("weighting", self.weighting.to_string(), range);
        }
        let range = match (self.loss.uses_reference(), self.loss.is_of_margin()) {
            (true, true) => None,
            (true, false) => Some("`false`, as the loss compares each log-ratio with a fixed number"),
            (false, _) => Some("`false`, as the loss has no reference"),
        };
        if let (true, Some(range)) = (self.reference_free, range) {
            refuse("reference_free", "true".to_owned(), range);
        }
        problems
    }

    /// Whether the reference's log-probabilities are needed.
    pub fn uses_reference(&self) -> bool {
        self.loss.uses_reference() && !self.reference_free
    }

    /// What it reads from the op.
    pub fn needs(&self) -> Needs {
        let own = self.loss.needs();
        Needs {
            collision: own.collision || self.weighting != Weighting::None,
            ..own
        }
    }

    /// The completions of a micro-batch as pairs.
    ///
    /// **Errors**: [`Error::Input`] when the parts do not fit together or one is missing.
    pub fn pairs(&self, batch: &Batch<'_>) -> Result<Pairs> {
        let reference = wanted_reference(self.uses_reference(), batch.reference)?;
        let weights = match self.logps {
            Logps::Ld { alpha } => Some(ld_weights(batch, alpha)?),
            Logps::Sum | Logps::Mean => None,
        };
        let mut both = Completions::of(batch.stats, batch.rows, reference, weights.as_ref())?;
        if let Some(term) = self.loss.token_term(batch.stats, batch.rows, batch.draws)? {
            both.term = Some(batch.rows.weighted_sums(&term, weights.as_ref())?);
        }
        if self.weighting != Weighting::None {
            let collision = wanted("stats.collision", &batch.stats.collision)?;
            let logp = batch.rows.table(&batch.stats.logp.f_detach()?)?;
            let surplus = logp.f_sub(&batch.rows.table(collision)?)?;
            let sums = surplus.f_sum_dim_intlist([1i64].as_slice(), false, None)?;
            both.confidence = Some(sums.f_div(&both.tokens)?);
        }
        if self.logps == Logps::Mean {
            both = both.per_token()?;
        }
        Ok(Pairs {
            divergence: self.divergence,
            reference_free: self.reference_free,
            baseline: batch.baseline,
            ..Pairs::split(&both)?
        })
    }

    /// The value on one micro-batch, divided by counts of the whole batch.
    ///
    /// Terms for the log: `reward_chosen`, `reward_rejected`, `reward_margin` and `reward_accuracy` (chosen strictly
    /// above rejected), `logp_chosen` and `logp_rejected` (sums per completion), `held_fraction` (pairs of which a side is
    /// so far from the reference that the divergence's exponential is held and pushes no more) and the loss's own
    /// [`extra_terms`](super::PairedLoss::extra_terms), means over pairs; `nll_chosen`, a mean over tokens, where the
    /// likelihood is part of the objective.
    ///
    /// **Errors**: [`Error::Range`] for a parameter outside its range or a part that does not go with the loss;
    /// [`Error::Input`] when the parts of the batch do not fit together or one is missing.
    pub fn evaluate(&self, batch: &Batch<'_>, counts: &PairCounts) -> Result<LossValue> {
        first(self.problems())?;
        let own = PairCounts::of(batch.rows);
        counts.check_covers(&own)?;
        if self.loss.couples_pairs() && own != *counts {
            return Err(Error::input(
                "batch",
                "all pairs at once, as the loss compares pairs with each other",
                format!("{} of {}", own.pairs, counts.pairs),
            ));
        }
        let pairs = self.pairs(batch)?;
        if self.loss.baseline().is_some() {
            pairs.wanted_baseline()?;
        }
        let mut values = self.loss.values(&pairs)?;
        if let Weighting::Wpo { clamp } = self.weighting {
            values = values.f_mul(&wpo_weights(&pairs, clamp)?)?;
        }
        let mut values = values.f_div_scalar(counts.pairs)?;
        let mut terms = self.terms(batch, &pairs, counts)?;
        let nll = self.nll + self.loss.nll();
        if nll > 0.0 {
            // Of the tokens themselves: whatever the loss reads, the anchor is the plain likelihood.
            let b = pairs.chosen.n();
            let chosen = batch.rows.sums(&batch.stats.logp)?.f_narrow(0, 0, b)?.f_neg()?;
            values = values.f_add(&chosen.f_mul_scalar(nll / counts.chosen_tokens)?)?;
            let mean = chosen.f_detach()?.f_sum(None)?.f_div_scalar(counts.chosen_tokens)?;
            terms.push(("nll_chosen", mean));
        }
        Ok(LossValue {
            total: values.f_sum(None)?,
            per_example: values.f_detach()?,
            terms,
        })
    }

    fn terms(&self, batch: &Batch<'_>, pairs: &Pairs, counts: &PairCounts) -> Result<Vec<(&'static str, Tensor)>> {
        let (chosen, rejected) = self.loss.rewards(pairs)?;
        let logp = batch.rows.sums(&batch.stats.logp.f_detach()?)?;
        let b = pairs.chosen.n();
        let mean = |t: &Tensor| -> Result<Tensor> { Ok(t.f_sum(None)?.f_div_scalar(counts.pairs)?) };
        let mut terms = vec![
            ("reward_chosen", mean(&chosen)?),
            ("reward_rejected", mean(&rejected)?),
            ("reward_margin", mean(&chosen.f_sub(&rejected)?)?),
            (
                "reward_accuracy",
                mean(&chosen.f_gt_tensor(&rejected)?.f_to_kind(chosen.f_kind()?)?)?,
            ),
            ("logp_chosen", mean(&logp.f_narrow(0, 0, b)?)?),
            ("logp_rejected", mean(&logp.f_narrow(0, b, b)?)?),
        ];
        if let Some(held) = pairs.held()? {
            terms.push(("held_fraction", mean(&held.f_to_kind(chosen.f_kind()?)?)?));
        }
        for (name, per_pair) in self.loss.extra_terms(pairs)? {
            terms.push((name, mean(&per_pair.f_detach()?)?));
        }
        Ok(terms)
    }
}

/// `[N]` 1 up to the length of the pair's shorter completion and `alpha` beyond.
fn ld_weights(batch: &Batch<'_>, alpha: f64) -> Result<Tensor> {
    let lengths = batch.rows.lengths();
    let b = lengths.len() / 2;
    let mut weights = Vec::new();
    for (completion, &length) in lengths.iter().enumerate() {
        let shared = length.min(lengths[(completion + b) % (2 * b).max(1)]);
        weights.extend((0..length).map(|position| if position < shared { 1.0 } else { alpha }));
    }
    Ok(Tensor::f_from_slice(&weights)?
        .f_to_device(batch.stats.logp.device())?
        .f_to_kind(batch.stats.logp.f_kind()?)?)
}

/// `[B]` how likely the policy is to say both completions of each pair.
fn wpo_weights(pairs: &Pairs, clamp: bool) -> Result<Tensor> {
    let chosen = wanted("confidence", &pairs.chosen.confidence)?;
    let weights = chosen
        .f_add(wanted("confidence", &pairs.rejected.confidence)?)?
        .f_exp()?;
    Ok(if clamp { weights.f_clamp_max(1.0)? } else { weights })
}
