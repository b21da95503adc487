//! What a model is: the fields of a Hugging Face `config.json` that this crate computes with.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::arch::{Architecture, Llama};
use crate::hf::{self, ModelClass};
use crate::{Activation, Error, Result, RopeScaling};

/// The part of a model's description that an experiment chooses; the vocabulary comes from the
/// tokenizer and the positions from the data's limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Width of the residual stream (D).
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of blocks (L).
    pub num_hidden_layers: usize,
    /// Query heads (H).
    pub num_attention_heads: usize,
    /// Key/value heads; divides the query heads.
    pub num_key_value_heads: usize,
}

/// A decoder, in the words of its `config.json`, or in Llama's where architectures differ in words only.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Which architecture, and what only this one has.
    pub architecture: Architecture,
    /// Rows of the embedding (V).
    pub vocab_size: usize,
    /// Width of the residual stream (D).
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of blocks (L).
    pub num_hidden_layers: usize,
    /// Query heads (H).
    pub num_attention_heads: usize,
    /// Key/value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head. `hidden_size / num_attention_heads` unless the file says otherwise.
    pub head_dim: usize,
    /// Longest sequence, prompt and completion together.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How those frequencies are scaled.
    pub rope_scaling: RopeScaling,
    /// The function in the feed-forward blocks.
    pub activation: Activation,
    /// Added to the mean square or the variance in norms.
    pub norm_eps: f64,
    /// Whether the output embedding is the input embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// Token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end one. In the file this is `eos_token_id`: a number for one, a list for several. Files name
    /// tokens that are not in the vocabulary; generation refuses such an end, nothing else asks for it.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills one up.
    pub pad_token_id: Option<u32>,
    /// Fields of the file that do not change what is computed, kept as they were.
    pub other: Map<String, Value>,
}

/// Largest sizes accepted, far above any model this crate can hold, so that a broken file cannot ask
/// for absurd amounts of memory or overflow a product.
const LARGEST: [(&str, usize); 8] = [
    ("vocab_size", 1 << 22),
    ("hidden_size", 1 << 16),
    ("intermediate_size", 1 << 18),
    ("num_hidden_layers", 1 << 10),
    ("num_attention_heads", 1 << 10),
    ("num_key_value_heads", 1 << 10),
    ("head_dim", 1 << 12),
    ("max_position_embeddings", 1 << 22),
];

impl Config {
    /// A tied Llama of the given size with the usual constants and no special tokens set.
    pub fn new(size: &Size, vocab_size: usize, max_position_embeddings: usize) -> Self {
        Self {
            architecture: Architecture::Llama(Llama::default()),
            vocab_size,
            hidden_size: size.hidden_size,
            intermediate_size: size.intermediate_size,
            num_hidden_layers: size.num_hidden_layers,
            num_attention_heads: size.num_attention_heads,
            num_key_value_heads: size.num_key_value_heads,
            head_dim: size.hidden_size.checked_div(size.num_attention_heads).unwrap_or(0),
            max_position_embeddings,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::Default,
            activation: Activation::Silu,
            norm_eps: 1e-5,
            tie_word_embeddings: true,
            initializer_range: 0.02,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
            other: Map::new(),
        }
    }

    /// The description of the language model in a Hugging Face folder.
    pub fn read(dir: &Path) -> Result<Self> {
        hf::read(dir, ModelClass::CausalLm)
    }

    /// Refuses a description that no model can have.
    pub fn check(&self) -> Result<()> {
        self.check_at("model config")
    }

    /// The same, with the file in the message.
    pub(crate) fn check_at(&self, place: &str) -> Result<()> {
        match self.problem() {
            None => Ok(()),
            Some(what) => Err(Error::Config {
                place: place.to_owned(),
                what,
            }),
        }
    }

    fn problem(&self) -> Option<String> {
        let sizes = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.num_key_value_heads,
            self.head_dim,
            self.max_position_embeddings,
        ];
        for ((name, largest), got) in LARGEST.into_iter().zip(sizes) {
            if got == 0 || got > largest {
                return Some(format!("`{name}`: expected 1 to {largest}, got {got}"));
            }
        }
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if heads % kv_heads != 0 {
            return Some(format!(
                "`num_key_value_heads` {kv_heads} does not divide `num_attention_heads` {heads}"
            ));
        }
        if self.head_dim * heads != self.hidden_size && !self.hidden_size.is_multiple_of(heads) {
            let hidden = self.hidden_size;
            return Some(format!(
                "`num_attention_heads` {heads} does not divide `hidden_size` {hidden}"
            ));
        }
        let ranges = [
            ("norm_eps", self.norm_eps, 0.0, 1.0),
            ("initializer_range", self.initializer_range, 0.0, 10.0),
        ];
        for (name, got, low, high) in ranges {
            if !(low..=high).contains(&got) {
                return Some(format!("`{name}`: expected {low:e} to {high:e}, got {got}"));
            }
        }
        if let Some(id) = self.pad_token_id.filter(|&id| id as usize >= self.vocab_size) {
            return Some(format!(
                "`pad_token_id`: expected below `vocab_size` {}, got {id}",
                self.vocab_size
            ));
        }
        self.architecture.form().problem(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let size = Size {
            hidden_size: 12,
            intermediate_size: 20,
            num_hidden_layers: 2,
            num_attention_heads: 6,
            num_key_value_heads: 2,
        };
        Config::new(&size, 30, 16)
    }

    #[test]
    fn each_impossible_description_is_refused_by_field() {
        config().check().unwrap();
        type Break = fn(&mut Config);
        let broken: [(&str, Break); 11] = [
            ("vocab_size", |c| c.vocab_size = 0),
            ("hidden_size", |c| c.hidden_size = 1 << 30),
            ("num_hidden_layers", |c| c.num_hidden_layers = 0),
            ("num_key_value_heads", |c| c.num_key_value_heads = 4),
            ("num_attention_heads", |c| c.hidden_size = 13),
            ("head width", |c| c.head_dim = 3),
            ("head_dim", |c| c.head_dim = 0),
            ("rope_theta", |c| c.rope_theta = 0.0),
            ("norm_eps", |c| c.norm_eps = f64::NAN),
            ("pad_token_id", |c| c.pad_token_id = Some(30)),
            ("max_position_embeddings", |c| c.max_position_embeddings = 0),
        ];
        for (name, change) in broken {
            let mut broken = config();
            change(&mut broken);
            let error = broken.check().unwrap_err().to_string();
            assert!(
                error.starts_with("model config: ") && error.contains(name),
                "{name}: {error}"
            );
        }
    }
}
