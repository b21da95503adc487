//! Datasets in files of your own: JSON Lines, CSV and Parquet.

mod csv;
mod examples;
pub(crate) mod jsonl;
mod parquet;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::columns::Columns;
use crate::error::{Error, Place, Result};
use crate::hash;
use crate::record::{Example, Splits};
use crate::shapes::{Fields, Shape};

pub use examples::{read_examples, write_examples};

/// Grows when the same files would be read as other examples.
const VERSION: u32 = 1;

/// A dataset in three files, as written in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// The training split.
    pub train: PathBuf,
    /// The validation split.
    pub valid: PathBuf,
    /// The test split.
    pub test: PathBuf,
    /// Which columns to read; without it one of the standard shapes is recognised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
}

impl Files {
    fn splits(&self) -> [(&'static str, &Path); 3] {
        [("train", &self.train), ("valid", &self.valid), ("test", &self.test)]
    }

    /// Reads the three files. Ids are `train:1`, `train:2`, … in the order of the rows.
    ///
    /// # Errors
    /// As [`read_file`].
    pub fn read(&self) -> Result<Splits> {
        let [train, valid, test] = self
            .splits()
            .map(|(split, path)| read_file(path, self.columns.as_ref(), split));
        Ok(Splits::new(train?, valid?, test?))
    }

    /// Refuses a file name of which no reader is known.
    ///
    /// # Errors
    /// When the name has another ending than those listed in the message.
    pub fn check_name(path: &Path) -> Result<()> {
        Format::of(path).map(|_| ())
    }

    /// The hash of all that decides what [`read`](Self::read) returns: contents and mapping.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut all = Sha256::new();
        all.update(VERSION.to_le_bytes());
        all.update(format!("{:?}", self.columns));
        for (_, path) in self.splits() {
            all.update(format!("{:?}", Format::of(path)?));
            all.update(hash::file(path)?);
        }
        Ok(hash::hex(&all.finalize()))
    }
}

#[derive(Clone, Copy, Debug)]
enum Format {
    JsonLines,
    Csv,
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let ends = |endings: &[&str]| endings.iter().any(|e| name.ends_with(e));
        if ends(&[".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"]) {
            Ok(Self::JsonLines)
        } else if ends(&[".csv"]) {
            Ok(Self::Csv)
        } else if ends(&[".parquet"]) {
            Ok(Self::Parquet)
        } else {
            Err(Error::UnknownFormat {
                path: path.to_path_buf(),
            })
        }
    }

    fn columns(self, path: &Path) -> Result<(Vec<String>, Place)> {
        match self {
            Self::JsonLines => jsonl::columns(path),
            Self::Csv => csv::columns(path),
            Self::Parquet => parquet::columns(path),
        }
    }

    fn each_row(self, path: &Path, needed: &[&str], each: &mut dyn FnMut(Place, Fields) -> Result<()>) -> Result<()> {
        match self {
            Self::JsonLines => jsonl::each_row(path, each),
            Self::Csv => csv::each_row(path, each),
            Self::Parquet => parquet::each_row(path, needed, each),
        }
    }
}

/// Reads one file; the row numbered `n` (from 1) gives the example with the id `<split>:<n>`.
///
/// `seen_prompt` is false everywhere: it is known only with the training split beside it.
///
/// # Errors
/// When the file is unreadable or has no rows, with file and line when a row lacks a column, has
/// an empty completion, a value of the wrong kind, or a label that is not mapped.
pub fn read_file(path: &Path, columns: Option<&Columns>, split: &str) -> Result<Vec<Example>> {
    let format = Format::of(path)?;
    let (found, place) = format.columns(path)?;
    let shape = Shape::of(columns, &found, &place)?;
    let needed = shape.needed();
    if let Some(column) = needed.iter().find(|n| !found.iter().any(|f| f == *n)) {
        return Err(crate::shapes::missing(&place, column, found.iter()));
    }
    let mut examples = Vec::new();
    let mut number = 0u64;
    format.each_row(path, &needed, &mut |place, fields| {
        number += 1;
        shape.examples(&format!("{split}:{number}"), &place, &fields, &mut examples)
    })?;
    if examples.is_empty() {
        return Err(Error::NoRows {
            path: path.to_path_buf(),
        });
    }
    Ok(examples)
}
