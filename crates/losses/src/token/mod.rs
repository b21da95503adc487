//! Losses that label whole completions and train on their tokens: each example is positive, negative or
//! unlabelled.

mod cringe;
mod nll;
mod registry;
mod unlikelihood;

registry::registry! {
    Cringe => cringe,
    Nll => nll,
    Unlikelihood => unlikelihood,
}

use tch::Tensor;

use crate::{Error, LossValue, Needs, Result, TokenCounts, TokenRows, TokenStats};

/// A loss over the tokens of labelled completions.
///
/// Ask it what it needs; never compare its name.
pub trait TokenLoss {
    /// The one name in file, manifest and results.
    fn name(&self) -> &'static str;

    /// One line for lists.
    fn summary(&self) -> &'static str;

    /// Every parameter outside its range.
    fn problems(&self) -> Vec<Error>;

    /// What it reads from the op.
    fn needs(&self) -> Needs;

    /// How many uniform draws it takes per row.
    fn draws_per_row(&self) -> usize {
        0
    }

    /// How many of the rows it trains at all; zero means that it cannot learn from such a batch.
    fn rows_trained(&self, counts: &TokenCounts) -> f64;

    /// The value on one micro-batch.
    ///
    /// **Shapes**: `stats` and `rows` of `N` rows; `draws` `[N, draws_per_row]`, uniform in `[0, 1)`, one row of draws
    /// per token so that any split of a batch sees the same ones.
    ///
    /// **Errors**: [`Error::Range`] for a parameter outside its range; [`Error::Input`] when the inputs do not fit
    /// together or lack what [`needs`](TokenLoss::needs) and [`draws_per_row`](TokenLoss::draws_per_row) ask
    /// for; [`Error::Empty`] without rows; [`Error::NothingToLearn`] when the whole batch has no row that it trains.
    fn evaluate(
        &self,
        stats: &TokenStats,
        rows: &TokenRows,
        counts: &TokenCounts,
        draws: Option<&Tensor>,
    ) -> Result<LossValue>;

    /// Settings that between them use every switch: what the contract suite and the benchmark run.
    fn samples() -> Vec<Self>
    where
        Self: Sized;
}

/// What every loss checks before it computes.
fn check(
    loss: &impl TokenLoss,
    stats: &TokenStats,
    rows: &TokenRows,
    counts: &TokenCounts,
    hint: &'static str,
) -> Result<()> {
    if let Some(problem) = loss.problems().into_iter().next() {
        return Err(problem);
    }
    rows.check(stats, counts)?;
    if loss.rows_trained(counts) > 0.0 {
        return Ok(());
    }
    let TokenCounts {
        positive,
        negative,
        unlabelled,
        ..
    } = counts;
    let found = format!("{positive} positive, {negative} negative and {unlabelled} unlabelled tokens");
    Err(Error::NothingToLearn {
        loss: loss.name(),
        found,
        hint,
    })
}

/// A column of the stats that [`TokenLoss::needs`] asked for.
fn wanted<'a>(what: &'static str, column: &'a Option<Tensor>) -> Result<&'a Tensor> {
    column
        .as_ref()
        .ok_or_else(|| Error::input(what, "the column that the loss's `needs` asks the op for", "none"))
}
