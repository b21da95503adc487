//! Mistral: Llama's form without biases, every block with the same window.

use serde_json::{Map, Value, json};

use super::llama::{self, Biases, Defaults};
use super::{Architecture, Form, Spec};
use crate::fields::Fields;
use crate::hf::ModelClass;
use crate::{Config, Result, frequencies};

/// Fields that only Mistral has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mistral {
    /// How many positions a position sees, itself included; none for all before it.
    pub sliding_window: Option<usize>,
}

impl Form for Mistral {
    fn model_type(&self) -> &'static str {
        "mistral"
    }

    fn class_name(&self, class: ModelClass) -> &'static str {
        match class {
            ModelClass::CausalLm => "MistralForCausalLM",
            ModelClass::SequenceClassification => "MistralForSequenceClassification",
        }
    }

    fn read(&self, fields: &mut Fields) -> Result<Config, String> {
        fields.only("partial_rotary_factor", &json!(1.0))?;
        fields.only("attention_bias", &json!(false))?;
        fields.only("mlp_bias", &json!(false))?;
        let sliding_window = fields.window(Some(4096))?;
        fields.layer_types(sliding_window.is_some())?;
        let defaults = Defaults {
            num_key_value_heads: Some(8),
            max_position_embeddings: 4096 * 32,
            norm_eps: 1e-6,
        };
        llama::read(fields, Architecture::Mistral(Self { sliding_window }), &defaults)
    }

    fn write(&self, config: &Config) -> Map<String, Value> {
        llama::write(config, [("sliding_window", json!(self.sliding_window))])
    }

    fn problem(&self, config: &Config) -> Option<String> {
        super::window_problem(self.sliding_window).or_else(|| frequencies::problem(config, config.head_dim))
    }

    fn tensors(&self, config: &Config) -> Vec<Spec> {
        let biases = Biases {
            qkv: false,
            out: false,
            mlp: false,
        };
        llama::tensors(config, biases)
    }

    fn window(&self, _: &Config, _: usize) -> Option<usize> {
        self.sliding_window
    }
}
