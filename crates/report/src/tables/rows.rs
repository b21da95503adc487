//! What a row of each table holds.

use std::cmp::Ordering;

use polars::prelude::Column;

use super::columns::{Frame, Kind, count, number, optional_count, text};
use crate::error::Result;

/// A number of one trained model.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    /// The arm of the manifest.
    pub arm: String,
    /// The run seed.
    pub seed: u64,
    /// Which weights: `best` by validation, `last`, or another name such as `base`.
    pub checkpoint: String,
    /// What was measured.
    pub metric: String,
    /// On which examples.
    pub subset: String,
    /// The number.
    pub value: f64,
    /// From how many examples.
    pub n: u64,
}

/// A number of one training step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRow {
    /// The arm of the manifest.
    pub arm: String,
    /// The run seed.
    pub seed: u64,
    /// Which training: `pretrain`, `train`, `iteration-2`, `classifier-a`.
    pub phase: String,
    /// The step within the phase.
    pub step: u64,
    /// What was measured.
    pub metric: String,
    /// The number.
    pub value: f64,
}

/// A number of one example.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreRow {
    /// The arm of the manifest.
    pub arm: String,
    /// The run seed.
    pub seed: u64,
    /// Which weights.
    pub checkpoint: String,
    /// After which training of an iterative arm, from 1; none for the final model of an arm.
    pub iteration: Option<u32>,
    /// Who scored.
    pub evaluator: String,
    /// The set that the example belongs to.
    pub subset: String,
    /// The example's id.
    pub example: String,
    /// The number.
    pub value: f64,
}

/// A row type with its file and columns.
pub trait Row: Clone + Sized {
    /// Name of the table.
    const TABLE: &'static str;
    /// Name of its file in a results folder.
    const FILE: &'static str;
    /// Its columns in order.
    const COLUMNS: &'static [(&'static str, Kind)];
    /// Order of rows in the file. Equal means: the same number twice.
    fn order(&self, other: &Self) -> Ordering;
    /// The value.
    fn value(&self) -> f64;
    /// The row in words, for messages.
    fn describe(&self) -> String;
    /// Rows to columns.
    fn columns(rows: &[&Self]) -> Vec<Column>;
    /// Columns to rows.
    fn rows(frame: &Frame<'_>) -> Result<Vec<Self>>;
}

impl Row for RunRow {
    const TABLE: &'static str = "runs";
    const FILE: &'static str = "runs.parquet";
    const COLUMNS: &'static [(&'static str, Kind)] = &[
        ("arm", Kind::Text),
        ("seed", Kind::Count),
        ("checkpoint", Kind::Text),
        ("metric", Kind::Text),
        ("subset", Kind::Text),
        ("value", Kind::Number),
        ("n", Kind::Count),
    ];

    fn order(&self, other: &Self) -> Ordering {
        (&self.arm, self.seed, &self.checkpoint, &self.metric, &self.subset).cmp(&(
            &other.arm,
            other.seed,
            &other.checkpoint,
            &other.metric,
            &other.subset,
        ))
    }

    fn value(&self) -> f64 {
        self.value
    }

    fn describe(&self) -> String {
        let Self {
            arm,
            seed,
            checkpoint,
            metric,
            subset,
            ..
        } = self;
        format!("arm `{arm}`, seed {seed}, checkpoint `{checkpoint}`, metric `{metric}`, subset `{subset}`")
    }

    fn columns(rows: &[&Self]) -> Vec<Column> {
        vec![
            text("arm", rows, |row| &row.arm),
            count("seed", rows, |row| row.seed),
            text("checkpoint", rows, |row| &row.checkpoint),
            text("metric", rows, |row| &row.metric),
            text("subset", rows, |row| &row.subset),
            number("value", rows, |row| row.value),
            count("n", rows, |row| row.n),
        ]
    }

    fn rows(frame: &Frame<'_>) -> Result<Vec<Self>> {
        let (arm, seed) = (frame.text("arm")?, frame.count("seed")?);
        let (checkpoint, metric) = (frame.text("checkpoint")?, frame.text("metric")?);
        let (subset, value, n) = (frame.text("subset")?, frame.number("value")?, frame.count("n")?);
        Ok((0..frame.height())
            .map(|i| Self {
                arm: arm[i].to_owned(),
                seed: seed[i],
                checkpoint: checkpoint[i].to_owned(),
                metric: metric[i].to_owned(),
                subset: subset[i].to_owned(),
                value: value[i],
                n: n[i],
            })
            .collect())
    }
}

