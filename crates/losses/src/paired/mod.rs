//! Losses over pairs: for one prompt a chosen and a rejected completion.
//!
//! A loss is the value of one pair, [`PairedLoss::values`]. What can be put around any of them is in [`Objective`]: how
//! token log-probabilities become those of a completion, the divergence behind the rewards, weights per pair, and a
//! likelihood term that anchors the chosen completion.

mod alphapo;
mod aot;
mod aot_unpaired;
mod apo_down;
mod apo_zero;
mod bco_pair;
mod cpo;
mod discopop;
mod dpo;
mod exo;
mod hinge;
mod ipo;
mod ipo_mean;
mod nca;
mod objective;
mod orpo;
mod pairs;
mod pairwise_cringe;
mod robust;
mod simpo;
mod slic_hf;
mod sppo;

use tch::Tensor;

pub use objective::{Batch, Logps, Objective, Weighting};
pub use pairs::{Divergence, PairCounts, Pairs};

use crate::registry::registry;
use crate::{Baseline, CompletionRows, Described, Needs, Result, TokenStats};

registry! {
    /// Every loss over pairs, in its manifest form: a map of one key, `{ dpo: { beta: 0.1 } }`.
    dyn PairedLoss:
    Alphapo => alphapo,
    Aot => aot,
    AotUnpaired => aot_unpaired,
    ApoDown => apo_down,
    ApoZero => apo_zero,
    BcoPair => bco_pair,
    Cpo => cpo,
    Discopop => discopop,
    Dpo => dpo,
    Exo => exo,
    Hinge => hinge,
    Ipo => ipo,
    IpoMean => ipo_mean,
    Nca => nca,
    Orpo => orpo,
    PairwiseCringe => pairwise_cringe,
    Robust => robust,
    Simpo => simpo,
    SlicHf => slic_hf,
    Sppo => sppo,
}

/// A loss over pairs.
///
/// Ask it what it needs; never compare its name.
pub trait PairedLoss: Described {
    /// Whether it compares with a frozen reference model.
    fn uses_reference(&self) -> bool;

    /// The scale of the implicit rewards that are reported.
    fn beta(&self) -> f64;

    /// Whether it divides log-probabilities by the number of tokens itself; [`Logps`] other than sums are then
    /// refused.
    fn per_token(&self) -> bool {
        false
    }

    /// Whether it compares the two sides with each other alone. A loss that compares the log-ratio of a side with a
    /// fixed number is not: there a constant does not cancel, so log-ratios cannot be log-probabilities
    /// ([`Objective::reference_free`]).
    fn is_of_margin(&self) -> bool {
        true
    }

    /// Whether [`Divergence`]s other than the reverse KL make sense for it: only for a loss of [`Pairs::margin`], in
    /// which the constant that a score is defined up to cancels.
    fn takes_divergence(&self) -> bool {
        self.uses_reference() && self.is_of_margin()
    }

    /// Weight of the likelihood of the chosen completion that is part of the loss itself.
    fn nll(&self) -> f64 {
        0.0
    }

    /// What it reads from the op beyond log-probabilities.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// How many uniform draws it takes per row.
    fn draws_per_row(&self) -> usize {
        0
    }

    /// The whole-batch number that it subtracts from rewards, if any.
    fn baseline(&self) -> Option<Baseline> {
        None
    }

    /// Whether the value of a pair depends on the other pairs of the batch. Such a loss must see the whole batch at
    /// once: splitting it into micro-batches would change the objective. Its terms belong to no pair, so it takes no
    /// weights per pair.
    fn couples_pairs(&self) -> bool {
        false
    }

    /// `[N]` a term of its own for every row, which is summed over each completion to
    /// [`Completions::term`](crate::Completions::term).
    fn token_term(
        &self,
        _stats: &TokenStats,
        _rows: &CompletionRows,
        _draws: Option<&Tensor>,
    ) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// `[B]` the value of every pair, with its graph, not reduced.
    ///
    /// **Errors**: [`Error::Input`](crate::Error::Input) when something that it needs is missing.
    fn values(&self, pairs: &Pairs) -> Result<Tensor>;

    /// `[B]` and `[B]` the implicit rewards of chosen and rejected completions, for the log: `β` times the log-ratio to
    /// the reference, or `β` times the log-probability where there is none; per token where the loss is.
    ///
    /// **Errors**: as [`PairedLoss::values`].
    fn rewards(&self, pairs: &Pairs) -> Result<(Tensor, Tensor)> {
        let uses_reference = self.uses_reference() && !pairs.reference_free;
        let reward = |side: &crate::Completions| side.reward(self.beta(), uses_reference, self.per_token());
        Ok((reward(&pairs.chosen)?, reward(&pairs.rejected)?))
    }

    /// `[B]` each, named numbers per pair of its own for the log, whose means over the pairs of the whole batch are
    /// reported.
    ///
    /// **Errors**: as [`PairedLoss::values`].
    fn extra_terms(&self, _pairs: &Pairs) -> Result<Vec<(&'static str, Tensor)>> {
        Ok(Vec::new())
    }

    /// Settings that between them use every switch.
    fn samples() -> Vec<Self>
    where
        Self: Sized;
}
