//! Decoder architectures, heads, sampling and weights on disk.
//!
//! One decoder is made of named parts (norm, attention, feed-forward block, positions); an [`Architecture`] says which.
//! A model is a Hugging Face folder (`config.json`, `model.safetensors` or shards, with Hugging Face names), so
//! other tools read what is written here.
//!
//! * [`Config`]: what a model is; [`Size`]: the part of it that an experiment chooses
//! * [`Decoder`]: weights and forward pass; [`Params`]: the leaves an optimiser updates
//! * [`Trunk`]: embedding, blocks and final norm, whole or in parts; [`Staged`]: a way back that keeps little
//! * [`Branches`]: sequences that share their beginnings, computed once
//! * [`Precision`]: the kind it computes in; [`Trained`]: which part of it is trained
//! * [`Generation`]: batched sampling with a key/value cache; [`logps()`]: scoring with the same log-probs
//! * [`SequenceClassifier`]: a decoder trunk with a score per label
//! * [`ValueHead`], [`DirectorHead`]: heads of their own beside a decoder; [`Generation::guide`]: sampling by their scores
//! * [`LoraConfig`], [`Decoder::add_lora`]: low-rank adapters in PEFT's layout, on, off and merged
//! * [`device`]: `cpu`, `cuda`, `cuda:N`
//! * [`operators`]: what libtorch has and its bindings have not
//! * [`weights`]: safetensors files, [`files`]: replacing a file whole or not at all
//!
//! Tensors are not `Sync`: a model belongs to one thread at a time, and moves between threads freely.

mod activation;
mod adapter;
mod arch;
mod attended;
mod attention;
mod block;
mod branches;
mod choose;
mod classifier;
mod config;
mod decoder;
pub mod device;
mod error;
mod fields;
pub mod files;
mod folder;
mod frequencies;
mod generate;
mod heads;
mod hf;
mod init;
mod linear;
mod logps;
mod lora;
mod low_rank;
pub mod memory;
mod mlp;
mod norm;
pub mod operators;
mod params;
mod peft;
mod positions;
mod precision;
mod products;
mod rope;
mod sampling;
mod shards;
mod staged;
mod trained;
mod trunk;
pub mod weights;

pub use activation::Activation;
pub use arch::{Architecture, Gpt2, Llama, Mistral, Phi3, Qwen2};
pub use branches::Branches;
pub use classifier::SequenceClassifier;
pub use config::{Config, Size};
pub use decoder::Decoder;
pub use error::{Error, Result};
pub use folder::file_in;
pub use frequencies::RopeScaling;
pub use generate::{Draw, Engine, Generated, Generation, Guide, Listener};
pub use heads::{DirectorForm, DirectorHead, DirectorInputs, ValueHead};
pub use logps::logps;
pub use lora::{Layers, LoraConfig, TargetModules};
pub use params::{Param, Params};
pub use precision::Precision;
pub use products::Products;
pub use sampling::{Beam, EarlyStopping, Sampling};
pub use staged::Staged;
pub use trained::Trained;
pub use trunk::{Rounding, Trunk};
