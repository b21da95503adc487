//! Measures one model: replies to held-out prompts judged for safety, replies to benign dialogue compared with
//! gold ones, log-probabilities of held-out replies. Every measure gives one number per example.

use anyhow::{Context, Result};
use rand::RngCore;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use unsay_data::{Example, Label, Limits, Tokenizer, stream};
use unsay_eval::{Evaluation, Generation, Likelihood, Scorer, find, likelihoods};
use unsay_model::{Decoder, Precision, Sampling};
use unsay_reward::{Judge, OracleJudge};
use unsay_rl::{RolloutSettings, rollout};

use super::models::BATCH;
use super::rollout::distinct_prompts;
use super::{Outcome, Work};
use crate::manifest::question::{EvalSplit, Evaluate, JudgeName};
use crate::plan::{Checkpoint, Which};
use crate::store::write_atomic;

/// One score a line.
pub(super) const SCORES: &str = "scores.jsonl";
/// Values over all examples.
pub(super) const SUMMARY: &str = "summary.json";
/// The replies.
pub(super) const GENERATIONS: &str = "generations.jsonl";

/// Examples of a measure's own set.
const ALL: &str = "all";
/// Those whose prompt does not occur in training.
const UNSEEN: &str = "unseen";
/// Measures of replies that belong to the prompts, taken on the benign dialogue too.
const DIALOGUE: &str = "dialogue";

/// What one evaluation found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct EvaluationFile {
    /// Measure, subset, value, number of examples.
    pub values: Vec<(String, String, f64, u64)>,
    /// Prompt and reply of the samples shown side by side.
    pub samples: Vec<Sample>,
    /// Evaluator, subset, example, value; in a file of its own.
    #[serde(skip)]
    pub scores: Vec<(String, String, String, f64)>,
}

/// One sample.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sample {
    /// From the manifest.
    pub prompt: String,
    /// What the model said.
    pub completion: String,
}

impl EvaluationFile {
    /// Reads what an evaluation step wrote.
    pub fn read(dir: &std::path::Path) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))
        };
        let bad = |name: &str, line: usize| format!("`{}:{line}` is not as written", dir.join(name).display());
        let parse = || -> Result<Self> {
            let mut file: Self = serde_json::from_str(&read(SUMMARY)?).with_context(|| bad(SUMMARY, 1))?;
            for (i, line) in read(SCORES)?.lines().enumerate() {
                file.scores
                    .push(serde_json::from_str(line).with_context(|| bad(SCORES, i + 1))?);
            }
            Ok(file)
        };
        parse().with_context(|| super::unreadable(dir))
    }

    fn add(&mut self, found: Evaluation, subset: &str) {
        self.values.extend(
            found
                .corpus
                .into_iter()
                .map(|a| (a.name, subset.to_owned(), a.value, a.n as u64)),
        );
        self.scores.extend(
            found
                .scores
                .into_iter()
                .map(|s| (s.evaluator, subset.to_owned(), s.example, s.value)),
        );
    }
}

/// A model with what it needs to speak.
struct Speaker<'a> {
    work: &'a Work<'a>,
    decoder: Decoder,
    tokenizer: Tokenizer,
    limits: Limits,
}

impl Speaker<'_> {
    fn replies(&self, what: &str, examples: &[Example], sampling: &Sampling, gold: bool) -> Result<Vec<Generation>> {
        let settings = RolloutSettings {
            samples_per_prompt: 1,
            batch: BATCH,
            sampling: sampling.clone(),
        };
        let seed = stream(self.work.step.seed, what, 0).next_u64();
        self.work.meter.start(what, examples.len() as u64, 0);
        let mut progress = |done: usize| self.work.meter.set(done as u64);
        let replies = rollout(
            &self.decoder,
            &self.tokenizer,
            &self.limits,
            examples,
            &settings,
            seed,
            &mut progress,
        )?;
        let generation = |reply: unsay_rl::Rollout| {
            let example = &examples[reply.prompt];
            Generation {
                example: example.id.clone(),
                prompt: example.prompt.clone(),
                completion: reply.completion,
                tokens: reply.ids,
                finished: reply.finished,
                gold: gold.then(|| example.completion.clone()),
            }
        };
        Ok(replies.into_iter().map(generation).collect())
    }

    fn likelihoods(&self, examples: &[Example]) -> Result<Vec<Likelihood>> {
        Ok(likelihoods(&self.decoder, &self.tokenizer, &self.limits, examples, BATCH)?.rows)
    }
}

/// What is measured on.
struct Sets {
    prompts: Vec<Example>,
    dialogue: Vec<Example>,
    replies: Vec<Example>,
}

impl Sets {
    /// The same for every arm and every seed, so that scores can be paired.
    fn read(work: &Work<'_>, evaluate: &Evaluate) -> Result<Self> {
        let split = match evaluate.split {
            EvalSplit::Valid => "valid",
            EvalSplit::Test => "test",
        };
        let feedback = work.examples("feedback", split)?;
        let mut replies: Vec<Example> = feedback
            .iter()
            .filter(|e| e.label != Label::Unlabelled)
            .cloned()
            .collect();
        let mut dialogue = work.examples("dialogue", split)?;
        for (set, n) in [(&mut replies, evaluate.replies), (&mut dialogue, evaluate.dialogues)] {
            set.shuffle(&mut stream(0, "evaluation set", 0));
            set.truncate(n);
        }
        Ok(Self {
            prompts: distinct_prompts(feedback, evaluate.prompts, 0),
            dialogue,
            replies,
        })
    }
}

