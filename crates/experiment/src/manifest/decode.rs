//! From a parsed value to a type, with *all* mistakes at once.
//!
//! serde stops at the first error. So the value is decoded again and again: each error is recorded with
//! its path, the offending node is taken out (or, where a field is missing, stood in for), and what
//! follows from that repair is kept quiet.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::located::Path;
use super::problem::{Problem, nearest};

/// Stands in for a missing field until one is found that its type takes.
fn stand_ins() -> Vec<Value> {
    vec![
        Value::from(1),
        Value::from("x"),
        Value::Bool(true),
        Value::Array(vec![]),
        Value::Object(Map::new()),
    ]
}

/// Decodes `value`; on mistakes gives all of them, and `T` too if the rest could still be decoded
/// (so that ranges can be checked; `Decoded::doubtful` says which parts are stand-ins).
pub fn decode<T: DeserializeOwned>(mut value: Value) -> Decoded<T> {
    let mut out = Decoded {
        value: None,
        problems: Vec::new(),
        doubtful: Vec::new(),
        removed: Vec::new(),
        stood_in: Vec::new(),
    };
    // Every round removes or replaces at least one node, so the number of rounds is bounded by the size.
    for _ in 0..10_000 {
        let (path, message) = match attempt::<T>(&value) {
            Ok(v) => {
                out.value = Some(v);
                break;
            }
            Err(e) => e,
        };
        let mut problem = describe(path, &message);
        let here = std::mem::take(&mut problem.path);
        problem.path = out.original(&here);
        let misspelt = out.problems.iter().any(|p| p.misspells(&problem.path));
        // What was taken out leaves an empty map or a short list, which is no second mistake.
        let emptied = (message.ends_with("expected map with a single key") || message.starts_with("invalid length"))
            && out.doubtful.iter().any(|d| d.starts_with(&problem.path));
        let quiet = misspelt || emptied || out.doubtful.iter().any(|d| problem.path.starts_with(d));
        if !quiet {
            out.problems.push(problem.clone());
        }
        if !out.repair(&mut value, &here, &message) {
            break;
        }
    }
    out
}

/// What [`decode`] found.
pub struct Decoded<T> {
    /// The value, with stand-ins where `doubtful` says so.
    pub value: Option<T>,
    /// All mistakes, in the order they were met.
    pub problems: Vec<Problem>,
    /// Paths whose content was removed or stood in for.
    pub doubtful: Vec<Path>,
    /// Items that were taken out of lists, which moved the items after them.
    removed: Vec<Path>,
    /// Missing fields that were stood in for.
    stood_in: Vec<Path>,
}

impl<T> Decoded<T> {
    /// Where in the value as given stands what is at `path` in the value as decoded.
    pub fn original(&self, path: &[String]) -> Path {
        let mut out = Path::new();
        for key in path {
            let mut gone: Vec<usize> = self
                .removed
                .iter()
                .filter_map(|r| r.split_last().filter(|(_, list)| *list == out.as_slice()))
                .filter_map(|(i, _)| i.parse().ok())
                .collect();
            gone.sort_unstable();
            match key.parse::<usize>() {
                Ok(i) if !gone.is_empty() => {
                    let i = gone.into_iter().fold(i, |i, g| if g <= i { i + 1 } else { i });
                    out.push(i.to_string());
                }
                _ => out.push(key.clone()),
            }
        }
        out
    }

    /// Changes `value` so that the next round can find the next mistake; false when nothing is left to do.
    fn repair(&mut self, value: &mut Value, path: &[String], message: &str) -> bool
    where
        T: DeserializeOwned,
    {
        let original = self.original(path);
        if message.starts_with("missing field") && !self.stood_in.contains(&original) {
            self.stood_in.push(original.clone());
            self.doubtful.push(original);
            let mut candidates = stand_ins();
            while !candidates.is_empty() {
                let candidate = candidates.remove(0);
                if let Some(Value::Object(map)) = lookup(value, &path[..path.len() - 1]) {
                    map.insert(path[path.len() - 1].clone(), candidate);
                }
                let Err((at, text)) = attempt::<T>(value) else {
                    return true;
                };
                let at = describe(at, &text).path;
                // A block that lacks its own keys will do: they are stood in for one by one.
                if !at.starts_with(path) || (at.len() > path.len() && text.starts_with("missing field")) {
                    return true;
                }
                if text.starts_with("unknown variant `x`") {
                    let choices = quoted(&text).into_iter().skip(1).map(str::to_owned);
                    candidates.extend(choices.flat_map(|c| {
                        let block = Value::Object([(c.clone(), Value::Object(Map::new()))].into_iter().collect());
                        [Value::from(c), block]
                    }));
                }
            }
            remove(value, path);
            return self.take_out(value, &path[..path.len() - 1]);
        }
        if lookup(value, path).is_some() {
            return self.take_out(value, path);
        }
        // The error stands at a node that is no longer there: its parent cannot be decoded without it.
        let parent = &path[..path.len().saturating_sub(1)];
        !path.is_empty() && self.take_out(value, parent)
    }

