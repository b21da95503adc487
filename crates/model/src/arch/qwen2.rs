//! Qwen 2 and 2.5: Llama's form with biases on queries, keys and values, and a window in some blocks.

use serde_json::{Map, Value, json};

use super::llama::{self, Biases, Defaults};
use super::{Architecture, Form, Spec};
use crate::fields::{Fields, LAYER_TYPES};
use crate::hf::ModelClass;
use crate::{Config, Result, frequencies};

/// Fields that only Qwen 2 has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qwen2 {
    /// Whether there are windows at all.
    pub use_sliding_window: bool,
    /// How many positions a position of a block with a window sees, itself included.
    pub sliding_window: Option<usize>,
    /// Blocks from this number on have a window, unless `layer_types` says which.
    pub max_window_layers: usize,
    /// For each block, whether it has a window (`sliding_attention` rather than `full_attention`).
    pub layer_types: Option<Vec<bool>>,
}

impl Default for Qwen2 {
    fn default() -> Self {
        Self {
            use_sliding_window: false,
            sliding_window: None,
            max_window_layers: 28,
            layer_types: None,
        }
    }
}

impl Qwen2 {
    fn has_window(&self, index: usize) -> bool {
        match &self.layer_types {
            Some(types) => types.get(index).copied().unwrap_or(false),
            None => self.use_sliding_window && self.sliding_window.is_some() && index >= self.max_window_layers,
        }
    }
}

impl Form for Qwen2 {
    fn model_type(&self) -> &'static str {
        "qwen2"
    }

    fn class_name(&self, class: ModelClass) -> &'static str {
        match class {
            ModelClass::CausalLm => "Qwen2ForCausalLM",
            ModelClass::SequenceClassification => "Qwen2ForSequenceClassification",
        }
    }

    fn read(&self, fields: &mut Fields) -> Result<Config, String> {
        fields.only("partial_rotary_factor", &json!(1.0))?;
        // Some descendants of the same type say what transformers' file for it always does.
        fields.only("qkv_bias", &json!(true))?;
        fields.only("attention_bias", &json!(true))?;
        fields.only("mlp_bias", &json!(false))?;
        fields.only("use_mrope", &json!(false))?;
        let form = Self {
            use_sliding_window: fields.flag("use_sliding_window", false)?,
            sliding_window: fields.window(Some(4096))?,
            max_window_layers: fields.size("max_window_layers", Some(28))?,
            layer_types: fields.windowed_layers()?,
        };
        let defaults = Defaults {
            num_key_value_heads: Some(32),
            max_position_embeddings: 32_768,
            norm_eps: 1e-6,
        };
        llama::read(fields, Architecture::Qwen2(form), &defaults)
    }

    fn write(&self, config: &Config) -> Map<String, Value> {
        let mut map = llama::write(
            config,
            [
                ("use_sliding_window", json!(self.use_sliding_window)),
                ("sliding_window", json!(self.sliding_window)),
                ("max_window_layers", json!(self.max_window_layers)),
            ],
        );
        if let Some(windowed) = &self.layer_types {
            let names: Vec<_> = windowed.iter().map(|&w| LAYER_TYPES[usize::from(w)]).collect();
            map.insert("layer_types".to_owned(), json!(names));
        }
        map
    }

    fn problem(&self, config: &Config) -> Option<String> {
        let layers = config.num_hidden_layers;
        if let Some(types) = &self.layer_types {
            if types.len() != layers {
                return Some(format!("`layer_types`: expected {layers} entries, got {}", types.len()));
            }
            if types.contains(&true) && !(self.use_sliding_window && self.sliding_window.is_some()) {
                return Some(
                    "`layer_types` has \"sliding_attention\" and `use_sliding_window` gives no window".to_owned(),
                );
            }
        }
        super::window_problem(self.sliding_window).or_else(|| frequencies::problem(config, config.head_dim))
    }

    fn tensors(&self, config: &Config) -> Vec<Spec> {
        let biases = Biases {
            qkv: true,
            out: false,
            mlp: false,
        };
        llama::tensors(config, biases)
    }

    fn window(&self, _: &Config, index: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.has_window(index))
    }
}
