//! Learning-rate schedules: a factor for every update, with a linear warm-up in front.

use serde::{Deserialize, Serialize};

/// The course of the learning rate after the warm-up, written in manifests as `schedule: cosine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// The full rate to the end.
    #[default]
    Constant,
    /// A straight line from the full rate to zero.
    Linear,
    /// Half a cosine from the full rate to zero.
    Cosine,
}

impl Schedule {
    /// The factor on the learning rate for update `update` (counted from 0) of `total`.
    ///
    /// During the warm-up the factor is `(update + 1) / warmup`: the first update is small but not zero,
    /// the last one of the warm-up has the full rate. After it, with `x = (update - warmup) / (total - warmup)`,
    /// linear is `1 - x` and cosine `(1 + cos(pi x)) / 2`; so the update after the warm-up still has the full
    /// rate and zero would be reached one update after the last. Differs from the common `LambdaLR` recipe
    /// only in the warm-up, which there starts with an update of rate zero.
    pub fn factor(self, update: u64, warmup: u64, total: u64) -> f64 {
        if update < warmup {
            return (update + 1) as f64 / warmup as f64;
        }
        if update >= total {
            return if self == Self::Constant { 1.0 } else { 0.0 };
        }
        let x = (update - warmup) as f64 / (total - warmup) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => 1.0 - x,
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * x).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} != {expected}");
    }

    #[test]
    fn warm_up_rises_to_the_full_rate() {
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
            assert_near(schedule.factor(0, 4, 20), 0.25);
            assert_near(schedule.factor(3, 4, 20), 1.0);
            assert_near(schedule.factor(4, 4, 20), 1.0);
            assert_near(schedule.factor(0, 0, 20), 1.0);
        }
    }

    #[test]
    fn decay_ends_one_update_after_the_last() {
        assert_near(Schedule::Linear.factor(12, 4, 20), 0.5);
        assert_near(Schedule::Linear.factor(19, 4, 20), 1.0 / 16.0);
        assert_near(Schedule::Linear.factor(20, 4, 20), 0.0);
        assert_near(Schedule::Cosine.factor(12, 4, 20), 0.5);
        assert_near(
            Schedule::Cosine.factor(19, 4, 20),
            0.5 * (1.0 + (15.0 * std::f64::consts::PI / 16.0).cos()),
        );
        assert_near(Schedule::Cosine.factor(20, 4, 20), 0.0);
        assert_near(Schedule::Constant.factor(20, 4, 20), 1.0);
    }

    #[test]
    fn a_warm_up_as_long_as_the_run_divides_nothing_by_zero() {
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
            assert_near(schedule.factor(4, 5, 5), 1.0);
            assert!(schedule.factor(5, 5, 5).is_finite());
        }
    }

    #[test]
    fn manifests_write_the_name_alone() {
        let schedule: Schedule = serde_json::from_str("\"cosine\"").unwrap();
        assert_eq!(schedule, Schedule::Cosine);
        assert!(serde_json::from_str::<Schedule>("\"cosin\"").is_err());
    }
}
