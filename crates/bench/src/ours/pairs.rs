//! Pairs: the same loop with a loss over two completions of a prompt, and with a reward model.

use anyhow::{Context, Result};
use serde_json::json;
use tch::Device;
use unsay_data::{Branch, EncodedPair};
use unsay_losses::scores;
use unsay_model::{Decoder, SequenceClassifier};
use unsay_train::{Examples, PairedObjective, Reference, ReferenceLogps, RewardObjective, Source};

use super::train::{Training, begin};
use super::{Job, compute, data, precision, weights};
use crate::material::{Material, Pair};
use crate::protocol::{Data, Loaded, Task, Work};

/// DPO or a reward model, as the work says.
pub(super) fn pairs(work: &Work) -> Result<Box<dyn Job>> {
    let material = Material::read(&work.data)?;
    let first = material.batches.first().context("no batches")?;
    let first: Vec<&Pair> = first.iter().map(|&at| &material.pairs[at]).collect();
    let data = first_batch(&first);
    let source = |pairs: &[Pair]| Source {
        encoded: pairs.iter().enumerate().map(encoded).collect(),
        ids: Vec::new(),
        weight: 1.0,
    };
    let (train, valid) = (source(&material.pairs), source(&material.pairs[..1]));
    // All pairs have one length. Their loop computes the prompt twice; tokens are counted as it does, so that speeds compare.
    let tokens = Some(data.tokens);
    let precision = precision(&work.way)?;
    let loaded = |weights| Loaded {
        weights,
        data,
        compute: compute(precision),
    };
    if work.task == Task::Reward {
        let classifier = SequenceClassifier::load(&work.model, Device::Cpu)?;
        let loaded = loaded(weights(classifier.params())?);
        let loss: scores::Loss = serde_json::from_value(json!({ "bradley_terry": {} }))?;
        let objective = RewardObjective::new(classifier, loss, Examples::new(vec![train], valid)?)?;
        let fit = begin(objective, work)?;
        return Ok(Box::new(Training { fit, loaded, tokens }));
    }
    let folder = work.reference.as_ref().context("DPO without a reference")?;
    let reference = Decoder::load(folder, Device::Cpu)?.with_precision(precision)?;
    let reference = if work.way.split('+').any(|word| word == "precomputed") {
        let files = [("train", &train), ("valid", &valid)].map(|(name, set)| {
            let path = work.scratch.join(name);
            ReferenceLogps::write(&path, &reference, &set.encoded, &mut |_| (), &|| false)?;
            Ok(ReferenceLogps::open(&path, &set.encoded)?)
        });
        drop(reference);
        Reference::Logps(files.into_iter().collect::<Result<_>>()?)
    } else {
        Reference::Model(Box::new(reference))
    };
    let decoder = Decoder::load(&work.model, Device::Cpu)?;
    let loaded = loaded(weights(decoder.params())?);
    let loss = json!({ "loss": { "dpo": { "beta": work.number("beta")? } } });
    let loss = serde_json::from_value(loss)?;
    let objective = PairedObjective::new(decoder, loss, Examples::new(vec![train], valid)?, reference)?;
    let fit = begin(objective, work)?;
    Ok(Box::new(Training { fit, loaded, tokens }))
}

fn encoded((example, pair): (usize, &Pair)) -> EncodedPair {
    let branch = |ids: &Vec<u32>| Branch {
        ids: ids.clone(),
        n_learnt: ids.len(),
    };
    EncodedPair {
        prompt: pair.prompt.clone(),
        chosen: branch(&pair.chosen),
        rejected: branch(&pair.rejected),
        example,
    }
}

/// The rows of a batch as two sequences for each pair.
fn first_batch(pairs: &[&Pair]) -> Data {
    let both = |pair: &&Pair| [&pair.chosen, &pair.rejected].map(|side| [&pair.prompt[..], side].concat());
    let rows: Vec<Vec<u32>> = pairs.iter().flat_map(both).collect();
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let learnt = pairs.iter().map(|pair| pair.chosen.len() + pair.rejected.len());
    data(&rows, learnt.sum())
}
