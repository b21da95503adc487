//! What can go wrong in an evaluation.

/// A failed evaluation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There was nothing to score.
    #[error("`{evaluator}` got no examples to score")]
    Empty {
        /// The evaluator.
        evaluator: &'static str,
    },
    /// Two examples share an id, so their scores could not be told apart or paired.
    #[error("`{evaluator}` got example `{example}` twice; scores are paired by example")]
    Duplicate {
        /// The evaluator.
        evaluator: &'static str,
        /// The id.
        example: String,
    },
    /// An evaluator that compares with a gold reply met an example without one.
    #[error("`{evaluator}` needs a gold reply, example `{example}` has none")]
    NoGold {
        /// The evaluator.
        evaluator: &'static str,
        /// The id.
        example: String,
    },
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
    /// A value that must be finite was not.
    #[error("`{evaluator}` of example `{example}` is {got}, expected a finite number")]
    NotFinite {
        /// The evaluator.
        evaluator: &'static str,
        /// The id.
        example: String,
        /// The value.
        got: f64,
    },
    /// No evaluator has this name.
    #[error("unknown evaluator `{name}`, known are {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// All names, comma-separated.
        known: String,
    },
    /// Encoding failed.
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
pub type Result<T, E = Error> = std::result::Result<T, E>;

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
