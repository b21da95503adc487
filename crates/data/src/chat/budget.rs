//! What one rendering may make: every text is charged, and none may be too long.

use std::cell::Cell;
use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, Value};

use super::charged::{CHARGE, COMPARED};
use super::filters::{LONGEST, refused};
use super::json;

/// The bytes that one rendering may make in all, and further ones for each byte it reads: a conversation put together piece
/// by piece is made as often as it has pieces.
const OWN: usize = 256 << 20;
const REPEATS: usize = 1024;
/// What a value of a list takes, in bytes.
const VALUE: usize = 32;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(0) };
    static LONGEST_NOW: Cell<usize> = const { Cell::new(LONGEST) };
}

/// Before a rendering that reads so many bytes, on its thread.
pub(super) fn begin(read: usize) {
    LEFT.set(OWN.saturating_add(read.saturating_mul(REPEATS)));
    LONGEST_NOW.set(LONGEST.saturating_add(read.saturating_mul(8)));
}

/// Gives templates the function that charges, and charges what they write.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_function(CHARGE, |value: Value| -> Result<Value, Error> {
        let length = match value.kind() {
            ValueKind::String => value.as_str().map(str::len),
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => value.len().and_then(|n| n.checked_mul(VALUE)),
            _ => None,
        };
        charge(length.unwrap_or(VALUE))?;
        Ok(value)
    });
    environment.add_function(COMPARED, |value: Value| -> Result<Value, Error> {
        // Values that are shared are compared as often as they occur, so a list may be larger than all memory.
        let mut open = vec![value.clone()];
        while let Some(next) = open.pop() {
            match next.kind() {
                ValueKind::String => charge(next.as_str().map_or(0, str::len))?,
                ValueKind::Seq | ValueKind::Map => {
                    charge(next.len().unwrap_or(1).saturating_mul(VALUE))?;
                    for inner in next.try_iter()? {
                        open.push(if next.kind() == ValueKind::Map {
                            next.get_item(&inner)?
                        } else {
                            inner
                        });
                    }
                }
                _ => {}
            }
        }
        Ok(value)
    });
    environment.set_formatter(|out, _, value| {
        match value.as_str() {
            Some(text) => {
                charge(text.len())?;
                out.write_str(text)?;
            }
            None => out.write_str(&text(value)?)?,
        }
        Ok(())
    });
}

fn charge(bytes: usize) -> Result<(), Error> {
    let longest = LONGEST_NOW.get();
    if bytes > longest {
        return Err(refused(format!("a text of more than {longest} bytes")));
    }
    match LEFT.get().checked_sub(bytes) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => Err(refused(
            "it makes more text than any conversation needs: does it grow for ever?",
        )),
    }
}

/// A value as text, written only as far as it may go: shared values may be written any number of times.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    if value.kind() == ValueKind::Number {
        return Ok(json::number(value));
    }
    let mut out = Short(String::new());
    if write!(out, "{value}").is_err() {
        return Err(refused(format!("a text of more than {} bytes", LONGEST_NOW.get())));
    }
    charge(out.0.len())?;
    Ok(out.0)
}

struct Short(String);

impl Write for Short {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        if self.0.len() + text.len() > LONGEST_NOW.get() {
            return Err(std::fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}
