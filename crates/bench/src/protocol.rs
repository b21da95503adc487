//! What driver and workers say to each other: a line of JSON each.
//!
//! The driver asks, the worker answers; a worker that waits for a question does nothing. Ours and theirs speak the same
//! lines, so that the driver cannot treat them differently.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What the driver asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Load model and data; answered with [`Answer::Loaded`].
    Load(Box<Work>),
    /// Make so many steps, or complete the prompts so many times; answered with [`Answer::Ran`].
    Run {
        /// How many.
        n: usize,
    },
    /// End; not answered.
    Quit,
}

/// What a worker is to do, with everything that decides a number in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Work {
    /// What is done.
    pub(crate) task: Task,
    /// How it is done, in the words of the side: see `cases::Way`.
    pub(crate) way: String,
    /// The model: a Hugging Face folder.
    pub(crate) model: PathBuf,
    /// The reference model of the tasks that have one.
    pub(crate) reference: Option<PathBuf>,
    /// Examples or prompts: [`crate::material::Material`] as JSON.
    pub(crate) data: PathBuf,
    /// Where a worker may write.
    pub(crate) scratch: PathBuf,
    /// Examples per step, or prompts at a time.
    pub(crate) batch: usize,
    /// Numbers of the task: `lr`, `alpha`, `k`, `beta`, `new_tokens`.
    pub(crate) numbers: BTreeMap<String, f64>,
}

impl Work {
    /// One of [`Work::numbers`].
    pub(crate) fn number(&self, name: &str) -> anyhow::Result<f64> {
        let found = self.numbers.get(name);
        found
            .copied()
            .ok_or_else(|| anyhow::anyhow!("the work has no number `{name}`"))
    }
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Task {
    /// A step of likelihood on completions.
    Sft,
    /// A step of CRINGE, half of the examples negative.
    Cringe,
    /// A step of DPO on pairs.
    Dpo,
    /// A step of a reward model on pairs.
    Reward,
    /// Completions of all prompts, greedy.
    Greedy,
    /// Completions of all prompts, sampled, that end at different lengths.
    Sample,
}

/// What a worker answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Said once at the start, when all libraries are loaded and nothing else.
    Hello(Hello),
    /// Model and data are ready.
    Loaded(Loaded),
    /// The steps are made.
    Ran(Ran),
    /// It cannot be done; the worker ends.
    Failed {
        /// Why.
        why: String,
    },
}

/// A worker before it has loaded anything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Threads of libtorch's own loops.
    pub(crate) threads: usize,
    /// Versions of what it is made of, by name.
    pub(crate) versions: BTreeMap<String, String>,
    /// SHA-256 of the `libtorch_cpu` that is mapped into the process.
    pub(crate) libtorch: String,
    /// Resident memory in MiB.
    pub(crate) rss_mib: f64,
}

/// What a worker found in model and data; equal on both sides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Loaded {
    /// The weights as loaded.
    pub(crate) weights: Weights,
    /// The first batch, or all prompts.
    pub(crate) data: Data,
    /// The kind that products are computed in: `float32`, `bfloat16`.
    pub(crate) compute: String,
}

/// Weights in three numbers. Tied weights count once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Weights {
    /// How many.
    pub(crate) n: u64,
    /// Their sum, in double precision.
    pub(crate) sum: f64,
    /// The sum of their absolute values.
    pub(crate) abs: f64,
}

/// Tokens in three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Data {
    /// Tokens that go through the model.
    pub(crate) tokens: u64,
    /// Tokens that are learnt; of prompts, tokens to be made.
    pub(crate) targets: u64,
    /// The sum over all tokens of the id times its place, counted from 1 and row after row.
    pub(crate) checksum: u64,
}

/// What steps took and gave.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ran {
    /// Seconds of the clock of each step.
    pub(crate) secs: Vec<f64>,
    /// Seconds that all of them kept processors busy.
    pub(crate) cpu_secs: f64,
    /// Tokens of each step: those that went through the model in training, new ones in generation.
    pub(crate) tokens: Vec<u64>,
    /// Values of each step by name, such as `loss`.
    pub(crate) values: BTreeMap<String, Vec<f64>>,
    /// The completions of the last step of generation, in the order of the prompts.
    #[serde(default)]
    pub(crate) ids: Vec<Vec<u32>>,
    /// Resident memory now, in MiB.
    pub(crate) rss_mib: f64,
    /// The most that ever was resident.
    pub(crate) peak_mib: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_short_lines() {
        let line = |ask: &Ask| serde_json::to_string(ask).unwrap();
        assert_eq!(line(&Ask::Run { n: 3 }), r#"{"do":"run","n":3}"#);
        assert_eq!(line(&Ask::Quit), r#"{"do":"quit"}"#);
        let read: Ask = serde_json::from_str(r#"{"do":"run","n":3}"#).unwrap();
        assert_eq!(read, Ask::Run { n: 3 });
    }

    #[test]
    fn an_answer_without_completions_is_read() {
        let line =
            r#"{"is":"ran","secs":[0.5],"cpu_secs":1,"tokens":[64],"values":{"loss":[9.0]},"rss_mib":1,"peak_mib":2}"#;
        let Answer::Ran(ran) = serde_json::from_str(line).unwrap() else {
            panic!("{line}")
        };
        assert_eq!((ran.tokens[0], ran.ids.len()), (64, 0));
        assert!(serde_json::from_str::<Answer>(r#"{"is":"well"}"#).is_err());
    }
}
