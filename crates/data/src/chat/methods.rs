//! Python's methods of text, lists and mappings, where minijinja-contrib lacks them or differs.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::filters::{format_fits, joined, refused, replaced};

/// Calls the method of a value that has no such attribute.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => match of_text(text, method, args) {
            Some(done) => done,
            None if method == "format" => {
                format_fits(text)?;
                pycompat::unknown_method_callback(state, value, method, args)
            }
            None => pycompat::unknown_method_callback(state, value, method, args),
        },
        (ValueKind::Map, _) if method == "copy" => Ok(value.clone()),
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Arguments that may be named: each by its place or its name.
fn named<'a>(args: &'a [Value], names: &[&str]) -> Result<Vec<Option<Value>>, Error> {
    let (places, kwargs): (&'a [Value], minijinja::value::Kwargs) = from_args(args)?;
    if places.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut found = Vec::with_capacity(names.len());
    for (at, name) in names.iter().enumerate() {
        let named: Option<Value> = kwargs.get(name)?;
        found.push(places.get(at).cloned().or(named).filter(|value| !value.is_none()));
    }
    kwargs.assert_all_used()?;
    Ok(found)
}

fn text_of(value: Option<&Value>, what: &str) -> Result<Option<String>, Error> {
    match value {
        None => Ok(None),
        Some(value) => match value.as_str() {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(refused(format!("{what}: expected text, got {}", value.kind()))),
        },
    }
}

/// A method of text; `None` when it is for the library.
fn of_text(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let stripped = |left, right| {
        let (chars,): (Option<&str>,) = from_args(args)?;
        Ok(Value::from(strip(text, chars, left, right)))
    };
    let with_one = |change: &dyn Fn(&str) -> Value| {
        let (one,): (&str,) = from_args(args)?;
        Ok(change(one))
    };
    Some(match method {
        "strip" => stripped(true, true),
        "lstrip" => stripped(true, false),
        "rstrip" => stripped(false, true),
        "split" => split(text, args, false),
        "rsplit" => split(text, args, true),
        "splitlines" => named(args, &["keepends"]).map(|found| {
            let keep = found.first().and_then(Option::as_ref).is_some_and(Value::is_true);
            lines(text, keep).into_iter().map(Value::from).collect()
        }),
        "title" => from_args(args).map(|()| Value::from(title(text))),
        "capitalize" => from_args(args).map(|()| Value::from(capitalize(text))),
        "isspace" => from_args(args).map(|()| Value::from(!text.is_empty() && text.chars().all(is_space))),
        "removeprefix" => with_one(&|start| text.strip_prefix(start).unwrap_or(text).into()),
        "removesuffix" => with_one(&|end| text.strip_suffix(end).unwrap_or(text).into()),
        "partition" => with_one(&|between| {
            let (before, after) = text.split_once(between).unwrap_or((text, ""));
            let found = before.len() < text.len();
            [before, if found { between } else { "" }, after]
                .into_iter()
                .map(Value::from)
                .collect()
        }),
        "rpartition" => with_one(&|between| {
            let (before, after) = text.rsplit_once(between).unwrap_or(("", text));
            let found = after.len() < text.len();
            [before, if found { between } else { "" }, after]
                .into_iter()
                .map(Value::from)
                .collect()
        }),
        "replace" => replace(text, args),
        "join" => {
            let joined = from_args(args).and_then(|(values,): (&Value,)| joined(values, text));
            joined.map(Value::from)
        }
        _ => return None,
    })
}

fn replace(text: &str, args: &[Value]) -> Result<Value, Error> {
    let found = named(args, &["old", "new", "count"])?;
    let old = text_of(found.first().and_then(Option::as_ref), "replace")?;
    let new = text_of(found.get(1).and_then(Option::as_ref), "replace")?;
    let (Some(old), Some(new)) = (old, new) else {
        return Err(Error::from(ErrorKind::MissingArgument));
    };
    let count = found.get(2).and_then(Option::as_ref).and_then(Value::as_i64);
    replaced(text, &old, &new, count).map(Value::from)
}

fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let found = named(args, &["sep", "maxsplit"])?;
    let sep = text_of(found.first().and_then(Option::as_ref), "split")?;
    let most = found.get(1).and_then(Option::as_ref).and_then(Value::as_i64);
    let most = most.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let most_parts = most.saturating_add(1);
    let parts: Vec<&str> = match sep.as_deref() {
        Some("") => return Err(refused("split: empty separator")),
        Some(sep) if from_right => {
            let mut parts: Vec<&str> = text.rsplitn(most_parts, sep).collect();
            parts.reverse();
            parts
        }
        Some(sep) => text.splitn(most_parts, sep).collect(),
        None if from_right => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end_matches(is_space);
            while !rest.is_empty() {
                let end = if parts.len() < most { rest.rfind(is_space) } else { None };
                let start = end.map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
                parts.push(&rest[start..]);
                rest = rest[..start].trim_end_matches(is_space);
            }
            parts.reverse();
            parts
        }
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim_start_matches(is_space);
            while !rest.is_empty() {
                let end = if parts.len() < most { rest.find(is_space) } else { None };
                let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
                parts.push(part);
                rest = after.trim_start_matches(is_space);
            }
            parts
        }
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// What Python takes for white space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `strip`, `lstrip` and `rstrip`: of white space, or of these characters.
pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(goes) } else { text };
    if right { text.trim_end_matches(goes) } else { text }
}

/// Python's `splitlines`.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(ends) else {
            lines.push(rest);
            break;
        };
        let length = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(&rest[..if keep_ends { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    lines
}

/// Python's `title`: every letter after something that is no letter is large, all others are small.
pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = c.is_alphabetic();
    }
    out
}

/// Python's `capitalize`.
pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars.as_str().to_lowercase().chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::{capitalize, lines, split, strip, title};
    use minijinja::Value;

    #[test]
    fn text_is_cut_as_in_python() {
        assert_eq!(strip(" \u{1c}a b\u{a0}\n", None, true, true), "a b");
        assert_eq!(strip("xyaxy", Some("yx"), true, false), "axy");
        assert_eq!(lines("a\r\nb\n\nc\u{2028}", false), ["a", "b", "", "c"]);
        assert_eq!(lines("a\r\nb", true), ["a\r\n", "b"]);
        assert_eq!(title("don't PANIC x2y"), "Don'T Panic X2Y");
        assert_eq!(capitalize("éA b"), "Éa b");
        let cut = |text: &str, args: &[Value], right| split(text, args, right).unwrap().to_string();
        let (none, two) = (Value::from(()), Value::from(2));
        assert_eq!(cut(" a  b c ", &[], false), "['a', 'b', 'c']");
        assert_eq!(
            cut(" a  b c d ", &[none.clone(), two.clone()], false),
            "['a', 'b', 'c d ']"
        );
        assert_eq!(cut(" a  b c d ", &[none, two.clone()], true), "[' a  b', 'c', 'd']");
        assert_eq!(
            cut("a,b,c,d", &[Value::from(","), two.clone()], false),
            "['a', 'b', 'c,d']"
        );
        assert_eq!(cut("a,b,c,d", &[Value::from(","), two], true), "['a,b', 'c', 'd']");
        assert_eq!(cut("", &[Value::from(",")], false), "['']");
        assert_eq!(cut("", &[], false), "[]");
        assert!(split("a", &[Value::from("")], false).is_err());
    }
}
