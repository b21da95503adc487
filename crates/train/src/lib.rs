//! The offline loop: optimiser, schedules, accumulation, checkpoints.
//!
//! * [`Settings`]: how long, how fast and on how much at a time, as a manifest writes it
//! * [`Examples`]: encoded training sources and validation set
//! * [`Objective`]: what one logical batch does; [`LanguageObjective`] and [`ClassifierObjective`] do it with labelled
//!   examples, [`PairedObjective`] and [`RewardObjective`] with pairs
//! * [`Fit`]: the loop, an iterator that makes one update and gives one [`StepRecord`] at a time
//! * [`PrefixStates`]: the states below what is trained, made once and kept in a file
//! * [`Reference`]: what a paired loss compares with; [`ReferenceLogps`]: its log-probabilities, made once and kept in a file
//! * [`AdamW`], [`Schedule`]: what the loop is made of
//!
//! A run lives in a folder: its log, its last checkpoint and its best weights. Opening the folder again continues the
//! run; the result is the same, byte for byte, as if it had never stopped.

mod checkpoint;
mod classify;
mod error;
mod examples;
mod fit;
mod language;
mod learner;
mod objective;
mod optim;
mod paired;
mod pairs;
mod pass;
mod prefix_states;
mod reading;
mod record;
mod reference;
mod reward;
mod schedule;
mod settings;
mod stored;

pub use checkpoint::Best;
pub use classify::ClassifierObjective;
pub use error::{Error, Result};
pub use examples::{Examples, Place, Sample, Source};
pub use fit::Fit;
pub use language::LanguageObjective;
pub use objective::{Draws, LogicalBatch, Objective, Outcome, micro_batches};
pub use optim::{AdamW, clip_scale, grad_norm, non_finite_gradients};
pub use paired::PairedObjective;
pub use prefix_states::PrefixStates;
pub use record::{Metrics, StepRecord, read_steps};
pub use reference::{Reference, ReferenceLogps};
pub use reward::RewardObjective;
pub use schedule::Schedule;
pub use settings::Settings;
