//! One self-labelled round: replies of the current model to training prompts, labelled by classifier A,
//! balanced.

use std::path::Path;

use anyhow::{Context, Result};
use rand::RngCore;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use unsay_data::{Example, Label, Limits, stream, write_examples};
use unsay_rl::{Counts, RolloutSettings, label, rollout, select};

use super::models::BATCH;
use super::{Outcome, Work};
use crate::manifest::question::Iterate;
use crate::plan::{Checkpoint, Which};
use crate::store::write_atomic;

/// The labelled replies that are trained on.
pub(super) const REPLIES: &str = "replies.jsonl";
/// What was generated, labelled and kept.
pub(super) const SELECTION: &str = "selection.json";

/// What was generated, labelled and kept.
#[derive(Debug, Serialize, Deserialize)]
pub struct SelectionFile {
    /// Replies left out because they were cut at the length limit.
    pub unfinished: usize,
    /// Numbers by rule, of the others.
    pub counts: Counts,
    /// Why it is what it is.
    pub outcome: unsay_rl::Outcome,
    /// Share of replies that classifier A calls positive, before balancing.
    pub positive_share: Option<f64>,
}

impl SelectionFile {
    /// Reads what a rollout step wrote.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(SELECTION);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("`{}` is not as written", path.display()))
    }
}

/// Generates, labels, selects.
pub(super) fn run(work: &Work<'_>, iteration: u32, iterate: &Iterate, limits: &Limits) -> Result<Outcome> {
    let seed = stream(work.step.seed, "own replies", u64::from(iteration)).next_u64();
    let decoder = work
        .decoder("model", Checkpoint::Best)?
        .with_precision(iterate.precision)?;
    let tokenizer = work.tokenizer()?;
    let prompts = distinct_prompts(work.examples("feedback", "train")?, iterate.prompts, seed);
    let settings = RolloutSettings {
        samples_per_prompt: iterate.per_prompt,
        batch: BATCH,
        sampling: iterate.sampling.clone(),
    };
    let total = prompts.len() * iterate.per_prompt;
    work.meter.start("replies", total as u64, 0);
    let replies = rollout(&decoder, &tokenizer, limits, &prompts, &settings, seed, &mut |done| {
        work.meter.set(done as u64)
    })?;
    if work.stop.asked() {
        return Ok(Outcome::Stopped);
    }
    // A reply cut at the length limit did not end there, and training would teach it to: it is left out.
    let (replies, cut): (Vec<_>, Vec<_>) = replies.into_iter().partition(|r| r.finished);
    let judge = work.models().judge(work.step, Which::A, limits, iterate.precision)?;
    let candidates = label(&judge, &prompts, &replies, 0.5)?;
    let labelled = candidates.iter().filter(|c| c.label != Label::Unlabelled).count();
    let positive = candidates.iter().filter(|c| c.label == Label::Positive).count();
    let selection = select(&candidates, iterate.max_copies, &mut stream(seed, "selection order", 0))?;
    let mut examples = selection.examples;
    for example in &mut examples {
        example.id = format!("own-{iteration}/{}", example.id);
    }
    let file = SelectionFile {
        positive_share: (labelled > 0).then(|| positive as f64 / labelled as f64),
        unfinished: cut.len(),
        counts: selection.counts,
        outcome: selection.outcome,
    };
    // A round that keeps nothing is an outcome, told in the selection file; there is no file of no examples.
    if !examples.is_empty() {
        write_examples(work.dir.join(REPLIES), &examples)?;
    }
    write_atomic(
        &work.dir.join(SELECTION),
        serde_json::to_string_pretty(&file)?.as_bytes(),
    )?;
    Ok(Outcome::Done)
}

/// The first example of every distinct prompt, in a shuffled order, at most `n`.
pub(super) fn distinct_prompts(examples: Vec<Example>, n: usize, seed: u64) -> Vec<Example> {
    let mut seen = std::collections::HashSet::new();
    let mut distinct: Vec<Example> = examples.into_iter().filter(|e| seen.insert(e.prompt.clone())).collect();
    distinct.shuffle(&mut stream(seed, "prompts", 0));
    distinct.truncate(n);
    distinct
}
