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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_of_any_size_give_the_mean_of_all_values() {
        let mut mean = RunningMean::default();
        assert!(mean.mean().abs() < 1e-15);
        mean.update(&[]);
        assert!(mean.mean().abs() < 1e-15, "nothing is not a value");
        for (batch, expected) in [
            (&[4.0, 8.0][..], 6.0),
            (&[-3.0], 3.0),
            (&[], 3.0),
            (&[1.0, 1.0, 1.0], 2.0),
        ] {
            mean.update(batch);
            assert!((mean.mean() - expected).abs() < 1e-12, "{mean:?} after {batch:?}");
        }
        let text = serde_json::to_string(&mean).unwrap();
        assert_eq!(serde_json::from_str::<RunningMean>(&text).unwrap(), mean);
    }
}