/// Measures and writes.
pub(super) fn run(
    work: &Work<'_>,
    checkpoint: Checkpoint,
    evaluate: &Evaluate,
    limits: &Limits,
    samples: &[String],
) -> Result<Outcome> {
    let speaker = Speaker {
        work,
        decoder: work.decoder("model", checkpoint)?.with_precision(evaluate.precision)?,
        tokenizer: work.tokenizer()?,
        limits: *limits,
    };
    let sets = Sets::read(work, evaluate)?;
    let on_prompts = speaker.replies("replies to prompts", &sets.prompts, &evaluate.sampling, false)?;
    if work.stop.asked() {
        return Ok(Outcome::Stopped);
    }
    let on_dialogue = speaker.replies("replies to dialogue", &sets.dialogue, &evaluate.quality_sampling, true)?;
    if work.stop.asked() {
        return Ok(Outcome::Stopped);
    }
    let unseen = unseen_of(&sets.prompts, &on_prompts);
    let mut file = EvaluationFile::default();
    for name in &evaluate.measures {
        match find(name)?.scorer {
            Scorer::Generations(score) => {
                file.add(score(&on_prompts)?, ALL);
                file.add(score(&on_dialogue)?, DIALOGUE);
                if let Some(unseen) = &unseen {
                    file.add(score(unseen)?, UNSEEN);
                }
            }
            Scorer::GoldGenerations(score) => file.add(score(&on_dialogue)?, ALL),
            Scorer::JudgedGenerations(score) => {
                for judge in &evaluate.judges {
                    let judge = self::judge(work, *judge, limits, evaluate.precision)?;
                    file.add(score(&on_prompts, judge.as_ref(), 0.5)?, ALL);
                    if let Some(unseen) = &unseen {
                        file.add(score(unseen, judge.as_ref(), 0.5)?, UNSEEN);
                    }
                }
            }
            Scorer::Likelihoods(score) if name == "perplexity" => {
                file.add(score(&speaker.likelihoods(&sets.dialogue)?)?, ALL);
            }
            Scorer::Likelihoods(score) => file.add(score(&speaker.likelihoods(&sets.replies)?)?, ALL),
        }
    }
    file.samples = self::samples(&speaker, samples, &evaluate.sampling)?;
    write(work, &file, &[on_prompts, on_dialogue].concat())?;
    Ok(Outcome::Done)
}

/// The replies to prompts that do not occur in training, where some do and some do not.
fn unseen_of(prompts: &[Example], replies: &[Generation]) -> Option<Vec<Generation>> {
    let seen = prompts.iter().filter(|e| e.seen_prompt).count();
    if seen == 0 || seen == prompts.len() {
        return None;
    }
    Some(
        prompts
            .iter()
            .zip(replies)
            .filter(|(e, _)| !e.seen_prompt)
            .map(|(_, r)| r.clone())
            .collect(),
    )
}

fn judge(work: &Work<'_>, name: JudgeName, limits: &Limits, precision: Precision) -> Result<Box<dyn Judge>> {
    Ok(match name {
        JudgeName::Oracle => Box::new(OracleJudge),
        JudgeName::A => Box::new(work.models().judge(work.step, Which::A, limits, precision)?),
        JudgeName::B => Box::new(work.models().judge(work.step, Which::B, limits, precision)?),
    })
}

fn samples(speaker: &Speaker<'_>, prompts: &[String], sampling: &Sampling) -> Result<Vec<Sample>> {
    if prompts.is_empty() {
        return Ok(Vec::new());
    }
    let example = |(i, prompt): (usize, &String)| Example {
        id: format!("sample-{i}"),
        prompt: prompt.clone(),
        completion: String::new(),
        label: Label::Unlabelled,
        seen_prompt: false,
        messages: Vec::new(),
    };
    let examples: Vec<Example> = prompts.iter().enumerate().map(example).collect();
    let replies = speaker.replies("samples", &examples, sampling, false)?;
    Ok(replies
        .into_iter()
        .map(|r| Sample {
            prompt: r.prompt,
            completion: r.completion,
        })
        .collect())
}

fn write(work: &Work<'_>, file: &EvaluationFile, replies: &[Generation]) -> Result<()> {
    fn lines<T: Serialize>(rows: &[T]) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for row in rows {
            serde_json::to_writer(&mut out, row)?;
            out.push(b'\n');
        }
        Ok(out)
    }
    write_atomic(&work.dir.join(SCORES), &lines(&file.scores)?)?;
    write_atomic(&work.dir.join(GENERATIONS), &lines(replies)?)?;
    write_atomic(&work.dir.join(SUMMARY), serde_json::to_string_pretty(file)?.as_bytes())?;
    Ok(())
}
