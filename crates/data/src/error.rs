//! The one error type of the crate.

use std::fmt;
use std::path::{Path, PathBuf};

/// What went wrong, where, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("could not {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `create`.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A dataset file without a single row.
    #[error("`{}`: expected at least one row, got none", path.display())]
    NoRows {
        /// The file.
        path: PathBuf,
    },
    /// A row or a file that does not have the expected form.
    #[error("{place}: expected {expected}, got {got}")]
    Malformed {
        /// Where.
        place: Place,
        /// What should stand there.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// A file name whose ending names no known format.
    #[error(
        "`{}`: expected a file name that ends in .jsonl, .jsonl.gz, .csv or .parquet",
        path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A column named by the mapping that the file does not have.
    #[error("{place}: expected a column `{column}`, got {}{}", listed(found), hint(nearest))]
    MissingColumn {
        /// Where.
        place: Place,
        /// The column asked for.
        column: String,
        /// The columns of the file.
        found: Vec<String>,
        /// The found column with the most similar name.
        nearest: Option<String>,
    },
    /// Columns that fit none of the known shapes, or more than one.
    #[error(
        "{place}: {why}: got the columns {}\n\
         hint: name the columns with a `columns` mapping, or use one of the shapes\n{}",
        listed(found),
        crate::shapes::SHAPES
    )]
    UnknownShape {
        /// Where.
        place: Place,
        /// Whether none or several shapes fit.
        why: &'static str,
        /// The columns of the file.
        found: Vec<String>,
    },
    /// A value of the label column that the mapping does not name.
    #[error("{place}: expected one of the mapped labels {}, got `{got}`", listed(known))]
    UnknownLabel {
        /// Where.
        place: Place,
        /// The values named by the mapping.
        known: Vec<String>,
        /// The value found.
        got: String,
    },
    /// A mapping that contradicts itself.
    #[error("columns: {0}")]
    Mapping(String),
    /// A row without a completion.
    #[error("{place}: expected a completion, got empty text")]
    EmptyCompletion {
        /// Where.
        place: Place,
    },
    /// A vocabulary too small for the special tokens and the 256 bytes.
    #[error("vocab_size: expected at least {least}, got {got}")]
    VocabularyTooSmall {
        /// The smallest possible size.
        least: usize,
        /// The size asked for.
        got: usize,
    },
    /// A tokenizer whose special token is missing or has another id.
    #[error("`{}`: expected the special token `{token}` with id {expected}, got {got}", path.display())]
    SpecialToken {
        /// The tokenizer file.
        path: PathBuf,
        /// The special token.
        token: &'static str,
        /// Its id in this project.
        expected: u32,
        /// What the file says of it.
        got: String,
    },
    /// The tokenizer library refused.
    #[error("tokenizer: could not {action}: {message}")]
    Tokenizer {
        /// What was tried.
        action: &'static str,
        /// What the library said.
        message: String,
    },
    /// A tokenizer with more tokens than the model has embeddings for.
    #[error(
        "tokenizer: expected token ids below {rows}, the rows of the embedding, got a vocabulary of {vocab_size}\n\
         hint: take the tokenizer that lies beside the weights"
    )]
    EmbeddingTooSmall {
        /// The size of the vocabulary.
        vocab_size: usize,
        /// The rows of the embedding.
        rows: usize,
    },
    /// A conversation for a tokenizer without a chat template.
    #[error("tokenizer: expected a chat template, got a tokenizer without one")]
    NoTemplate,
    /// Named chat templates of which none is the one to take.
    #[error("chat template: expected one named `default`, got {}", listed(found))]
    NoDefaultTemplate {
        /// The names found.
        found: Vec<String>,
    },
    /// A chat template that does not parse, or that fails.
    #[error("chat template `{name}`{}: {message}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Template {
        /// The name of the template.
        name: String,
        /// The line within it, from 1.
        line: Option<usize>,
        /// What is wrong there.
        message: String,
    },
    /// What a chat template itself says of a conversation, by `raise_exception`.
    #[error("the chat template refuses the conversation: `{message}`")]
    TemplateComplaint {
        /// What it says.
        message: String,
    },
    /// A thread for the chat template that the operating system did not give.
    #[error("could not start a thread for the chat template: {source}")]
    Thread {
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A conversation that has every character for private use.
    #[error("conversation: expected some character for private use that does not occur, got all of them")]
    NoMarks,
    /// An error of one turn of an example.
    #[error("example {example}: {source}")]
    Example {
        /// The index of the example in what was encoded.
        example: usize,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A template that writes the beginning of a conversation in another way once it goes on.
    #[error(
        "message {turn}: expected a chat template that writes what comes before an answer in the same way once the \
         answer follows, got other text\n\
         hint: learn from the last answer of a conversation alone, or take a template that keeps earlier turns as they are"
    )]
    NoPrefix {
        /// The index of the message, from 0.
        turn: usize,
    },
    /// A chat template of which nobody can say where an answer ends.
    #[error(
        "message {turn}: expected a chat template that ends every answer by an end token, got one that writes one only at \
         the end of the conversation\nhint: label the example, so that its last answer alone is learnt"
    )]
    NoEnd {
        /// The index of the message, from 0.
        turn: usize,
    },
    /// A conversation that is no prompt and its answer.
    #[error("messages: expected {expected}, got {got}")]
    Conversation {
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        got: String,
    },
    /// A limit that leaves no room for what the template itself writes.
    #[error(
        "max_prompt: expected room for the template and a part of the last message, which takes {least} tokens, got {got}"
    )]
    PromptTooShort {
        /// The least that would do.
        least: usize,
        /// The limit.
        got: usize,
    },
    /// A token id outside the vocabulary.
    #[error("tokenizer: expected token ids below {vocab_size}, got {got}")]
    TokenId {
        /// The size of the vocabulary.
        vocab_size: usize,
        /// The id.
        got: u32,
    },
    /// A setting outside its range.
    #[error("{setting}: expected {expected}, got {got}")]
    Range {
        /// The setting.
        setting: &'static str,
        /// Its range.
        expected: &'static str,
        /// The value.
        got: String,
    },
    /// Too much of the supervision is lost on the way to tokens.
    #[error("{what}: expected at most {}, got {} ({count} of {of} examples)\nhint: {hint}",
        percent(*allowed), percent(*count as f64 / (*of).max(1) as f64))]
    Supervision {
        /// What is lost.
        what: &'static str,
        /// The share allowed.
        allowed: f64,
        /// How many examples are concerned.
        count: usize,
        /// Of how many.
        of: usize,
        /// What to do.
        hint: &'static str,
    },
    /// Data of which no example can be learnt from.
    #[error("expected at least one example with a completion, got none ({dropped} dropped)")]
    NoExamples {
        /// Examples left out because their completion is empty.
        dropped: usize,
    },
    /// A batch without examples.
    #[error("batch: expected at least one example, got none")]
    EmptyBatch,
    /// An example that has no completion token to learn from.
    #[error(
        "batch: expected a completion inside example {example}, got {length} tokens with the completion at {start}"
    )]
    EmptyTarget {
        /// The index of the example in its source.
        example: usize,
        /// Its length in tokens.
        length: usize,
        /// Where its completion should start.
        start: usize,
    },
    /// A pair whose completions do not go on from the same tokens.
    #[error(
        "pair {pair}: expected one prompt for both completions, got other tokens before the rejected than before the chosen \
         one\nhint: the chat template looks ahead to the answer; pairs need one that does not"
    )]
    PromptsDiffer {
        /// The index of the pair in what was encoded.
        pair: usize,
    },
    /// A name that is not in the catalog.
    #[error("expected a {kind} of the catalog ({}), got `{got}`{}", listed(known), hint(nearest))]
    UnknownName {
        /// What was looked for: `dataset`, `model`.
        kind: &'static str,
        /// The name asked for.
        got: String,
        /// The names of the catalog.
        known: Vec<String>,
        /// The most similar name.
        nearest: Option<String>,
    },
    /// A file whose content is not the recorded one.
    #[error("`{}`: expected {kind} {expected}, got {got}{}", path.display(), hint_text(advice))]
    Digest {
        /// The file or folder.
        path: PathBuf,
        /// Which hash.
        kind: &'static str,
        /// The recorded hash.
        expected: String,
        /// The hash of the file.
        got: String,
        /// What to do.
        advice: String,
    },
    /// A dataset or model that is in neither mirror nor cache nor reachable at its source.
    #[error(
        "{kind} `{name}` was found nowhere\n  mirror: {mirror}\n  cache: {cache}\n  source: {source_tried}\n\
         hint: {advice}"
    )]
    Unavailable {
        /// What was looked for: `dataset`, `model`.
        kind: &'static str,
        /// Its name.
        name: &'static str,
        /// What was found at the mirror.
        mirror: String,
        /// What was found in the cache.
        cache: String,
        /// What was tried at the public source, and how it failed.
        source_tried: String,
        /// What to do.
        advice: Box<str>,
    },
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// The result of everything fallible in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A place in a dataset file: a line, and within it a column where known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Box<Path>,
    /// The line, from 1; in a Parquet file the row, from 1.
    pub line: Option<u64>,
    /// The character within the line, from 1.
    pub column: Option<u32>,
}

