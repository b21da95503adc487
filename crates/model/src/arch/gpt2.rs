//! GPT-2: learned positions, layer norms, plain feed-forward blocks, biases everywhere, weights [in, out].

use serde_json::{Map, Value, json};

use super::{Architecture, Form, Initial, Spec};
use crate::attention::{Attention, Projections};
use crate::block::Block;
use crate::fields::Fields;
use crate::hf::ModelClass;
use crate::linear::{Layout, Linear};
use crate::mlp::{Inner, Mlp};
use crate::norm::Norm;
use crate::positions::Positions;
use crate::{Activation, Config, Params, Result, RopeScaling};

/// GPT-2 has no fields that others lack; its words for those of [`Config`] are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gpt2;

const TOKENS: &str = "transformer.wte.weight";
const POSITIONS: &str = "transformer.wpe.weight";
const NORM: &str = "transformer.ln_f";

fn block_prefix(index: usize) -> String {
    format!("transformer.h.{index}.")
}

/// A size under GPT-2's name or under the common one, which newer files use.
fn size(fields: &mut Fields, own: &str, common: &str) -> Result<usize, String> {
    match (fields.size(own, Some(0))?, fields.size(common, Some(0))?) {
        (0, 0) => Err(format!("`{own}` is missing")),
        (a, b) if a > 0 && b > 0 && a != b => Err(format!("`{own}` is {a} and `{common}` {b}")),
        (a, b) => Ok(a.max(b)),
    }
}

