//! Loading what earlier steps made.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tch::Device;
use unsay_data::{Limits, Tokenizer};
use unsay_model::{Decoder, SequenceClassifier};
use unsay_reward::LearnedJudge;

use super::{Work, tokenizer, unreadable};
use crate::plan::{Checkpoint, Which};

/// Replies generated or judged at once.
pub(super) const BATCH: usize = 64;

/// Where a training step keeps the weights of a checkpoint.
pub(super) fn checkpoint_dir(step: &Path, checkpoint: Checkpoint) -> PathBuf {
    step.join(checkpoint.name())
}

/// A model of a training step.
pub fn load_decoder(step: &Path, checkpoint: Checkpoint) -> Result<Decoder> {
    Decoder::load(&checkpoint_dir(step, checkpoint), Device::Cpu).with_context(|| unreadable(step))
}

/// The tokenizer of a tokenizer step.
pub fn load_tokenizer(step: &Path) -> Result<Tokenizer> {
    Tokenizer::load(step.join(tokenizer::FILE)).with_context(|| unreadable(step))
}

/// Classifier A or B as a judge.
pub(super) fn judge(work: &Work<'_>, which: Which, limits: &Limits) -> Result<LearnedJudge> {
    let step = work.input(which.name())?;
    let classifier = SequenceClassifier::load(&checkpoint_dir(&step, Checkpoint::Best), Device::Cpu)
        .with_context(|| unreadable(&step))?;
    let tokenizer = load_tokenizer(&work.input("tokenizer")?)?;
    Ok(LearnedJudge::new(which.name(), classifier, tokenizer, *limits, BATCH)?)
}
