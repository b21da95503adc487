//! What a loss may ask of the op, and what the op answers.

use tch::Tensor;

/// What a loss needs to know about every token beyond the log-probability of the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// How many of the largest logits; 0 for none.
    pub top_k: usize,
    /// Whether `log(1 - p)` of the target is wanted.
    pub log1m_p: bool,
    /// Whether the raw logit of the target is wanted.
    pub target_logit: bool,
    /// Whether `log Σ_v p(v)²` is wanted.
    pub collision: bool,
}

/// A few numbers per predicted token, from [`TokenOp::forward`](crate::TokenOp::forward).
///
/// The floating-point tensors are leaves that collect gradients, in `f32` (in `f64` for `f64` inputs);
/// [`TokenOp::surrogate`](crate::TokenOp::surrogate) reads those gradients. `N` is the number of rows.
#[derive(Debug)]
pub struct TokenStats {
    /// `[N]` the target token, `i64`, no gradient.
    pub targets: Tensor,
    /// `[N]` log-probability of the target.
    pub logp: Tensor,
    /// `[N]` raw logit of the target, when asked for.
    pub target_logit: Option<Tensor>,
    /// `[N]` `log(1 - p)` of the target, when asked for.
    pub log1m_p: Option<Tensor>,
    /// `[N, k]` the largest logits, descending, when asked for.
    pub top_logits: Option<Tensor>,
    /// `[N, k]` their token ids, `i64`, no gradient.
    pub top_ids: Option<Tensor>,
    /// `[N]` `log Σ_v p(v)²`, when asked for, no gradient.
    pub collision: Option<Tensor>,
    /// `[N]` whether no token has a larger logit than the target, `bool`, no gradient.
    pub correct: Tensor,
}

impl TokenStats {
    /// How many rows there are.
    pub fn n_rows(&self) -> i64 {
        self.logp.size().first().copied().unwrap_or(0)
    }
}
