//! Result tables, statistics, figures and the summary of an experiment.
//!
//! Everything after the tables is a function of the tables: `unsay report` remakes figures and summary from the three
//! Parquet files alone.

mod atomic;
mod digits;
mod error;
pub mod figures;
mod select;
pub mod stats;
mod summary;
pub mod tables;

pub use error::{Error, Result};
pub use figures::{FigureSpec, render, render_all};
pub use select::{DEFAULT_CHECKPOINT, Metric};
pub use summary::{SummarySpec, summary};
pub use tables::{RunRow, ScoreRow, StepRow, Tables};

// The made-up tables of the tests are shared with integration tests, which know this crate by name.
#[cfg(test)]
extern crate self as unsay_report;
