//! What a loss may ask of the op, and what the op answers.

use tch::Tensor;

use crate::{Error, Result};

/// What a loss needs to know about every token beyond the log-probability of the target.
///
/// Ask for nothing that is not read: each is paid for in the pass over the vocabulary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// How many of the largest logits; 0 for none.
    pub top_k: usize,
    /// Whether `log(1 - p)` of the target is wanted.
    pub log1m_p: bool,
    /// Whether the raw logit of the target is wanted.
    pub target_logit: bool,
    /// Whether the log-sum-exp of the logits is wanted.
    pub log_sum_exp: bool,
    /// Whether the entropy of the distribution is wanted.
    pub entropy: bool,
    /// Whether `log Σ p²` is wanted.
    pub collision: bool,
    /// Which divergence from the reference is wanted; takes [`TokenOp::with_reference`](crate::TokenOp::with_reference).
    pub kl: Option<Kl>,
    /// Whether the logits of the candidates are wanted; takes
    /// [`TokenOp::with_candidates`](crate::TokenOp::with_candidates).
    pub candidates: bool,
    /// Whether `log(1 - p)` of the candidates is wanted; takes
    /// [`TokenOp::with_candidates`](crate::TokenOp::with_candidates).
    pub candidate_log1m_p: bool,
    /// Whether the mean of `(σ(logit) - 1/2)²` over the tokens other than the target is wanted.
    pub off_target: bool,
    /// Whether log-probability and correctness are not read. Where the target's raw logit is then all that is wanted,
    /// [`TokenOp::forward`](crate::TokenOp::forward) makes no logits of other tokens, and leaves `logp` NaN and `correct`
    /// false.
    pub without_logp: bool,
}

impl Needs {
    /// Whether nothing but the softmax and single logits is read, so that the logits are not wanted again on the way back.
    pub(super) fn softmax_alone(&self) -> bool {
        let complements = self.log1m_p || self.candidates || self.candidate_log1m_p;
        !complements && !self.entropy && self.kl.is_none() && !self.off_target
    }

    /// Whether the logits of tokens other than the target can be left out.
    pub(super) fn target_alone(&self) -> bool {
        *self
            == Needs {
                target_logit: true,
                without_logp: true,
                ..Needs::default()
            }
    }
}

/// The direction of a divergence between the policy's distribution and the reference's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kl {
    /// `KL(reference ‖ policy)`: the policy must cover what the reference says.
    Forward,
    /// `KL(policy ‖ reference)`: the policy must not say what the reference would not.
    Reverse,
}

/// A few numbers per predicted token, from [`TokenOp::forward`](crate::TokenOp::forward).
///
/// The floating-point tensors, all but `collision`, are leaves that collect gradients, in `f32` (in `f64` for `f64`
/// inputs); [`TokenOp::surrogate`](crate::TokenOp::surrogate) reads those gradients. `N` is the number of rows.
#[derive(Debug)]
pub struct TokenStats {
    /// `[N]` the target token, `i64`, no gradient.
    pub targets: Tensor,
    /// `[N]` log-probability of the target.
    pub logp: Tensor,
    /// `[N]` whether no token has a larger logit than the target, `bool`, no gradient.
    pub correct: Tensor,
    /// `[N]` raw logit of the target, when asked for.
    pub target_logit: Option<Tensor>,
    /// `[N]` `log(1 - p)` of the target, when asked for.
    pub log1m_p: Option<Tensor>,
    /// `[N, k]` the largest logits, descending, when asked for.
    pub top_logits: Option<Tensor>,
    /// `[N, k]` their token ids, `i64`, no gradient.
    pub top_ids: Option<Tensor>,
    /// `[N]` log-sum-exp of the logits, when asked for.
    pub log_sum_exp: Option<Tensor>,
    /// `[N]` entropy in nats, when asked for.
    pub entropy: Option<Tensor>,
    /// `[N]` `log Σ p²`, when asked for; no gradient.
    pub collision: Option<Tensor>,
    /// `[N]` divergence between policy and reference in nats, when asked for.
    pub kl: Option<Tensor>,
    /// `[N, C]` the candidates, `i64`, -1 for none, no gradient; with either of the next two.
    pub candidate_ids: Option<Tensor>,
    /// `[N, C]` logits of the candidates, when asked for; `-inf` without a gradient where there is none.
    pub candidate_logits: Option<Tensor>,
    /// `[N, C]` `log(1 - p)` of the candidates, when asked for; 0 without a gradient where there is none.
    pub candidate_log1m_p: Option<Tensor>,
    /// `[N]` mean of `(σ(logit) - 1/2)²` over the other tokens than the target, when asked for.
    pub off_target: Option<Tensor>,
}

