//! A mean over everything seen so far.

use serde::{Deserialize, Serialize};

/// A mean that is updated batch by batch: what BCO subtracts from rewards.
///
/// `μ ← μ + (x̄ − μ) n / (N + n)` for a batch of `n` values with mean `x̄` after `N` values.
///
/// Update it with the rewards of the whole batch **before** it is used on that batch, once per optimiser step, and
/// in training only; it is part of what a checkpoint saves.
///
/// ```
/// let mut mean = unsay_losses::RunningMean::default();
/// mean.update(&[1.0, 2.0, 3.0]);
/// mean.update(&[6.0]);
/// assert!((mean.mean() - 3.0).abs() < 1e-12);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunningMean {
    count: f64,
    mean: f64,
}

impl RunningMean {
    /// Takes in some values; none change nothing.
    pub fn update(&mut self, values: &[f64]) {
        if values.is_empty() {
            return;
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        self.count += n;
        self.mean += (mean - self.mean) * n / self.count;
    }

    /// The mean of everything so far; 0 before the first value.
    pub fn mean(&self) -> f64 {
        self.mean
    }
}
