//! Manifests: reading, choosing a profile, overrides, and every mistake at once with its place.
//!
//! This is the only place that knows YAML. A profile replaces whole blocks of the manifest; there is no deep
//! merge and no inheritance between files.

pub mod base;
pub mod check;
pub mod decode;
pub mod located;
mod metrics;
pub mod problem;
pub mod question;

use std::path::{Path as FilePath, PathBuf};

use serde_json::{Map, Value};

use located::{Path, Places};
use problem::{Problem, Source, nearest};
use question::Question;

/// A manifest as read, not yet checked.
pub struct Manifest {
    /// File name as the user gave it.
    pub file: PathBuf,
    /// Its text.
    pub text: String,
    root: Map<String, Value>,
    profiles: Map<String, Value>,
    places: Places,
}

/// An override from the command line, `--set arms.cringe.train.loss.cringe.k=10`.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// As written.
    pub text: String,
    path: Path,
    value: Value,
}

/// Mistakes of a manifest, ready to be shown.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.shown.join("\n"))]
pub struct Mistakes {
    /// One text per mistake, each with its place.
    pub shown: Vec<String>,
}

impl Mistakes {
    fn one(text: String) -> Self {
        Self { shown: vec![text] }
    }
}

/// Larger files are not manifests.
const MAX_BYTES: u64 = 1 << 20;

