//! What can go wrong between a table and a page.

use std::path::{Path, PathBuf};

/// Why a table, a statistic, a figure or a summary could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no readable Parquet file.
    #[error("`{}` is not a readable Parquet file: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        why: String,
    },
    /// The columns differ from those of the table.
    #[error("`{}` has other columns than a `{table}` table: {why}; expected {expected}", path.display())]
    Columns {
        /// The file.
        path: PathBuf,
        /// Name of the table.
        table: &'static str,
        /// The first difference.
        why: String,
        /// Every column with its type.
        expected: String,
    },
    /// A table without a row.
    #[error("`{}` holds no rows: a `{table}` table needs at least one", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// Name of the table.
        table: &'static str,
    },
    /// A row that must not be in a table.
    #[error("bad row in `{}`: {why}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Which row and why.
        why: String,
    },
    /// Polars failed on data that was accepted.
    #[error("cannot encode `{}`: {why}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// What polars said.
        why: String,
    },
    /// A parameter outside its range.
    #[error("`{name}` must be {expected}, got {got}")]
    Range {
        /// The parameter.
        name: &'static str,
        /// What is allowed.
        expected: String,
        /// What was given.
        got: String,
    },
    /// No values to compute a statistic from.
    #[error("no values for {what}")]
    NoValues {
        /// The statistic.
        what: &'static str,
    },
    /// A value that is NaN or infinite.
    #[error("{what} needs finite numbers, got {got} at position {position}")]
    NotFinite {
        /// The statistic.
        what: &'static str,
        /// The value.
        got: f64,
        /// Where it stands in the input.
        position: usize,
    },
    /// The same example was scored twice for one seed.
    #[error("example `{example}` of seed {seed} is given twice in {what}")]
    Twice {
        /// Which side of the comparison.
        what: &'static str,
        /// The seed.
        seed: u64,
        /// The example.
        example: String,
    },
    /// A figure or summary asks for a metric that the tables lack.
    #[error(
        "{wanted_by} needs {metric}, which the {table} table lacks; it has: {}",
        list(present)
    )]
    MissingMetric {
        /// The figure or summary.
        wanted_by: String,
        /// The metric as asked for.
        metric: String,
        /// `runs`, `steps` or `scores`.
        table: &'static str,
        /// Every metric of that table.
        present: Vec<String>,
    },
    /// A figure or summary names an arm that the tables lack.
    #[error(
        "{wanted_by} names arm `{arm}`, which is in none of the tables; they have: {}",
        list(present)
    )]
    MissingArm {
        /// The figure or summary.
        wanted_by: String,
        /// The arm.
        arm: String,
        /// Every arm of the tables.
        present: Vec<String>,
    },
    /// A figure or summary that cannot be drawn as described.
    #[error("{wanted_by}: {why}")]
    Spec {
        /// The figure or summary.
        wanted_by: String,
        /// What is wrong.
        why: String,
    },
    /// One seed has several accuracies for one judge.
    #[error("`{metric}` ({subset}) of seed {seed} is {first} and also {second}; a judge has one accuracy per seed")]
    TwoAccuracies {
        /// The accuracy metric.
        metric: String,
        /// Its subset.
        subset: String,
        /// The seed.
        seed: u64,
        /// One value.
        first: f64,
        /// Another.
        second: f64,
    },
    /// The drawing library failed.
    #[error("cannot draw `{name}`: {why}")]
    Draw {
        /// The figure.
        name: String,
        /// What the library said.
        why: String,
    },
}

/// Shorthand for this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}
