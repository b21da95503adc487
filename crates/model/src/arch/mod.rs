//! Architectures: one file each says what its `config.json` holds, what its tensors are called and how a
//! block is put together of parts.

mod llama;

use std::fmt::Debug;

use serde_json::{Map, Value};

use crate::block::Block;
use crate::fields::Fields;
use crate::hf::ModelClass;
use crate::norm::Norm;
use crate::positions::Positions;
use crate::{Config, Params, Result};

pub use llama::Llama;

/// Which architecture a model is, with the fields that only this one has.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM2 and all that share their form.
    Llama(Llama),
}

impl Architecture {
    /// What the architecture's file says.
    pub(crate) fn form(&self) -> &dyn Form {
        match self {
            Self::Llama(form) => form,
        }
    }

    /// The architecture of a `model_type`, with the defaults of its fields.
    pub(crate) fn named(model_type: &str) -> Option<Self> {
        Self::all().into_iter().find(|a| a.form().model_type() == model_type)
    }

    /// Each architecture with the defaults of its fields.
    pub(crate) fn all() -> Vec<Self> {
        vec![Self::Llama(Llama::default())]
    }
}

/// What one architecture's file says about it. Errors of reading are sentences that name the field.
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

    /// The name of the token embedding [V, D].
    fn embedding(&self) -> &'static str;

    /// How positions enter.
    fn positions(&self, config: &Config, params: &Params) -> Result<Positions>;

    /// Block number `index`.
    fn block(&self, config: &Config, params: &Params, index: usize) -> Result<Block>;

    /// The norm after the last block.
    fn final_norm(&self, config: &Config, params: &Params) -> Result<Norm>;
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
    /// The same for a projection that writes into the residual stream: narrower by 1/√(2L), so that the
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
