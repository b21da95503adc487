//! Wilson's interval for a share.

use statrs::distribution::{ContinuousCDF, Normal};

use super::{Interval, check_level};
use crate::error::{Error, Result};

/// Wilson score interval of a binomial share.
///
/// (p + z²/2n ± z · √(p(1 − p)/n + z²/4n²)) / (1 + z²/n), with p = successes / n and z the 1 − (1 − level)/2 quantile of the
/// standard normal distribution.
///
/// **Parameters.** `successes`: 0 to `n`. `n`: independent examples, at least 1. `level`: in (0, 1).
///
/// **Errors.** `n` of zero, more successes than examples, a level outside of its range.
///
/// Covers the sampling of examples for one trained model; it says nothing of the spread over seeds. Its ends never leave
/// [0, 1], and it has a width at 0 and at 1.
///
/// **Reference.** Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22(158), 1927; without
/// continuity correction.
///
/// ```
/// let interval = unsay_report::stats::wilson(95, 100, 0.95)?;
/// assert!((interval.low - 0.888_250).abs() < 1e-6 && (interval.high - 0.978_456).abs() < 1e-6);
/// # Ok::<(), unsay_report::Error>(())
/// ```
pub fn wilson(successes: u64, n: u64, level: f64) -> Result<Interval> {
    check_level(level)?;
    if n == 0 {
        return Err(Error::NoValues { what: "a share" });
    }
    if successes > n {
        return Err(Error::Range {
            name: "successes",
            expected: format!("at most the {n} examples"),
            got: successes.to_string(),
        });
    }
    let z = Normal::standard().inverse_cdf(1.0 - (1.0 - level) / 2.0);
    let (count, share) = (n as f64, successes as f64 / n as f64);
    let centre = share + z * z / (2.0 * count);
    let half = z * (share * (1.0 - share) / count + z * z / (4.0 * count * count)).sqrt();
    let scale = 1.0 + z * z / count;
    // Exactly 0 and 1 at the ends, where rounding would leave 1e-17 beyond.
    let low = if successes == 0 { 0.0 } else { (centre - half) / scale };
    let high = if successes == n { 1.0 } else { (centre + half) / scale };
    Ok(Interval { low, high, level })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn agrees_with_scipy() {
        // scipy.stats.binomtest(k, n).proportion_ci(level, method='wilson')
        for (k, n, level, low, high) in [
            (95, 100, 0.95, 0.8882495307680809, 0.978456320845632),
            (0, 10, 0.95, 0.0, 0.27753279986288926),
            (10, 10, 0.95, 0.7224672001371109, 1.0),
            (1, 3, 0.9, 0.07826572633372841, 0.7464661317187758),
            (487, 1500, 0.99, 0.2943556453170029, 0.3565219487260796),
        ] {
            let got = wilson(k, n, level).unwrap();
            assert!(
                (got.low - low).abs() < 1e-7 && (got.high - high).abs() < 1e-7,
                "{k}/{n}: {got:?}"
            );
        }
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(matches!(wilson(0, 0, 0.95), Err(Error::NoValues { .. })));
        assert!(matches!(
            wilson(3, 2, 0.95),
            Err(Error::Range { name: "successes", .. })
        ));
        assert!(matches!(wilson(1, 2, 1.0), Err(Error::Range { name: "level", .. })));
    }

    proptest! {
        #[test]
        fn stays_within_the_unit_interval_holds_the_share_and_mirrors(n in 1..5000u64, share in 0.0..=1.0f64) {
            let k = (share * n as f64).round() as u64;
            let interval = wilson(k, n, 0.95).unwrap();
            let p = k as f64 / n as f64;
            prop_assert!(0.0 <= interval.low && interval.low <= p && p <= interval.high && interval.high <= 1.0);
            let mirrored = wilson(n - k, n, 0.95).unwrap();
            prop_assert!((interval.low - (1.0 - mirrored.high)).abs() < 1e-12);
        }
    }
}