impl Manifest {
    /// Reads a manifest. Syntax errors, duplicate keys and unreadable files are mistakes.
    pub fn read(file: &FilePath) -> Result<Self, Mistakes> {
        let name = file.display().to_string();
        let fail = |message: String| Mistakes::one(format!("error: {message}\n  --> {name}\n"));
        let size = std::fs::metadata(file)
            .map_err(|e| fail(format!("cannot read the manifest: {e}")))?
            .len();
        if size > MAX_BYTES {
            return Err(fail(format!(
                "a manifest has at most {MAX_BYTES} bytes, this one has {size}"
            )));
        }
        let bytes = std::fs::read(file).map_err(|e| fail(format!("cannot read the manifest: {e}")))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let good = String::from_utf8_lossy(&e.as_bytes()[..e.utf8_error().valid_up_to()]);
            let line = good.matches('\n').count() + 1;
            let column = good.chars().rev().take_while(|c| *c != '\n').count() + 1;
            Mistakes::one(format!("error: not UTF-8 text\n  --> {name}:{line}:{column}\n"))
        })?;
        Self::parse(file.to_owned(), text)
    }

    /// Reads a manifest from text; `file` is only its name.
    pub fn parse(file: PathBuf, text: String) -> Result<Self, Mistakes> {
        let name = file.display().to_string();
        let nowhere = Places::default();
        let plain = Source {
            file: &name,
            text: &text,
            places: &nowhere,
        };
        let places =
            Places::of(&text).map_err(|(message, at)| Mistakes::one(plain.show_at(&message, None, Some(at))))?;
        if !places.duplicates.is_empty() {
            let show = |(path, first, again): &(Path, located::Place, located::Place)| {
                let key = path.last().map_or("", String::as_str);
                plain.show_at(
                    &format!("key `{key}` is given twice, first on line {}", first.line),
                    None,
                    Some(*again),
                )
            };
            return Err(Mistakes {
                shown: places.duplicates.iter().map(show).collect(),
            });
        }
        let yaml: serde_yaml::Value = serde_yaml::from_str(&text).map_err(|e| {
            let at = e.location().map(|l| located::Place {
                line: l.line(),
                column: l.column(),
                len: 1,
            });
            // The place is shown with the line; serde_yaml says it again, with the path before it.
            let message = e.to_string();
            let message = match message.split_once("invalid type: integer `") {
                Some((_, rest)) => format!("`{}` is too large a number", rest.split('`').next().unwrap_or_default()),
                None => message.split(" at line ").next().unwrap_or_default().to_owned(),
            };
            Mistakes::one(plain.show_at(&message, None, at))
        })?;
        let located = Source {
            places: &places,
            ..plain
        };
        let value = to_json(yaml, &mut Vec::new()).map_err(|p| Mistakes::one(located.show(&p, &p.path)))?;
        let Value::Object(mut root) = value else {
            let message = if text.trim().is_empty() {
                "the manifest is empty"
            } else {
                "a manifest is a mapping of keys"
            };
            return Err(Mistakes::one(plain.show_at(
                message,
                Some("see docs/manifest.md"),
                None,
            )));
        };
        let profiles = match root.shift_remove("profiles") {
            Some(Value::Object(map)) if !map.is_empty() && map.values().all(Value::is_object) => map,
            Some(_) => {
                let p = Problem::value(vec!["profiles".into()], "`profiles` maps names to blocks");
                return Err(Mistakes::one(located.show(&p, &p.path)));
            }
            None => {
                return Err(Mistakes::one(plain.show_at(
                    "missing key `profiles`",
                    Some("see docs/manifest.md"),
                    None,
                )));
            }
        };
        Ok(Self {
            file,
            text,
            root,
            profiles,
            places,
        })
    }

    /// The names of the profiles; the first is the default.
    pub fn profiles(&self) -> impl Iterator<Item = &str> {
        self.profiles.keys().map(String::as_str)
    }

    /// The manifest with `profile` (or the first) laid over it and `overrides` applied, checked.
    pub fn resolve(&self, profile: Option<&str>, overrides: &[Override]) -> Result<(String, Question), Mistakes> {
        let file = self.file.display().to_string();
        let source = Source {
            file: &file,
            text: &self.text,
            places: &self.places,
        };
        let name = profile.unwrap_or_else(|| self.profiles.keys().next().map_or("", String::as_str));
        let Some(Value::Object(blocks)) = self.profiles.get(name) else {
            let known: Vec<&str> = self.profiles().collect();
            let p = Problem::key(vec!["profiles".into()], format!("no profile `{name}`"))
                .hint(format!("profiles here: {}", known.join(", ")));
            return Err(Mistakes::one(source.show(&p, &p.path)));
        };
        let mut merged = self.root.clone();
        for (key, block) in blocks {
            merged.insert(key.clone(), block.clone());
        }
        let mut value = Value::Object(merged);
        let mut wrong = Vec::new();
        for o in overrides {
            if let Err((message, hint)) = apply(&mut value, o) {
                let hint = hint.map_or(String::new(), |h| format!("  hint: {h}\n"));
                wrong.push(format!("error: {message}\n  --> --set {}\n{hint}", o.text));
            }
        }
        let mut decoded = decode::decode::<Question>(value);
        if let Some(question) = &decoded.value {
            // What was said of a part that could not be read, or of a whole that lacks it, is no second mistake.
            let doubtful = |p: &Problem| {
                let within = |d: &Path| p.path.starts_with(d) || d.starts_with(&p.path) || check::follows(&p.path, d);
                decoded.doubtful.iter().any(within)
            };
            let evaluate = |path: &Path| path.first().is_some_and(|k| k == "evaluate");
            let mut found = check::check(question);
            if !decoded
                .doubtful
                .iter()
                .chain(found.iter().map(|p| &p.path))
                .any(evaluate)
            {
                metrics::check(question, &mut found);
            }
            for problem in &mut found {
                problem.path = decoded.original(&problem.path);
            }
            let found: Vec<Problem> = found.into_iter().filter(|p| !doubtful(p)).collect();
            decoded.problems.extend(found);
        }
        let show = |p: &Problem| match overrides.iter().rfind(|o| p.path.starts_with(&o.path)) {
            Some(o) => {
                let hint = p.hint.as_ref().map_or(String::new(), |h| format!("  hint: {h}\n"));
                format!("error: {}\n  --> --set {}\n{hint}", p.message, o.text)
            }
            None => source.show(p, &self.path_in_file(name, &p.path)),
        };
        wrong.extend(decoded.problems.iter().map(show));
        match decoded.value {
            Some(question) if wrong.is_empty() => Ok((name.to_owned(), question)),
            _ => Err(Mistakes { shown: wrong }),
        }
    }

    fn path_in_file(&self, profile: &str, path: &[String]) -> Path {
        let in_profile = path.first().is_none_or(|first| {
            self.profiles.get(profile).and_then(|b| b.get(first)).is_some() || !self.root.contains_key(first)
        });
        if in_profile {
            ["profiles".into(), profile.to_owned()]
                .into_iter()
                .chain(path.iter().cloned())
                .collect()
        } else {
            path.to_vec()
        }
    }
}

