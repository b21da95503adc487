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
        .filter(|(d, k)| {
            let len = k.chars().count();
            // Of a word as short as the difference nothing is left to recognise it by.
            (*d <= (len.max(3) / 3).max(1) + 1 && *d < len) || k.starts_with(word)
        })
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
                let (line, before) = window(line, p.column.saturating_sub(1));
                let width = p.line.to_string().len();
                let pad: String = line
                    .chars()
                    .take(before)
                    .map(|c| if c == '\t' { '\t' } else { ' ' })
                    .collect();
                let left = line.chars().count().saturating_sub(before).max(1);
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

/// What is quoted of a long line, and how many characters of that stand before the marked one.
fn window(line: &str, before: usize) -> (String, usize) {
    const LONGEST: usize = 160;
    let n = line.chars().count();
    if n <= LONGEST {
        return (line.to_owned(), before);
    }
    let from = before.saturating_sub(LONGEST / 2).min(n - LONGEST);
    let (head, tail) = (
        if from > 0 { "…" } else { "" },
        if from + LONGEST < n { "…" } else { "" },
    );
    let shown: String = line.chars().skip(from).take(LONGEST).collect();
    (format!("{head}{shown}{tail}"), before - from + head.chars().count())
}

#[cfg(test)]
mod tests {
    use super::{nearest, window};

    #[test]
    fn of_a_long_line_only_the_surroundings_are_quoted() {
        let line: String = (0..500).map(|i| if i == 300 { 'X' } else { '.' }).collect();
        for line in [line.clone(), line.replace('.', "é")] {
            let (shown, before) = window(&line, 300);
            assert_eq!(shown.chars().nth(before), Some('X'));
            assert!(shown.starts_with('…') && shown.ends_with('…') && shown.chars().count() == 162);
        }
        assert_eq!(window("short", 3), ("short".to_owned(), 3));
        let (end, before) = window(&line, 499);
        assert_eq!((end.chars().count(), before), (161, 160));
    }

    #[test]
    fn near_words_are_offered_and_far_ones_are_not() {
        let known = ["alpha", "k", "detach_positives", "loss"];
        assert_eq!(nearest("alhpa", known), Some("alpha"));
        assert_eq!(nearest("detach_positive", known), Some("detach_positives"));
        assert_eq!(nearest("los", known), Some("loss"));
        assert_eq!(nearest("temperature", known), None);
        assert_eq!(nearest("c", known), None, "as short as the difference");
    }
}
