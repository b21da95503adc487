//! `tojson`: Python's `json.dumps` with the settings that transformers gives it.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, Value};

use super::filters::{fits, refused};

/// How JSON is written.
struct Style {
    ascii: bool,
    indent: Option<String>,
    between: String,
    after_key: String,
    sorted: bool,
}

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let setting = |at: usize, name: &str| -> Result<Option<Value>, Error> {
        let named: Option<Value> = kwargs.get(name)?;
        Ok(args.get(at).cloned().or(named).filter(|value| !value.is_none()))
    };
    let ascii = setting(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = match setting(1, "indent")? {
        None => None,
        Some(value) => Some(match (value.as_str(), value.as_i64()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) => {
                let width = usize::try_from(width).unwrap_or(0);
                fits(Some(width))?;
                " ".repeat(width)
            }
            (None, None) => return Err(refused("tojson: expected a number or text as `indent`")),
        }),
    };
    let (between, after_key) = match setting(2, "separators")? {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some(pair) => {
            let texts: Vec<Value> = pair.try_iter()?.collect();
            match texts.as_slice() {
                [between, after_key] if between.as_str().is_some() && after_key.as_str().is_some() => {
                    (between.to_string(), after_key.to_string())
                }
                _ => return Err(refused("tojson: expected two texts as `separators`")),
            }
        }
    };
    let sorted = setting(3, "sort_keys")?.is_some_and(|value| value.is_true());
    kwargs.assert_all_used()?;
    let style = Style {
        ascii,
        indent,
        between,
        after_key,
        sorted,
    };
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        fits(Some(out.len()))?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), out),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.block(['{', '}'], keys.len(), depth, out, |at, out| {
                    let key = &keys[at];
                    match key.kind() {
                        ValueKind::String => self.text(key.as_str().unwrap_or_default(), out),
                        ValueKind::Number => self.text(&number(key), out),
                        ValueKind::Bool => self.text(if key.is_true() { "true" } else { "false" }, out),
                        ValueKind::None => self.text("null", out),
                        other => return Err(refused(format!("tojson: a key cannot be a {other}"))),
                    }
                    out.push_str(&self.after_key);
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.block(['[', ']'], items.len(), depth, out, |at, out| {
                    self.write(&items[at], depth + 1, out)
                })?;
            }
            other => return Err(refused(format!("tojson: a value that is {other} is not JSON"))),
        }
        Ok(())
    }

    fn block(
        &self,
        [open, close]: [char; 2],
        n: usize,
        depth: usize,
        out: &mut String,
        mut each: impl FnMut(usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let line = |depth: usize, out: &mut String| -> Result<(), Error> {
            if let Some(indent) = &self.indent {
                fits(indent.len().checked_mul(depth).and_then(|n| n.checked_add(out.len())))?;
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
            Ok(())
        };
        for at in 0..n {
            if at > 0 {
                out.push_str(&self.between);
            }
            line(depth + 1, out)?;
            each(at, out)?;
        }
        if n > 0 {
            line(depth, out)?;
        }
        out.push(close);
        Ok(())
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// A number as Python writes it.
pub(super) fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(number) if number.is_nan() => "NaN".to_owned(),
        Ok(number) if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Ok(number) => float(number),
        Err(_) => value.to_string(),
    }
}

/// Python's `repr` of a finite number: the shortest digits, with an exponent below 1e-4 and from 1e16.
fn float(number: f64) -> String {
    let shortest = format!("{number:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = number.to_string();
        return if plain.contains('.') {
            plain
        } else {
            format!("{plain}.0")
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::float;

    #[test]
    fn numbers_are_written_as_in_python() {
        for (number, text) in [
            (0.1, "0.1"),
            (2.0, "2.0"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (1e-4, "0.0001"),
            (1e100, "1e+100"),
            (123_456.789, "123456.789"),
        ] {
            assert_eq!(float(number), text);
        }
    }
}
