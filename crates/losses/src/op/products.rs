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
        let product = packed(&rows.hidden, more)?.f_mkldnn_linear(&embedding, None::<&Tensor>)?;
        Ok(product.f_to_dense(None, false)?.f_narrow(0, 0, rows.len())?)
    }

    /// Adds the gradients that come with `dlogits` `[n, V]`, those of the products of the rows `at`.
    pub(super) fn add_products(&self, into: &mut Gradients, at: &Pick, rows: &Rows, dlogits: &Tensor) -> Result<()> {
        let kind = self.hidden.kind();
        let at_once = self.adds_at_once();
        let dlogits = match at_once {
            true => into.narrow.keep(dlogits, &rows.hidden, self.rows.len())?,
            false => dlogits.f_to_kind(kind)?,
        };
        if let Some(more) = self.onednn {
            return self.add_by_onednn(into, at, rows, (&packed(&dlogits, more)?, more));
        }
        if let Some(hidden) = &mut into.hidden {
            at.add_to(hidden, &dlogits.f_mm(&self.embedding)?.f_to_kind(self.wide())?)?;
        }
        if let Some(embedding) = into.embedding.as_mut().filter(|_| !at_once) {
            let transposed = dlogits.f_tr()?;
            // In place where the kinds agree; a narrow product is widened before it is added.
            let _ = match kind == self.wide() {
                true => embedding.f_addmm_(&transposed, &self.slope(rows.hidden.shallow_clone())?)?,
                false => {
                    let product = transposed.f_mm(&rows.hidden)?.f_to_kind(self.wide())?;
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

/// A matrix as oneDNN reads it, with rows of zeros below.
fn packed(matrix: &Tensor, more: fn(i64) -> i64) -> Result<Tensor> {
    let rows = matrix.size2()?.0;
    let filled = match more(rows) - rows {
        missing if missing > 0 => matrix.f_constant_pad_nd([0, 0, 0, missing])?,
        _ => matrix.shallow_clone(),
    };
    Ok(filled.f_to_mkldnn(None)?)
}