impl Place {
    /// A line of a file.
    pub(crate) fn line(path: &Path, line: u64) -> Self {
        Self {
            path: path.into(),
            line: Some(line),
            column: None,
        }
    }

    /// A whole file.
    pub(crate) fn file(path: &Path) -> Self {
        Self {
            path: path.into(),
            line: None,
            column: None,
        }
    }

    /// The same line at the character after `before`, the beginning of the line.
    pub(crate) fn after(mut self, before: &str) -> Self {
        self.column = u32::try_from(before.chars().count() + 1).ok();
        self
    }

    /// A complaint about this place.
    pub(crate) fn malformed(self, expected: impl Into<String>, got: impl Into<String>) -> Error {
        Error::Malformed {
            place: self,
            expected: expected.into(),
            got: got.into(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(column) = self.column {
            write!(f, ":{column}")?;
        }
        write!(f, "`")
    }
}

/// The most similar of `known` to `name`, when one is similar at all.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(&name.to_lowercase(), &k.to_lowercase()), k))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k.to_owned())
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

fn hint(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|n| format!("\nhint: did you mean `{n}`?"))
        .unwrap_or_default()
}

fn hint_text(advice: &str) -> String {
    if advice.is_empty() {
        String::new()
    } else {
        format!("\nhint: {advice}")
    }
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}
