//! The second pass: from the gradients of the stats to those of the hidden states and the embedding.
//!
//! The gradients with respect to the logits are written out instead of being asked of autograd, with `p` the
//! softmax of a row and `q` the softmax without the target:
//!
//! | stat | `d/dz_y` | `d/dz_v` of the others |
//! |---|---|---|
//! | `logp` | `1 − p_y` | `−p_v` |
//! | `log1m_p` | `−p_y` | `p_y q_v` |
//! | `target_logit` | `1` | `0` |
//! | `top_logits` | `1` at its token | `0` |
//!
//! That needs one `[n, V]` buffer where autograd keeps several, it stays exact where `p` is close to 0 or 1
//! (`p_y q_v` has no difference that could cancel), and the last two rows, which are all a contrastive
//! loss uses, touch only the tokens they name: no product over the vocabulary, no recomputed logits.

use tch::Tensor;

use super::{CHUNK_LOGITS, TokenOp, TokenStats};
use crate::{Error, Result};

/// The two stats whose gradient reaches the whole vocabulary.
#[derive(Clone, Copy, PartialEq)]
enum Dense {
    LogP,
    Log1mP,
}

/// Gradients under construction, in the kind that sums are taken in.
struct Gradients {
    hidden: Tensor,
    /// `None` where the embedding is not trained.
    embedding: Option<Tensor>,
}

impl TokenOp {
    /// The second pass: a scalar whose `backward()` pushes the gradient into the trunk and the embedding.
    ///
    /// `Σ hidden ⊙ dhidden + Σ embedding ⊙ dembedding`, with the two gradients computed here, chunk by chunk, from
    /// those that `loss.backward()` left on `stats`. Only its gradient means anything. Rows whose stats got no
    /// gradient are skipped.
    ///
    /// **Errors**: [`Error::Input`] when `stats` has another number of rows than this op, or when neither
    /// `hidden` nor `embedding` is being trained.
    pub fn surrogate(&self, stats: &TokenStats) -> Result<Tensor> {
        if stats.n_rows() != self.n_rows() {
            return Err(Error::input(
                "stats",
                format!("{} rows, as the op has", self.n_rows()),
                stats.n_rows(),
            ));
        }
        if !self.hidden.requires_grad() && !self.embedding.requires_grad() {
            return Err(Error::input(
                "hidden and embedding",
                "at least one that requires a gradient",
                "none",
            ));
        }
        let gradients = tch::no_grad(|| self.gradients(stats))?;
        let sum = |value: &Tensor, gradient: &Tensor| -> Result<Tensor> {
            Ok(value.f_mul(&gradient.f_to_kind(value.kind())?)?.f_sum(self.wide())?)
        };
        let mut total = sum(&self.hidden, &gradients.hidden)?;
        if let Some(embedding) = &gradients.embedding {
            total = total.f_add(&sum(&self.embedding, embedding)?)?;
        }
        Ok(total)
    }

    fn gradients(&self, stats: &TokenStats) -> Result<Gradients> {
        let options = (self.wide(), self.hidden.device());
        let mut into = Gradients {
            hidden: Tensor::f_zeros(self.hidden.size(), options)?,
            embedding: match self.embedding.requires_grad() {
                true => Some(Tensor::f_zeros(self.embedding.size(), options)?),
                false => None,
            },
        };
        if let Some(weights) = gradient_of(Some(&stats.logp)) {
            self.dense(&mut into, Dense::LogP, &weights, stats)?;
        }
        if let Some(weights) = gradient_of(stats.log1m_p.as_ref()) {
            self.dense(&mut into, Dense::Log1mP, &weights, stats)?;
        }
        if let Some(weights) = gradient_of(stats.target_logit.as_ref()) {
            self.sparse(&mut into, &weights.f_unsqueeze(1)?, &self.targets.f_unsqueeze(1)?)?;
        }
        if let (Some(weights), Some(ids)) = (gradient_of(stats.top_logits.as_ref()), &stats.top_ids) {
            self.sparse(&mut into, &weights, ids)?;
        }
        Ok(into)
    }