    fn take_out(&mut self, value: &mut Value, path: &[String]) -> bool {
        let original = self.original(path);
        if let Some((_, list)) = path.split_last()
            && lookup(value, list).is_some_and(|l| l.is_array())
        {
            self.removed.push(original.clone());
        }
        self.doubtful.push(original);
        !path.is_empty() && remove(value, path)
    }
}

fn attempt<T: DeserializeOwned>(value: &Value) -> Result<T, (Path, String)> {
    serde_path_to_error::deserialize(value.clone()).map_err(|e| {
        let path = e
            .path()
            .iter()
            .filter_map(|s| match s {
                serde_path_to_error::Segment::Seq { index } => Some(index.to_string()),
                serde_path_to_error::Segment::Map { key } => Some(key.clone()),
                serde_path_to_error::Segment::Enum { variant } => Some(variant.clone()),
                serde_path_to_error::Segment::Unknown => None,
            })
            .collect();
        (path, e.into_inner().to_string())
    })
}

/// Words between back-ticks of `text`.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The family of a loss that exists, but is none that a manifest can name.
fn family_of(loss: &str) -> Option<&'static str> {
    let families = unsay_losses::families().into_iter();
    let mut holding = families.filter(|family| family.losses.iter().any(|entry| entry.card.name == loss));
    holding.next().map(|family| family.name)
}

fn describe(mut path: Path, message: &str) -> Problem {
    let words = quoted(message);
    let word = words.first().copied().unwrap_or_default();
    let known = words.get(1..).unwrap_or_default();
    let suggest = |p: Problem| match nearest(word, known.iter().copied()) {
        Some(k) => p.hint(format!("did you mean `{k}`?")),
        None if known.is_empty() => p,
        None => p.hint(format!("known here: {}", known.join(", "))),
    };
    if message.starts_with("unknown field") {
        if path.last().map(String::as_str) != Some(word) {
            path.push(word.to_owned());
        }
        suggest(Problem::key(path, format!("unknown key `{word}`")))
    } else if message.starts_with("unknown variant") {
        if path.last().map(String::as_str) != Some(word) {
            path.push(word.to_owned());
        }
        let family = match path.iter().rev().nth(1).map(String::as_str) {
            Some("loss") => family_of(word),
            _ => None,
        };
        let problem = Problem::key(path, format!("unknown choice `{word}`"));
        match family {
            Some("paired") => problem.hint(format!(
                "`{word}` is a loss over pairs: an arm trains with it as `pairs: {{ loss: {{ {word}: … }} }}`"
            )),
            Some("token") => problem.hint(format!(
                "`{word}` is a loss over labelled replies: an arm trains with it as `train: {{ loss: {{ {word}: … }} }}`"
            )),
            Some(family) => problem.hint(format!(
                "`{word}` is a loss of the family `{family}`; arms train with those of the families `token` and `paired`, \
                 here: {}",
                known.join(", ")
            )),
            None => suggest(problem),
        }
    } else if message.starts_with("missing field") {
        let inside = path.last().cloned();
        path.push(word.to_owned());
        let place = inside.map_or(String::new(), |p| format!(" in `{p}`"));
        Problem::key(path, format!("missing key `{word}`{place}"))
    } else {
        Problem::value(path, in_plain_words(message))
    }
}

/// serde's message without the names of Rust's types.
fn in_plain_words(message: &str) -> String {
    let Some((got, expected)) = message.rsplit_once("expected ") else {
        return message.to_owned();
    };
    let expected = match expected {
        "f64" | "f32" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0",
        "i8" | "i16" | "i32" | "i64" => "a whole number",
        "map with a single key" => "a choice, a map with one key",
        other => other,
    };
    format!("{got}expected {expected}")
        .replace("floating point `", "the number `")
        .replace("integer `", "the number `")
}

