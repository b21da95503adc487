//! Training steps: base model, classifiers, arms.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rand::RngCore;
use unsay_data::{Tokenizer, stream};
use unsay_losses::paired;
use unsay_losses::token::{Loss, Nll};
use unsay_model::{Config, Decoder, SequenceClassifier, Size, Trained};
use unsay_reward::accuracy;
use unsay_train::{ClassifierObjective, Fit, LanguageObjective, Objective, PairedObjective, Reference, Settings};

use super::models::checkpoint_dir;
use super::sets::{Sets, labelled};
use super::{Outcome, Work};
use crate::manifest::question::{LimitsBlock, MixtureBlock};
use crate::plan::{Checkpoint, Which};
use crate::store::write_atomic;

/// The log of the training, in the step's folder.
pub const LOG: &str = "steps.jsonl";
/// How well a classifier does on held-out data.
pub const ACCURACY: &str = "accuracy.json";
/// Where the loop works; gone when the step is finished.
const FIT: &str = "fit";

/// Trains the base model on unfiltered text.
pub(super) fn pretrain(work: &Work<'_>, size: &Size, limits: &LimitsBlock, settings: &Settings) -> Result<Outcome> {
    let tokenizer = work.tokenizer()?;
    let sets = Sets::of_pretraining(work, limits)?;
    sets.report(work)?;
    let mut config = Config::new(size, tokenizer.vocab_size(), limits.limits().width());
    config.bos_token_id = Some(Tokenizer::BOS);
    config.eos_token_ids = vec![Tokenizer::EOS];
    config.pad_token_id = Some(Tokenizer::PAD);
    let decoder = Decoder::init(&config, &mut stream(work.step.seed, "init", 0), work.device)?;
    let objective = LanguageObjective::new(decoder, Loss::Nll(Nll::default()), sets.examples()?)?;
    fit(work, objective, settings, work.step.seed)
}

/// Trains an arm from where it starts: the base model, or the model of the iteration before.
pub(super) fn arm(
    work: &Work<'_>,
    loss: &Loss,
    iteration: u32,
    limits: &LimitsBlock,
    mixture: &MixtureBlock,
    trained: &Trained,
    settings: &Settings,
) -> Result<Outcome> {
    let sets = Sets::of_arms(work, limits, mixture)?;
    sets.report(work)?;
    let seed = stream(work.step.seed, "iteration", u64::from(iteration)).next_u64();
    let decoder = work.decoder("init", Checkpoint::Best)?;
    let decoder = decoder.with_trained(trained, &mut stream(seed, "adapter", 0))?;
    let (states, examples) = (sets.states(work)?, sets.examples()?);
    let models = work.models();
    let base = models.lowest(work.step)?;
    let mut objective = LanguageObjective::new(decoder, loss.clone(), examples)?.with_base_name(&base.title);
    if let Some(states) = states {
        objective = objective.with_prefix_states(states)?;
    }
    fit(work, objective, settings, seed)
}

/// Trains an arm on pairs, from the base model.
pub(super) fn pairs(
    work: &Work<'_>,
    objective: &paired::Objective,
    limits: &LimitsBlock,
    share_prompt: bool,
    trained: &Trained,
    settings: &Settings,
) -> Result<Outcome> {
    let sets = Sets::of_pairs(work, limits)?;
    sets.report(work)?;
    // The same streams as those of an arm's first training.
    let seed = stream(work.step.seed, "iteration", 1).next_u64();
    let decoder = work.decoder("init", Checkpoint::Best)?;
    let decoder = decoder.with_trained(trained, &mut stream(seed, "adapter", 0))?;
    let reference = sets.reference(work)?.map_or(Reference::None, Reference::Logps);
    let models = work.models();
    let base = models.lowest(work.step)?;
    let objective = PairedObjective::new(decoder, objective.clone(), sets.examples()?, reference)?;
    let objective = objective.with_base_name(&base.title);
    let objective = match share_prompt {
        true => objective,
        false => objective.with_prompts_apart(),
    };
    fit(work, objective, settings, seed)
}

/// Trains a classifier on its half of the labelled prompts, and takes its accuracy on held-out data.
pub(super) fn classifier(
    work: &Work<'_>,
    which: Which,
    limits: &LimitsBlock,
    trained: &Trained,
    settings: &Settings,
) -> Result<Outcome> {
    let sets = Sets::of_classifier(work, limits, which)?;
    sets.report(work)?;
    let seed = stream(work.step.seed, &format!("classifier {}", which.name()), 0).next_u64();
    let trunk = work.decoder("base", Checkpoint::Best)?;
    let classifier = SequenceClassifier::from_trunk(trunk, &mut stream(seed, "init", 0))?;
    let classifier = classifier.with_trained(trained, &mut stream(seed, "adapter", 0))?;
    let (states, examples) = (sets.states(work)?, sets.examples()?);
    let base = work.input_step("base")?;
    let mut objective = ClassifierObjective::new(classifier, examples)?.with_base_name(&base.title);
    if let Some(states) = states {
        objective = objective.with_prefix_states(states)?;
    }
    if fit(work, objective, settings, seed)? == Outcome::Stopped {
        return Ok(Outcome::Stopped);
    }
    let models = work.models();
    let best = models.classifier_in(work.step, &work.dir, Checkpoint::Best)?;
    let judge = models.judging(best, work.step, which, &limits.limits(), settings.precision)?;
    let mut file = serde_json::Map::new();
    for split in ["valid", "test"] {
        file.insert(
            split.to_owned(),
            serde_json::to_value(accuracy(&judge, &labelled(work, split)?, 0.5)?)?,
        );
    }
    write_atomic(
        &work.dir.join(ACCURACY),
        serde_json::to_string_pretty(&file)?.as_bytes(),
    )?;
    Ok(Outcome::Done)
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
    for entry in fs::read_dir(from).with_context(|| format!("cannot read `{}`", from.display()))? {
        let entry = entry.with_context(|| format!("cannot read `{}`", from.display()))?;
        let name = entry.file_name();
        if name.to_str().is_some_and(is_of_model) {
            copy_file(&entry.path(), &temporary.join(&name))?;
        }
    }
    let _ = fs::remove_dir_all(to);
    fs::rename(&temporary, to).with_context(|| format!("cannot rename `{}`", temporary.display()))
}

/// Whether a file of a checkpoint is part of a model, in one file or in shards, or of an adapter.
fn is_of_model(name: &str) -> bool {
    let weights = |rest: &str| rest.ends_with(".safetensors") || rest == ".safetensors.index.json";
    name.strip_prefix("model").is_some_and(weights)
        || ["config.json", "adapter_config.json", "adapter_model.safetensors"].contains(&name)
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy `{}` to `{}`", from.display(), to.display()))?;
    fs::File::open(to)
        .and_then(|f| f.sync_all())
        .with_context(|| format!("cannot write `{}`", to.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_model_in_shards_is_copied_whole_and_without_the_state_of_its_training() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir(&from).unwrap();
        let shards = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ];
        for name in shards.iter().chain(&["optimizer.safetensors", "trainer_state.json"]) {
            fs::write(from.join(name), name).unwrap();
        }
        copy_weights(&from, &to).unwrap();
        let copied = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name());
        let copied: BTreeSet<_> = copied.map(|name| name.into_string().unwrap()).collect();
        assert!(copied.iter().eq(shards.iter()), "{copied:?}");
        let adapter = ["adapter_config.json", "adapter_model.safetensors", "model.safetensors"];
        assert!(adapter.into_iter().all(is_of_model));
    }
}
