//! Columns by name and type, with errors that name the file.

use std::path::Path;

use polars::prelude::{Column, DataFrame, DataType, NamedFrom, PlSmallStr, Series};

use crate::error::{Error, Result};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8 text.
    Text,
    /// Unsigned 64-bit integers.
    Count,
    /// Unsigned 32-bit integers that may be absent.
    OptionalCount,
    /// 64-bit floating point.
    Number,
}

impl Kind {
    fn dtype(self) -> DataType {
        match self {
            Self::Text => DataType::String,
            Self::Count => DataType::UInt64,
            Self::OptionalCount => DataType::UInt32,
            Self::Number => DataType::Float64,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Count => "u64",
            Self::OptionalCount => "u32 or null",
            Self::Number => "f64",
        }
    }
}

pub(super) fn text<R>(name: &str, rows: &[&R], get: impl Fn(&R) -> &str) -> Column {
    let values: Vec<&str> = rows.iter().map(|row| get(row)).collect();
    Series::new(PlSmallStr::from_str(name), values).into()
}

pub(super) fn count<R>(name: &str, rows: &[&R], get: impl Fn(&R) -> u64) -> Column {
    let values: Vec<u64> = rows.iter().map(|row| get(row)).collect();
    Series::new(PlSmallStr::from_str(name), values).into()
}

pub(super) fn optional_count<R>(name: &str, rows: &[&R], get: impl Fn(&R) -> Option<u32>) -> Column {
    let values: Vec<Option<u32>> = rows.iter().map(|row| get(row)).collect();
    Series::new(PlSmallStr::from_str(name), values).into()
}

pub(super) fn number<R>(name: &str, rows: &[&R], get: impl Fn(&R) -> f64) -> Column {
    let values: Vec<f64> = rows.iter().map(|row| get(row)).collect();
    Series::new(PlSmallStr::from_str(name), values).into()
}

/// A data frame read from a file whose columns were compared with the table's.
pub struct Frame<'a> {
    data: &'a DataFrame,
    path: &'a Path,
}

impl<'a> Frame<'a> {
    pub(super) fn new(
        data: &'a DataFrame,
        path: &'a Path,
        table: &'static str,
        columns: &[(&str, Kind)],
    ) -> Result<Self> {
        let wrong = |why: String| Error::Columns {
            path: path.to_owned(),
            table,
            why,
            expected: (columns.iter())
                .map(|(name, kind)| format!("`{name}` ({})", kind.name()))
                .collect::<Vec<_>>()
                .join(", "),
        };
        for (name, kind) in columns {
            let column = data.column(name).map_err(|_| wrong(format!("`{name}` is missing")))?;
            if column.dtype() != &kind.dtype() {
                return Err(wrong(format!("`{name}` is {}, not {}", column.dtype(), kind.name())));
            }
        }
        for name in data.get_column_names() {
            if !columns.iter().any(|(known, _)| known == name) {
                return Err(wrong(format!("`{name}` is unknown")));
            }
        }
        Ok(Self { data, path })
    }

    pub(super) fn height(&self) -> usize {
        self.data.height()
    }

    fn column(&self, name: &str) -> Result<&'a Column> {
        self.data
            .column(name)
            .map_err(|error| self.malformed(error.to_string()))
    }

    fn malformed(&self, why: String) -> Error {
        Error::Malformed {
            path: self.path.to_owned(),
            why,
        }
    }

    fn whole<T>(&self, name: &str, values: impl Iterator<Item = Option<T>>) -> Result<Vec<T>> {
        values
            .enumerate()
            .map(|(i, value)| {
                value.ok_or_else(|| Error::Row {
                    path: self.path.to_owned(),
                    why: format!("row {}: `{name}` is null", i + 1),
                })
            })
            .collect()
    }

    pub(super) fn text(&self, name: &str) -> Result<Vec<&'a str>> {
        let values = self
            .column(name)?
            .str()
            .map_err(|error| self.malformed(error.to_string()))?;
        self.whole(name, values.iter())
    }

    pub(super) fn count(&self, name: &str) -> Result<Vec<u64>> {
        let values = self
            .column(name)?
            .u64()
            .map_err(|error| self.malformed(error.to_string()))?;
        self.whole(name, values.iter())
    }

    pub(super) fn optional_count(&self, name: &str) -> Result<Vec<Option<u32>>> {
        let values = self
            .column(name)?
            .u32()
            .map_err(|error| self.malformed(error.to_string()))?;
        Ok(values.iter().collect())
    }

    pub(super) fn number(&self, name: &str) -> Result<Vec<f64>> {
        let values = self
            .column(name)?
            .f64()
            .map_err(|error| self.malformed(error.to_string()))?;
        self.whole(name, values.iter())
    }
}