impl TokenStats {
    /// Stats of which only those that are always there are known.
    ///
    /// **Shapes**: `targets` `[N]` `i64`, `logp` `[N]`, `correct` `[N]` `bool`.
    pub fn new(targets: Tensor, logp: Tensor, correct: Tensor) -> Self {
        TokenStats {
            targets,
            logp,
            correct,
            target_logit: None,
            log1m_p: None,
            top_logits: None,
            top_ids: None,
            log_sum_exp: None,
            entropy: None,
            collision: None,
            kl: None,
            candidate_ids: None,
            candidate_logits: None,
            candidate_log1m_p: None,
            off_target: None,
        }
    }

    /// How many rows there are.
    pub fn n_rows(&self) -> i64 {
        self.logp.size().first().copied().unwrap_or(0)
    }

    /// Of these, the ones that are always there, without a graph or a gradient.
    pub(super) fn brief(&self) -> TokenStats {
        TokenStats::new(
            self.targets.shallow_clone(),
            self.logp.detach(),
            self.correct.shallow_clone(),
        )
    }

    /// Those of `n` rows from `start`, without a graph.
    ///
    /// **Errors**: libtorch's for rows that are not there.
    pub fn rows(&self, start: i64, n: i64) -> Result<TokenStats> {
        let part = |t: &Tensor| t.f_detach()?.f_narrow(0, start, n);
        let maybe = |t: &Option<Tensor>| t.as_ref().map(part).transpose();
        Ok(TokenStats {
            targets: part(&self.targets)?,
            logp: part(&self.logp)?,
            correct: part(&self.correct)?,
            target_logit: maybe(&self.target_logit)?,
            log1m_p: maybe(&self.log1m_p)?,
            top_logits: maybe(&self.top_logits)?,
            top_ids: maybe(&self.top_ids)?,
            log_sum_exp: maybe(&self.log_sum_exp)?,
            entropy: maybe(&self.entropy)?,
            collision: maybe(&self.collision)?,
            kl: maybe(&self.kl)?,
            candidate_ids: maybe(&self.candidate_ids)?,
            candidate_logits: maybe(&self.candidate_logits)?,
            candidate_log1m_p: maybe(&self.candidate_log1m_p)?,
            off_target: maybe(&self.off_target)?,
        })
    }

    /// The stats of chunks, one after the other, without a graph.
    ///
    /// **Errors**: [`Error::Empty`] without chunks.
    pub fn join(chunks: &[TokenStats]) -> Result<TokenStats> {
        let rows = |pick: &dyn Fn(&TokenStats) -> Option<&Tensor>| -> Result<Option<Tensor>> {
            let parts: Vec<Tensor> = chunks.iter().filter_map(pick).map(Tensor::detach).collect();
            Ok(match parts.is_empty() {
                true => None,
                false => Some(Tensor::f_cat(&parts, 0)?),
            })
        };
        let all = |t: Option<Tensor>| {
            t.ok_or(Error::Empty {
                what: "the batch of hidden states",
            })
        };
        Ok(TokenStats {
            targets: all(rows(&|s| Some(&s.targets))?)?,
            logp: all(rows(&|s| Some(&s.logp))?)?,
            correct: all(rows(&|s| Some(&s.correct))?)?,
            target_logit: rows(&|s| s.target_logit.as_ref())?,
            log1m_p: rows(&|s| s.log1m_p.as_ref())?,
            top_logits: rows(&|s| s.top_logits.as_ref())?,
            top_ids: rows(&|s| s.top_ids.as_ref())?,
            log_sum_exp: rows(&|s| s.log_sum_exp.as_ref())?,
            entropy: rows(&|s| s.entropy.as_ref())?,
            collision: rows(&|s| s.collision.as_ref())?,
            kl: rows(&|s| s.kl.as_ref())?,
            candidate_ids: rows(&|s| s.candidate_ids.as_ref())?,
            candidate_logits: rows(&|s| s.candidate_logits.as_ref())?,
            candidate_log1m_p: rows(&|s| s.candidate_log1m_p.as_ref())?,
            off_target: rows(&|s| s.off_target.as_ref())?,
        })
    }

    /// From here on the stats collect gradients.
    pub(super) fn collect_gradients(&self) -> Result<()> {
        let rest = [
            &self.target_logit,
            &self.log1m_p,
            &self.top_logits,
            &self.log_sum_exp,
            &self.entropy,
            &self.kl,
            &self.candidate_logits,
            &self.candidate_log1m_p,
            &self.off_target,
        ];
        for stat in rest.into_iter().flatten().chain([&self.logp]) {
            let _ = stat.f_set_requires_grad(true)?;
        }
        Ok(())
    }
}
