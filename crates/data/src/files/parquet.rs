//! Parquet, read by polars.

use std::fs::File;
use std::path::Path;

use polars::prelude::{AnyValue, ArrowDataType, ParquetReader, SerReader};
use serde_json::Value;

use crate::error::{Error, Place, Result};
use crate::shapes::{Fields, shortened};

fn open(path: &Path) -> Result<ParquetReader<File>> {
    Ok(ParquetReader::new(File::open(path).map_err(Error::io("read", path))?))
}

fn failed(path: &Path) -> impl Fn(polars::error::PolarsError) -> Error {
    move |e| Place::file(path).malformed("a Parquet file", format!("an error: {e}"))
}

/// The names in the schema.
pub(super) fn columns(path: &Path) -> Result<(Vec<String>, Place)> {
    let schema = open(path)?.schema().map_err(failed(path))?;
    let names = schema.iter_names().map(ToString::to_string).collect();
    Ok((names, Place::file(path)))
}

/// Calls `each` with the needed columns of every row. Rows are numbered from 1.
pub(super) fn each_row(path: &Path, needed: &[&str], each: &mut dyn FnMut(Place, Fields) -> Result<()>) -> Result<()> {
    let mut reader = open(path)?;
    let schema = reader.schema().map_err(failed(path))?;
    for name in needed {
        if let Some(field) = schema.get(name)
            && !readable(field.dtype())
        {
            let expected = format!("text, numbers or true and false in the column `{name}`");
            let kind = shortened(&format!("{:?}", field.dtype()));
            let got = format!("`{kind}`\nhint: write the rows as JSON Lines");
            return Err(Place::file(path).malformed(expected, got));
        }
    }
    let names: Vec<String> = needed.iter().map(|n| (*n).to_owned()).collect();
    let table = reader.with_columns(Some(names)).finish().map_err(failed(path))?;
    for row in 0..table.height() {
        let place = Place::line(path, row as u64 + 1);
        let mut fields = Fields::new();
        for column in table.columns() {
            let value = match column.get(row).map_err(failed(path))? {
                AnyValue::Null => Value::Null,
                AnyValue::Boolean(value) => Value::Bool(value),
                AnyValue::String(text) => Value::String(text.to_owned()),
                AnyValue::StringOwned(text) => Value::String(text.to_string()),
                AnyValue::Int32(value) => Value::from(value),
                AnyValue::Int64(value) => Value::from(value),
                AnyValue::UInt32(value) => Value::from(value),
                AnyValue::UInt64(value) => Value::from(value),
                other => {
                    let expected = format!("text in the column `{}`", column.name());
                    return Err(place.malformed(expected, format!("{other:?}")));
                }
            };
            fields.insert(column.name().to_string(), value);
        }
        each(place, fields)?;
    }
    Ok(())
}

fn readable(kind: &ArrowDataType) -> bool {
    use ArrowDataType as D;
    matches!(
        kind,
        D::Utf8 | D::LargeUtf8 | D::Utf8View | D::Boolean | D::Int32 | D::Int64 | D::UInt32 | D::UInt64 | D::Null
    )
}
