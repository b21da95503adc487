//! Losses that label whole completions and train on their tokens: each example is positive, negative or
//! unlabelled.

mod contrastive_token;
mod cringe;
mod gradient_ascent;
mod marks;
mod nll;
mod sigmoid;
mod unlikelihood;
mod unlikelihood_context;
mod unlikelihood_repetition;

use tch::{Device, Tensor};

pub(crate) use cringe::{candidates, contrast, contrast_needs};
pub use marks::Marks;

use crate::registry::registry;
use crate::rows::check_draws;
use crate::{Described, Error, LossValue, Needs, Result, TokenCounts, TokenRows, TokenStats};

registry! {
    /// Every loss over the tokens of labelled completions, in its manifest form: a map of one key,
    /// `{ cringe: { alpha: 1.0, k: 5 } }`.
    ///
    /// ```
    /// use unsay_losses::{Described, token::Loss};
    ///
    /// let loss: Loss = serde_json::from_str(r#"{ "cringe": { "alpha": 1.0, "k": 5 } }"#).unwrap();
    /// assert!(loss.check().is_ok());
    /// let typo = serde_json::from_str::<Loss>(r#"{ "cringe": { "alpha": 1.0, "k": 5, "beta": 1 } }"#);
    /// assert!(typo.unwrap_err().to_string().starts_with("unknown field `beta`"));
    /// ```
    dyn TokenLoss:
    ContrastiveToken => contrastive_token,
    Cringe => cringe,
    GradientAscent => gradient_ascent,
    Nll => nll,
    Sigmoid => sigmoid,
    Unlikelihood => unlikelihood,
    UnlikelihoodContext => unlikelihood_context,
    UnlikelihoodRepetition => unlikelihood_repetition,
}

/// A loss over the tokens of labelled completions.
///
/// Ask it what it needs; never compare its name.
pub trait TokenLoss: Described {
    /// What it reads from the op.
    fn needs(&self) -> Needs;

    /// How many uniform draws it takes per row.
    fn draws_per_row(&self) -> usize {
        0
    }

    /// What it reads from the text of one example, beside the stats: token ids in, nothing else needed. `None` for the
    /// losses that do not look at the text; otherwise [`TokenRows::with_marks`] must bring it to
    /// [`evaluate`](TokenLoss::evaluate).
    ///
    /// **Shapes**: `prompt` all ids that the model reads before the completion; `completion` the ids of all tokens that it
    /// is trained on, the end included; an entry of the marks per token of `completion`.
    fn marks(&self, prompt: &[i64], completion: &[i64]) -> Option<Marks> {
        let marks = Marks {
            weights: self.weights(prompt, completion),
            candidates: self.candidates(prompt, completion),
        };
        (marks.weights.is_some() || marks.candidates.is_some()).then_some(marks)
    }

    /// The weights of the [`marks`](TokenLoss::marks) alone: all that the counts of a whole batch take, by
    /// [`TokenCounts::with_weights`].
    fn weights(&self, prompt: &[i64], completion: &[i64]) -> Option<Vec<f64>> {
        let _ = (prompt, completion);
        None
    }

    /// The candidates of the [`marks`](TokenLoss::marks) alone. They may take memory by the square of the length: make them
    /// for one micro-batch at a time.
    fn candidates(&self, prompt: &[i64], completion: &[i64]) -> Option<Vec<Vec<i64>>> {
        let _ = (prompt, completion);
        None
    }

    /// `[N]` the only rows whose largest logits it reads, for [`TokenOp::with_top_rows`](crate::TokenOp::with_top_rows);
    /// `None` where it reads those of all rows, or of none.
    ///
    /// **Errors**: only libtorch's.
    fn top_rows(&self, rows: &TokenRows) -> Result<Option<Tensor>> {
        let _ = rows;
        Ok(None)
    }

    /// How many of the rows it trains at all; zero means that it cannot learn from such a batch. Of the counts it reads
    /// those of rows, not the weights.
    fn rows_trained(&self, counts: &TokenCounts) -> f64;

    /// What to do about a batch of which it trains no row: the end of that error.
    fn hint(&self) -> &'static str;

    /// The value on one micro-batch: all checks, then [`value`](TokenLoss::value).
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
    ) -> Result<LossValue> {
        check(self, rows, counts, draws, (stats.n_rows(), stats.logp.device()))?;
        self.value(stats, rows, counts, draws)
    }

    /// The value of rows, counts and draws that were checked already, as
    /// [`TokenOp::fused_loss`](crate::TokenOp::fused_loss) does once for all its chunks: nothing is read back from the
    /// device.
    ///
    /// **Shapes**: as [`evaluate`](TokenLoss::evaluate).
    ///
    /// **Errors**: [`Error::Input`] when `stats` or `rows` lack a column; without the checks, what does not fit may also
    /// give a wrong value or libtorch's error.
    fn value(
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

/// What every loss checks before it computes, for stats of so many rows on such a device.
pub(crate) fn check<L: TokenLoss + ?Sized>(
    loss: &L,
    rows: &TokenRows,
    counts: &TokenCounts,
    draws: Option<&Tensor>,
    stats: (i64, Device),
) -> Result<()> {
    loss.check()?;
    rows.check_for(stats, counts)?;
    check_draws(draws, loss.draws_per_row(), stats)?;
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
        hint: loss.hint(),
    })
}

/// A column of the stats that a loss's `needs` asked for.
pub(crate) fn wanted<'a>(what: &'static str, column: &'a Option<Tensor>) -> Result<&'a Tensor> {
    column
        .as_ref()
        .ok_or_else(|| Error::input(what, "the column that the loss's `needs` asks the op for", "none"))
}
