//! Architectures: one file each says what its `config.json` holds, what its tensors are called and how a
//! block is put together of parts.

mod gpt2;
mod llama;
mod mistral;
mod phi3;
mod qwen2;

use std::fmt::Debug;

use serde_json::{Map, Value};

use crate::block::Block;
use crate::fields::Fields;
use crate::hf::ModelClass;
use crate::norm::Norm;
use crate::positions::Positions;
use crate::{Config, Params, Result};

pub use gpt2::Gpt2;
pub use llama::Llama;
pub use mistral::Mistral;
pub use phi3::Phi3;
pub use qwen2::Qwen2;

/// Which architecture a model is, with the fields that only this one has.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM2 and all that share their form.
    Llama(Llama),
    /// Mistral: Llama's form with a window.
    Mistral(Mistral),
    /// Qwen 2 and 2.5: Llama's form with biases, and windows in some blocks.
    Qwen2(Qwen2),
    /// Phi-3 mini: Llama's form with fused projections, and heads that turn in part.
    Phi3(Phi3),
    /// GPT-2: learned positions, layer norms, plain feed-forward blocks.
    Gpt2(Gpt2),
}

impl Architecture {
    /// What the architecture's file says.
    pub(crate) fn form(&self) -> &dyn Form {
        match self {
            Self::Llama(form) => form,
            Self::Mistral(form) => form,
            Self::Qwen2(form) => form,
            Self::Phi3(form) => form,
            Self::Gpt2(form) => form,
        }
    }

    /// The architecture of a `model_type`, with the defaults of its fields.
    pub(crate) fn named(model_type: &str) -> Option<Self> {
        Self::all().into_iter().find(|a| a.form().model_type() == model_type)
    }

    /// Each architecture with the defaults of its fields.
    pub(crate) fn all() -> Vec<Self> {
        vec![
            Self::Llama(Llama::default()),
            Self::Mistral(Mistral::default()),
            Self::Qwen2(Qwen2::default()),
            Self::Phi3(Phi3::default()),
            Self::Gpt2(Gpt2),
        ]
    }
}

/// What one architecture's file says about it. Errors of reading are sentences that name the field. What has a
/// body here is as in Llama, whose relatives say only where they differ.
pub(crate) trait Form: Debug {
    /// Its name in `config.json`.
    fn model_type(&self) -> &'static str;

    /// The model class that other tools load a folder with.
    fn class_name(&self, class: ModelClass) -> &'static str;

    /// Takes the fields that it computes with, and refuses those that would change the computation.
    fn read(&self, fields: &mut Fields) -> Result<Config, String>;

    /// The fields that `read` takes, as they are written.
    fn write(&self, config: &Config) -> Map<String, Value>;

    /// What is wrong with a description, beyond what is wrong with it in any architecture.
    fn problem(&self, config: &Config) -> Option<String>;

    /// Every tensor of the trunk, in the model's order.
    fn tensors(&self, config: &Config) -> Vec<Spec>;

    /// What every name of the trunk's tensors begins with; folders of the bare trunk leave it out.
    fn prefix(&self) -> &'static str {
        llama::PREFIX
    }

    /// Tensors that folders may hold although they are computed and not learned; they are left unread.
    fn buffers(&self, config: &Config) -> Vec<String> {
        llama::buffers(config)
    }

    /// How many positions a position of block number `index` sees, itself included; none for all before it.
    fn window(&self, _: &Config, _: usize) -> Option<usize> {
        None
    }

    /// Whether the row of `pad_token_id` in the embedding collects no gradient from the tokens it is read
    /// for, as in transformers' modelling file.
    fn padding_is_not_trained(&self) -> bool {
        true
    }

    /// The name of the token embedding [V, D].
    fn embedding(&self) -> &'static str {
        llama::EMBEDDING
    }

    /// How positions enter.
    fn positions(&self, config: &Config, params: &Params) -> Result<Positions> {
        llama::positions(config, params, config.head_dim)
    }

    /// Block number `index`.
    fn block(&self, config: &Config, params: &Params, index: usize) -> Result<Block> {
        llama::separate_block(config, params, index)
    }

    /// The norm after the last block.
    fn final_norm(&self, config: &Config, params: &Params) -> Result<Norm> {
        llama::final_norm(config, params)
    }
}

/// A tensor that a model has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) shape: Vec<i64>,
    pub(crate) initial: Initial,
}

/// What a new model's tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Initial {
    /// Weights of norms.
    One,
    /// Biases.
    Zero,
    /// Normal draws with the description's spread.
    Normal,
    /// Uniform draws in ±1/√in, for a matrix [out, in] (He's uniform draws at a slope of √5).
    Uniform,
    /// The same as `Normal` for a projection that writes into the residual stream: narrower by 1/√(2L), so that the
    /// stream's variance does not grow with depth.
    IntoResidual,
}

impl Spec {
    /// A vector of ones.
    pub(crate) fn ones(name: impl Into<String>, n: usize) -> Self {
        Self::new(name, &[n], Initial::One)
    }

    /// A vector of zeros.
    pub(crate) fn zeros(name: impl Into<String>, n: usize) -> Self {
        Self::new(name, &[n], Initial::Zero)
    }

    /// A matrix of normal draws.
    pub(crate) fn matrix(name: impl Into<String>, rows: usize, columns: usize) -> Self {
        Self::new(name, &[rows, columns], Initial::Normal)
    }

    /// A matrix that writes into the residual stream.
    pub(crate) fn into_residual(name: impl Into<String>, rows: usize, columns: usize) -> Self {
        Self::new(name, &[rows, columns], Initial::IntoResidual)
    }

    fn new(name: impl Into<String>, shape: &[usize], initial: Initial) -> Self {
        Self {
            name: name.into(),
            shape: shape.iter().map(|&n| n as i64).collect(),
            initial,
        }
    }
}

/// What is wrong with a window.
fn window_problem(window: Option<usize>) -> Option<String> {
    let largest = 1 << 30;
    window
        .filter(|n| !(1..=largest).contains(n))
        .map(|got| format!("`sliding_window`: expected 1 to {largest}, got {got}"))
}
