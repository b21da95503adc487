//! Our own normal form: one example per line of JSON.

use std::path::Path;

use crate::atomic;
use crate::error::{Error, Place, Result};
use crate::record::Example;

use super::jsonl;

/// Reads examples written by [`write_examples`]. The file may be compressed (`.gz`).
///
/// # Errors
/// When the file is unreadable or has no rows, and with its line when a row is no example or has an
/// empty completion.
pub fn read_examples(path: impl AsRef<Path>) -> Result<Vec<Example>> {
    let path = path.as_ref();
    let mut examples = Vec::new();
    jsonl::each_line(path, |number, text| {
        let example: Example = jsonl::parse(path, number, text, "an example")?;
        if example.completion.trim().is_empty() {
            return Err(Error::EmptyCompletion {
                place: Place::line(path, number),
            });
        }
        examples.push(example);
        Ok(())
    })?;
    if examples.is_empty() {
        return Err(Error::NoRows {
            path: path.to_path_buf(),
        });
    }
    Ok(examples)
}

/// Writes examples as plain JSON Lines, all or none: a reader never sees a part of the file.
///
/// # Errors
/// When there is no example or the file cannot be written.
pub fn write_examples(path: impl AsRef<Path>, examples: &[Example]) -> Result<()> {
    let path = path.as_ref();
    if examples.is_empty() {
        return Err(Error::NoRows {
            path: path.to_path_buf(),
        });
    }
    atomic::write(path, |mut w| {
        for example in examples {
            serde_json::to_writer(&mut w, example)?;
            w.write_all(b"\n")?;
        }
        Ok(())
    })
}
