//! One block: norm, attention, norm, feed-forward, each pair added to the residual stream.

use tch::Tensor;

use crate::attention::Attention;
use crate::mlp::Mlp;
use crate::norm::Norm;
use crate::positions::Place;
use crate::{Products, Result};

/// The parts of one block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) before_attention: Norm,
    pub(crate) attention: Attention,
    pub(crate) before_mlp: Norm,
    pub(crate) mlp: Mlp,
}

/// How states go through a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way<'a> {
    /// Where the tokens stand.
    pub(crate) place: &'a Place,
    /// Who multiplies.
    pub(crate) products: Products,
    /// Of the flat positions B·T those `[N]` (Int64) whose states are wanted, in the last block; all where there is
    /// none. Keys and values are those of all positions in any case.
    pub(crate) rows: Option<&'a Tensor>,
}

impl<'a> Way<'a> {
    /// Through any block, by libtorch's own products.
    pub(crate) fn plain(place: &'a Place) -> Self {
        Self {
            place,
            products: Products::default(),
            rows: None,
        }
    }

    /// Of x [B, T, ..] the rows that are wanted, [N, ..].
    pub(crate) fn wanted(&self, x: &Tensor) -> Result<Tensor> {
        match self.rows {
            Some(rows) => chosen(x, rows),
            None => Ok(x.shallow_clone()),
        }
    }

    /// The gradient of x [B, T, ..] from that of what was [`Way::wanted`] of it.
    pub(crate) fn spread(&self, gradient: &Tensor, (n, width): (i64, i64)) -> Result<Tensor> {
        let wide = gradient.size().last().copied().unwrap_or(0);
        let all = match self.rows {
            None => gradient.shallow_clone(),
            // No row twice.
            Some(rows) => {
                let zeros = Tensor::f_zeros([n * width, wide], (gradient.f_kind()?, gradient.device()))?;
                zeros.f_index_copy(0, rows, gradient)?
            }
        };
        Ok(all.f_view([n, width, wide])?)
    }
}

/// States [B, T, D] at flat positions `[N]`, [N, D].
pub(crate) fn chosen(x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let width = x.size().last().copied().unwrap_or(0);
    Ok(x.f_reshape([-1, width])?.f_index_select(0, rows)?)
}

impl Block {
    /// x [B, T, D] → [B, T, D], or [N, D] of the rows that are wanted; `attend` gets turned queries and keys and the
    /// values, each [B, T, heads, d], and returns [B, T, H·d].
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        way: Way<'_>,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let inner = self.before_attention.forward(x)?;
        let attended = self.attention.forward(&inner, way, attend)?;
        let x = way.wanted(x)?.f_add(&attended)?;
        let inner = self.before_mlp.forward(&x)?;
        Ok(x.f_add(&self.mlp.forward(&inner, way.products)?)?)
    }
}