impl std::str::FromStr for Override {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, value) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` has no `=`; hint: --set key.key=value"))?;
        let path: Path = path.split('.').map(|s| s.trim().to_owned()).collect();
        if path.iter().any(String::is_empty) {
            return Err(format!("`{text}` has an empty key; hint: --set key.key=value"));
        }
        let yaml: serde_yaml::Value =
            serde_yaml::from_str(value).map_err(|e| format!("`{value}` is not a value: {e}"))?;
        let value = to_json(yaml, &mut Vec::new()).map_err(|p| p.message)?;
        Ok(Self {
            text: text.to_owned(),
            path,
            value,
        })
    }
}

/// Sets one value. All keys but the last must exist; the last may be an optional key left out so far.
fn apply(value: &mut Value, o: &Override) -> Result<(), (String, Option<String>)> {
    let Some((last, parents)) = o.path.split_last() else {
        return Ok(());
    };
    let mut node = value;
    for (i, key) in parents.iter().enumerate() {
        let known: Vec<String> = node
            .as_object()
            .map(|m| m.keys().cloned().collect())
            .unwrap_or_default();
        node = decode::lookup(node, std::slice::from_ref(key)).ok_or_else(|| {
            let near = nearest(key, known.iter().map(String::as_str));
            let hint = near.map_or(format!("known here: {}", known.join(", ")), |k| {
                format!("did you mean `{k}`?")
            });
            (format!("no key `{}` to override", o.path[..=i].join(".")), Some(hint))
        })?;
    }
    match node {
        Value::Object(map) => {
            map.insert(last.clone(), o.value.clone());
            Ok(())
        }
        Value::Array(items) => match last.parse::<usize>().ok().and_then(|i| items.get_mut(i)) {
            Some(item) => {
                *item = o.value.clone();
                Ok(())
            }
            None => Err((format!("no item `{last}` to override"), None)),
        },
        _ => Err((format!("`{}` holds no keys", parents.join(".")), None)),
    }
}

/// YAML to JSON, which has no tags, no keys but strings, and no infinite numbers: neither have manifests.
fn to_json(yaml: serde_yaml::Value, path: &mut Path) -> Result<Value, Problem> {
    use serde_yaml::Value as Y;
    Ok(match yaml {
        Y::Null => Value::Null,
        Y::Bool(b) => Value::Bool(b),
        Y::String(s) => Value::String(s),
        Y::Number(n) => match (n.as_u64(), n.as_i64(), n.as_f64()) {
            (Some(u), _, _) => Value::from(u),
            (_, Some(i), _) => Value::from(i),
            (_, _, Some(f)) if f.is_finite() => Value::from(f),
            _ => return Err(Problem::value(path.clone(), format!("`{n}` is not a finite number"))),
        },
        Y::Sequence(items) => {
            let mut out = Vec::with_capacity(items.len());
            for (i, item) in items.into_iter().enumerate() {
                path.push(i.to_string());
                out.push(to_json(item, path)?);
                path.pop();
            }
            Value::Array(out)
        }
        Y::Mapping(map) => {
            let mut out = Map::new();
            for (key, item) in map {
                let key = match key {
                    Y::String(s) => s,
                    Y::Number(n) => n.to_string(),
                    Y::Bool(b) => b.to_string(),
                    _ => return Err(Problem::value(path.clone(), "a key is a plain word")),
                };
                path.push(key.clone());
                out.insert(key, to_json(item, path)?);
                path.pop();
            }
            Value::Object(out)
        }
        Y::Tagged(t) => {
            return Err(Problem::value(
                path.clone(),
                format!("tags such as `{}` are not used in manifests", t.tag),
            )
            .hint("a choice is a one-key map, `loss: { nll: {} }`"));
        }
    })
}
