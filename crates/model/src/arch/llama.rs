//! The Llama form: RMS norms, rotary positions, grouped-query attention, gated feed-forward blocks.

use serde_json::{Map, Value, json};

use super::{Architecture, Form, Spec};
use crate::attention::{Attention, Projections};
use crate::block::Block;
use crate::fields::Fields;
use crate::hf::ModelClass;
use crate::linear::{Layout, Linear};
use crate::mlp::Mlp;
use crate::norm::Norm;
use crate::positions::Positions;
use crate::rope::{self, Rope};
use crate::{Config, Params, Result};

/// Fields that only Llama has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Llama {
    /// Whether the four projections of attention have biases.
    pub attention_bias: bool,
    /// Whether the three projections of the feed-forward block have biases.
    pub mlp_bias: bool,
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm";

impl Form for Llama {
    fn model_type(&self) -> &'static str {
        "llama"
    }

    fn class_name(&self, class: ModelClass) -> &'static str {
        match class {
            ModelClass::CausalLm => "LlamaForCausalLM",
            ModelClass::SequenceClassification => "LlamaForSequenceClassification",
        }
    }

    fn read(&self, fields: &mut Fields) -> Result<Config, String> {
        fields.only("hidden_act", &json!("silu"))?;
        fields.only("partial_rotary_factor", &json!(1.0))?;
        fields.only("sliding_window", &Value::Null)?;
        let form = Self {
            attention_bias: fields.flag("attention_bias", false)?,
            mlp_bias: fields.flag("mlp_bias", false)?,
        };
        let hidden_size = fields.size("hidden_size", None)?;
        let num_attention_heads = fields.size("num_attention_heads", None)?;
        Ok(Config {
            architecture: Architecture::Llama(form),
            vocab_size: fields.size("vocab_size", None)?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", None)?,
            num_hidden_layers: fields.size("num_hidden_layers", None)?,
            num_attention_heads,
            num_key_value_heads: fields.size("num_key_value_heads", Some(num_attention_heads))?,
            head_dim: fields.head_dim(hidden_size, num_attention_heads)?,
            max_position_embeddings: fields.size("max_position_embeddings", Some(2048))?,
            rope_theta: rope::read_theta(fields)?,
            norm_eps: fields.number("rms_norm_eps", 1e-6)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
            initializer_range: fields.number("initializer_range", 0.02)?,
            bos_token_id: fields.token("bos_token_id")?,
            eos_token_ids: fields.tokens("eos_token_id")?,
            pad_token_id: fields.token("pad_token_id")?,
            other: Map::new(),
        })
    }

    fn write(&self, config: &Config) -> Map<String, Value> {
        let fields = json!({
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "max_position_embeddings": config.max_position_embeddings,
            "rope_theta": config.rope_theta,
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tie_word_embeddings,
            "initializer_range": config.initializer_range,
            "hidden_act": "silu",
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
        });
        match fields {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    fn problem(&self, config: &Config) -> Option<String> {
        rope::problem(config)
    }

    fn tensors(&self, config: &Config) -> Vec<Spec> {
        let (d, ff) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let mut list = vec![Spec::matrix(EMBEDDING, config.vocab_size, d)];
        for i in 0..config.num_hidden_layers {
            let of = |name: &str| format!("model.layers.{i}.{name}");
            let bias = |list: &mut Vec<Spec>, wanted: bool, name: &str, n: usize| {
                if wanted {
                    list.push(Spec::zeros(of(name), n));
                }
            };
            list.push(Spec::ones(of("input_layernorm.weight"), d));
            list.push(Spec::matrix(of("self_attn.q_proj.weight"), q, d));
            bias(&mut list, self.attention_bias, "self_attn.q_proj.bias", q);
            list.push(Spec::matrix(of("self_attn.k_proj.weight"), kv, d));
            bias(&mut list, self.attention_bias, "self_attn.k_proj.bias", kv);
            list.push(Spec::matrix(of("self_attn.v_proj.weight"), kv, d));
            bias(&mut list, self.attention_bias, "self_attn.v_proj.bias", kv);
            list.push(Spec::into_residual(of("self_attn.o_proj.weight"), d, q));
            bias(&mut list, self.attention_bias, "self_attn.o_proj.bias", d);
            list.push(Spec::ones(of("post_attention_layernorm.weight"), d));
            list.push(Spec::matrix(of("mlp.gate_proj.weight"), ff, d));
            bias(&mut list, self.mlp_bias, "mlp.gate_proj.bias", ff);
            list.push(Spec::matrix(of("mlp.up_proj.weight"), ff, d));
            bias(&mut list, self.mlp_bias, "mlp.up_proj.bias", ff);
            list.push(Spec::into_residual(of("mlp.down_proj.weight"), d, ff));
            bias(&mut list, self.mlp_bias, "mlp.down_proj.bias", d);
        }
        list.push(Spec::ones(format!("{NORM}.weight"), d));
        list
    }

    fn embedding(&self) -> &'static str {
        EMBEDDING
    }

    fn positions(&self, config: &Config, params: &Params) -> Result<Positions> {
        let embedding = params.shared(EMBEDDING)?;
        Ok(Positions::Rotary(Rope::new(
            config,
            embedding.f_kind()?,
            embedding.device(),
        )))
    }

    fn block(&self, config: &Config, params: &Params, index: usize) -> Result<Block> {
        let linear = |name: &str| Linear::new(params, &format!("model.layers.{index}.{name}"), Layout::OutIn);
        let norm = |name: &str| Norm::rms(params, &format!("model.layers.{index}.{name}"), config.norm_eps);
        Ok(Block {
            before_attention: norm("input_layernorm")?,
            attention: Attention {
                projections: Projections::Separate {
                    q: linear("self_attn.q_proj")?,
                    k: linear("self_attn.k_proj")?,
                    v: linear("self_attn.v_proj")?,
                },
                out: linear("self_attn.o_proj")?,
                heads: config.num_attention_heads as i64,
                kv_heads: config.num_key_value_heads as i64,
                head_dim: config.head_dim as i64,
            },
            before_mlp: norm("post_attention_layernorm")?,
            mlp: Mlp::Gated {
                gate: linear("mlp.gate_proj")?,
                up: linear("mlp.up_proj")?,
                down: linear("mlp.down_proj")?,
            },
        })
    }

    fn final_norm(&self, config: &Config, params: &Params) -> Result<Norm> {
        Norm::rms(params, NORM, config.norm_eps)
    }
}
