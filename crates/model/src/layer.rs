//! One block: norm, attention, norm, SwiGLU.

use tch::Tensor;

use crate::rope::Rotation;
use crate::{Config, Params, Result};

/// Handles on one block's weights.
#[derive(Debug)]
pub(crate) struct Layer {
    input_norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    post_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    eps: f64,
}

/// x · w / rms(x), the mean over the last axis.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let width = x.size().last().copied().unwrap_or(0);
    Ok(x.f_rms_norm([width], Some(weight), eps)?)
}

/// x · wᵀ.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(x.f_linear(weight, None::<&Tensor>)?)
}

impl Layer {
    pub(crate) fn new(config: &Config, params: &Params, index: usize) -> Result<Self> {
        let get = |name: &str| params.shared(&format!("model.layers.{index}.{name}.weight"));
        Ok(Self {
            input_norm: get("input_layernorm")?,
            q: get("self_attn.q_proj")?,
            k: get("self_attn.k_proj")?,
            v: get("self_attn.v_proj")?,
            o: get("self_attn.o_proj")?,
            post_norm: get("post_attention_layernorm")?,
            gate: get("mlp.gate_proj")?,
            up: get("mlp.up_proj")?,
            down: get("mlp.down_proj")?,
            heads: config.num_attention_heads as i64,
            kv_heads: config.num_key_value_heads as i64,
            head_dim: config.head_dim as i64,
            eps: config.rms_norm_eps,
        })
    }

    /// x [B, T, D] → [B, T, D]; `attend` gets turned queries and keys and the values,
    /// each [B, T, heads, d], and returns [B, T, H·d].
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (rows, width, _) = x.size3()?;
        let inner = rms_norm(x, &self.input_norm, self.eps)?;
        let heads =
            |w: &Tensor, n: i64| -> Result<Tensor> { Ok(linear(&inner, w)?.f_view([rows, width, n, self.head_dim])?) };
        let q = rotation.apply(&heads(&self.q, self.heads)?)?;
        let k = rotation.apply(&heads(&self.k, self.kv_heads)?)?;
        let v = heads(&self.v, self.kv_heads)?;
        let x = x.f_add(&linear(&attend(&q, &k, &v)?, &self.o)?)?;
        let inner = rms_norm(&x, &self.post_norm, self.eps)?;
        let gated = linear(&inner, &self.gate)?
            .f_silu()?
            .f_mul(&linear(&inner, &self.up)?)?;
        Ok(x.f_add(&linear(&gated, &self.down)?)?)
    }
}
