//! What the model says now to the prompts it is trained on.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use unsay_data::{Example, Limits, Tokenizer, encode_prompt, stream};
use unsay_model::{Decoder, Generation, Sampling};

use crate::error::{Error, Result};

/// How completions are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutSettings {
    /// Completions of each prompt, at least 1.
    pub samples_per_prompt: usize,
    /// Rows generated at once, at least 1; changes speed and memory, and log-probs by rounding.
    pub batch: usize,
    /// How each token is chosen.
    pub sampling: Sampling,
}

impl RolloutSettings {
    /// An error naming the first setting out of range.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [("samples_per_prompt", self.samples_per_prompt), ("batch", self.batch)] {
            if value == 0 {
                return Err(Error::Range {
                    name,
                    expected: "at least 1",
                    got: "0".into(),
                });
            }
        }
        if self.sampling.beam.is_some() && self.samples_per_prompt > 1 {
            return Err(Error::Range {
                name: "samples_per_prompt",
                expected: "1 with beams, which find one completion",
                got: self.samples_per_prompt.to_string(),
            });
        }
        Ok(self.sampling.check()?)
    }
}

/// One completion of the model's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// Position of its prompt in what [`rollout`] was given.
    pub prompt: usize,
    /// Which sample of that prompt.
    pub sample: usize,
    /// As text, without special tokens.
    pub completion: String,
    /// As token ids, without the end token.
    pub ids: Vec<u32>,
    /// Log-probability of each token under the model at temperature 1, the end token included when it ended.
    pub logps: Vec<f32>,
    /// True when the model ended it itself.
    pub finished: bool,
}

/// Completions of `prompts` by `decoder`, sample by sample within each prompt.
///
/// Every draw comes from the stream (`seed`, `rollout`, position of the prompt), where a sample has a part of
/// its own and a step a place of its own. So a completion depends on neither the batch nor the other prompts
/// nor how many samples are drawn. `progress` is told how many completions are done.
///
/// An error without prompts, for settings out of range, and from tokenizer or model.
pub fn rollout(
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    limits: &Limits,
    prompts: &[Example],
    settings: &RolloutSettings,
    seed: u64,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Rollout>> {
    settings.check()?;
    if prompts.is_empty() {
        return Err(Error::NoPrompts);
    }
    let n_samples = settings.samples_per_prompt;
    let mut rows = Vec::with_capacity(prompts.len() * n_samples);
    let mut draws = Vec::with_capacity(rows.capacity());
    for (position, example) in prompts.iter().enumerate() {
        let ids = encode_prompt(tokenizer, example, limits)?;
        for sample in 0..n_samples {
            rows.push(ids.clone());
            draws.push(Draws::new(seed, position, sample));
        }
    }
    let mut draw = |row: usize, step: usize| draws[row].at(step);
    let request = Generation::new(decoder, &settings.sampling, tokenizer.ends()).batch(settings.batch);
    let generated = request.draws(&mut draw).progress(progress).run(&rows)?;
    let mut rollouts = Vec::with_capacity(generated.len());
    for (row, one) in generated.into_iter().enumerate() {
        rollouts.push(Rollout {
            prompt: row / n_samples,
            sample: row % n_samples,
            completion: tokenizer.decode(&one.ids)?,
            ids: one.ids,
            logps: one.logps,
            finished: one.finished,
        });
    }
    Ok(rollouts)
}

/// The uniform draws of one completion, by step.
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// Those of a sample of the prompt at a position.
    pub fn new(seed: u64, prompt: usize, sample: usize) -> Self {
        let mut rng = stream(seed, "rollout", prompt as u64);
        rng.set_stream(sample as u64);
        Self(rng)
    }

    /// A number in [0, 1), the same whenever and in whatever order it is asked for.
    pub fn at(&mut self, step: usize) -> f32 {
        self.0.set_word_pos(step as u128);
        self.0.random()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_prompt_sample_and_step_alone() {
        let mut one = Draws::new(7, 3, 0);
        let forward: Vec<f32> = (0..20).map(|s| one.at(s)).collect();
        let mut backward: Vec<f32> = (0..20).rev().map(|s| one.at(s)).collect();
        backward.reverse();
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&forward), bits(&backward));
        let mut seen: Vec<Vec<u32>> = vec![bits(&forward)];
        for (seed, prompt, sample) in [(8, 3, 0), (7, 4, 0), (7, 3, 1)] {
            let mut other = Draws::new(seed, prompt, sample);
            seen.push(bits(&(0..20).map(|s| other.at(s)).collect::<Vec<_>>()));
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 4);
        // step 0 is what the plain stream gives
        assert_eq!(forward[0].to_bits(), stream(7, "rollout", 3).random::<f32>().to_bits());
        assert!(forward.iter().all(|x| (0.0..1.0).contains(x)));
    }
}
