//! One block: norm, attention, norm, feed-forward, each pair added to the residual stream.

use tch::Tensor;

use crate::Result;
use crate::attention::Attention;
use crate::mlp::Mlp;
use crate::norm::Norm;
use crate::positions::Place;

/// The parts of one block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) before_attention: Norm,
    pub(crate) attention: Attention,
    pub(crate) before_mlp: Norm,
    pub(crate) mlp: Mlp,
}

impl Block {
    /// x [B, T, D] → [B, T, D]; `attend` gets turned queries and keys and the values,
    /// each [B, T, heads, d], and returns [B, T, H·d].
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        place: &Place,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let inner = self.before_attention.forward(x)?;
        let x = x.f_add(&self.attention.forward(&inner, place, attend)?)?;
        let inner = self.before_mlp.forward(&x)?;
        Ok(x.f_add(&self.mlp.forward(&inner)?)?)
    }
}
