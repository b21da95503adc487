//! Training steps: base model, classifiers, arms.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rand::RngCore;
use serde::Serialize;
use tch::Device;
use unsay_data::{Example, Label, Limits, Supervision, Tokenizer, encode_all, stream};
use unsay_losses::token::{Loss, Nll};
use unsay_model::{Config, Decoder, SequenceClassifier, Size};
use unsay_reward::accuracy;
use unsay_train::{ClassifierObjective, Examples, Fit, LanguageObjective, Objective, Settings, Source};

use super::models::{self, checkpoint_dir};
use super::rollout::{REPLIES, SelectionFile};
use super::{Outcome, Work};
use crate::manifest::question::{LimitsBlock, MixtureBlock};
use crate::plan::{Checkpoint, Which};
use crate::store::write_atomic;

/// The log of the training, in the step's folder.
pub const LOG: &str = "steps.jsonl";
/// How well a classifier does on held-out data.
pub const ACCURACY: &str = "accuracy.json";
/// What the training sees, counted before its first step.
const SUPERVISION: &str = "supervision.json";
/// Where the loop works; gone when the step is finished.
const FIT: &str = "fit";

/// Trains the base model on unfiltered text.
pub(super) fn pretrain(work: &Work<'_>, size: &Size, limits: &LimitsBlock, settings: &Settings) -> Result<Outcome> {
    let tokenizer = models::load_tokenizer(&work.input("tokenizer")?)?;
    let mut encoder = Encoder::new(&tokenizer, limits);
    let train = encoder.source("pretraining", &work.examples("pretraining", "train")?, 1.0)?;
    let valid = encoder.source("pretraining, validation", &work.examples("pretraining", "valid")?, 1.0)?;
    encoder.report(work)?;
    let mut config = Config::new(size, tokenizer.vocab_size(), limits.limits().width());
    config.bos_token_id = Some(Tokenizer::BOS);
    config.eos_token_ids = vec![Tokenizer::EOS];
    config.pad_token_id = Some(Tokenizer::PAD);
    let decoder = Decoder::init(&config, &mut stream(work.step.seed, "init", 0), Device::Cpu)?;
    let objective = LanguageObjective::new(decoder, Loss::Nll(Nll::default()), Examples::new(vec![train], valid)?)?;
    fit(work, objective, settings, work.step.seed)
}

/// Trains an arm from where it starts: the base model, or the model of the iteration before.
pub(super) fn arm(
    work: &Work<'_>,
    loss: &Loss,
    iteration: u32,
    limits: &LimitsBlock,
    mixture: &MixtureBlock,
    settings: &Settings,
) -> Result<Outcome> {
    let tokenizer = models::load_tokenizer(&work.input("tokenizer")?)?;
    let mut encoder = Encoder::new(&tokenizer, limits);
    let mut sources = Vec::new();
    let mut valid = Vec::new();
    for (role, weight) in [("dialogue", mixture.dialogue), ("feedback", mixture.feedback)] {
        if weight > 0.0 {
            sources.push(encoder.source(role, &work.examples(role, "train")?, weight)?);
            valid.extend(work.examples(role, "valid")?);
        }
    }
    for (role, _) in work.step.inputs.iter().filter(|(role, _)| role.starts_with("own-")) {
        let dir = work.input(role)?;
        if SelectionFile::read(&dir)?.counts.kept == 0 {
            // A round that found nothing to balance adds nothing; its selection file says why.
            work.meter
                .say(&format!("  {}: `{role}` has no replies to train on", work.step.title));
        } else {
            sources.push(encoder.source(role, &unsay_data::read_examples(dir.join(REPLIES))?, mixture.own)?);
        }
    }
    let valid = encoder.source("validation", &valid, 1.0)?;
    encoder.report(work)?;
    let decoder = models::load_decoder(&work.input("init")?, Checkpoint::Best)?;
    let objective = LanguageObjective::new(decoder, loss.clone(), Examples::new(sources, valid)?)?;
    fit(
        work,
        objective,
        settings,
        stream(work.step.seed, "iteration", u64::from(iteration)).next_u64(),
    )
}

/// Trains a classifier on its half of the labelled prompts, and takes its accuracy on held-out data.
pub(super) fn classifier(work: &Work<'_>, which: Which, limits: &LimitsBlock, settings: &Settings) -> Result<Outcome> {
    let tokenizer = models::load_tokenizer(&work.input("tokenizer")?)?;
    let mut encoder = Encoder::new(&tokenizer, limits);
    let labelled = |split: &str| -> Result<Vec<Example>> {
        let mut examples = work.examples("feedback", split)?;
        examples.retain(|e| e.label != Label::Unlabelled);
        Ok(examples)
    };
    let mut half = labelled("train")?;
    half.retain(|e| half_of(&e.prompt) == which);
    let train = encoder.source(&format!("half {}", which.name().to_uppercase()), &half, 1.0)?;
    let valid = encoder.source("validation", &labelled("valid")?, 1.0)?;
    encoder.report(work)?;
    let seed = stream(work.step.seed, &format!("classifier {}", which.name()), 0).next_u64();
    let trunk = models::load_decoder(&work.input("base")?, Checkpoint::Best)?;
    let classifier = SequenceClassifier::from_trunk(trunk, &mut stream(seed, "init", 0))?;
    let objective = ClassifierObjective::new(classifier, Examples::new(vec![train], valid)?)?;
    if fit(work, objective, settings, seed)? == Outcome::Stopped {
        return Ok(Outcome::Stopped);
    }
    let best = SequenceClassifier::load(&checkpoint_dir(&work.dir, Checkpoint::Best), Device::Cpu)?;
    let judge = unsay_reward::LearnedJudge::new(which.name(), best, tokenizer, limits.limits(), models::BATCH)?;
    let mut file = serde_json::Map::new();
    for split in ["valid", "test"] {
        file.insert(
            split.to_owned(),
            serde_json::to_value(accuracy(&judge, &labelled(split)?, 0.5)?)?,
        );
    }
    write_atomic(
        &work.dir.join(ACCURACY),
        serde_json::to_string_pretty(&file)?.as_bytes(),
    )?;
    Ok(Outcome::Done)
}

