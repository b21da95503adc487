//! The one op under every token loss: from hidden states to a few numbers per token, chunk by chunk.
//!
//! Training needs the scores of the whole vocabulary for every predicted token, but only for a moment. So
//! the op walks over chunks of rows and reduces each chunk's `[n, V]` logits to [`TokenStats`]. There are two ways
//! back from the gradients that a loss left on the stats to those of the hidden states and the output embedding:
//!
//! - [`TokenOp::fused`], for a loss that is a sum over rows: it is evaluated chunk by chunk and its gradient is
//!   taken with the chunk's logits still in hand;
//! - [`TokenOp::forward`] and [`TokenOp::surrogate`], for a loss that looks at all rows at once: a second pass
//!   recomputes the logits that were not kept.
//!
//! Peak memory is a chunk, whatever the batch and vocabulary.

mod backward;
mod dense;
mod fused;
mod hand_on;
mod inputs;
mod products;
mod pulls;
mod reduce;
mod rows;
mod stats;

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

pub use fused::Fused;
pub use stats::{Kl, Needs, TokenStats};

use crate::Result;
use inputs::Affine;
use rows::{Pick, Rows};

/// The default chunk holds about this many logits (32 MB in `f32`), and half as many again where its softmax takes their memory,
/// which is then no more than it was.
///
/// Measured at width 256, vocabularies of 8k, 32k and 128k, with 1 and 2 threads: one, two, four and eight million take the
/// same time at 8k; the larger the vocabulary, the fewer rows a product has at once, and at 128k two million take 1.3 times
/// the processor time of eight and four million 1.1 times, sixteen 0.94 times for 100 MB more. The figures are in
/// `docs/design/token-op.md`.
const CHUNK_LOGITS: i64 = 8 << 20;

/// Between the two passes so many logits are kept instead of being computed again (64 MB in `f32`).
const KEPT_LOGITS: i64 = 16 << 20;

/// One batch of rows on its way through the output embedding.
///
/// `logits = hidden · embeddingᵀ`; see [`TokenOp::fused`], or [`TokenOp::forward`] and [`TokenOp::surrogate`].
#[derive(Debug)]
pub struct TokenOp {
    hidden: Tensor,
    embedding: Tensor,
    rows: Rows,
    needs: Needs,
    affine: Option<Affine>,
    temperature: Option<f64>,
    reference_embedding: Option<Tensor>,
    chunk_rows: Option<i64>,
    in_place: bool,
    /// With oneDNN, how many rows it is handed in place of so many.
    onednn: Option<fn(i64) -> i64>,
    all_stats: bool,
    /// The logits of the first chunks of the first pass: the second reads them instead of computing them again.
    kept: RefCell<Vec<Tensor>>,
}

impl TokenOp {
    /// Binds one batch of rows.
    ///
    /// **Shapes**: `hidden` `[N, D]`, one state per predicted token; `embedding` `[V, D]`; `targets` `[N]`.
    ///
    /// **Parameters**: `hidden` and `embedding` of one kind, `f64`, `f32` or `bf16`; `targets` `i64` in
    /// `0..V`; `needs.top_k` at most `V`; at least two tokens in the vocabulary for `needs.log1m_p`,
    /// `needs.candidate_log1m_p` and `needs.off_target`.
    ///
    /// **Errors**: [`Error::Input`](crate::Error::Input) naming the tensor that does not fit,
    /// [`Error::Empty`](crate::Error::Empty) without rows.
    pub fn new(hidden: &Tensor, embedding: &Tensor, targets: &Tensor, needs: &Needs) -> Result<Self> {
        inputs::check(hidden, embedding, targets, needs)?;
        let rows = Rows {
            hidden: hidden.f_detach()?,
            targets: targets.shallow_clone(),
            candidates: None,
            reference: None,
            top: None,
        };
        Ok(TokenOp {
            hidden: hidden.shallow_clone(),
            embedding: embedding.shallow_clone(),
            chunk_rows: None,
            rows,
            needs: *needs,
            affine: None,
            temperature: None,
            reference_embedding: None,
            in_place: false,
            onednn: None,
            all_stats: false,
            kept: RefCell::new(Vec::new()),
        })
    }

    /// Sets the rows per chunk; the default keeps a chunk near eight million logits. Results do not depend on
    /// it beyond rounding. Zero counts as one.
    #[must_use]
    pub fn with_chunk_rows(mut self, rows: usize) -> Self {
        self.chunk_rows = Some(i64::try_from(rows).unwrap_or(i64::MAX));
        self
    }

