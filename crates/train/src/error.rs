//! The crate's error: what went wrong, where, and what to do about it when that is known.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Everything that can stop a training run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One or more settings are out of range; all of them are listed.
    #[error("{}", list(.0))]
    Settings(Vec<(String, String)>),
    /// The training or validation data do not fit the objective.
    #[error("training data: {0}")]
    Data(String),
    /// A value of a step is NaN or infinite. Nothing was updated in that step.
    #[error("step {step}: `{term}` is not finite{}", examples_of(.examples))]
    NonFinite {
        /// The step, counted from 1 as in the step records; validation after a step carries its number.
        step: u64,
        /// The name of the loss, term, metric or parameter gradient.
        term: String,
        /// The ids of the examples whose own loss is not finite; all of the batch when none of them stands out.
        examples: Vec<String>,
    },
    /// The batch of a step was refused.
    #[error("step {step}: {source}")]
    Step {
        /// The step, counted from 1.
        step: u64,
        /// Why.
        source: Box<Error>,
    },
    /// A checkpoint is damaged or belongs to another run.
    #[error("checkpoint `{}`: {problem}", .path.display())]
    Checkpoint {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong with it, with a hint.
        problem: String,
    },
    /// A file of numbers made once, states or a reference's log-probabilities, is damaged, or was made of another model or
    /// other examples.
    #[error("{what} `{}`: {problem}", .path.display())]
    Stored {
        /// What is in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with a hint.
        problem: String,
    },
    /// The file system refused.
    #[error("`{}`: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Tokens, batches or the order of the examples.
    #[error(transparent)]
    Batches(#[from] unsay_data::Error),
    /// The loss refused its input.
    #[error(transparent)]
    Loss(#[from] unsay_losses::Error),
    /// The model or its files.
    #[error(transparent)]
    Model(#[from] unsay_model::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {}", .0.to_string().lines().next().unwrap_or_default())]
    Torch(#[from] tch::TchError),
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn stored(what: &'static str, path: &Path, problem: impl Into<String>) -> Self {
        Self::Stored {
            what,
            path: path.to_owned(),
            problem: problem.into(),
        }
    }

    pub(crate) fn checkpoint(path: &Path, problem: impl Into<String>) -> Self {
        Self::Checkpoint {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

fn list(problems: &[(String, String)]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|(field, message)| format!("`{field}`: {message}"))
        .collect();
    lines.join("\n")
}

/// How many examples a message names before it only counts them.
const NAMED: usize = 8;

fn examples_of(examples: &[String]) -> String {
    let mut text = String::new();
    if examples.is_empty() {
        return text;
    }
    let named: Vec<String> = examples.iter().take(NAMED).map(|id| format!("`{id}`")).collect();
    let _ = write!(text, "; examples: {}", named.join(", "));
    if examples.len() > NAMED {
        let _ = write!(text, " and {} more", examples.len() - NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_non_finite_message_names_step_term_and_a_few_examples() {
        let examples = (0..10).map(|i| format!("e{i}")).collect();
        let error = Error::NonFinite {
            step: 3,
            term: "ct_loss".into(),
            examples,
        };
        assert_eq!(
            error.to_string(),
            "step 3: `ct_loss` is not finite; examples: `e0`, `e1`, `e2`, `e3`, `e4`, `e5`, `e6`, `e7` and 2 more"
        );
    }

    #[test]
    fn all_settings_problems_are_shown() {
        let error = Error::Settings(vec![
            ("lr".into(), "too small".into()),
            ("clip".into(), "negative".into()),
        ]);
        assert_eq!(error.to_string(), "`lr`: too small\n`clip`: negative");
    }
}
