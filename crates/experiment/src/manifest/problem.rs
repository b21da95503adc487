//! A problem found in a manifest, and how it is shown: place, the line quoted, a hint.

use std::fmt::Write as _;

use super::located::{Path, Place, Places};

/// One mistake in a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Keys from the root of the checked question (before it is traced back to the file).
    pub path: Path,
    /// What is wrong, in lower case without a final stop.
    pub message: String,
    /// What to do about it, when that is known.
    pub hint: Option<String>,
    /// Marks the value rather than the key.
    pub on_value: bool,
}

impl Problem {
    /// A problem with the key at `path`.
    pub fn key(path: Path, message: impl Into<String>) -> Self {
        Self {
            path,
            message: message.into(),
            hint: None,
            on_value: false,
        }
    }

    /// A problem with the value at `path`.
    pub fn value(path: Path, message: impl Into<String>) -> Self {
        Self {
            on_value: true,
            ..Self::key(path, message)
        }
    }

    /// True if this is an unknown key that was probably meant to be `path`.
    pub fn misspells(&self, path: &[String]) -> bool {
        let (Some((word, parent)), Some((_, own))) = (path.split_last(), self.path.split_last()) else {
            return false;
        };
        parent == own && self.hint.as_deref() == Some(&format!("did you mean `{word}`?"))
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The nearest of `known` to `word`, if it is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(word, k), k))
        .filter(|(d, k)| *d <= (k.chars().count().max(3) / 3).max(1) + 1 || k.starts_with(word))
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// A text with its file name and positions: what is needed to show a problem.
pub struct Source<'a> {
    /// File name as the user gave it.
    pub file: &'a str,
    /// The whole text.
    pub text: &'a str,
    /// Positions of its keys and values.
    pub places: &'a Places,
}

impl Source<'_> {
    /// One problem as shown in the terminal; `path` is the path in the file.
    pub fn show(&self, problem: &Problem, path: &[String]) -> String {
        let place = if problem.on_value {
            self.places.value(path)
        } else {
            self.places.nearest(path)
        };
        self.show_at(&problem.message, problem.hint.as_deref(), place)
    }

    /// A message at a place of the file, with the line quoted.
    pub fn show_at(&self, message: &str, hint: Option<&str>, place: Option<Place>) -> String {
        let mut out = format!("error: {message}\n");
        match place {
            None => {
                let _ = writeln!(out, "  --> {}", self.file);
            }
            Some(p) => {
                let line = self.text.lines().nth(p.line.saturating_sub(1)).unwrap_or("");
                let width = p.line.to_string().len();
                let pad: String = line
                    .chars()
                    .take(p.column - 1)
                    .map(|c| if c == '\t' { '\t' } else { ' ' })
                    .collect();
                let left = line.chars().count().saturating_sub(p.column - 1).max(1);
                let _ = writeln!(out, "{:width$}--> {}:{}:{}", "", self.file, p.line, p.column);
                let _ = writeln!(out, "{:width$} |", "");
                let _ = writeln!(out, "{} | {line}", p.line);
                let _ = writeln!(out, "{:width$} | {pad}{}", "", "^".repeat(p.len.min(left)));
            }
        }
        if let Some(hint) = hint {
            let _ = writeln!(out, "  hint: {hint}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn near_words_are_offered_and_far_ones_are_not() {
        let known = ["alpha", "k", "detach_positives", "loss"];
        assert_eq!(nearest("alhpa", known), Some("alpha"));
        assert_eq!(nearest("detach_positive", known), Some("detach_positives"));
        assert_eq!(nearest("los", known), Some("loss"));
        assert_eq!(nearest("temperature", known), None);
    }
}
