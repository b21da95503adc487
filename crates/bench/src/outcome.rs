//! What cases come to: everything that a results folder keeps of them.

use serde::{Deserialize, Serialize};

use crate::statistics::Median;

/// What a case came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The case.
    pub(crate) name: String,
    /// What it is, in words.
    pub(crate) about: String,
    /// The commit of the project.
    pub(crate) commit: String,
    /// Steps in a turn.
    pub(crate) steps: usize,
    /// Turns of each side.
    pub(crate) rounds: usize,
    /// What each side took.
    pub(crate) sides: Vec<Cost>,
    /// What was seen to be equal before time was taken, and how nearly.
    pub(crate) checks: Vec<Check>,
    /// Ratios.
    pub(crate) ratios: Vec<Ratio>,
    /// What must not be exceeded.
    pub(crate) limits: Vec<Limit>,
}

/// A case that came to nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The case.
    pub(crate) name: String,
    /// What it is, in words.
    pub(crate) about: String,
    /// The commit of the project.
    pub(crate) commit: String,
    /// What went wrong, in a line.
    pub(crate) why: String,
}

/// A figure of ours that must not exceed another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Limit {
    /// What it is, with its unit.
    pub(crate) what: String,
    /// The figure.
    pub(crate) value: Median,
    /// At most so much is wanted.
    pub(crate) at_most: f64,
}

/// What a side took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// `unsay` or `python`.
    pub(crate) who: String,
    /// How it worked: see [`crate::cases::Side::way`].
    pub(crate) way: String,
    /// Seconds of a step, over turns.
    pub(crate) secs: Median,
    /// Seconds of a step in each turn.
    pub(crate) turns: Vec<f64>,
    /// Seconds of processors per step, the median over turns; of whole programs not known.
    pub(crate) cpu_secs: Option<f64>,
    /// Tokens per step, the mean over turns.
    pub(crate) tokens: f64,
    /// Tokens per second, the median over turns.
    pub(crate) tokens_per_sec: f64,
    /// The most memory that the process ever had, in MiB.
    pub(crate) peak_mib: f64,
    /// The same beyond what it had when its libraries were loaded; of whole programs not known.
    pub(crate) peak_above_mib: Option<f64>,
}

/// A ratio and what was wanted of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ratio {
    /// Our way.
    pub(crate) ours: String,
    /// Their way.
    pub(crate) theirs: String,
    /// Our tokens per second over theirs, turn by turn.
    pub(crate) ratio: Median,
    /// At least so much is wanted.
    pub(crate) goal: Option<f64>,
    /// Our peak of memory over theirs.
    pub(crate) memory: f64,
    /// The same beyond loaded libraries.
    pub(crate) memory_above: Option<f64>,
}

/// Two numbers that have to be equal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Check {
    /// What they are.
    pub(crate) what: String,
    /// Our way.
    pub(crate) ours_way: String,
    /// Their way.
    pub(crate) theirs_way: String,
    /// Ours.
    pub(crate) ours: f64,
    /// Theirs.
    pub(crate) theirs: f64,
}
