//! Phi-3 mini: Llama's form with one projection for queries, keys and values and one for gate and up, every
//! block with the same window, and heads of which a part may turn.

use serde_json::{Map, Value, json};

use super::llama::{self, Defaults};
use super::{Architecture, Form, Spec};
use crate::attention::Projections;
use crate::block::Block;
use crate::fields::Fields;
use crate::hf::ModelClass;
use crate::linear::{Layout, Linear};
use crate::mlp::Inner;
use crate::positions::Positions;
use crate::{Config, Params, Result, RopeScaling, frequencies};

/// Fields that only Phi-3 has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phi3 {
    /// Which part of a head turns, the first coordinates; above 0 and at most 1.
    pub partial_rotary_factor: f64,
    /// How many positions a position sees, itself included; none for all before it.
    pub sliding_window: Option<usize>,
}

impl Default for Phi3 {
    fn default() -> Self {
        Self {
            partial_rotary_factor: 1.0,
            sliding_window: None,
        }
    }
}

impl Phi3 {
    /// How many coordinates of a head turn.
    fn rotary_dim(&self, config: &Config) -> usize {
        (config.head_dim as f64 * self.partial_rotary_factor) as usize
    }
}

impl Form for Phi3 {
    fn model_type(&self) -> &'static str {
        "phi3"
    }

    fn class_name(&self, class: ModelClass) -> &'static str {
        match class {
            ModelClass::CausalLm => "Phi3ForCausalLM",
            ModelClass::SequenceClassification => "Phi3ForSequenceClassification",
        }
    }

    fn read(&self, fields: &mut Fields) -> Result<Config, String> {
        fields.only("attention_bias", &json!(false))?;
        fields.only("mlp_bias", &json!(false))?;
        let mut form = Self {
            partial_rotary_factor: fields.number("partial_rotary_factor", 1.0)?,
            sliding_window: fields.window(None)?,
        };
        // Newer files keep it with the other numbers of the rotation.
        if let Some(inner) = fields.number_within("rope_parameters", "partial_rotary_factor")? {
            form.partial_rotary_factor = inner;
        }
        fields.layer_types(form.sliding_window.is_some())?;
        let defaults = Defaults {
            num_key_value_heads: None,
            max_position_embeddings: 4096,
            norm_eps: 1e-5,
        };
        let config = llama::read(fields, Architecture::Phi3(form), &defaults)?;
        // transformers reads `yarn` as `longrope` here, and nothing but `longrope`.
        if config.rope_scaling != RopeScaling::Default {
            return Err("`rope_scaling`: not supported for phi3".to_owned());
        }
        Ok(config)
    }

    fn write(&self, config: &Config) -> Map<String, Value> {
        let own = [
            ("partial_rotary_factor", json!(self.partial_rotary_factor)),
            ("sliding_window", json!(self.sliding_window)),
        ];
        llama::write(config, own)
    }

    fn problem(&self, config: &Config) -> Option<String> {
        let factor = self.partial_rotary_factor;
        if !(factor > 0.0 && factor <= 1.0) {
            return Some(format!(
                "`partial_rotary_factor`: expected above 0 and at most 1, got {factor}"
            ));
        }
        super::window_problem(self.sliding_window).or_else(|| frequencies::problem(config, self.rotary_dim(config)))
    }

    fn tensors(&self, config: &Config) -> Vec<Spec> {
        let (d, ff) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let mut list = vec![Spec::matrix(llama::EMBEDDING, config.vocab_size, d)];
        for i in 0..config.num_hidden_layers {
            let of = |name: &str| format!("{}{name}.weight", llama::block_prefix(i));
            list.push(Spec::ones(of("input_layernorm"), d));
            list.push(Spec::matrix(of("self_attn.qkv_proj"), q + 2 * kv, d));
            list.push(Spec::into_residual(of("self_attn.o_proj"), d, q));
            list.push(Spec::ones(of("post_attention_layernorm"), d));
            list.push(Spec::matrix(of("mlp.gate_up_proj"), 2 * ff, d));
            list.push(Spec::into_residual(of("mlp.down_proj"), d, ff));
        }
        list.push(llama::last_norm(config));
        list
    }

    fn window(&self, _: &Config, _: usize) -> Option<usize> {
        self.sliding_window
    }

    fn positions(&self, config: &Config, params: &Params) -> Result<Positions> {
        llama::positions(config, params, self.rotary_dim(config))
    }

    fn block(&self, config: &Config, params: &Params, index: usize) -> Result<Block> {
        let prefix = llama::block_prefix(index);
        let linear = |name: &str| Linear::new(params, &format!("{prefix}{name}"), Layout::OutIn);
        let projections = Projections::Fused(linear("self_attn.qkv_proj")?);
        let inner = Inner::FusedGate(linear("mlp.gate_up_proj")?);
        llama::block(config, params, index, projections, inner)
    }
}
