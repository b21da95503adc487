//! Datasets, testbed, tokenizers and batches of plain arrays.

mod record;
mod streams;
pub mod testbed;

pub use record::{Example, Label, Splits};
pub use streams::stream;
