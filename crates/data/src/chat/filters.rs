//! What transformers gives to templates beside Jinja's own, and Jinja's own where minijinja differs from Python.

use std::fmt;

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::{budget, json, methods};

/// The longest text that one filter or method makes, in bytes.
pub(super) const LONGEST: usize = 16 << 20;

/// What a template says when it refuses a conversation.
#[derive(Debug)]
pub(super) struct Complaint(pub(super) String);

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Complaint {}

/// Functions, filters and tests of one environment.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.remove_global("debug");
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        let error = Error::new(ErrorKind::InvalidOperation, "the template refuses");
        Err(error.with_source(Complaint(message)))
    });
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("trim", |text: String, chars: Option<&str>| {
        methods::strip(&text, chars, true, true).to_owned()
    });
    environment.add_filter(
        "replace",
        |text: String, from: String, to: String, count: Option<i64>| replaced(&text, &from, &to, count),
    );
    environment.add_filter("join", join);
    environment.add_filter("indent", indent);
    environment.add_filter("title", title);
    environment.add_filter("capitalize", |text: String| methods::capitalize(&text));
    environment.add_filter("list", list);
    environment.add_filter(
        "batch",
        |state: &State, value: Value, count: usize, fill: Option<Value>| {
            few(count)?;
            minijinja::filters::batch(state, value, count, fill)
        },
    );
    environment.add_filter(
        "slice",
        |state: &State, value: Value, count: usize, fill: Option<Value>| {
            few(count)?;
            minijinja::filters::slice(state, value, count, fill)
        },
    );
    environment.add_filter("format", format);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("string", budget::text);
    environment.remove_filter("pprint");
    // Python takes text and mappings for sequences too.
    environment.add_test("sequence", |value: &Value| {
        value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
}

pub(super) fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Refuses to make a text of more than [`LONGEST`] bytes.
pub(super) fn fits(length: Option<usize>) -> Result<(), Error> {
    match length {
        Some(length) if length <= LONGEST => Ok(()),
        _ => Err(refused(format!("a text of more than {LONGEST} bytes"))),
    }
}

/// Python's `str.replace`.
pub(super) fn replaced(text: &str, from: &str, to: &str, count: Option<i64>) -> Result<String, Error> {
    let count = count.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let found = if from.is_empty() {
        text.chars().count() + 1
    } else {
        text.matches(from).count()
    };
    let grown = found.min(count).checked_mul(to.len());
    fits(grown.and_then(|grown| grown.checked_add(text.len())))?;
    Ok(text.replacen(from, to, count))
}

/// Values one after the other with a text between them.
pub(super) fn joined(values: &Value, between: &str) -> Result<String, Error> {
    let mut out = String::new();
    for (at, value) in values.try_iter()?.enumerate() {
        if at > 0 {
            out.push_str(between);
        }
        match value.as_str() {
            Some(text) => out.push_str(text),
            None => out.push_str(&budget::text(&value)?),
        }
        fits(Some(out.len()))?;
    }
    Ok(out)
}

fn join(values: &Value, between: Option<String>, attribute: Option<String>, kwargs: Kwargs) -> Result<String, Error> {
    let between = between.or(kwargs.get("d")?).unwrap_or_default();
    let attribute = attribute.or(kwargs.get("attribute")?);
    kwargs.assert_all_used()?;
    let Some(attribute) = attribute else {
        return joined(values, &between);
    };
    let mut items = Vec::new();
    for value in values.try_iter()? {
        let mut found = value;
        for part in attribute.split('.') {
            found = found.get_attr(part)?;
        }
        items.push(found);
    }
    joined(&Value::from(items), &between)
}

/// Jinja's `indent`: all lines but the first, and no blank ones, unless told to.
fn indent(text: String, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let named = |at: usize, name: &str| -> Result<Option<Value>, Error> {
        let named: Option<Value> = kwargs.get(name)?;
        Ok(args.get(at).cloned().or(named))
    };
    let (width, first, blank) = (named(0, "width")?, named(1, "first")?, named(2, "blank")?);
    kwargs.assert_all_used()?;
    let space = match width {
        None => " ".repeat(4),
        Some(width) => match (width.as_str(), width.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) => {
                fits(Some(width))?;
                " ".repeat(width)
            }
            (None, None) => return Err(refused("indent: expected a width or a text")),
        },
    };
    let is = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (first, blank) = (is(first), is(blank));
    let lines = methods::lines(&text, false);
    let n_lines = lines.len() + 1;
    fits(space.len().checked_mul(n_lines).and_then(|n| n.checked_add(text.len())))?;
    let ends_line = text.is_empty()
        || methods::lines(&text, true)
            .last()
            .is_some_and(|last| last.ends_with('\n'));
    let lines = lines.into_iter().chain(ends_line.then_some(""));
    let mut out = String::new();
    for (at, line) in lines.enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if (at > 0 || first) && (blank || !line.is_empty() || (at == 0 && first)) {
            out.push_str(&space);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// Jinja's `title`, which unlike Python's goes by spaces and opening brackets.
fn title(text: String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = !(methods::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<'));
    }
    out
}

/// Refuses to make so many lists or values before they are counted.
fn few(count: usize) -> Result<(), Error> {
    fits(count.checked_mul(32))
}

/// `'%s' | format(x)`.
fn format(state: &mut State, text: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut specs = text.as_str().unwrap_or_default().split('%').skip(1);
    let wide = |spec: &str| {
        let spec = spec.trim_start_matches(|c: char| "-+ #".contains(c));
        let end = spec.find(|c: char| !(c.is_ascii_digit() || c == '.'));
        let (width, rest) = spec.split_at(end.unwrap_or(spec.len()));
        rest.starts_with('*') || is_wide(width)
    };
    match specs.any(wide) {
        true => Err(too_wide()),
        false => minijinja::filters::format(state, text, args),
    }
}

/// Refuses fields of Python's `str.format` that are padded without end, or by how much another value says.
pub(super) fn format_fits(text: &str) -> Result<(), Error> {
    let mut open = text.split('{');
    open.next();
    let mut nested = false;
    for field in open {
        let (inside, closed) = field
            .split_once('}')
            .map_or((field, false), |(inside, _)| (inside, true));
        if nested || inside.split_once(':').is_some_and(|(_, spec)| is_wide(spec)) {
            return Err(too_wide());
        }
        nested = !closed && inside.contains(':');
    }
    Ok(())
}

/// Whether a number of seven digits or more stands in it.
fn is_wide(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 6)
}

fn too_wide() -> Error {
    refused("format: a width of more than 999999, or one that is not written out")
}

/// Jinja's `length`: what is undefined has none.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    let refused = || refused(format!("cannot calculate length of value of type {}", value.kind()));
    value.len().ok_or_else(refused)
}

/// Jinja's `list`, of at most as many values as a text has bytes.
fn list(value: &Value) -> Result<Vec<Value>, Error> {
    let mut values = Vec::new();
    for one in value.try_iter()? {
        values.push(one);
        fits(values.len().checked_mul(16))?;
    }
    Ok(values)
}
