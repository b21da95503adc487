//! Medians, and intervals that assume nothing of how times are distributed.

/// A median and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Median {
    /// The median.
    pub(crate) value: f64,
    /// The lower end of the interval.
    pub(crate) low: f64,
    /// The upper end.
    pub(crate) high: f64,
    /// How many values there were.
    pub(crate) n: usize,
    /// The chance, in percent, that an interval so made holds the median of what the values were drawn from; at least 95
    /// for six values and more.
    pub(crate) covers: f64,
}

/// The middle of the values, or the mean of the middle two; NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The median with the narrowest interval between the i-th smallest and the i-th largest value that covers at least 95 %:
/// the number of values below the true median is binomial, whatever their distribution (order statistics). Of fewer than
/// six values it is all of their range, and covers less.
pub(crate) fn with_interval(values: &[f64]) -> Median {
    let sorted = sorted(values);
    let n = sorted.len();
    // Chance that fewer than i of n fall below the median: both ends together miss it with twice that.
    let mut missed = 0.5_f64.powi(n as i32);
    let (mut rank, mut term) = (0, missed);
    let mut covers = 1.0 - 2.0 * missed;
    while rank + 1 < n.div_ceil(2) {
        term *= (n - rank) as f64 / (rank + 1) as f64;
        missed += term;
        if 1.0 - 2.0 * missed < 0.95 {
            break;
        }
        rank += 1;
        covers = 1.0 - 2.0 * missed;
    }
    Median {
        value: median(values),
        low: sorted.get(rank).copied().unwrap_or(f64::NAN),
        high: n.checked_sub(rank + 1).map_or(f64::NAN, |at| sorted[at]),
        n,
        covers: 100.0 * covers.max(0.0),
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert!(near(median(&[3.0, 1.0, 2.0]), 2.0));
        assert!(near(median(&[4.0, 1.0, 2.0, 3.0]), 2.5));
        assert!(median(&[]).is_nan());
    }

    /// Ranks and coverage of the textbook table for the median: n = 6 takes the extremes (96.9 %), 12 the third (96.1 %).
    #[test]
    fn intervals_are_those_of_the_sign_test() {
        for (n, low, high, covers) in [
            (1, 1.0, 1.0, 0.0),
            (5, 1.0, 5.0, 93.75),
            (6, 1.0, 6.0, 96.875),
            (8, 1.0, 8.0, 99.21875),
            (9, 2.0, 8.0, 96.09375),
            (12, 3.0, 10.0, 96.142578125),
            (20, 6.0, 15.0, 95.8610534668),
        ] {
            let values: Vec<f64> = (1..=n).rev().map(f64::from).collect();
            let found = with_interval(&values);
            assert!(near(found.low, low) && near(found.high, high), "{n}: {found:?}");
            assert!((found.covers - covers).abs() < 1e-6, "{n}: {found:?}");
            assert_eq!(found.n, values.len());
        }
    }

    #[test]
    fn one_slow_round_does_not_move_the_median() {
        let found = with_interval(&[1.5, 1.5, 1.6, 1.4, 1.5, 1.5, 9.0, 1.5, 1.5]);
        assert!(near(found.value, 1.5) && found.high < 2.0, "{found:?}");
    }
}
