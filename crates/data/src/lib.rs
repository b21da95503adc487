//! Datasets, testbed, tokenizers and batches of plain arrays.

mod atomic;
mod batch;
mod columns;
mod encode;
mod error;
mod mixture;
mod record;
mod streams;
pub mod testbed;
mod tokenizer;

pub use batch::{Batch, TargetRows};
pub use encode::{Encoded, Limits, Supervision, encode_all, encode_prompt};
pub use error::{Error, Place, Result};
pub use mixture::Mixture;
pub use record::{Example, Label, Splits};
pub use streams::stream;
pub use tokenizer::Tokenizer;
