//! Comma-separated values with a header line.

use std::path::Path;

use ::csv::{ByteRecord, ErrorKind, Reader, ReaderBuilder};
use serde_json::Value;

use super::jsonl::bad_byte;
use crate::error::{Error, Place, Result};
use crate::shapes::Fields;

fn open(path: &Path) -> Result<Reader<std::fs::File>> {
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    Ok(ReaderBuilder::new().from_reader(file))
}

/// The names in the header.
pub(super) fn columns(path: &Path) -> Result<(Vec<String>, Place)> {
    let mut reader = open(path)?;
    let header = reader.byte_headers().map_err(|e| failed(path, e))?;
    let place = Place::line(path, 1);
    let names = texts(header, &place)?;
    if names.iter().all(String::is_empty) {
        return Err(Error::NoRows {
            path: path.to_path_buf(),
        });
    }
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            return Err(place.malformed("a name for every column", format!("`{name}` twice")));
        }
    }
    Ok((names, place))
}

/// Calls `each` with every row; a row is named by the line on which it begins.
pub(super) fn each_row(path: &Path, each: &mut dyn FnMut(Place, Fields) -> Result<()>) -> Result<()> {
    let (names, _) = columns(path)?;
    let mut reader = open(path)?;
    let mut record = ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(|e| failed(path, e))? {
        let line = record.position().map_or(0, ::csv::Position::line);
        let place = Place::line(path, line);
        let values = texts(&record, &place)?.into_iter().map(Value::String);
        each(place, names.iter().cloned().zip(values).collect())?;
    }
    Ok(())
}

fn texts(record: &ByteRecord, place: &Place) -> Result<Vec<String>> {
    let text = |cell: &[u8]| match std::str::from_utf8(cell) {
        Ok(text) => Ok(text.to_owned()),
        Err(e) => Err(place.clone().malformed("UTF-8 text", bad_byte(cell, e))),
    };
    record.iter().map(text).collect()
}

fn failed(path: &Path, error: ::csv::Error) -> Error {
    let line = error.position().map(::csv::Position::line);
    let place = Place {
        path: path.into(),
        line,
        column: None,
    };
    match error.into_kind() {
        ErrorKind::Io(source) => Error::io("read", path)(source),
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            place.malformed(format!("{expected_len} cells as in the header"), len.to_string())
        }
        other => place.malformed("comma-separated values", format!("{other:?}")),
    }
}