impl Form for Gpt2 {
    fn model_type(&self) -> &'static str {
        "gpt2"
    }

    fn class_name(&self, class: ModelClass) -> &'static str {
        match class {
            ModelClass::CausalLm => "GPT2LMHeadModel",
            ModelClass::SequenceClassification => "GPT2ForSequenceClassification",
        }
    }

    fn read(&self, fields: &mut Fields) -> Result<Config, String> {
        fields.only("scale_attn_weights", &json!(true))?;
        fields.only("scale_attn_by_inverse_layer_idx", &json!(false))?;
        fields.only("reorder_and_upcast_attn", &json!(false))?;
        fields.layer_types(false)?;
        for name in [
            "rope_scaling",
            "rope_parameters",
            "sliding_window",
            "num_key_value_heads",
            "head_dim",
        ] {
            fields.only(name, &Value::Null)?;
        }
        let hidden_size = size(fields, "n_embd", "hidden_size")?;
        let heads = size(fields, "n_head", "num_attention_heads")?;
        if heads == 0 || !hidden_size.is_multiple_of(heads) {
            return Err(format!("`n_head` {heads} does not divide `n_embd` {hidden_size}"));
        }
        let activation = fields
            .text("activation_function")?
            .unwrap_or_else(|| "gelu_new".to_owned());
        Ok(Config {
            architecture: Architecture::Gpt2(*self),
            vocab_size: fields.size("vocab_size", None)?,
            hidden_size,
            intermediate_size: fields.size("n_inner", Some(hidden_size.saturating_mul(4)))?,
            num_hidden_layers: size(fields, "n_layer", "num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: hidden_size / heads,
            max_position_embeddings: size(fields, "n_positions", "max_position_embeddings")?,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::Default,
            activation: Activation::named(&activation).map_err(|what| format!("`activation_function`: {what}"))?,
            norm_eps: fields.number("layer_norm_epsilon", 1e-5)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", true)?,
            initializer_range: fields.number("initializer_range", 0.02)?,
            bos_token_id: fields.token("bos_token_id")?,
            eos_token_ids: fields.tokens("eos_token_id")?,
            pad_token_id: fields.token("pad_token_id")?,
            other: Map::new(),
        })
    }

    fn write(&self, config: &Config) -> Map<String, Value> {
        Map::from_iter(
            [
                ("vocab_size", json!(config.vocab_size)),
                ("n_embd", json!(config.hidden_size)),
                ("n_inner", json!(config.intermediate_size)),
                ("n_layer", json!(config.num_hidden_layers)),
                ("n_head", json!(config.num_attention_heads)),
                ("n_positions", json!(config.max_position_embeddings)),
                ("layer_norm_epsilon", json!(config.norm_eps)),
                ("tie_word_embeddings", json!(config.tie_word_embeddings)),
                ("initializer_range", json!(config.initializer_range)),
                ("activation_function", json!(config.activation.name())),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        )
    }

    fn problem(&self, config: &Config) -> Option<String> {
        let (heads, width) = (config.num_attention_heads, config.hidden_size);
        if config.num_key_value_heads != heads || config.head_dim * heads != width {
            return Some(format!(
                "gpt2 has as many key/value heads as query heads ({heads}), which share `hidden_size` {width}"
            ));
        }
        None
    }

    fn tensors(&self, config: &Config) -> Vec<Spec> {
        let (d, ff) = (config.hidden_size, config.intermediate_size);
        let mut list = vec![
            Spec::matrix(TOKENS, config.vocab_size, d),
            Spec::matrix(POSITIONS, config.max_position_embeddings, d),
        ];
        let mut add = |module: String, weight: &[usize], initial: Initial, bias: usize| {
            list.push(Spec::new(format!("{module}.weight"), weight, initial));
            list.push(Spec::zeros(format!("{module}.bias"), bias));
        };
        for i in 0..config.num_hidden_layers {
            let of = |name: &str| format!("{}{name}", block_prefix(i));
            add(of("ln_1"), &[d], Initial::One, d);
            add(of("attn.c_attn"), &[d, 3 * d], Initial::Normal, 3 * d);
            add(of("attn.c_proj"), &[d, d], Initial::IntoResidual, d);
            add(of("ln_2"), &[d], Initial::One, d);
            add(of("mlp.c_fc"), &[d, ff], Initial::Normal, ff);
            add(of("mlp.c_proj"), &[ff, d], Initial::IntoResidual, d);
        }
        add(NORM.to_owned(), &[d], Initial::One, d);
        list
    }

    fn prefix(&self) -> &'static str {
        "transformer."
    }

    /// The causal mask and the number that stood for minus infinity.
    fn buffers(&self, config: &Config) -> Vec<String> {
        let names = |i| ["attn.bias", "attn.masked_bias"].map(|name| format!("{}{name}", block_prefix(i)));
        (0..config.num_hidden_layers).flat_map(names).collect()
    }

    fn padding_is_not_trained(&self) -> bool {
        false
    }

    fn embedding(&self) -> &'static str {
        TOKENS
    }

    fn positions(&self, _: &Config, params: &Params) -> Result<Positions> {
        Ok(Positions::Learned(params.shared(POSITIONS)?))
    }

    fn block(&self, config: &Config, params: &Params, index: usize) -> Result<Block> {
        let prefix = block_prefix(index);
        let linear = |name: &str| Linear::new(params, &format!("{prefix}{name}"), Layout::InOut);
        let norm = |name: &str| Norm::layer(params, &format!("{prefix}{name}"), config.norm_eps);
        Ok(Block {
            before_attention: norm("ln_1")?,
            attention: Attention {
                projections: Projections::Fused(linear("attn.c_attn")?),
                out: linear("attn.c_proj")?,
                heads: config.num_attention_heads as i64,
                kv_heads: config.num_key_value_heads as i64,
                head_dim: config.head_dim as i64,
            },
            before_mlp: norm("ln_2")?,
            mlp: Mlp {
                inner: Inner::Plain(linear("mlp.c_fc")?),
                down: linear("mlp.c_proj")?,
                activation: config.activation,
            },
        })
    }

    fn final_norm(&self, config: &Config, params: &Params) -> Result<Norm> {
        Norm::layer(params, NORM, config.norm_eps)
    }
}
