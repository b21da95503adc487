//! The one error type of this crate.

use std::path::{Path, PathBuf};

use tch::TchError;

/// What went wrong, with its place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model description that is broken or asks for something this crate does not compute.
    #[error("{place}: {what}")]
    Config {
        /// The file, or `model config` for one made in memory.
        place: String,
        /// What is wrong, naming the field.
        what: String,
    },
    /// A weight file that is broken or does not fit its description.
    #[error("`{}`: {what}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong, naming the tensor.
        what: String,
    },
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// An argument that does not fit.
    #[error("{what}: expected {expected}, got {got}")]
    Input {
        /// Which argument.
        what: String,
        /// What it may be.
        expected: String,
        /// What it was.
        got: String,
    },
    /// The model computed something that is not a number.
    #[error("non-finite log-probability at prompt {prompt}, new token {step}")]
    NonFinite {
        /// Which prompt.
        prompt: usize,
        /// Which new token, from zero.
        step: usize,
    },
    /// A guide of generation failed.
    #[error("guide of generation: {0}")]
    Guide(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A device that does not exist or cannot be used.
    #[error("{0}")]
    Device(String),
    /// libtorch refused an operation.
    #[error("libtorch: {}", first_line(.0))]
    Torch(#[from] TchError),
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn input(what: impl Into<String>, expected: impl Into<String>, got: impl std::fmt::Display) -> Self {
        Self::Input {
            what: what.into(),
            expected: expected.into(),
            got: got.to_string(),
        }
    }

    pub(crate) fn weights(path: &Path, what: impl Into<String>) -> Self {
        Self::Weights {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// libtorch's messages carry a C++ backtrace after the first line.
fn first_line(error: &TchError) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}
