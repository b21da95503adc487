//! What both sides read: model folders and token ids, made from seeds.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rand::Rng;
use serde::{Deserialize, Serialize};
use tch::Device;
use unsay_data::{Mixture, stream};
use unsay_model::{Config, Decoder, SequenceClassifier};
use unsay_train::Draws;

use crate::cases::{Case, Model};
use crate::protocol::Task;

/// The seed of everything that is drawn.
pub(crate) const SEED: u64 = 5;
/// The seed of the reference's weights: another model, so that the first loss of DPO is not log 2 whatever was computed.
const REFERENCE_SEED: u64 = 6;
/// The name of our run's draws.
const LOSS_DRAWS: &str = "loss-draws";
/// Steps whose draws are written down, so that their losses can be compared.
pub(crate) const CHECKED: usize = 3;
/// Ids below have a meaning to tokenizers.
pub(crate) const FIRST_ID: usize = 8;
/// The token that ends completions, as in tokenizers of our own; nothing else is it.
pub(crate) const END: u32 = 3;
/// Raised when folders are made otherwise, so that older ones are not taken for them.
const FORM: u32 = 2;
/// Positions of the models.
const POSITIONS: usize = 2048;
/// Of sampling every so many ids end a completion, so that lengths are spread like those of a geometric distribution.
const END_EVERY: usize = 32;

/// The data of a case.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Material {
    /// Labelled examples.
    pub(crate) examples: Vec<Labelled>,
    /// Pairs of completions.
    pub(crate) pairs: Vec<Pair>,
    /// Prompts to complete.
    pub(crate) prompts: Vec<Vec<u32>>,
    /// The tokens that end a completion.
    pub(crate) ends: Vec<u32>,
    /// The examples or pairs of each step.
    pub(crate) batches: Vec<Vec<usize>>,
    /// The uniform draws of the first steps, one per learnt token.
    pub(crate) draws: Vec<Vec<f32>>,
}

/// A prompt and a completion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Labelled {
    /// Both.
    pub(crate) ids: Vec<u32>,
    /// How many of them are the prompt.
    pub(crate) prompt: usize,
    /// Whether it should be said.
    pub(crate) positive: bool,
}

/// A prompt with two completions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pair {
    /// The prompt.
    pub(crate) prompt: Vec<u32>,
    /// The better completion, which ends with [`END`].
    pub(crate) chosen: Vec<u32>,
    /// The worse one, likewise.
    pub(crate) rejected: Vec<u32>,
}

impl Material {
    /// The data of a case for so many steps: ids are uniform over the vocabulary, since what they say changes no time.
    pub(crate) fn of(case: &Case, steps: usize) -> Result<Self> {
        let mut rng = stream(SEED, "bench-ids", 0);
        let vocab = case.model.vocab() as u32;
        let mut ids = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.random_range(FIRST_ID as u32..vocab)).collect() };
        let n = 16 * case.batch;
        let mut material = Self {
            ends: vec![END],
            ..Self::default()
        };
        match case.task {
            Task::Sft | Task::Cringe => {
                let mut lengths = stream(SEED, "bench-lengths", 0);
                let one = |at: usize| {
                    let mut length = |n: usize| match case.spread {
                        true => lengths.random_range(n / 2..=n + n / 2),
                        false => n,
                    };
                    let (prompt, completion) = (length(case.prompt), length(case.completion));
                    Labelled {
                        ids: ids(prompt + completion),
                        prompt,
                        positive: case.task == Task::Sft || at.is_multiple_of(2),
                    }
                };
                material.examples = (0..n).map(one).collect();
                let learnt = case.batch * case.completion;
                let draws = |position| Draws {
                    seed: SEED,
                    purpose: LOSS_DRAWS,
                    position,
                };
                if case.task == Task::Cringe {
                    material.draws = (0..CHECKED as u64).map(|step| draws(step).uniform(learnt)).collect();
                }
            }
            Task::Dpo | Task::Reward => {
                let one = |_| {
                    let mut ended = || ids(case.completion - 1).into_iter().chain([END]).collect();
                    let (chosen, rejected) = (ended(), ended());
                    Pair {
                        chosen,
                        rejected,
                        prompt: ids(case.prompt),
                    }
                };
                material.pairs = (0..n).map(one).collect();
            }
            Task::Greedy | Task::Sample => {
                material.prompts = (0..case.prompts).map(|_| ids(case.prompt)).collect();
            }
        }
        match case.task {
            Task::Sample => material.ends = (0..vocab).step_by(END_EVERY).collect(),
            Task::Greedy => {}
            _ => {
                let mixture = Mixture::new(&[n], &[1.0], case.batch, SEED)?;
                let batch = |step| mixture.batch(step).into_iter().map(|(_, index)| index).collect();
                material.batches = (0..steps as u64).map(batch).collect();
            }
        }
        Ok(material)
    }

    /// Writes it.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(self)?;
        fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// Reads it.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("`{}` is not the data of a case", path.display()))
    }
}

