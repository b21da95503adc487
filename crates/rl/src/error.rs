//! What can go wrong between a model and its own completions.

/// A failed rollout or selection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There were no prompts to complete.
    #[error("rollout got no prompts")]
    NoPrompts,
    /// A setting is out of range.
    #[error("`{name}` must be {expected}, got {got}")]
    Range {
        /// The setting.
        name: &'static str,
        /// The range.
        expected: &'static str,
        /// What it was.
        got: String,
    },
    /// A rollout names a prompt that was not given.
    #[error("rollout of prompt {prompt}, but only {n_prompts} prompts were given")]
    NoSuchPrompt {
        /// Position named.
        prompt: usize,
        /// Prompts given.
        n_prompts: usize,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Data(Box<unsay_data::Error>),
    /// The model failed.
    #[error(transparent)]
    Model(Box<unsay_model::Error>),
    /// The judge failed.
    #[error(transparent)]
    Reward(Box<unsay_reward::Error>),
}

/// The result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl From<unsay_data::Error> for Error {
    fn from(error: unsay_data::Error) -> Self {
        Self::Data(Box::new(error))
    }
}

impl From<unsay_model::Error> for Error {
    fn from(error: unsay_model::Error) -> Self {
        Self::Model(Box::new(error))
    }
}

impl From<unsay_reward::Error> for Error {
    fn from(error: unsay_reward::Error) -> Self {
        Self::Reward(Box::new(error))
    }
}
