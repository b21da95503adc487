//! The tokenizer of an experiment, trained on the training splits of all roles.

use anyhow::Result;
use unsay_data::Tokenizer;

use super::{Outcome, Work};

/// Its file in the step's folder.
pub(super) const FILE: &str = "tokenizer.json";

/// Trains and saves it.
pub(super) fn run(work: &Work<'_>, vocab_size: usize) -> Result<Outcome> {
    let mut texts = Vec::new();
    for role in ["pretraining", "feedback", "dialogue"] {
        for example in work.examples(role, "train")? {
            texts.push(example.prompt);
            texts.push(example.completion);
        }
    }
    let tokenizer = Tokenizer::train(texts.iter().map(String::as_str), vocab_size)?;
    tokenizer.save(work.dir.join(FILE))?;
    Ok(Outcome::Done)
}
