//! The gradients that a loss left on the stats.

use tch::{Kind, Tensor};

use super::rows::Pick;
use super::{Kl, TokenOp, TokenStats};
use crate::Result;

/// The gradients of some rows' stats, `None` where the loss used none of a kind, with the values that the
/// second pass reads beside them.
pub(super) struct Pulls {
    pub(super) logp: Option<Tensor>,
    pub(super) log_sum_exp: Option<Tensor>,
    pub(super) log1m_p: Option<Tensor>,
    pub(super) candidate_log1m_p: Option<Tensor>,
    pub(super) entropy: Option<(Tensor, Tensor)>,
    pub(super) kl: Option<(Kl, Tensor, Tensor)>,
    pub(super) off_target: Option<Tensor>,
    pub(super) target_logit: Option<Tensor>,
    pub(super) top_logits: Option<(Tensor, Tensor)>,
    pub(super) candidate_logits: Option<Tensor>,
}

impl Pulls {
    pub(super) fn of(op: &TokenOp, stats: &TokenStats) -> Result<Pulls> {
        let own = |stat: &Option<Tensor>| gradient_of(stat.as_ref());
        // Whatever a loss makes of the place of a candidate that is not there, it is not there.
        let of_candidates = |stat: &Option<Tensor>| -> Result<Option<Tensor>> {
            match (own(stat), &stats.candidate_ids) {
                (Some(pull), Some(ids)) => Ok(Some(pull.f_masked_fill(&ids.f_lt(0)?, 0.0)?)),
                _ => Ok(None),
            }
        };
        let with = |pull: Option<Tensor>, value: &Option<Tensor>| pull.zip(value.as_ref().map(Tensor::detach));
        Ok(Pulls {
            logp: gradient_of(Some(&stats.logp)),
            log_sum_exp: own(&stats.log_sum_exp),
            log1m_p: own(&stats.log1m_p),
            candidate_log1m_p: of_candidates(&stats.candidate_log1m_p)?,
            entropy: with(own(&stats.entropy), &stats.entropy),
            kl: op
                .needs
                .kl
                .zip(with(own(&stats.kl), &stats.kl))
                .map(|(kl, (pull, value))| (kl, pull, value)),
            off_target: own(&stats.off_target),
            target_logit: own(&stats.target_logit),
            top_logits: with(own(&stats.top_logits), &stats.top_ids),
            candidate_logits: of_candidates(&stats.candidate_logits)?,
        })
    }

    /// Those of some of the rows.
    pub(super) fn pick(&self, pick: &Pick) -> Result<Pulls> {
        let both = |(a, b): &(Tensor, Tensor)| Ok::<_, crate::Error>((pick.of(a)?, pick.of(b)?));
        Ok(Pulls {
            logp: pick.of_some(&self.logp)?,
            log_sum_exp: pick.of_some(&self.log_sum_exp)?,
            log1m_p: pick.of_some(&self.log1m_p)?,
            candidate_log1m_p: pick.of_some(&self.candidate_log1m_p)?,
            entropy: self.entropy.as_ref().map(both).transpose()?,
            kl: match &self.kl {
                Some((kl, pull, value)) => Some((*kl, pick.of(pull)?, pick.of(value)?)),
                None => None,
            },
            off_target: pick.of_some(&self.off_target)?,
            target_logit: pick.of_some(&self.target_logit)?,
            top_logits: self.top_logits.as_ref().map(both).transpose()?,
            candidate_logits: pick.of_some(&self.candidate_logits)?,
        })
    }

    /// `[n]` which rows need a product over the vocabulary; `None` where no stat that does was used.
    pub(super) fn dense_rows(&self) -> Result<Option<Tensor>> {
        let columns = [
            self.logp.as_ref(),
            self.log_sum_exp.as_ref(),
            self.log1m_p.as_ref(),
            self.entropy.as_ref().map(|(pull, _)| pull),
            self.kl.as_ref().map(|(_, pull, _)| pull),
            self.off_target.as_ref(),
        ];
        let mut used = columns
            .into_iter()
            .flatten()
            .map(|pull| Ok(pull.f_ne(0.0)?))
            .collect::<Result<Vec<_>>>()?;
        if let Some(pull) = &self.candidate_log1m_p {
            used.push(pull.f_ne(0.0)?.f_any_dim(1, false)?);
        }
        Ok(match used.is_empty() {
            true => None,
            false => Some(Tensor::f_stack(&used, 0)?.f_any_dim(0, false)?),
        })
    }

    /// Tokens that single logits are pulled at, `[n, k]`, with their weights.
    pub(super) fn sparse(&self, targets: &Tensor, candidates: &Option<Tensor>) -> Result<Vec<(Tensor, Tensor)>> {
        let mut found = Vec::new();
        if let Some(pull) = &self.target_logit {
            found.push((pull.f_unsqueeze(1)?, targets.f_unsqueeze(1)?));
        }
        if let Some((pull, ids)) = &self.top_logits {
            found.push((pull.shallow_clone(), ids.shallow_clone()));
        }
        if let (Some(pull), Some(ids)) = (&self.candidate_logits, candidates) {
            found.push((pull.shallow_clone(), ids.shallow_clone()));
        }
        Ok(found)
    }

    /// The sum of the gradients with respect to the logits that is known without the logits: a shift of all logits
    /// changes log-sum-exp and single logits by itself and leaves probabilities alone.
    pub(super) fn shift(&self, wide: Kind, sparse: &[(Tensor, Tensor)]) -> Result<Option<Tensor>> {
        let pulls = sparse.iter().map(|(pull, _)| pull).chain(&self.log_sum_exp);
        let mut total: Option<Tensor> = None;
        for pull in pulls {
            let sum = pull.f_sum(wide)?;
            total = Some(match total {
                Some(total) => total.f_add(&sum)?,
                None => sum,
            });
        }
        Ok(total)
    }
}

/// The gradient that a loss left on a stat; `None` where the loss did not use it.
fn gradient_of(stat: Option<&Tensor>) -> Option<Tensor> {
    let gradient = stat?.grad();
    gradient.defined().then(|| gradient.detach())
}
