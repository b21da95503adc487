//! The online loop: rollouts of the model's own completions and their selection.
//!
//! One round of iterative CRINGE is [`rollout`], then [`label`] by a judge, then [`select`].

mod error;
mod label;
mod rollout;
mod select;

pub use error::{Error, Result};
pub use label::{Candidate, label};
pub use rollout::{Draws, Rollout, RolloutSettings, rollout};
pub use select::{Counts, Outcome, Selection, select};
