//! Loading what earlier steps made, and base models from outside.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tch::Device;
use unsay_data::{Limits, Tokenizer};
use unsay_model::{Decoder, SequenceClassifier};
use unsay_reward::LearnedJudge;

use super::{tokenizer, unreadable};
use crate::plan::outside::Outside;
use crate::plan::{Checkpoint, Kind, Plan, Step, Which};
use crate::store::Store;

/// Replies generated or judged at once.
pub(super) const BATCH: usize = 64;

/// Where a training step keeps the weights of a checkpoint.
pub fn checkpoint_dir(step: &Path, checkpoint: Checkpoint) -> PathBuf {
    step.join(checkpoint.name())
}

/// The models and tokenizers of a plan whose steps are finished.
pub struct Models<'a> {
    /// The graph.
    pub plan: &'a Plan,
    /// Where finished steps are.
    pub store: &'a Store,
    /// Where models are put.
    pub device: Device,
    /// Told when a model has to be fetched.
    pub say: &'a dyn Fn(&str),
}

impl Models<'_> {
    /// The language model of a step: a training, or a base model from outside, which has one checkpoint.
    pub fn decoder(&self, step: &Step, checkpoint: Checkpoint) -> Result<Decoder> {
        match &step.kind {
            Kind::Base(outside) => self.outside(outside),
            Kind::Pretrain { .. } | Kind::Train { .. } => {
                let dir = self.store.dir(step);
                Decoder::load(&checkpoint_dir(&dir, checkpoint), self.device).with_context(|| unreadable(&dir))
            }
            _ => bail!("step `{}` makes no language model", step.title),
        }
    }

    /// The tokenizer of a step.
    pub fn tokenizer(&self, step: &Step) -> Result<Tokenizer> {
        match &step.kind {
            Kind::Base(outside) => Ok(Tokenizer::load(
                outside.folder(&mut |line| (self.say)(line))?.join(tokenizer::FILE),
            )?),
            Kind::Tokenizer { .. } => {
                let dir = self.store.dir(step);
                Tokenizer::load(dir.join(tokenizer::FILE)).with_context(|| unreadable(&dir))
            }
            _ => bail!("step `{}` makes no tokenizer", step.title),
        }
    }

    /// A classifier.
    pub(super) fn classifier(&self, step: &Step, checkpoint: Checkpoint) -> Result<SequenceClassifier> {
        let dir = self.store.dir(step);
        SequenceClassifier::load(&checkpoint_dir(&dir, checkpoint), self.device).with_context(|| unreadable(&dir))
    }

    /// Classifier A or B, which is the input of a step, as a judge.
    pub(super) fn judge(&self, step: &Step, which: Which, limits: &Limits) -> Result<LearnedJudge> {
        let classifier = self.classifier(self.input(step, which.name())?, Checkpoint::Best)?;
        let tokenizer = self.tokenizer(self.input(step, "tokenizer")?)?;
        Ok(LearnedJudge::new(which.name(), classifier, tokenizer, *limits, BATCH)?)
    }

    /// The step that plays a role for another.
    pub fn input(&self, step: &Step, role: &str) -> Result<&Step> {
        let index = step
            .input(role)
            .with_context(|| format!("step `{}` has no input `{role}`", step.title))?;
        Ok(&self.plan.steps[index])
    }

    fn outside(&self, outside: &Outside) -> Result<Decoder> {
        let folder = outside.folder(&mut |line| (self.say)(line))?;
        Ok(Decoder::load(&folder, self.device)?)
    }
}
