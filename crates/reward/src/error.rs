//! What can go wrong in judging.

/// A failed judgement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There was nothing to judge.
    #[error("judge `{judge}` got nothing to judge")]
    Empty {
        /// The judge.
        judge: String,
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
    /// A judgement was not a probability.
    #[error("judge `{judge}` gave {got} for item {item}, expected a probability in [0, 1]")]
    NotProbability {
        /// The judge.
        judge: String,
        /// Position in the input.
        item: usize,
        /// What it gave.
        got: f64,
    },
    /// A judge gave a different number of values than it got items.
    #[error("judge `{judge}` gave {got} values for {expected} items")]
    Count {
        /// The judge.
        judge: String,
        /// Items.
        expected: usize,
        /// Values.
        got: usize,
    },
    /// An example to measure a judge on has no label.
    #[error("example `{example}` has no positive or negative label to compare judge `{judge}` with")]
    NoLabel {
        /// The judge.
        judge: String,
        /// The id.
        example: String,
    },
    /// Only one of the two classes is there, so balanced accuracy and AUC are undefined.
    #[error(
        "accuracy of judge `{judge}` needs both classes, got {n_positive} positive and {n_negative} negative examples"
    )]
    OneClass {
        /// The judge.
        judge: String,
        /// Positive examples.
        n_positive: usize,
        /// Negative examples.
        n_negative: usize,
    },
    /// Encoding failed.
    #[error(transparent)]
    Data(Box<unsay_data::Error>),
    /// The model failed.
    #[error(transparent)]
    Model(Box<unsay_model::Error>),
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
