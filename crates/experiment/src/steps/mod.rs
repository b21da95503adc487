//! What each kind of step does. A step reads the folders of its inputs, works in its own folder, and can be
//! killed at any moment.

mod base;
mod evaluate;
mod models;
mod records;
pub mod reference;
mod rollout;
mod sets;
pub mod states;
mod tokenizer;
mod training;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tch::Device;
use unsay_data::{Example, Tokenizer};
use unsay_model::Decoder;

use crate::plan::{Checkpoint, Kind, Plan, Step};
use crate::run::progress::Meter;
use crate::run::stop::Stop;
use crate::store::Store;

pub use evaluate::EvaluationFile;
pub use models::{Models, checkpoint_dir};
pub use rollout::SelectionFile;
pub use sets::no_pairs;
pub use training::{ACCURACY, LOG};

/// One step at work.
pub struct Work<'a> {
    /// The graph.
    pub plan: &'a Plan,
    /// This step.
    pub step: &'a Step,
    /// Where finished steps are.
    pub store: &'a Store,
    /// This step's folder.
    pub dir: PathBuf,
    /// Its display.
    pub meter: &'a Meter<'a>,
    /// Whether to stop.
    pub stop: &'a Stop,
    /// Where models compute.
    pub device: Device,
    /// Tells one line.
    pub say: &'a dyn Fn(&str),
}

/// How a step ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All outputs are in its folder.
    Done,
    /// It stopped on request; what it saved is continued from.
    Stopped,
}

impl Work<'_> {
    /// The folder of the input that plays `role`.
    pub fn input(&self, role: &str) -> Result<PathBuf> {
        Ok(self.store.dir(self.input_step(role)?))
    }

    /// The step that plays `role`.
    pub fn input_step(&self, role: &str) -> Result<&Step> {
        let index = self
            .step
            .input(role)
            .with_context(|| format!("step `{}` has no input `{role}`", self.step.title))?;
        Ok(&self.plan.steps[index])
    }

    /// What earlier steps made, and this one when it is asked for itself.
    pub fn models(&self) -> Models<'_> {
        Models {
            plan: self.plan,
            store: self.store,
            device: self.device,
            say: self.say,
        }
    }

    /// The model of the input that plays `role`.
    fn decoder(&self, role: &str, checkpoint: Checkpoint) -> Result<Decoder> {
        self.models().decoder(self.input_step(role)?, checkpoint)
    }

    /// The tokenizer of this step.
    fn tokenizer(&self) -> Result<Tokenizer> {
        self.models().tokenizer(self.input_step("tokenizer")?)
    }

    /// Examples of one split of the input that plays `role`.
    pub fn examples(&self, role: &str, split: &str) -> Result<Vec<Example>> {
        read_split(&self.input(role)?, split)
    }
}

/// Examples of one split of a records folder.
pub fn read_split(records: &Path, split: &str) -> Result<Vec<Example>> {
    unsay_data::read_examples(records.join(format!("{split}.jsonl"))).with_context(|| unreadable(records))
}

/// Said of a finished step whose files are not as they were written.
pub(crate) fn unreadable(step: &Path) -> String {
    format!(
        "a finished step cannot be read; hint: remove `{}` to make it again",
        step.display()
    )
}

/// Does the work of one step.
pub fn run(work: &Work<'_>) -> Result<Outcome> {
    match &work.step.kind {
        Kind::Records { source, .. } => records::run(work, source),
        Kind::Base(outside) => base::run(work, outside),
        Kind::Tokenizer { vocab_size } => tokenizer::run(work, *vocab_size),
        Kind::Pretrain { model, limits, train } => training::pretrain(work, model, limits, train),
        Kind::States {
            of,
            frozen,
            limits,
            precision,
        } => states::run(work, *of, *frozen, limits, *precision),
        Kind::Classifier {
            which,
            limits,
            trained,
            train,
        } => training::classifier(work, *which, limits, trained, train),
        Kind::Train {
            loss,
            iteration,
            limits,
            mixture,
            trained,
            train,
        } => training::arm(work, loss, *iteration, limits, mixture, trained, train),
        Kind::Reference { limits, precision } => reference::run(work, limits, *precision),
        Kind::TrainPairs {
            objective,
            limits,
            share_prompt,
            trained,
            train,
        } => training::pairs(work, objective, limits, *share_prompt, trained, train),
        Kind::Rollout {
            iteration,
            iterate,
            limits,
        } => rollout::run(work, *iteration, iterate, limits),
        Kind::Evaluate {
            checkpoint,
            evaluate,
            limits,
            samples,
        } => evaluate::run(work, *checkpoint, evaluate, limits, samples),
    }
}
