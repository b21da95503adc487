//! The three products of the op: logits, and the gradients of states and embedding.

use tch::Tensor;

use super::TokenOp;
use super::backward::Gradients;
use super::rows::{Pick, Rows};
use crate::Result;

impl TokenOp {
    /// `hidden · embeddingᵀ` of some rows, `[n, V]`.
    pub(super) fn product(&self, rows: &Rows) -> Result<Tensor> {
        let embedding = self.embedding.detach();
        let Some(more) = self.onednn else {
            return Ok(rows.hidden.f_matmul(&embedding.f_tr()?)?);
        };
        let product = match self.packs() {
            true => packed(&rows.hidden, more)?
                .f_mkldnn_linear(&embedding, None::<&Tensor>)?
                .f_to_dense(None, false)?,
            false => filled(&rows.hidden, more)?.f_mm(&embedding.f_tr()?)?,
        };
        Ok(product.f_narrow(0, 0, rows.len())?)
    }

    /// Whether oneDNN multiplies tensors of its own. Narrow ones libtorch hands to it itself.
    fn packs(&self) -> bool {
        self.onednn.is_some() && self.hidden.kind() == self.wide()
    }

    /// Adds the gradients that come with `dlogits` `[n, V]`, those of the products of the rows `at`.
    pub(super) fn add_products(&self, into: &mut Gradients, at: &Pick, rows: &Rows, dlogits: &Tensor) -> Result<()> {
        let kind = self.hidden.kind();
        if let Some(more) = self.onednn.filter(|_| self.packs()) {
            return self.add_by_onednn(into, at, rows, (&packed(dlogits, more)?, more));
        }
        let at_once = self.adds_at_once();
        let fill = |matrix: &Tensor| match self.onednn {
            Some(more) => filled(matrix, more),
            None => Ok(matrix.shallow_clone()),
        };
        let dlogits = match at_once {
            true => into.narrow.keep(dlogits, &rows.hidden, self.rows.len(), self.onednn)?,
            false => fill(&dlogits.f_to_kind(kind)?)?,
        };
        if let Some(hidden) = &mut into.hidden {
            let gradient = dlogits.f_mm(&self.embedding)?.f_narrow(0, 0, rows.len())?;
            at.add_to(hidden, &gradient.f_to_kind(self.wide())?)?;
        }
        if let Some(embedding) = into.embedding.as_mut().filter(|_| !at_once) {
            let transposed = dlogits.f_tr()?;
            // In place where the kinds agree; a narrow product is widened before it is added.
            let _ = match kind == self.wide() {
                true => embedding.f_addmm_(&transposed, &self.slope(rows.hidden.shallow_clone())?)?,
                false => {
                    let product = transposed.f_mm(&fill(&rows.hidden)?)?.f_to_kind(self.wide())?;
                    embedding.f_add_(&self.slope(product)?)?
                }
            };
        }
        Ok(())
    }

    fn add_by_onednn(
        &self,
        into: &mut Gradients,
        at: &Pick,
        rows: &Rows,
        (dlogits, more): (&Tensor, fn(i64) -> i64),
    ) -> Result<()> {
        let known = self.embedding.detach();
        if let Some(hidden) = &mut into.hidden {
            let size = [dlogits.size()[0], known.size()[1]];
            let gradient = Tensor::f_mkldnn_linear_backward_input(size, dlogits, &known)?.f_to_dense(None, false)?;
            at.add_to(hidden, &gradient.f_narrow(0, 0, rows.len())?)?;
        }
        if let Some(embedding) = &mut into.embedding {
            let states = packed(&self.slope(rows.hidden.shallow_clone())?, more)?;
            let (gradient, _) = states.f_mkldnn_linear_backward_weights(dlogits, &known, false)?;
            let _ = embedding.f_add_(&gradient)?;
        }
        Ok(())
    }
}

/// A matrix with rows of zeros below.
pub(super) fn filled(matrix: &Tensor, more: fn(i64) -> i64) -> Result<Tensor> {
    let rows = matrix.size2()?.0;
    match more(rows) - rows {
        missing if missing > 0 => Ok(matrix.f_constant_pad_nd([0, 0, 0, missing])?),
        _ => Ok(matrix.shallow_clone()),
    }
}

/// The same as oneDNN reads it.
fn packed(matrix: &Tensor, more: fn(i64) -> i64) -> Result<Tensor> {
    Ok(filled(matrix, more)?.f_to_mkldnn(None)?)
}