/// The node at `path`. Unit variants (`schedule: cosine`) appear in paths below their own key.
pub fn lookup<'a>(value: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    let Some((first, rest)) = path.split_first() else {
        return Some(value);
    };
    match value {
        Value::Object(map) => lookup(map.get_mut(first)?, rest),
        Value::Array(items) => lookup(items.get_mut(first.parse::<usize>().ok()?)?, rest),
        _ => None,
    }
}

fn remove(value: &mut Value, path: &[String]) -> bool {
    let Some((last, parents)) = path.split_last() else {
        return false;
    };
    match lookup(value, parents) {
        Some(Value::Object(map)) => map.shift_remove(last).is_some(),
        Some(Value::Array(items)) => match last.parse::<usize>() {
            Ok(i) if i < items.len() => {
                items.remove(i);
                true
            }
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only decoded")]
    struct Top {
        seeds: Vec<u64>,
        arms: std::collections::BTreeMap<String, Arm>,
        other: Inner,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "snake_case")]
    #[allow(dead_code, reason = "only decoded")]
    enum Arm {
        Cringe(Inner),
        Nll {},
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only decoded")]
    struct Inner {
        alpha: f64,
        k: usize,
        name: String,
    }

    fn messages(value: Value) -> Vec<String> {
        decode::<Top>(value)
            .problems
            .iter()
            .map(|p| format!("{}: {}", p.path.join("."), p.message))
            .collect()
    }

    #[test]
    fn all_mistakes_come_at_once() {
        let found = messages(json!({
            "seeds": [0, "one", 2, "three", "four"],
            "arms": {
                "a": { "cringe": { "alhpa": 1.0, "k": 5, "name": "n" } },
                "b": { "cringee": { } },
                "c": { "cringe": { "alpha": "high", "k": 5, "name": "n" } },
            },
            "other": { "k": -1 },
            "sedes": [1],
        }));
        assert_eq!(
            found,
            [
                "seeds.1: invalid type: string \"one\", expected a whole number from 0",
                "seeds.3: invalid type: string \"three\", expected a whole number from 0",
                "seeds.4: invalid type: string \"four\", expected a whole number from 0",
                "arms.a.cringe.alhpa: unknown key `alhpa`",
                "arms.b.cringee: unknown choice `cringee`",
                "arms.c.cringe.alpha: invalid type: string \"high\", expected a number",
                "other.k: invalid value: the number `-1`, expected a whole number from 0",
                "other.alpha: missing key `alpha` in `other`",
                "other.name: missing key `name` in `other`",
                "sedes: unknown key `sedes`",
            ]
        );
    }

    #[test]
    fn a_loss_of_another_family_is_named_as_one() {
        let path = ["arms", "x", "train", "loss"].map(str::to_owned);
        let hint = |word: &str| {
            let message = format!("unknown variant `{word}`, expected `cringe` or `nll`");
            describe(path.to_vec(), &message).hint.unwrap()
        };
        let expected = "`dpo` is a loss over pairs: an arm trains with it as `pairs: { loss: { dpo: … } }`";
        assert_eq!(hint("dpo"), expected);
        let expected = "`npo` is a loss of the family `unpaired`; arms train with those of the families `token` and `paired`, \
                        here: cringe, nll";
        assert_eq!(hint("npo"), expected);
        assert_eq!(hint("cringee"), "did you mean `cringe`?");
        assert_eq!(hint("plain_fine_tuning"), "known here: cringe, nll");
    }

    #[test]
    fn a_wrong_choice_is_one_mistake() {
        let inner = json!({ "alpha": 1.0, "k": 5, "name": "n" });
        let top = json!({ "seeds": [0], "arms": { "b": { "cringee": { } } }, "other": inner });
        assert_eq!(messages(top), ["arms.b.cringee: unknown choice `cringee`"]);
    }

    #[test]
    fn a_sound_value_has_no_problems() {
        let inner = json!({ "alpha": 1.0, "k": 5, "name": "n" });
        let top =
            json!({ "seeds": [0], "arms": { "a": { "cringe": inner.clone() }, "b": { "nll": {} } }, "other": inner });
        let decoded = decode::<Top>(top);
        assert!(decoded.problems.is_empty());
        assert!(decoded.value.is_some());
    }

    #[test]
    fn anything_at_all_ends() {
        assert_eq!(
            messages(json!({})),
            [
                "seeds: missing key `seeds`",
                "arms: missing key `arms`",
                "other: missing key `other`"
            ]
        );
        for v in [
            json!(null),
            json!([]),
            json!({}),
            json!(3),
            json!({ "arms": 3 }),
            json!({ "arms": { "a": null } }),
        ] {
            assert!(!decode::<Top>(v).problems.is_empty());
        }
    }
}
