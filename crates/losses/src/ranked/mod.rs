//! Losses over several completions of one prompt.
//!
//! A loss is the value of one prompt, [`RankedLoss::values`]. [`Objective`] adds how token log-probabilities become
//! those of a completion, and what holds the model to other completions.

mod d2o;
mod groups;
mod objective;

use tch::Tensor;

pub use groups::{Groups, RankedCounts};
pub use objective::{Batch, Objective};

use crate::registry::registry;
use crate::{Described, Result};

registry! {
    /// Every loss over several completions of one prompt, in its manifest form: a map of one key,
    /// `{ d2o: { alpha: 0.1, beta: 0.1 } }`.
    dyn RankedLoss:
    D2o => d2o,
}

/// A loss over the samples of a prompt and its negative.
///
/// Ask it what it needs; never compare its name.
pub trait RankedLoss: Described {
    /// Whether it compares with frozen reference models: one for the samples and one for the negatives, which may be
    /// the same.
    fn uses_reference(&self) -> bool;

    /// `[P]` the value of every prompt, with its graph, not reduced.
    ///
    /// **Errors**: [`Error::Input`](crate::Error::Input) when something that it needs is missing.
    fn values(&self, groups: &Groups) -> Result<Tensor>;

    /// `[P]` and `[P]` the implicit rewards of the samples of each prompt, taken together, and of its negative, for the
    /// log; no graph.
    ///
    /// **Errors**: as [`RankedLoss::values`].
    fn rewards(&self, groups: &Groups) -> Result<(Tensor, Tensor)>;

    /// Settings that between them use every switch.
    fn samples() -> Vec<Self>
    where
        Self: Sized;
}
