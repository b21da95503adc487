//! Datasets, testbed, tokenizers and batches of plain arrays.

mod atomic;
mod batch;
pub mod catalog;
mod chat;
mod columns;
mod encode;
mod error;
mod files;
mod hash;
mod mixture;
mod pairs;
mod record;
mod shapes;
mod streams;
pub mod testbed;
mod tokenizer;
mod turns;

pub use batch::{Batch, TargetRows};
pub use columns::{Columns, LabelColumn, LabelValue};
pub use encode::{Encoded, Limits, Prompt, Span, Supervision, encode_all, encode_chat, encode_prompt};
pub use error::{Error, Place, Result};
pub use files::{Files, read_examples, read_file, write_examples};
pub use mixture::Mixture;
pub use pairs::{Branch, EncodedPair, PairBatch, encode_pairs, pair_up};
pub use record::{Example, Label, Message, Splits};
pub use streams::stream;
pub use tokenizer::Tokenizer;
