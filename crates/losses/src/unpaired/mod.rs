//! Losses over completions that are each labelled desirable or undesirable, without a counterpart.
//!
//! A loss is the value of one completion, [`UnpairedLoss::values`]. [`Objective`] adds what holds the model to the
//! desirable ones beside it. No loss here needs both labels in a batch: training on undesirable completions alone works.

mod apo_zero_unpaired;
mod bco;
mod kto;
mod labelled;
mod npo;
mod objective;
mod sequence_gradient_ascent;
mod simnpo;

use tch::Tensor;

pub use labelled::{Labelled, UnpairedCounts};
pub use objective::{Batch, Objective};

use crate::registry::registry;
use crate::{Baseline, Described, Result};

registry! {
    /// Every loss over labelled completions, in its manifest form: a map of one key, `{ kto: { beta: 0.1 } }`.
    dyn UnpairedLoss:
    ApoZeroUnpaired => apo_zero_unpaired,
    Bco => bco,
    Kto => kto,
    Npo => npo,
    SequenceGradientAscent => sequence_gradient_ascent,
    Simnpo => simnpo,
}

/// A loss over labelled completions.
///
/// Ask it what it needs; never compare its name.
pub trait UnpairedLoss: Described {
    /// Whether it compares with a frozen reference model.
    fn uses_reference(&self) -> bool;

    /// The scale of the implicit rewards that are reported.
    fn beta(&self) -> f64;

    /// Whether it divides log-probabilities by the number of tokens itself.
    fn per_token(&self) -> bool {
        false
    }

    /// The whole-batch number that it subtracts from rewards, if any.
    fn baseline(&self) -> Option<Baseline> {
        None
    }

    /// Whether desirable completions are trained by the loss itself. Where they are not their values are zero, and
    /// the loss divides by the number of undesirable ones alone.
    fn trains_desirable(&self) -> bool {
        true
    }

    /// Whether it takes a weight for every undesirable completion, [`Labelled::weights`].
    fn takes_weights(&self) -> bool {
        false
    }

    /// `[B]` the value of every completion, with its graph, not reduced.
    ///
    /// **Errors**: [`Error::Input`](crate::Error::Input) when something that it needs is missing.
    fn values(&self, labelled: &Labelled) -> Result<Tensor>;

    /// `[B]` the implicit rewards, for the log: `β` times the log-ratio to the reference, or `β` times the log-probability
    /// where there is none; no graph.
    ///
    /// **Errors**: as [`UnpairedLoss::values`].
    fn rewards(&self, labelled: &Labelled) -> Result<Tensor> {
        let completions = &labelled.completions;
        completions.reward(self.beta(), self.uses_reference(), self.per_token())
    }

    /// Settings that between them use every switch.
    fn samples() -> Vec<Self>
    where
        Self: Sized;
}