/// Which classifier sees a prompt. Halves are of prompts, not of examples, so that no context is in both.
fn half_of(prompt: &str) -> Which {
    if stream(0, &format!("classifier half: {prompt}"), 0).next_u32() & 1 == 0 {
        Which::A
    } else {
        Which::B
    }
}

/// Encodes sources and counts what the training will see of them.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    block: &'a LimitsBlock,
    limits: Limits,
    seen: Vec<(String, Supervision)>,
}

impl<'a> Encoder<'a> {
    fn new(tokenizer: &'a Tokenizer, block: &'a LimitsBlock) -> Self {
        Self {
            tokenizer,
            block,
            limits: block.limits(),
            seen: Vec::new(),
        }
    }

    fn source(&mut self, what: &str, examples: &[Example], weight: f64) -> Result<Source> {
        let (encoded, supervision) = encode_all(self.tokenizer, examples, &self.limits)?;
        supervision
            .check(self.block.max_dropped_share, self.block.max_cut_share)
            .with_context(|| format!("examples of `{what}`"))?;
        self.seen.push((what.to_owned(), supervision));
        Ok(Source {
            encoded,
            ids: examples.iter().map(|e| e.id.clone()).collect(),
            weight,
        })
    }

    /// Says what will be trained on, before the first step.
    fn report(&self, work: &Work<'_>) -> Result<()> {
        #[derive(Serialize)]
        struct Row<'a> {
            source: &'a str,
            #[serde(flatten)]
            supervision: &'a Supervision,
        }
        let rows: Vec<Row<'_>> = self
            .seen
            .iter()
            .map(|(source, supervision)| Row { source, supervision })
            .collect();
        write_atomic(
            &work.dir.join(SUPERVISION),
            serde_json::to_string_pretty(&rows)?.as_bytes(),
        )?;
        let lines: Vec<String> = self
            .seen
            .iter()
            .map(|(what, s)| {
                format!(
                    "    {what:<24} {:>6} examples, tokens +{} -{} ={}; cut {} (-{} tokens), dropped {}",
                    s.examples,
                    s.tokens_positive,
                    s.tokens_negative,
                    s.tokens_unlabelled,
                    s.examples_cut,
                    s.tokens_cut_prompt + s.tokens_cut_completion,
                    s.dropped
                )
            })
            .collect();
        work.meter.say(&format!(
            "  {} sees (+ positive, - negative, = unlabelled):\n{}",
            work.step.title,
            lines.join("\n")
        ));
        Ok(())
    }
}

/// Runs a training to its end or to a stop, continuing what an earlier sitting left.
fn fit<O: Objective>(work: &Work<'_>, objective: O, settings: &Settings, seed: u64) -> Result<Outcome> {
    let folder = work.dir.join(FIT);
    let finished = checkpoint_dir(&work.dir, Checkpoint::Last);
    if !finished.is_dir() {
        let mut fit = Fit::open(objective, settings, seed, &folder)?;
        work.meter.start("", settings.steps, fit.step());
        while let Some(record) = fit.next() {
            work.meter.set(record?.step);
            if work.stop.asked() && fit.step() < settings.steps {
                fit.save()?;
                return Ok(Outcome::Stopped);
            }
        }
        let best = fit.best_folder().context("the training kept no best weights")?;
        let last = fit.last_folder().context("the training kept no last weights")?;
        copy_file(&folder.join(LOG), &work.dir.join(LOG))?;
        copy_weights(&best, &checkpoint_dir(&work.dir, Checkpoint::Best))?;
        copy_weights(&last, &finished)?;
    }
    // What is needed of it has been copied; a kill in between leaves it for the next sitting to remove.
    match fs::remove_dir_all(&folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove `{}`", folder.display()))
        }
        _ => Ok(Outcome::Done),
    }
}

/// Copies a model folder without the state of its training, whole or not at all.
fn copy_weights(from: &Path, to: &Path) -> Result<()> {
    let temporary = to.with_extension("tmp");
    let _ = fs::remove_dir_all(&temporary);
    fs::create_dir_all(&temporary).with_context(|| format!("cannot make `{}`", temporary.display()))?;
    for name in ["config.json", "model.safetensors"] {
        copy_file(&from.join(name), &temporary.join(name))?;
    }
    let _ = fs::remove_dir_all(to);
    fs::rename(&temporary, to).with_context(|| format!("cannot rename `{}`", temporary.display()))
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy `{}` to `{}`", from.display(), to.display()))?;
    fs::File::open(to)
        .and_then(|f| f.sync_all())
        .with_context(|| format!("cannot write `{}`", to.display()))
}
