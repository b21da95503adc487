//! The Llama form: RMS norms, rotary positions, grouped-query attention, gated feed-forward blocks. What its
//! descendants share with it is here too.

use serde_json::{Map, Value, json};

use super::{Architecture, Form, Spec};
use crate::attention::{Attention, Projections};
use crate::block::Block;
use crate::fields::Fields;
use crate::hf::ModelClass;
use crate::linear::{Layout, Linear};
use crate::mlp::{Inner, Mlp};
use crate::norm::Norm;
use crate::positions::Positions;
use crate::rope::Rope;
use crate::{Activation, Config, Params, Result, frequencies};

/// Fields that only Llama has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Llama {
    /// Whether the four projections of attention have biases.
    pub attention_bias: bool,
    /// Whether the three projections of the feed-forward block have biases.
    pub mlp_bias: bool,
}

/// What every name of the trunk begins with.
pub(super) const PREFIX: &str = "model.";
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm";

/// What absent fields mean, where descendants differ.
pub(super) struct Defaults {
    /// None for as many as there are query heads.
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) max_position_embeddings: usize,
    pub(super) norm_eps: f64,
}

/// Which projections have biases.
#[derive(Clone, Copy)]
pub(super) struct Biases {
    /// Queries, keys and values.
    pub(super) qkv: bool,
    /// What attention gives back.
    pub(super) out: bool,
    /// The feed-forward block.
    pub(super) mlp: bool,
}

/// The fields that Llama and its descendants share.
pub(super) fn read(fields: &mut Fields, architecture: Architecture, defaults: &Defaults) -> Result<Config, String> {
    let hidden_size = fields.size("hidden_size", None)?;
    let num_attention_heads = fields.size("num_attention_heads", None)?;
    // Null has a meaning of its own where the default is a number.
    let kv_heads = if fields.is_null("num_key_value_heads") {
        None
    } else {
        defaults.num_key_value_heads
    };
    let activation = fields.text("hidden_act")?.unwrap_or_else(|| "silu".to_owned());
    let (rope_theta, rope_scaling) = frequencies::read(fields)?;
    Ok(Config {
        architecture,
        vocab_size: fields.size("vocab_size", None)?,
        hidden_size,
        intermediate_size: fields.size("intermediate_size", None)?,
        num_hidden_layers: fields.size("num_hidden_layers", None)?,
        num_attention_heads,
        num_key_value_heads: fields.size("num_key_value_heads", Some(kv_heads.unwrap_or(num_attention_heads)))?,
        head_dim: fields.head_dim(hidden_size, num_attention_heads)?,
        max_position_embeddings: fields.size("max_position_embeddings", Some(defaults.max_position_embeddings))?,
        rope_theta,
        rope_scaling,
        activation: Activation::named(&activation).map_err(|what| format!("`hidden_act`: {what}"))?,
        norm_eps: fields.number("rms_norm_eps", defaults.norm_eps)?,
        tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
        initializer_range: fields.number("initializer_range", 0.02)?,
        bos_token_id: fields.token("bos_token_id")?,
        eos_token_ids: fields.tokens("eos_token_id")?,
        pad_token_id: fields.token("pad_token_id")?,
        other: Map::new(),
    })
}

/// The same fields as they are written, with those of one architecture.
pub(super) fn write<const N: usize>(config: &Config, own: [(&str, Value); N]) -> Map<String, Value> {
    let mut map = Map::new();
    let shared = [
        ("vocab_size", json!(config.vocab_size)),
        ("hidden_size", json!(config.hidden_size)),
        ("intermediate_size", json!(config.intermediate_size)),
        ("num_hidden_layers", json!(config.num_hidden_layers)),
        ("num_attention_heads", json!(config.num_attention_heads)),
        ("num_key_value_heads", json!(config.num_key_value_heads)),
        ("head_dim", json!(config.head_dim)),
        ("max_position_embeddings", json!(config.max_position_embeddings)),
        ("rope_theta", json!(config.rope_theta)),
        ("rope_scaling", config.rope_scaling.write()),
        ("rms_norm_eps", json!(config.norm_eps)),
        ("tie_word_embeddings", json!(config.tie_word_embeddings)),
        ("initializer_range", json!(config.initializer_range)),
        ("hidden_act", json!(config.activation.name())),
    ];
    for (name, value) in shared.into_iter().chain(own) {
        map.insert(name.to_owned(), value);
    }
    map
}

