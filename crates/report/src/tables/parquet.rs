//! Rows to Parquet bytes and back.
//!
//! Text columns are dictionary-encoded by polars and everything is compressed with zstd, which polars' `parquet` feature
//! brings anyway.

use std::cmp::Ordering;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use polars::prelude::{DataFrame, ParallelStrategy, ParquetCompression, ParquetReader, ParquetWriter, SerReader};

use super::columns::Frame;
use super::rows::Row;
use crate::atomic;
use crate::error::{Error, Result};

/// Writes rows as a Parquet file: sorted by key, whole or not at all, byte-identical for equal rows in any order.
///
/// Refused: no rows, a value that is NaN, two rows with the same key. An infinite value is kept.
pub fn write_rows<R: Row>(path: &Path, rows: &[R]) -> Result<()> {
    let sorted = sorted(path, rows)?;
    let encode = |why: String| Error::Encode {
        path: path.to_owned(),
        why,
    };
    let mut frame = DataFrame::new(sorted.len(), R::columns(&sorted)).map_err(|e| encode(e.to_string()))?;
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes)
        .with_compression(ParquetCompression::Zstd(None))
        .set_parallel(false)
        .finish(&mut frame)
        .map_err(|e| encode(e.to_string()))?;
    atomic::write(path, &bytes)
}

/// Reads rows back and checks them: every column present with its type and none besides, at least one row, no null where
/// none is allowed, no NaN, no key twice.
pub fn read_rows<R: Row>(path: &Path) -> Result<Vec<R>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let malformed = |why: String| Error::Malformed {
        path: path.to_owned(),
        why,
    };
    check_ends(&bytes).map_err(|why| malformed(why.to_owned()))?;
    // Polars indexes and unwraps its way through some broken files instead of returning an error.
    let frame = catch_unwind(AssertUnwindSafe(|| {
        ParquetReader::new(Cursor::new(bytes))
            .read_parallel(ParallelStrategy::None)
            .finish()
    }))
    .map_err(|_| malformed("its content contradicts itself".to_owned()))?
    .map_err(|error| malformed(error.to_string()))?;
    let columns = Frame::new(&frame, path, R::TABLE, R::COLUMNS)?;
    let rows = R::rows(&columns)?;
    sorted(path, &rows)?;
    Ok(rows)
}

/// The magic words and the footer length, which catch a truncated download before polars sees it.
fn check_ends(bytes: &[u8]) -> Result<(), &'static str> {
    let n = bytes.len();
    if n < 12 || &bytes[..4] != b"PAR1" {
        return Err("it does not begin with `PAR1`");
    }
    if &bytes[n - 4..] != b"PAR1" {
        return Err("it does not end with `PAR1`; it may be cut off");
    }
    let footer = u32::from_le_bytes([bytes[n - 8], bytes[n - 7], bytes[n - 6], bytes[n - 5]]);
    if footer as usize > n - 12 {
        return Err("its footer is longer than the file");
    }
    Ok(())
}

fn sorted<'a, R: Row>(path: &Path, rows: &'a [R]) -> Result<Vec<&'a R>> {
    let bad = |why: String| Error::Row {
        path: path.to_owned(),
        why,
    };
    if rows.is_empty() {
        return Err(Error::Empty {
            path: path.to_owned(),
            table: R::TABLE,
        });
    }
    if let Some(row) = rows.iter().find(|row| row.value().is_nan()) {
        return Err(bad(format!("the value of {} is NaN", row.describe())));
    }
    let mut sorted: Vec<&R> = rows.iter().collect();
    sorted.sort_by(|a, b| a.order(b));
    match sorted.windows(2).find(|pair| pair[0].order(pair[1]) == Ordering::Equal) {
        Some(pair) => Err(bad(format!(
            "two values, {} and {}, for {}",
            pair[0].value(),
            pair[1].value(),
            pair[0].describe()
        ))),
        None => Ok(sorted),
    }
}