    /// Adds the embedding's gradient to the one that it has already while the chunks pass, instead of making it apart
    /// and adding it at the end, which takes memory of the size of the embedding.
    ///
    /// For a step that calls `backward` in any case: the embedding's gradient is then there after
    /// [`fused`](TokenOp::fused) or [`surrogate`](TokenOp::surrogate), also when an error stops them half way. Changes
    /// nothing where the embedding is not a parameter itself. Where it is narrower than the kind that sums are taken in, the
    /// gradient is made by one product behind the last chunk, unless scale, temperature or too many rows are in the way.
    #[must_use]
    pub fn with_gradient_in_place(mut self) -> Self {
        self.in_place = true;
        self
    }

    /// Has oneDNN multiply f32 matrices, which is the faster one where libtorch's own products do not use all that the
    /// processor has, and says how many rows it is handed in place of so many, more or fewer as these are: it keeps a compiled
    /// program for each number that it meets. Rows of zeros are added, and chunks made a little smaller where there are
    /// several. bf16 matrices are filled up alike: libtorch hands them to oneDNN itself. Changes rounding alone, and nothing
    /// in f64 or on other devices.
    #[must_use]
    pub fn with_onednn(mut self, rows: Option<fn(i64) -> i64>) -> Self {
        let (kind, device) = (self.hidden.kind(), self.hidden.device());
        let known = matches!(kind, Kind::Float | Kind::BFloat16) && device == Device::Cpu;
        self.onednn = rows.filter(|_| known);
        self
    }

    /// Keeps the stats of all rows in [`Fused::stats`], not only log-probability and correctness: memory for every column
    /// that was asked for, of every row.
    #[must_use]
    pub fn with_all_stats(mut self) -> Self {
        self.all_stats = true;
        self
    }

    /// The first pass: what the losses need, per token, without a graph.
    ///
    /// With `u` the logits, `y` the target and `p` the softmax: `logp = u_y − logsumexp(u)`, and on demand
    /// `u_y`, `logsumexp(u)`, the largest logits, `log(1 − p_y)`, the entropy `−Σ p log p`, `log Σ p²`, a divergence
    /// from a reference, logits and `log(1 − p)` of given candidates, and the mean of `(σ(u_v) − 1/2)²` over `v ≠ y`.
    /// `log(1 − p)` is `log1p(−p)` where `p ≤ 1/2` and `logsumexp` of the other logits `− logsumexp(u)` where it is
    /// larger, so it is exact and finite even where `p` rounds to 1. Sums are taken in `f32` (`f64` for `f64`
    /// inputs), whatever the kind of the inputs.
    ///
    /// **Errors**: [`Error::Input`](crate::Error::Input) when the needs ask for candidates or a reference that were
    /// not given; otherwise only libtorch's, for instance out of memory.
    pub fn forward(&self) -> Result<TokenStats> {
        self.check_given()?;
        let stats = tch::no_grad(|| match self.needs.target_alone() {
            true => self.target_logits(),
            false => self.first_pass(),
        })?;
        stats.collect_gradients()?;
        Ok(stats)
    }

    fn first_pass(&self) -> Result<TokenStats> {
        let (mut chunks, mut kept) = (Vec::new(), Vec::new());
        let mut budget = if self.trains() { KEPT_LOGITS } else { 0 };
        for (start, n) in self.ranges(self.rows.len(), self.chunk_rows(false)) {
            let rows = self.rows.pick(&Pick::Range(start, n))?;
            let logits = self.logits(&rows)?;
            chunks.push(self.reduce(&rows, &logits, false)?.0);
            budget -= n * self.n_tokens();
            if budget >= 0 {
                kept.push(logits);
            }
        }
        *self.kept.borrow_mut() = kept;
        TokenStats::join(&chunks)
    }

    /// The stats where the target's logit is all that is wanted: a product per row instead of one with every token.
    fn target_logits(&self) -> Result<TokenStats> {
        let wide = |t: &Tensor| t.f_to_kind(self.wide());
        let (n, step) = (self.rows.len(), self.portion());
        let mut found = Vec::new();
        for start in (0..n).step_by(step as usize) {
            let rows = self.rows.pick(&Pick::Range(start, step.min(n - start)))?;
            let embedding = wide(&self.embedding.f_index_select(0, &rows.targets)?)?;
            let products = wide(&rows.hidden)?.f_mul(&embedding)?;
            found.push(self.mapped(products.f_sum_dim_intlist([1i64].as_slice(), false, None)?)?);
        }
        let found = Tensor::f_cat(&found, 0)?;
        let (unknown, wrong) = (found.f_full_like(f64::NAN)?, found.f_isnan()?.f_zeros_like()?);
        Ok(TokenStats {
            target_logit: Some(found),
            ..TokenStats::new(self.rows.targets.shallow_clone(), unknown, wrong)
        })
    }

