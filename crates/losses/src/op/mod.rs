//! The one op under every token loss: from hidden states to a few numbers per token, chunk by chunk.
//!
//! Training needs the scores of the whole vocabulary for every predicted token, but only for a moment. So
//! the op walks over chunks of rows: the first pass reduces each chunk's `[n, V]` logits to [`TokenStats`];
//! the second recomputes them and turns the gradients that a loss left on the stats into gradients of the
//! hidden states and of the output embedding. Peak memory is a chunk, whatever the batch and vocabulary.

mod backward;
mod stats;

use std::cell::RefCell;

use tch::{Kind, Tensor};

pub use stats::{Needs, TokenStats};

use crate::{Error, Result};

/// The default chunk holds about this many logits (16 MB in `f32`).
const CHUNK_LOGITS: i64 = 4 << 20;

/// One batch of rows on its way through the output embedding.
///
/// `logits = hidden · embeddingᵀ`; see [`TokenOp::forward`] and [`TokenOp::surrogate`].
#[derive(Debug)]
pub struct TokenOp {
    hidden: Tensor,
    embedding: Tensor,
    targets: Tensor,
    needs: Needs,
    chunk_rows: i64,
    /// The logits of the first pass, where one chunk held all rows: the second pass then reads them
    /// instead of computing them again.
    kept: RefCell<Option<Tensor>>,
}

impl TokenOp {
    /// Binds one batch of rows.
    ///
    /// **Shapes**: `hidden` `[N, D]`, one state per predicted token; `embedding` `[V, D]`; `targets` `[N]`.
    ///
    /// **Parameters**: `hidden` and `embedding` of one kind, `f64`, `f32`, `bf16` or `f16`; `targets` `i64` in
    /// `0..V`; `needs.top_k` at most `V`; at least two tokens in the vocabulary for `needs.log1m_p`.
    ///
    /// **Errors**: [`Error::Input`] naming the tensor that does not fit, [`Error::Empty`] without rows.
    pub fn new(hidden: &Tensor, embedding: &Tensor, targets: &Tensor, needs: &Needs) -> Result<Self> {
        let (n, d) = matrix("hidden", hidden)?;
        let (v, e) = matrix("embedding", embedding)?;
        if d != e {
            return Err(Error::input(
                "embedding",
                format!("[V, {d}] as `hidden` is [{n}, {d}]"),
                format!("[{v}, {e}]"),
            ));
        }
        if n == 0 {
            return Err(Error::Empty {
                what: "the batch of hidden states",
            });
        }
        if v == 0 || d == 0 {
            return Err(Error::Empty {
                what: "the output embedding",
            });
        }
        let kind = hidden.f_kind()?;
        if !matches!(kind, Kind::Double | Kind::Float | Kind::BFloat16 | Kind::Half) {
            return Err(Error::input("hidden", "f64, f32, bf16 or f16", format!("{kind:?}")));
        }
        if embedding.f_kind()? != kind {
            return Err(Error::input(
                "embedding",
                format!("{kind:?}, as `hidden` is"),
                format!("{:?}", embedding.kind()),
            ));
        }
        for (what, tensor) in [("embedding", embedding), ("targets", targets)] {
            if tensor.device() != hidden.device() {
                return Err(Error::input(
                    what,
                    format!("on {:?}", hidden.device()),
                    format!("on {:?}", tensor.device()),
                ));
            }
        }
        if targets.size() != [n] || targets.f_kind()? != Kind::Int64 {
            return Err(Error::input(
                "targets",
                format!("[{n}] of Int64"),
                format!("{:?} of {:?}", targets.size(), targets.kind()),
            ));
        }
        let (low, high) = (targets.f_min()?.int64_value(&[]), targets.f_max()?.int64_value(&[]));
        if low < 0 || high >= v {
            return Err(Error::input(
                "targets",
                format!("ids in 0..{v}"),
                if low < 0 { low } else { high },
            ));
        }
        if needs.top_k as i64 > v {
            let expected = format!("at least {} tokens, to take the {0} largest logits", needs.top_k);
            return Err(Error::input("embedding", expected, format!("{v} tokens")));
        }
        if needs.log1m_p && v < 2 {
            return Err(Error::input(
                "embedding",
                "at least 2 tokens, as `log(1 - p)` is asked for",
                v,
            ));
        }
        Ok(TokenOp {
            hidden: hidden.shallow_clone(),
            embedding: embedding.shallow_clone(),
            targets: targets.shallow_clone(),
            needs: *needs,
            chunk_rows: (CHUNK_LOGITS / v).clamp(1, n),
            kept: RefCell::new(None),
        })
    }

    /// Sets the rows per chunk; the default keeps a chunk near four million logits. Results do not depend on
    /// it beyond rounding. Zero counts as one.
    #[must_use]
    pub fn with_chunk_rows(mut self, rows: usize) -> Self {
        self.chunk_rows = i64::try_from(rows).unwrap_or(i64::MAX).clamp(1, self.n_rows());
        self
    }

