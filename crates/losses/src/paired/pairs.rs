//! Pairs of completions, and what their log-ratios mean.

use std::iter::Sum;
use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::finite;
use crate::{CompletionRows, Completions, Error, Result};

/// `B` pairs: the chosen and the rejected completion of each prompt.
#[derive(Debug)]
pub struct Pairs {
    /// The completions to prefer.
    pub chosen: Completions,
    /// The completions to avoid, in the same order.
    pub rejected: Completions,
    /// What the log-ratios of both sides become before they are compared.
    pub divergence: Divergence,
    /// Whether log-ratios are taken against nothing, so that they are log-probabilities.
    pub reference_free: bool,
    /// The whole-batch number that [`PairedLoss::baseline`](super::PairedLoss::baseline) asks for.
    pub baseline: Option<f64>,
}

impl Pairs {
    /// Two sides of the same size.
    ///
    /// **Errors**: [`Error::Input`] when their sizes differ, or only one has a reference.
    pub fn new(chosen: Completions, rejected: Completions) -> Result<Self> {
        if chosen.n() != rejected.n() {
            return Err(Error::input(
                "rejected",
                format!("{} completions, one for each chosen one", chosen.n()),
                rejected.n(),
            ));
        }
        if chosen.reference.is_some() != rejected.reference.is_some() {
            return Err(Error::input("reference", "on both sides or on none", "one"));
        }
        Ok(Pairs {
            chosen,
            rejected,
            divergence: Divergence::ReverseKl,
            reference_free: false,
            baseline: None,
        })
    }

    /// From `2B` completions: first the `B` chosen ones, then the `B` rejected ones in the same order.
    ///
    /// **Errors**: [`Error::Input`] for an odd number.
    pub fn split(both: &Completions) -> Result<Self> {
        let n = both.n();
        if n == 0 || n % 2 != 0 {
            return Err(Error::input(
                "completions",
                "the chosen ones and then as many rejected ones",
                format!("{n} completions"),
            ));
        }
        Pairs::new(both.narrow(0, n / 2)?, both.narrow(n / 2, n / 2)?)
    }

    /// `[B]` and `[B]` the log-ratios to the reference of chosen and rejected completions, as the divergence reads them.
    ///
    /// **Errors**: [`Error::Input`] without a reference, unless the pairs are reference-free.
    pub fn ratios(&self) -> Result<(Tensor, Tensor)> {
        let ratio = |side: &Completions| match self.reference_free {
            true => Ok(side.logp.shallow_clone()),
            false => side.log_ratio(),
        };
        let score = |side: &Completions| self.divergence.score(&ratio(side)?);
        Ok((score(&self.chosen)?, score(&self.rejected)?))
    }
}

/// The divergence between policy and reference behind the implicit rewards: what a log-ratio `u` becomes.
///
/// With another divergence than the reverse KL the optimal policy has another form, and `u` is replaced by
/// `f′(π/π_ref)` up to a constant: `u`, `−e^{−u}`, `log σ(u)`, `e^{(α−1)u}/(α − 1)`.
///
/// **Reference**: C. Wang, Y. Jiang, C. Yang, H. Liu, Y. Chen, "Beyond reverse KL: Generalizing direct preference
/// optimization with diverse divergence constraints", 2023, table 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Divergence {
    /// `u`, as in DPO.
    #[default]
    ReverseKl,
    /// `−e^{−u}`.
    ForwardKl,
    /// Jensen-Shannon: `log σ(u)`, up to a constant.
    Js,
    /// `e^{(α−1)u}/(α − 1)`; `α → 1` is the reverse KL up to a constant, `α = 0` the forward KL.
    Alpha {
        /// Finite and not 1.
        alpha: f64,
    },
}

/// Beyond this the exponential of a log-ratio is held: `e^{60}` is `1e26`, whose gradient `f32` still holds.
const LARGEST_EXPONENT: f64 = 60.0;

impl Divergence {
    /// The parameter outside its range, if any.
    pub fn problem(&self) -> Option<Error> {
        match self {
            // The same distance as rounding leaves: at 1 itself the formula divides by zero.
            Divergence::Alpha { alpha } if (alpha - 1.0).abs() < 1e-6 => Some(Error::Range {
                name: "divergence.alpha.alpha",
                value: alpha.to_string(),
                range: "a finite number other than 1, whose limit is `reverse_kl`",
            }),
            Divergence::Alpha { alpha } => finite("divergence.alpha.alpha", *alpha),
            _ => None,
        }
    }

    /// What the log-ratio `u` becomes, of any shape; keeps the graph.
    ///
    /// Exponents are held at 60, beyond which the value no longer moves and its gradient is zero.
    ///
    /// **Errors**: only libtorch's.
    pub fn score(&self, u: &Tensor) -> Result<Tensor> {
        let power = |slope: f64| -> Result<Tensor> {
            let exponent = u.f_mul_scalar(slope)?.f_clamp_max(LARGEST_EXPONENT)?;
            Ok(exponent.f_exp()?.f_div_scalar(slope)?)
        };
        match self {
            Divergence::ReverseKl => Ok(u.shallow_clone()),
            Divergence::ForwardKl => power(-1.0),
            Divergence::Js => Ok(u.f_log_sigmoid()?),
            Divergence::Alpha { alpha } => power(alpha - 1.0),
        }
    }
}

/// Sizes of the **whole** batch of pairs, over all its micro-batches: what the objective divides by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairCounts {
    /// Pairs.
    pub pairs: f64,
    /// Tokens of chosen completions.
    pub chosen_tokens: f64,
}

impl PairCounts {
    /// Counts one micro-batch: rows of the chosen completions, then of the rejected ones.
    pub fn of(rows: &CompletionRows) -> Self {
        let pairs = rows.n_completions() / 2;
        PairCounts {
            pairs: pairs as f64,
            chosen_tokens: rows.lengths().iter().take(pairs).sum::<i64>() as f64,
        }
    }
}

impl Add for PairCounts {
    type Output = PairCounts;

    fn add(self, other: Self) -> Self {
        PairCounts {
            pairs: self.pairs + other.pairs,
            chosen_tokens: self.chosen_tokens + other.chosen_tokens,
        }
    }
}

impl AddAssign for PairCounts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for PairCounts {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(PairCounts::default(), Add::add)
    }
}
