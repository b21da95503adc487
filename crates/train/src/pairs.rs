//! The pairs that an objective trains on, and how their prompts go through the model.

use unsay_data::{EncodedPair, PairBatch};
use unsay_model::Branches;

use crate::error::Result;
use crate::examples::{Examples, Place};

/// Pairs, of which each prompt is computed once for both completions, or before each of them.
#[derive(Debug)]
pub(crate) struct Pairs {
    pub(crate) examples: Examples<EncodedPair>,
    share_prompt: bool,
}

impl Pairs {
    pub(crate) fn new(examples: Examples<EncodedPair>) -> Self {
        Self {
            examples,
            share_prompt: true,
        }
    }

    /// Computes the prompt before each completion anew. Values and gradients are the same but for rounding.
    pub(crate) fn apart(self) -> Self {
        Self {
            share_prompt: false,
            ..self
        }
    }

    /// The pairs at some places.
    pub(crate) fn batch(&self, places: impl Iterator<Item = Place>) -> Result<PairBatch> {
        let pairs = places.map(|place| self.examples.get(place));
        Ok(PairBatch::new(&pairs.collect::<Result<Vec<_>>>()?, self.share_prompt)?)
    }

    /// What a run's description says of their prompts.
    pub(crate) fn describe(&self) -> &'static str {
        if self.share_prompt { "" } else { ", prompts apart" }
    }
}

/// Which tokens of a batch belong together.
pub(crate) fn branches(batch: &PairBatch) -> Result<Branches> {
    let mut branches = Branches::default();
    for (prompt, lengths) in &batch.groups {
        branches.push(*prompt, lengths)?;
    }
    Ok(branches)
}