    /// Adds the gradient of `Σ weights · stat` for a stat that depends on every logit.
    fn dense(&self, into: &mut Gradients, of: Dense, weights: &Tensor, stats: &TokenStats) -> Result<()> {
        let used = weights.f_nonzero()?.f_squeeze_dim(1)?;
        let n_used = used.size()[0];
        let kind = self.hidden.kind();
        let hidden = self.hidden.detach();
        for start in (0..n_used).step_by(self.chunk_rows as usize) {
            let rows = used.f_narrow(0, start, self.chunk_rows.min(n_used - start))?;
            // Where all rows of the op are used there is nothing to copy.
            let pick = |t: &Tensor| match rows.size()[0] == self.n_rows() {
                true => Ok(t.shallow_clone()),
                false => t.f_index_select(0, &rows),
            };
            let state = pick(&hidden)?;
            let target = pick(&self.targets)?.f_unsqueeze(1)?;
            let weight = pick(weights)?.f_unsqueeze(1)?;
            let logits = match self.kept.borrow().as_ref() {
                Some(kept) => pick(kept)?,
                None => self.logits(&state)?,
            };
            let dlogits = match of {
                Dense::LogP => {
                    let mut d = logits.f_softmax(-1, None)?;
                    let _ = d.f_mul_(&weight.f_neg()?)?.f_scatter_add_(1, &target, &weight)?;
                    d
                }
                Dense::Log1mP => {
                    let p = pick(&stats.logp)?.f_exp()?.f_unsqueeze(1)?;
                    let share = weight.f_mul(&p)?;
                    let mut d = logits
                        .f_scatter_value(1, &target, f64::NEG_INFINITY)?
                        .f_softmax(-1, None)?;
                    let _ = d.f_mul_(&share)?.f_scatter_(1, &target, &share.f_neg()?)?;
                    d
                }
            };
            drop(logits);
            let dlogits = dlogits.f_to_kind(kind)?;
            let back = dlogits.f_mm(&self.embedding)?.f_to_kind(self.wide())?;
            let _ = into.hidden.f_index_add_(0, &rows, &back)?;
            if let Some(embedding) = &mut into.embedding {
                let transposed = dlogits.f_tr()?;
                // In place where the kinds agree; a narrow product is widened before it is added.
                let _ = match kind == self.wide() {
                    true => embedding.f_addmm_(&transposed, &state)?,
                    false => embedding.f_add_(&transposed.f_mm(&state)?.f_to_kind(self.wide())?)?,
                };
            }
        }
        Ok(())
    }

    /// Adds the gradient of `Σ weights · logits[row, ids]`: only the tokens named take part.
    ///
    /// Rows and tokens can repeat; libtorch's gradient of an embedding look-up adds them in one fixed order on
    /// every device, which `index_add` does not promise.
    fn sparse(&self, into: &mut Gradients, weights: &Tensor, ids: &Tensor) -> Result<()> {
        let [n, d] = [self.n_rows(), self.hidden.size()[1]];
        let used = weights.f_nonzero()?;
        let n_used = used.size()[0];
        let step = (CHUNK_LOGITS / d).max(1);
        let (hidden, embedding) = (self.hidden.detach(), self.embedding.detach());
        for start in (0..n_used).step_by(step as usize) {
            let pairs = used.f_narrow(0, start, step.min(n_used - start))?;
            let (rows, columns) = (pairs.f_select(1, 0)?, pairs.f_select(1, 1)?);
            let at = |t: &Tensor| t.f_index(&[Some(&rows), Some(&columns)]);
            let (weight, ids) = (at(weights)?.f_unsqueeze(1)?, at(ids)?);
            let scaled = |t: &Tensor, index: &Tensor| -> Result<Tensor> {
                Ok(t.f_index_select(0, index)?.f_to_kind(self.wide())?.f_mul(&weight)?)
            };
            let back = Tensor::f_embedding_dense_backward(&scaled(&embedding, &ids)?, &rows, n, -1, false)?;
            let _ = into.hidden.f_add_(&back)?;
            if let Some(total) = &mut into.embedding {
                let v = self.embedding.size()[0];
                let back = Tensor::f_embedding_dense_backward(&scaled(&hidden, &rows)?, &ids, v, -1, false)?;
                let _ = total.f_add_(&back)?;
            }
        }
        Ok(())
    }
}

/// The gradient that a loss left on a stat; `None` where the loss did not use it.
fn gradient_of(stat: Option<&Tensor>) -> Option<Tensor> {
    let gradient = stat?.grad();
    gradient.defined().then(|| gradient.detach())
}
