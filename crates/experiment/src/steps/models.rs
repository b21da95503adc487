//! Loading what earlier steps made, and base models from outside.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tch::Device;
use unsay_data::{Limits, Tokenizer, stream};
use unsay_model::{Decoder, Precision, SequenceClassifier, Trained};
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
    /// The language model of a step: a training, or a base model from outside, which has one checkpoint. One that
    /// trained an adapter is its base model with the adapter on.
    pub fn decoder(&self, step: &Step, checkpoint: Checkpoint) -> Result<Decoder> {
        let dir = checkpoint_dir(&self.store.dir(step), checkpoint);
        match &step.kind {
            Kind::Base(outside) => self.outside(outside),
            Kind::Train {
                trained: Trained::Lora(_),
                ..
            }
            | Kind::TrainPairs {
                trained: Trained::Lora(_),
                ..
            } => {
                let mut decoder = self.decoder(self.lowest(step)?, Checkpoint::Best)?;
                decoder
                    .load_adapter(&dir)
                    .with_context(|| unreadable(&self.store.dir(step)))?;
                Ok(decoder)
            }
            Kind::Pretrain { .. } | Kind::Train { .. } | Kind::TrainPairs { .. } => {
                Decoder::load(&dir, self.device).with_context(|| unreadable(&self.store.dir(step)))
            }
            _ => bail!("step `{}` makes no language model", step.title),
        }
    }

    /// The model that the adapter of a training is on: iterations go on with one adapter.
    pub fn lowest<'a>(&'a self, step: &'a Step) -> Result<&'a Step> {
        match &step.kind {
            Kind::Train {
                trained: Trained::Lora(_),
                ..
            }
            | Kind::TrainPairs {
                trained: Trained::Lora(_),
                ..
            } => self.lowest(self.input(step, "init")?),
            _ => Ok(step),
        }
    }

    /// The tokenizer of a step.
    pub fn tokenizer(&self, step: &Step) -> Result<Tokenizer> {
        match &step.kind {
            Kind::Base(outside) => outside.tokenizer(&outside.folder(&mut |line| (self.say)(line))?),
            Kind::Tokenizer { .. } => {
                let dir = self.store.dir(step);
                Tokenizer::load(dir.join(tokenizer::FILE)).with_context(|| unreadable(&dir))
            }
            _ => bail!("step `{}` makes no tokenizer", step.title),
        }
    }

    /// The classifier that a step made in a folder, which is not yet that of a finished step.
    pub(super) fn classifier_in(&self, step: &Step, dir: &Path, checkpoint: Checkpoint) -> Result<SequenceClassifier> {
        let weights = checkpoint_dir(dir, checkpoint);
        if let Kind::Classifier {
            trained: Trained::Lora(_),
            ..
        } = &step.kind
        {
            let trunk = self.decoder(self.input(step, "base")?, Checkpoint::Best)?;
            // The score that is drawn here is replaced by that of the folder.
            let mut classifier = SequenceClassifier::from_trunk(trunk, &mut stream(0, "init", 0))?;
            classifier.load_adapter(&weights).with_context(|| unreadable(dir))?;
            return Ok(classifier);
        }
        SequenceClassifier::load(&weights, self.device).with_context(|| unreadable(dir))
    }

    /// Classifier A or B, which is the input of a step, as a judge.
    pub(super) fn judge(
        &self,
        step: &Step,
        which: Which,
        limits: &Limits,
        precision: Precision,
    ) -> Result<LearnedJudge> {
        let made = self.input(step, which.name())?;
        let classifier = self.classifier_in(made, &self.store.dir(made), Checkpoint::Best)?;
        self.judging(classifier, step, which, limits, precision)
    }

    /// A classifier as a judge, with the tokenizer that is the input of a step.
    pub(super) fn judging(
        &self,
        classifier: SequenceClassifier,
        step: &Step,
        which: Which,
        limits: &Limits,
        precision: Precision,
    ) -> Result<LearnedJudge> {
        let tokenizer = self.tokenizer(self.input(step, "tokenizer")?)?;
        let classifier = classifier.with_precision(precision)?;
        Ok(LearnedJudge::new(which.name(), classifier, tokenizer, *limits, BATCH)?)
    }

    /// The step that plays a role for another.
    pub fn input(&self, step: &Step, role: &str) -> Result<&Step> {
        let index = step
            .input(role)
            .with_context(|| format!("step `{}` has no input `{role}`", step.title))?;
        Ok(&self.plan.steps[index])
    }

    /// The base model from outside that a language model began as, if it began as one.
    pub fn base<'a>(&'a self, step: &'a Step) -> Result<Option<&'a Outside>> {
        match &step.kind {
            Kind::Base(outside) => Ok(Some(outside)),
            Kind::Train { .. } | Kind::TrainPairs { .. } => self.base(self.input(step, "init")?),
            _ => Ok(None),
        }
    }

    fn outside(&self, outside: &Outside) -> Result<Decoder> {
        let folder = outside.folder(&mut |line| (self.say)(line))?;
        let mut decoder = Decoder::load(&folder, self.device)?;
        if let Some(adapter) = outside.adapter_folder()? {
            decoder.load_adapter(&adapter)?.iter().for_each(|note| (self.say)(note));
            decoder.merge_adapter()?;
        }
        let tokenizer = outside.tokenizer(&folder)?;
        let pad = tokenizer
            .pad()
            .or(tokenizer.bos())
            .or(tokenizer.ends().first().copied());
        Ok(decoder.with_pad_token(pad))
    }
}