/// What a model folder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A language model that is trained or speaks.
    Policy,
    /// The reference of DPO.
    Reference,
    /// A score of whole sequences.
    Reward,
}

/// The folder of a model; made where it is not there yet.
pub(crate) fn model_folder(cache: &Path, model: Model, role: Role) -> Result<PathBuf> {
    let (seed, kind) = match role {
        Role::Policy => (SEED, ""),
        Role::Reference => (REFERENCE_SEED, ""),
        Role::Reward => (SEED, "-reward"),
    };
    let name = format!("{}{kind}-{seed}-v{FORM}", model.name());
    let folder = cache.join(&name);
    if folder.join("config.json").is_file() {
        return Ok(folder);
    }
    let mut config = Config::new(&model.size(), model.vocab(), POSITIONS);
    config.bos_token_id = Some(1);
    config.eos_token_ids = vec![END];
    config.pad_token_id = Some(0);
    let decoder = Decoder::init(&config, &mut stream(seed, "init", 0), Device::Cpu)?;
    // Not by `with_extension`: names have dots of their own, and what one model left would be another's.
    let unfinished = cache.join(format!("{name}.partial"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("cannot remove `{}`", unfinished.display()))?;
    }
    match role {
        Role::Reward => SequenceClassifier::from_trunk(decoder, &mut stream(seed, "score", 0))?.save(&unfinished)?,
        Role::Policy | Role::Reference => decoder.save(&unfinished)?,
    }
    fs::rename(&unfinished, &folder).with_context(|| format!("cannot write `{}`", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::all;

    #[test]
    fn every_case_has_the_tokens_that_it_names() {
        let mut n = 0;
        for case in all() {
            let material = Material::of(&case, 40).unwrap();
            let length = case.prompt + case.completion;
            let lengths: Vec<usize> = material.examples.iter().map(|one| one.ids.len()).collect();
            let within = match case.spread {
                true => length / 2..=length + length / 2,
                false => length..=length,
            };
            assert!(lengths.iter().all(|n| within.contains(n)));
            if case.spread {
                let all: std::collections::BTreeSet<&usize> = lengths.iter().collect();
                assert!(all.len() > length / 2, "{}", all.len());
            }
            assert!(
                material
                    .pairs
                    .iter()
                    .all(|one| one.prompt.len() + one.chosen.len() == length && one.chosen.ends_with(&[END]))
            );
            assert_eq!(material.prompts.len(), case.prompts);
            let things = material.examples.len().max(material.pairs.len());
            for batch in &material.batches {
                assert_eq!(batch.len(), case.batch);
                assert!(batch.iter().all(|&index| index < things));
            }
            n += material.batches.len().min(1) + material.prompts.len().min(1);
        }
        assert_eq!(n, 33);
    }

    /// Models whose names begin alike were written to one place before they had their own.
    #[test]
    fn what_another_model_left_half_made_is_not_in_a_folder() {
        let cache = tempfile::tempdir().unwrap();
        for left in ["llama-6.partial", "llama-6.84m-6-v2.partial"] {
            fs::create_dir(cache.path().join(left)).unwrap();
            fs::write(cache.path().join(left).join("model-00002-of-00002.safetensors"), "half").unwrap();
        }
        let folder = model_folder(cache.path(), Model::Small, Role::Reference).unwrap();
        let mut files: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|file| file.unwrap().file_name())
            .collect();
        files.sort();
        assert_eq!(files, ["config.json", "model.safetensors"]);
        assert_eq!(
            model_folder(cache.path(), Model::Small, Role::Reference).unwrap(),
            folder
        );
    }

    #[test]
    fn half_of_the_examples_of_cringe_are_negatives() {
        let case = all().into_iter().find(|case| case.name == "cringe_64_fp32").unwrap();
        let material = Material::of(&case, 40).unwrap();
        let negative = material.examples.iter().filter(|one| !one.positive).count();
        assert_eq!(negative * 2, material.examples.len());
        assert_eq!(material.draws.len(), CHECKED);
        assert_eq!(material.draws[0].len(), case.batch * case.completion);
    }
}
