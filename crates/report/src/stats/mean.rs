//! The mean over seeds and its Student-t interval.

use statrs::distribution::{ContinuousCDF, StudentsT};

use super::{Interval, check_finite, check_level};
use crate::error::{Error, Result};

/// A mean with what is known of its precision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The arithmetic mean.
    pub mean: f64,
    /// Its interval; none from a single value.
    pub interval: Option<Interval>,
    /// How many values.
    pub n: usize,
}

/// Mean of independent values, one per seed, with a Student-t interval.
///
/// mean ± t(1 − (1 − level)/2; n − 1) · s / √n, with s² = Σ (xᵢ − mean)² / (n − 1).
///
/// **Parameters.** `values`: one finite number per seed, at least one. `level`: in (0, 1).
///
/// **Errors.** No values; a value that is NaN or infinite, or whose sum of squares overflows; a level outside of its range.
///
/// One value has no spread: the interval is `None`. Equal values give an interval of width zero, which says that the seeds
/// agree, not that the quantity is known exactly. The interval is exact for normal values only; shares near 0 or 1 from few
/// seeds can have ends outside of [0, 1], which the caller may clip, and should then mark.
///
/// **Reference.** Student, "The probable error of a mean", Biometrika 6(1), 1908.
///
/// ```
/// let estimate = unsay_report::stats::mean_t(&[0.80, 0.85, 0.90], 0.95)?;
/// let interval = estimate.interval.expect("three seeds");
/// assert_eq!(estimate.n, 3);
/// assert!((estimate.mean - 0.85).abs() < 1e-12);
/// assert!((interval.high - 0.974_206).abs() < 1e-6);
/// # Ok::<(), unsay_report::Error>(())
/// ```
pub fn mean_t(values: &[f64], level: f64) -> Result<Estimate> {
    const WHAT: &str = "a mean over seeds";
    check_level(level)?;
    check_finite(WHAT, values.iter().copied())?;
    if values.is_empty() {
        return Err(Error::NoValues { what: WHAT });
    }
    let n = values.len();
    // Dividing first keeps the sum finite; the second pass takes out what rounding left.
    let rough: f64 = values.iter().map(|x| x / n as f64).sum();
    let mean = rough + values.iter().map(|x| (x - rough) / n as f64).sum::<f64>();
    check_finite(WHAT, [mean])?;
    if n == 1 {
        let interval = None;
        return Ok(Estimate { mean, interval, n });
    }
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
    let half = quantile(1.0 - (1.0 - level) / 2.0, (n - 1) as f64)? * (variance / n as f64).sqrt();
    check_finite(WHAT, [half, mean - half, mean + half])?;
    let interval = Interval {
        low: mean - half,
        high: mean + half,
        level,
    };
    Ok(Estimate {
        mean,
        interval: Some(interval),
        n,
    })
}

fn quantile(p: f64, freedom: f64) -> Result<f64> {
    let t = StudentsT::new(0.0, 1.0, freedom).map_err(|error| Error::Range {
        name: "degrees of freedom",
        expected: "above 0".to_owned(),
        got: format!("{freedom} ({error})"),
    })?;
    Ok(t.inverse_cdf(p))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `python3 -c "from scipy import stats; print([stats.t.ppf(p, d) for d in (1, 2, 4, 9, 99) for p in (.95, .975, .995)])"`
    const SCIPY: [(f64, [f64; 3]); 5] = [
        (1.0, [6.313751514675037, 12.706204736174694, 63.656741162871526]),
        (2.0, [2.9199855803537242, 4.302652729749462, 9.924843200918287]),
        (4.0, [2.1318467863266495, 2.7764451051977934, 4.604094871349992]),
        (9.0, [1.833112932656237, 2.262157162798205, 3.249835541592126]),
        (99.0, [1.6603911560169906, 1.9842169515864174, 2.626405457280827]),
    ];

    #[test]
    fn quantiles_are_those_of_scipy() {
        for (freedom, expected) in SCIPY {
            for (p, expected) in [0.95, 0.975, 0.995].into_iter().zip(expected) {
                let got = quantile(p, freedom).unwrap();
                assert!(
                    (got / expected - 1.0).abs() < 1e-7,
                    "t({p}; {freedom}) = {got}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn the_interval_is_that_of_scipy() {
        // stats.t.interval(0.95, 4, loc=mean(x), scale=stats.sem(x)) for x = 0.61 0.64 0.58 0.70 0.66
        let got = mean_t(&[0.61, 0.64, 0.58, 0.70, 0.66], 0.95).unwrap();
        let interval = got.interval.unwrap();
        assert!((got.mean - 0.638).abs() < 1e-12);
        assert!((interval.low - 0.5808294961802597).abs() < 1e-9, "{interval:?}");
        assert!((interval.high - 0.6951705038197405).abs() < 1e-9, "{interval:?}");
    }

    #[test]
    fn one_seed_has_no_interval() {
        let got = mean_t(&[0.5], 0.95).unwrap();
        assert_eq!(
            got,
            Estimate {
                mean: 0.5,
                interval: None,
                n: 1
            }
        );
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(matches!(mean_t(&[], 0.95), Err(Error::NoValues { .. })));
        assert!(matches!(
            mean_t(&[0.1, f64::NAN], 0.95),
            Err(Error::NotFinite { position: 1, .. })
        ));
        assert!(matches!(mean_t(&[f64::INFINITY], 0.95), Err(Error::NotFinite { .. })));
        assert!(matches!(
            mean_t(&[f64::MAX, f64::MIN], 0.95),
            Err(Error::NotFinite { .. })
        ));
        for level in [0.0, 1.0, 95.0, f64::NAN] {
            assert!(matches!(mean_t(&[0.1], level), Err(Error::Range { .. })), "{level}");
        }
    }

    proptest! {
        #[test]
        fn order_changes_nothing_and_shifts_and_scales_carry_over(
            mut values in prop::collection::vec(-100.0..100.0f64, 2..12),
            shift in -50.0..50.0f64,
            scale in 0.01..20.0f64,
        ) {
            let plain = mean_t(&values, 0.9).unwrap();
            let moved: Vec<f64> = values.iter().map(|x| x * scale + shift).collect();
            let moved = mean_t(&moved, 0.9).unwrap();
            prop_assert!((moved.mean - (plain.mean * scale + shift)).abs() < 1e-9);
            let (a, b) = (plain.interval.unwrap(), moved.interval.unwrap());
            prop_assert!((b.low - (a.low * scale + shift)).abs() < 1e-8 * (1.0 + b.low.abs() + scale * 100.0));
            prop_assert!(a.low <= plain.mean && plain.mean <= a.high);
            values.reverse();
            let reversed = mean_t(&values, 0.9).unwrap();
            prop_assert!((reversed.mean - plain.mean).abs() < 1e-10);
            // A higher level is wider.
            let wider = mean_t(&values, 0.99).unwrap().interval.unwrap();
            prop_assert!(wider.low <= a.low + 1e-12 && wider.high >= a.high - 1e-12);
        }
    }
}
