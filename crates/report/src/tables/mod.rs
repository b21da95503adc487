//! The three long-form tables that everything else is made from.

mod columns;
mod parquet;
mod rows;

use std::path::Path;

pub use columns::Kind;
pub use parquet::{read_rows, write_rows};
pub use rows::{Row, RunRow, ScoreRow, StepRow};

use crate::error::Result;

/// All results of one experiment and profile.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tables {
    /// One number per arm, seed, checkpoint, metric and subset (`runs.parquet`).
    pub runs: Vec<RunRow>,
    /// One number per training step and metric (`steps.parquet`).
    pub steps: Vec<StepRow>,
    /// One number per example and evaluator (`scores.parquet`).
    pub scores: Vec<ScoreRow>,
}

impl Tables {
    /// Reads the three tables of a results folder.
    pub fn read(dir: &Path) -> Result<Self> {
        Ok(Self {
            runs: read_rows(&dir.join(RunRow::FILE))?,
            steps: read_rows(&dir.join(StepRow::FILE))?,
            scores: read_rows(&dir.join(ScoreRow::FILE))?,
        })
    }

    /// Writes the three tables into a results folder, each atomically, sorted by their keys. Equal rows in any order give
    /// equal bytes.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_rows(&dir.join(RunRow::FILE), &self.runs)?;
        write_rows(&dir.join(StepRow::FILE), &self.steps)?;
        write_rows(&dir.join(ScoreRow::FILE), &self.scores)
    }

    /// Every arm of any table, sorted.
    pub fn arms(&self) -> Vec<String> {
        let arms: std::collections::BTreeSet<&str> = (self.runs.iter().map(|row| row.arm.as_str()))
            .chain(self.steps.iter().map(|row| row.arm.as_str()))
            .chain(self.scores.iter().map(|row| row.arm.as_str()))
            .collect();
        arms.into_iter().map(str::to_owned).collect()
    }
}