    /// The first pass: what the losses need, per token, without a graph.
    ///
    /// `logp = z_y − logsumexp(z)`, and on demand `z_y`, `log(1 − p_y)` and the largest logits. `log(1 − p)` is
    /// `log1p(−p)` where `p < 1/2` and `logsumexp` of the other logits `− logsumexp(z)` where it is larger, so
    /// it is exact and finite even where `p` rounds to 1. Sums are taken in `f32` (`f64` for `f64` inputs),
    /// whatever the kind of the inputs.
    ///
    /// **Errors**: only libtorch's, for instance out of memory.
    pub fn forward(&self) -> Result<TokenStats> {
        let _guard = tch::no_grad_guard();
        let n = self.n_rows();
        let mut chunks = Vec::new();
        *self.kept.borrow_mut() = None;
        for start in (0..n).step_by(self.chunk_rows as usize) {
            let rows = self.chunk_rows.min(n - start);
            let logits = self.logits(&self.hidden.f_narrow(0, start, rows)?)?;
            chunks.push(self.reduce(&logits, &self.targets.f_narrow(0, start, rows)?)?);
            if rows == n {
                *self.kept.borrow_mut() = Some(logits);
            }
        }
        let join = |pick: &dyn Fn(&TokenStats) -> Option<&Tensor>| -> Result<Option<Tensor>> {
            let parts: Vec<&Tensor> = chunks.iter().filter_map(pick).collect();
            Ok(if parts.is_empty() {
                None
            } else {
                Some(Tensor::f_cat(&parts, 0)?)
            })
        };
        let leaf = |t: Option<Tensor>| t.map(|t| t.set_requires_grad(true));
        let whole = |t: Option<Tensor>| {
            t.ok_or(Error::Empty {
                what: "the batch of hidden states",
            })
        };
        Ok(TokenStats {
            targets: self.targets.shallow_clone(),
            logp: whole(leaf(join(&|s| Some(&s.logp))?))?,
            target_logit: leaf(join(&|s| s.target_logit.as_ref())?),
            log1m_p: leaf(join(&|s| s.log1m_p.as_ref())?),
            top_logits: leaf(join(&|s| s.top_logits.as_ref())?),
            top_ids: join(&|s| s.top_ids.as_ref())?,
            correct: whole(join(&|s| Some(&s.correct))?)?,
            collision: join(&|s| s.collision.as_ref())?,
        })
    }

    /// The stats of one chunk of logits `[n, V]`.
    fn reduce(&self, logits: &Tensor, targets: &Tensor) -> Result<TokenStats> {
        let target = targets.f_unsqueeze(1)?;
        let largest = logits.f_amax([-1i64].as_slice(), true)?;
        let target_logit = logits.f_gather(1, &target, false)?;
        // Shifted by the largest logit before the subtraction: `z_y − logsumexp(z)` would lose what is small
        // beside large logits.
        let log_sum = logits
            .f_sub(&largest)?
            .f_exp_()?
            .f_sum_dim_intlist([-1i64].as_slice(), true, None)?
            .f_log()?;
        let logp = target_logit.f_sub(&largest)?.f_sub(&log_sum)?;
        let log1m_p = if self.needs.log1m_p {
            let others = logits
                .f_scatter_value(1, &target, f64::NEG_INFINITY)?
                .f_logsumexp([-1i64].as_slice(), true)?;
            let near_one = others.f_sub(&largest)?.f_sub(&log_sum)?;
            let far = logp.f_exp()?.f_neg()?.f_log1p()?;
            Some(
                far.f_where_self(&logp.f_lt(-std::f64::consts::LN_2)?, &near_one)?
                    .f_squeeze_dim(1)?,
            )
        } else {
            None
        };
        let top = match self.needs.top_k {
            0 => None,
            k => Some(logits.f_topk(k as i64, -1, true, true)?),
        };
        let (top_logits, top_ids) = top.unzip();
        let collision = match self.needs.collision {
            true => Some(
                logits
                    .f_sub(&largest)?
                    .f_sub(&log_sum)?
                    .f_mul_scalar(2.0)?
                    .f_logsumexp([-1i64].as_slice(), false)?,
            ),
            false => None,
        };
        Ok(TokenStats {
            targets: targets.shallow_clone(),
            logp: logp.f_squeeze_dim(1)?,
            log1m_p,
            top_logits,
            top_ids,
            collision,
            correct: target_logit.f_ge_tensor(&largest)?.f_squeeze_dim(1)?,
            target_logit: if self.needs.target_logit {
                Some(target_logit.f_squeeze_dim(1)?)
            } else {
                None
            },
        })
    }

    /// Logits `[n, V]` of some rows, in the kind that sums are taken in.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.f_matmul(&self.embedding.f_tr()?)?.f_to_kind(self.wide())?)
    }

    /// The kind that sums are taken in.
    fn wide(&self) -> Kind {
        if self.hidden.kind() == Kind::Double {
            Kind::Double
        } else {
            Kind::Float
        }
    }

    fn n_rows(&self) -> i64 {
        self.targets.size()[0]
    }
}

/// The two sizes of a matrix.
fn matrix(what: &'static str, tensor: &Tensor) -> Result<(i64, i64)> {
    match *tensor.size() {
        [rows, columns] => Ok((rows, columns)),
        ref other => Err(Error::input(what, "two dimensions", format!("{other:?}"))),
    }
}
