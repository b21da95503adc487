//! Evaluators: one score per example.
//!
//! An evaluator is one file under `evaluators/`; [`registry`] lists them with what each reads, which way
//! is better and what its corpus value is called. Nothing here knows how a model was trained.

mod error;
mod evaluation;
pub mod evaluators;
mod likelihood;
mod words;

pub use error::{Error, Result};
pub use evaluation::{Aggregate, Direction, Evaluation, Generation, Score, Series};
pub use evaluators::{Evaluator, Scorer, find, registry};
pub use likelihood::{Likelihood, Likelihoods, likelihoods};
pub use words::words;
