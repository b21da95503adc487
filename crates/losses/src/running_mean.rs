//! A mean over everything seen so far.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A mean that is updated batch by batch: what BCO subtracts from rewards.
///
/// `μ ← μ + (x̄ − μ) n / (N + n)` for a batch of `n` values with mean `x̄` after `N` values.
///
/// Update it with the rewards of the whole batch **before** it is used on that batch, once per optimiser step, and
/// in training only; it is part of what a checkpoint saves.
///
/// ```
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let mut mean = unsay_losses::RunningMean::default();
/// mean.update(&[1.0, 2.0, 3.0])?;
/// mean.update(&[6.0])?;
/// assert!((mean.mean() - 3.0).abs() < 1e-12);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct RunningMean {
    count: f64,
    mean: f64,
}

/// What a checkpoint holds, before it is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    count: f64,
    mean: f64,
}

impl TryFrom<Stored> for RunningMean {
    type Error = Error;

    fn try_from(Stored { count, mean }: Stored) -> Result<Self> {
        if !(count.is_finite() && count >= 0.0 && mean.is_finite()) {
            return Err(Error::input(
                "running mean",
                "finite numbers, with a count of at least 0",
                format!("count {count} and mean {mean}"),
            ));
        }
        Ok(RunningMean { count, mean })
    }
}

impl RunningMean {
    /// Takes in some values; none change nothing.
    ///
    /// **Errors**: [`Error::Input`] for values that are not finite, or whose sum is not; then nothing changes either.
    pub fn update(&mut self, values: &[f64]) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let count = self.count + n;
        *self = RunningMean::try_from(Stored {
            count,
            mean: self.mean + (mean - self.mean) * n / count,
        })
        .map_err(|_| Error::input("values of a running mean", "finite numbers with a finite sum", mean))?;
        Ok(())
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
        mean.update(&[]).unwrap();
        assert!(mean.mean().abs() < 1e-15, "nothing is not a value");
        for (batch, expected) in [
            (&[4.0, 8.0][..], 6.0),
            (&[-3.0], 3.0),
            (&[], 3.0),
            (&[1.0, 1.0, 1.0], 2.0),
        ] {
            mean.update(batch).unwrap();
            assert!((mean.mean() - expected).abs() < 1e-12, "{mean:?} after {batch:?}");
        }
        let text = serde_json::to_string(&mean).unwrap();
        assert_eq!(serde_json::from_str::<RunningMean>(&text).unwrap(), mean);
    }

    #[test]
    fn values_that_are_no_numbers_change_nothing() {
        let mut mean = RunningMean::default();
        mean.update(&[]).unwrap();
        assert_eq!(mean, RunningMean::default());
        mean.update(&[1.0, 2.0, 6.0]).unwrap();
        let before = mean;
        for values in [
            &[f64::NAN][..],
            &[1.0, f64::INFINITY],
            &[f64::NEG_INFINITY, f64::INFINITY],
            &[1e308, 1e308],
        ] {
            let text = mean.update(values).unwrap_err().to_string();
            assert!(
                text.starts_with("values of a running mean: expected finite numbers with a finite sum, got"),
                "{text}"
            );
            assert_eq!(mean, before);
        }
        mean.update(&[7.0]).unwrap();
        assert!((mean.mean() - 4.0).abs() < 1e-12);
    }

    #[test]
    fn a_checkpoint_is_checked_when_it_is_read() {
        let mut mean = RunningMean::default();
        mean.update(&[1.0, 2.0]).unwrap();
        let text = serde_json::to_string(&mean).unwrap();
        assert_eq!(serde_json::from_str::<RunningMean>(&text).unwrap(), mean);
        assert_eq!(
            serde_json::from_str::<RunningMean>(r#"{"count": 0, "mean": 0}"#).unwrap(),
            RunningMean::default()
        );
        let error = |text: &str| serde_json::from_str::<RunningMean>(text).unwrap_err().to_string();
        assert_eq!(
            error(r#"{"count": -1, "mean": 0}"#),
            "running mean: expected finite numbers, with a count of at least 0, got count -1 and mean 0"
        );
        assert!(error(r#"{"count": 1, "mean": 0, "sum": 0}"#).starts_with("unknown field `sum`"));
        let stored = |count: f64, mean: f64| RunningMean::try_from(Stored { count, mean }).is_ok();
        assert!(stored(2.0, -3.0) && !stored(f64::INFINITY, 0.0) && !stored(f64::NAN, 0.0) && !stored(1.0, f64::NAN));
    }
}
