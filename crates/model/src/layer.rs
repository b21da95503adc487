//! One block: norm, attention, norm, SwiGLU.

use tch::Tensor;

use crate::linear::Linear;
use crate::rope::Rotation;
use crate::{Config, Params, Result};

/// Handles on one block's weights.
#[derive(Debug)]
pub(crate) struct Layer {
    input_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    post_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
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

impl Layer {
    pub(crate) fn new(config: &Config, params: &Params, index: usize) -> Result<Self> {
        let get = |name: &str| params.shared(&format!("model.layers.{index}.{name}.weight"));
        let linear = |name: &str| Linear::new(params, &format!("model.layers.{index}.{name}"));
        Ok(Self {
            input_norm: get("input_layernorm")?,
            q: linear("self_attn.q_proj")?,
            k: linear("self_attn.k_proj")?,
            v: linear("self_attn.v_proj")?,
            o: linear("self_attn.o_proj")?,
            post_norm: get("post_attention_layernorm")?,
            gate: linear("mlp.gate_proj")?,
            up: linear("mlp.up_proj")?,
            down: linear("mlp.down_proj")?,
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
            |w: &Linear, n: i64| -> Result<Tensor> { Ok(w.forward(&inner)?.f_view([rows, width, n, self.head_dim])?) };
        let q = rotation.apply(&heads(&self.q, self.heads)?)?;
        let k = rotation.apply(&heads(&self.k, self.kv_heads)?)?;
        let v = heads(&self.v, self.kv_heads)?;
        let x = x.f_add(&self.o.forward(&attend(&q, &k, &v)?)?)?;
        let inner = rms_norm(&x, &self.post_norm, self.eps)?;
        let gated = self.gate.forward(&inner)?.f_silu()?.f_mul(&self.up.forward(&inner)?)?;
        Ok(x.f_add(&self.down.forward(&gated)?)?)
    }
}
