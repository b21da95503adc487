//! A base model from outside: whether it is one, and what it is. Nothing of it is copied.

use anyhow::{Context, Result};
use serde::Serialize;
use unsay_data::{Example, Label, Limits, Tokenizer, encode_all};

use super::{Outcome, Work};
use crate::plan::Checkpoint;
use crate::plan::outside::Outside;
use crate::store::write_atomic;

/// What was found, in the step's folder.
pub(super) const FILE: &str = "base.json";

/// What a base model is. Nothing reads it but people: who uses the model reads its folder.
#[derive(Serialize)]
struct Found<'a> {
    name: String,
    identity: &'a Outside,
    parameters: usize,
    vocabulary: usize,
    positions: usize,
    tokenizer_entries: usize,
}

/// Encodes one example, so that a chat template that does not work is found here.
fn try_out(tokenizer: &Tokenizer) -> Result<()> {
    let example = Example {
        id: "one".to_owned(),
        prompt: "how are you?".to_owned(),
        completion: "fine".to_owned(),
        label: Label::Positive,
        seen_prompt: false,
        messages: Vec::new(),
    };
    let limits = Limits {
        max_prompt: 1 << 16,
        max_completion: 1 << 16,
    };
    encode_all(tokenizer, &[example], &limits)
        .map(drop)
        .context("the tokenizer cannot encode a question with its answer")
}

/// Reads model and tokenizer whole, so that a folder that is none ends the run here.
pub(super) fn run(work: &Work<'_>, outside: &Outside) -> Result<Outcome> {
    let models = work.models();
    let tokenizer = models.tokenizer(work.step)?;
    try_out(&tokenizer)?;
    let decoder = models.decoder(work.step, Checkpoint::Best)?;
    let config = decoder.config();
    tokenizer.check_fits(config.vocab_size)?;
    let found = Found {
        name: outside.name(),
        identity: outside,
        parameters: decoder.params().numel(),
        vocabulary: config.vocab_size,
        positions: config.max_position_embeddings,
        tokenizer_entries: tokenizer.vocab_size(),
    };
    work.meter.say(&format!(
        "  base model `{}`: {} parameters, {} positions, a vocabulary of {}",
        found.name, found.parameters, found.positions, found.vocabulary
    ));
    write_atomic(&work.dir.join(FILE), serde_json::to_string_pretty(&found)?.as_bytes())?;
    Ok(Outcome::Done)
}