impl Row for StepRow {
    const TABLE: &'static str = "steps";
    const FILE: &'static str = "steps.parquet";
    const COLUMNS: &'static [(&'static str, Kind)] = &[
        ("arm", Kind::Text),
        ("seed", Kind::Count),
        ("phase", Kind::Text),
        ("step", Kind::Count),
        ("metric", Kind::Text),
        ("value", Kind::Number),
    ];

    fn order(&self, other: &Self) -> Ordering {
        // Steps of one metric lie together: that is how curves are read, and it compresses best.
        (&self.arm, self.seed, &self.phase, &self.metric, self.step).cmp(&(
            &other.arm,
            other.seed,
            &other.phase,
            &other.metric,
            other.step,
        ))
    }

    fn value(&self) -> f64 {
        self.value
    }

    fn describe(&self) -> String {
        let Self {
            arm,
            seed,
            phase,
            step,
            metric,
            ..
        } = self;
        format!("arm `{arm}`, seed {seed}, phase `{phase}`, step {step}, metric `{metric}`")
    }

    fn columns(rows: &[&Self]) -> Vec<Column> {
        vec![
            text("arm", rows, |row| &row.arm),
            count("seed", rows, |row| row.seed),
            text("phase", rows, |row| &row.phase),
            count("step", rows, |row| row.step),
            text("metric", rows, |row| &row.metric),
            number("value", rows, |row| row.value),
        ]
    }

    fn rows(frame: &Frame<'_>) -> Result<Vec<Self>> {
        let (arm, seed, phase) = (frame.text("arm")?, frame.count("seed")?, frame.text("phase")?);
        let (step, metric, value) = (frame.count("step")?, frame.text("metric")?, frame.number("value")?);
        Ok((0..frame.height())
            .map(|i| Self {
                arm: arm[i].to_owned(),
                seed: seed[i],
                phase: phase[i].to_owned(),
                step: step[i],
                metric: metric[i].to_owned(),
                value: value[i],
            })
            .collect())
    }
}

impl Row for ScoreRow {
    const TABLE: &'static str = "scores";
    const FILE: &'static str = "scores.parquet";
    const COLUMNS: &'static [(&'static str, Kind)] = &[
        ("arm", Kind::Text),
        ("seed", Kind::Count),
        ("checkpoint", Kind::Text),
        ("iteration", Kind::OptionalCount),
        ("evaluator", Kind::Text),
        ("subset", Kind::Text),
        ("example", Kind::Text),
        ("value", Kind::Number),
    ];

    fn order(&self, other: &Self) -> Ordering {
        (&self.arm, self.seed, &self.checkpoint, self.iteration)
            .cmp(&(&other.arm, other.seed, &other.checkpoint, other.iteration))
            .then_with(|| {
                (&self.evaluator, &self.subset, &self.example).cmp(&(&other.evaluator, &other.subset, &other.example))
            })
    }

    fn value(&self) -> f64 {
        self.value
    }

    fn describe(&self) -> String {
        let Self {
            arm,
            seed,
            checkpoint,
            evaluator,
            subset,
            example,
            ..
        } = self;
        let iteration = self.iteration.map_or(String::new(), |i| format!(", iteration {i}"));
        format!(
            "arm `{arm}`, seed {seed}, checkpoint `{checkpoint}`{iteration}, evaluator `{evaluator}`, subset `{subset}`, example `{example}`"
        )
    }

    fn columns(rows: &[&Self]) -> Vec<Column> {
        vec![
            text("arm", rows, |row| &row.arm),
            count("seed", rows, |row| row.seed),
            text("checkpoint", rows, |row| &row.checkpoint),
            optional_count("iteration", rows, |row| row.iteration),
            text("evaluator", rows, |row| &row.evaluator),
            text("subset", rows, |row| &row.subset),
            text("example", rows, |row| &row.example),
            number("value", rows, |row| row.value),
        ]
    }

    fn rows(frame: &Frame<'_>) -> Result<Vec<Self>> {
        let (arm, seed) = (frame.text("arm")?, frame.count("seed")?);
        let (checkpoint, iteration) = (frame.text("checkpoint")?, frame.optional_count("iteration")?);
        let (evaluator, subset) = (frame.text("evaluator")?, frame.text("subset")?);
        let (example, value) = (frame.text("example")?, frame.number("value")?);
        Ok((0..frame.height())
            .map(|i| Self {
                arm: arm[i].to_owned(),
                seed: seed[i],
                checkpoint: checkpoint[i].to_owned(),
                iteration: iteration[i],
                evaluator: evaluator[i].to_owned(),
                subset: subset[i].to_owned(),
                example: example[i].to_owned(),
                value: value[i],
            })
            .collect())
    }
}
