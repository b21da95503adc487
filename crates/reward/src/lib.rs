//! Learned and rule-based judges of completions.
//!
//! A judge reads a prompt and a completion and gives the probability that the completion is one the model
//! should say. The same trait serves labelling of own generations and evaluation; the two should use
//! different judges.

mod accuracy;
mod error;
mod judge;
mod learned;
mod oracle;

pub use accuracy::{Accuracy, accuracy};
pub use error::{Error, Result};
pub use judge::{Item, Judge, Judgement, is_positive, judge_all};
pub use learned::LearnedJudge;
pub use oracle::OracleJudge;
