//! Attention: its projections, and grouped-query attention over keys and values of the whole batch or of a cache.

use tch::{Kind, Tensor};

use crate::Result;
use crate::linear::Linear;
use crate::positions::Place;

/// The attention of one block: projections of the state to queries, keys and values, and of what was
/// attended to back to the state.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) projections: Projections,
    pub(crate) out: Linear,
    /// Query heads (H).
    pub(crate) heads: i64,
    /// Key/value heads (G).
    pub(crate) kv_heads: i64,
    /// Width of a head (d).
    pub(crate) head_dim: i64,
}

/// Maps of the state to queries [.., H·d], keys and values [.., G·d].
#[derive(Debug)]
pub(crate) enum Projections {
    /// One each.
    Separate {
        /// D → H·d.
        q: Linear,
        /// D → G·d.
        k: Linear,
        /// D → G·d.
        v: Linear,
    },
}

impl Attention {
    /// x [B, T, D] → [B, T, D]; `attend` gets turned queries and keys and the values, each
    /// [B, T, heads, d], and returns [B, T, H·d].
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        place: &Place,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (rows, width, _) = x.size3()?;
        let (q, k, v) = match &self.projections {
            Projections::Separate { q, k, v } => (q.forward(x)?, k.forward(x)?, v.forward(x)?),
        };
        let heads = |x: &Tensor, n: i64| x.f_view([rows, width, n, self.head_dim]);
        let q = place.turn(heads(&q, self.heads)?)?;
        let k = place.turn(heads(&k, self.kv_heads)?)?;
        let v = heads(&v, self.kv_heads)?;
        self.out.forward(&attend(&q, &k, &v)?)
    }
}

/// Which earlier positions a position sees.
#[derive(Debug)]
pub(crate) enum Sight {
    /// All up to itself.
    Causal,
    /// Those where an additive mask [B, 1, T, T] is 0 rather than minus infinity.
    Masked(Tensor),
}

/// q [B, T, H, d], k and v [B, T, G, d] with G dividing H → [B, T, H·d].
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, sight: &Sight) -> Result<Tensor> {
    let size = q.size();
    let grouped = size[2] != k.size()[2];
    let (q, k, v) = (q.f_transpose(1, 2)?, k.f_transpose(1, 2)?, v.f_transpose(1, 2)?);
    let (mask, causal) = match sight {
        Sight::Causal => (None, true),
        Sight::Masked(mask) => (Some(mask), false),
    };
    let out = Tensor::f_scaled_dot_product_attention(&q, &k, &v, mask, 0.0, causal, None, grouped)?;
    Ok(out
        .f_transpose(1, 2)?
        .f_reshape([size[0], size[1], size[2] * size[3]])?)
}

/// One new position against cached keys: q [B, 1, H, d], k and v [B, G, S, d], additive mask
/// [B, 1, 1, S] → [B, 1, H·d]. The queries of a group stand in for positions, so keys are not copied.
pub(crate) fn attend_cached(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let (rows, heads, dim) = (q.size()[0], q.size()[2], q.size()[3]);
    let groups = k.size()[1];
    let q = q.f_reshape([rows, groups, heads / groups, dim])?;
    let out = Tensor::f_scaled_dot_product_attention(&q, k, v, mask, 0.0, false, None, false)?;
    Ok(out.f_reshape([rows, 1, heads * dim])?)
}

/// The additive mask of a left-padded batch from real [B, T] (true where a token is real): causal, and
/// padding is seen by nothing but itself, which keeps its softmax finite.
pub(crate) fn left_padding_mask(real: &Tensor, kind: Kind) -> Result<Tensor> {
    let (rows, width) = real.size2()?;
    let ones = Tensor::f_ones([width, width], (Kind::Bool, real.device()))?;
    let itself = Tensor::f_eye(width, (Kind::Bool, real.device()))?;
    let seen = ones
        .f_tril(0)?
        .f_logical_and(&real.f_view([rows, 1, 1, width])?)?
        .f_logical_or(&itself)?;
    additive(&seen, kind)
}

/// 0 where true, minus infinity where false.
pub(crate) fn additive(seen: &Tensor, kind: Kind) -> Result<Tensor> {
    let zeros = Tensor::f_zeros(seen.size(), (kind, seen.device()))?;
    Ok(zeros.f_masked_fill(&seen.f_logical_not()?, f64::NEG_INFINITY)?)
}