/// Tensors of a trunk with separate projections.
pub(super) fn tensors(config: &Config, biases: Biases) -> Vec<Spec> {
    let (d, ff) = (config.hidden_size, config.intermediate_size);
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    let mut list = vec![Spec::matrix(EMBEDDING, config.vocab_size, d)];
    for i in 0..config.num_hidden_layers {
        let of = |name: &str| format!("{}{name}", block_prefix(i));
        let linear = |list: &mut Vec<Spec>, name: &str, rows, columns, bias, make: fn(String, usize, usize) -> Spec| {
            list.push(make(of(&format!("{name}.weight")), rows, columns));
            if bias {
                list.push(Spec::zeros(of(&format!("{name}.bias")), rows));
            }
        };
        list.push(Spec::ones(of("input_layernorm.weight"), d));
        linear(&mut list, "self_attn.q_proj", q, d, biases.qkv, Spec::matrix);
        linear(&mut list, "self_attn.k_proj", kv, d, biases.qkv, Spec::matrix);
        linear(&mut list, "self_attn.v_proj", kv, d, biases.qkv, Spec::matrix);
        linear(&mut list, "self_attn.o_proj", d, q, biases.out, Spec::into_residual);
        list.push(Spec::ones(of("post_attention_layernorm.weight"), d));
        linear(&mut list, "mlp.gate_proj", ff, d, biases.mlp, Spec::matrix);
        linear(&mut list, "mlp.up_proj", ff, d, biases.mlp, Spec::matrix);
        linear(&mut list, "mlp.down_proj", d, ff, biases.mlp, Spec::into_residual);
    }
    list.push(last_norm(config));
    list
}

/// The norm after the last block.
pub(super) fn last_norm(config: &Config) -> Spec {
    Spec::ones(format!("{NORM}.weight"), config.hidden_size)
}

pub(super) fn block_prefix(index: usize) -> String {
    format!("model.layers.{index}.")
}

/// Older tools stored the frequencies, in each block or once.
pub(super) fn buffers(config: &Config) -> Vec<String> {
    let each = (0..config.num_hidden_layers).map(|i| format!("{}self_attn.rotary_emb.inv_freq", block_prefix(i)));
    each.chain(["model.rotary_emb.inv_freq".to_owned()]).collect()
}

/// Positions that turn the first `dim` coordinates of each head.
pub(super) fn positions(config: &Config, params: &Params, dim: usize) -> Result<Positions> {
    let embedding = params.shared(EMBEDDING)?;
    let rope = Rope::new(config, dim, embedding.f_kind()?, embedding.device());
    Ok(Positions::Rotary(Box::new(rope)))
}

/// A block of the given projections.
pub(super) fn block(
    config: &Config,
    params: &Params,
    index: usize,
    projections: Projections,
    inner: Inner,
) -> Result<Block> {
    let prefix = block_prefix(index);
    let linear = |name: &str| Linear::new(params, &format!("{prefix}{name}"), Layout::OutIn);
    let norm = |name: &str| Norm::rms(params, &format!("{prefix}{name}"), config.norm_eps);
    Ok(Block {
        before_attention: norm("input_layernorm")?,
        attention: Attention {
            projections,
            out: linear("self_attn.o_proj")?,
            heads: config.num_attention_heads as i64,
            kv_heads: config.num_key_value_heads as i64,
            head_dim: config.head_dim as i64,
        },
        before_mlp: norm("post_attention_layernorm")?,
        mlp: Mlp {
            inner,
            down: linear("mlp.down_proj")?,
            activation: config.activation,
        },
    })
}

/// A block with a projection each for queries, keys, values, gate and up.
pub(super) fn separate_block(config: &Config, params: &Params, index: usize) -> Result<Block> {
    let prefix = block_prefix(index);
    let linear = |name: &str| Linear::new(params, &format!("{prefix}{name}"), Layout::OutIn);
    let projections = Projections::Separate {
        q: linear("self_attn.q_proj")?,
        k: linear("self_attn.k_proj")?,
        v: linear("self_attn.v_proj")?,
    };
    let inner = Inner::Gated {
        gate: linear("mlp.gate_proj")?,
        up: linear("mlp.up_proj")?,
    };
    block(config, params, index, projections, inner)
}

pub(super) fn final_norm(config: &Config, params: &Params) -> Result<Norm> {
    Norm::rms(params, NORM, config.norm_eps)
}

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
        fields.only("partial_rotary_factor", &json!(1.0))?;
        fields.only("sliding_window", &Value::Null)?;
        fields.layer_types(false)?;
        let form = Self {
            attention_bias: fields.flag("attention_bias", false)?,
            mlp_bias: fields.flag("mlp_bias", false)?,
        };
        let defaults = Defaults {
            num_key_value_heads: None,
            max_position_embeddings: 2048,
            norm_eps: 1e-6,
        };
        read(fields, Architecture::Llama(form), &defaults)
    }

    fn write(&self, config: &Config) -> Map<String, Value> {
        let own = [
            ("attention_bias", json!(self.attention_bias)),
            ("mlp_bias", json!(self.mlp_bias)),
        ];
        write(config, own)
    }

    fn problem(&self, config: &Config) -> Option<String> {
        frequencies::problem(config, config.head_dim)
    }

    fn tensors(&self, config: &Config) -> Vec<Spec> {
        let biases = Biases {
            qkv: self.attention_bias,
            out: self.attention_bias,
            mlp: self.mlp_bias,
        };
        tensors(config, biases)
    }
}