    /// How many states at once are as many numbers as the logits of a chunk.
    fn portion(&self) -> i64 {
        (CHUNK_LOGITS / self.hidden.size()[1]).max(1)
    }

    /// How many rows a chunk has, and whether their logits become its softmax.
    fn chunk_rows(&self, spent: bool) -> i64 {
        let logits = if spent { CHUNK_LOGITS / 2 * 3 } else { CHUNK_LOGITS };
        let rows = self.chunk_rows.unwrap_or(logits / self.n_tokens());
        let rows = rows.clamp(1, self.rows.len());
        match self.onednn {
            Some(more) if rows < self.rows.len() => (1..=rows).rev().find(|&rows| more(rows) == rows).unwrap_or(rows),
            _ => rows,
        }
    }

    /// `n` rows in chunks of `step`: where each starts and how many rows it has.
    fn ranges(&self, n: i64, step: i64) -> impl Iterator<Item = (i64, i64)> {
        (0..n)
            .step_by(step as usize)
            .map(move |start| (start, step.min(n - start)))
    }

    /// Whether anything is being trained.
    fn trains(&self) -> bool {
        let mut affine = self.affine.iter().flat_map(|a| [&a.scale, &a.bias]);
        self.hidden.requires_grad() || self.embedding.requires_grad() || affine.any(Tensor::requires_grad)
    }

    fn n_tokens(&self) -> i64 {
        self.embedding.size()[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What costs memory and changes no number: only here it can be seen.
    #[test]
    fn chunks_and_what_is_kept_of_them_have_a_size() {
        let zeros = |rows: i64| Tensor::zeros([rows, 1], (Kind::Float, Device::Cpu));
        let op = |v: i64, trained: bool| {
            let targets = Tensor::zeros([20], (Kind::Int64, Device::Cpu));
            let hidden = zeros(20).set_requires_grad(trained);
            TokenOp::new(&hidden, &zeros(v), &targets, &Needs::default()).unwrap()
        };
        for (spent, rows) in [(false, [8, 20, 1]), (true, [12, 20, 1])] {
            assert_eq!([1 << 20, 1 << 10, 9 << 20].map(|v| op(v, true).chunk_rows(spent)), rows);
            let set = |rows| op(1 << 20, true).with_chunk_rows(rows).chunk_rows(spent);
            assert_eq!([0, 1, 9, usize::MAX].map(set), [1, 1, 9, 20]);
        }

        // Chunks of 8, 8 and 4 million logits: two are as many as may be kept.
        for (trained, kept) in [(true, 2), (false, 0)] {
            let op = op(1 << 20, trained);
            let stats = op.forward().unwrap();
            assert_eq!(op.kept.borrow().len(), kept);
            if trained {
                stats.logp.sum(Kind::Float).backward();
                op.surrogate(&stats).unwrap().backward();
                assert!(op.kept.borrow().is_empty());
            }
        }
        // Where the target's logit is all that is wanted there are none to keep, and in the one pass no stats to join.
        let needs = Needs {
            target_logit: true,
            without_logp: true,
            ..Needs::default()
        };
        for (needs, kept) in [
            (needs, 0),
            (
                Needs {
                    without_logp: false,
                    ..needs
                },
                1,
            ),
            (Needs { entropy: true, ..needs }, 1),
        ] {
            let targets = Tensor::zeros([20], (Kind::Int64, Device::Cpu));
            let op = TokenOp::new(&zeros(20).set_requires_grad(true), &zeros(9), &targets, &needs).unwrap();
            op.forward().unwrap();
            assert_eq!(op.kept.borrow().len(), kept, "{needs:?}");
        }
        assert_eq!((op(4, true).portion(), CHUNK_LOGITS), (8 << 20, 8 << 20));
        // Kept logits are those of the old temperature.
        let op = op(1 << 20, true);
        op.forward().unwrap();
        assert!(op.with_temperature(2.0).unwrap().kept.borrow().is_empty());
    }
}
