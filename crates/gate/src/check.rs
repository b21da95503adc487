//! Measures the paths and says what changed.

use std::path::Path;

use anyhow::Result;

use crate::baseline::Figure;
use crate::verdict::{Meaning, Verdict};
use crate::{Measured, counts, times};

/// Instruction counts of the same program differ by less than this: hash maps have random keys.
pub(crate) const COUNT_TOLERANCE: f64 = 0.01;

/// Ratios of time may differ by this from one run to the next.
pub(crate) const TIME_TOLERANCE: f64 = 0.05;

/// So often a ratio beyond its tolerance is measured in all, each time in a new process. What is slower is so each time; what
/// was disturbed is not.
const TRIES: usize = 5;

/// Measures the ratio of each path to the reference, and those beyond their tolerance again, up to [`TRIES`] times in all.
/// Of several tries the one that is nearest to what is expected counts.
///
/// # Errors
/// When a measuring process ends badly.
pub(crate) fn times(
    names: &[&str],
    expected: &dyn Fn(&str) -> Figure,
    measure: &dyn Fn(&str) -> Result<Measured>,
) -> Result<Vec<Verdict>> {
    let judge = |name: &&str| -> Result<Verdict> { Ok(Verdict::of(name, measure(name)?.value, expected(name))) };
    let mut verdicts: Vec<Verdict> = names.iter().map(judge).collect::<Result<_>>()?;
    for _ in 1..TRIES {
        // All others come in between, so that a disturbance has time to pass.
        for verdict in &mut verdicts {
            if verdict.meaning != Meaning::Same {
                let again = judge(&verdict.name.clone().as_str())?;
                if (again.change - 1.0).abs() < (verdict.change - 1.0).abs() {
                    *verdict = again;
                }
            }
        }
    }
    Ok(verdicts)
}

/// Counts the instructions of each path.
///
/// # Errors
/// When counting ends badly.
pub(crate) fn counts(
    program: &Path,
    names: &[&str],
    expected: &dyn Fn(&str) -> Figure,
    planted: Option<&str>,
) -> Result<Vec<Verdict>> {
    let measured = counts::count(program, names, planted)?;
    Ok(measured
        .iter()
        .map(|one| Verdict::of(&one.name, one.value, expected(&one.name)))
        .collect())
}

/// The middle of several ratios of each path: what a baseline holds.
///
/// # Errors
/// When a measuring process ends badly.
pub(crate) fn typical_ratios(program: &Path, names: &[&str]) -> Result<Vec<Measured>> {
    let mut tries: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    for _ in 0..TRIES {
        for (name, tries) in names.iter().zip(&mut tries) {
            tries.push(times::ratio(program, name, None)?.value);
        }
    }
    Ok(names
        .iter()
        .zip(&mut tries)
        .map(|(name, tries)| Measured {
            name: (*name).to_owned(),
            value: times::median(tries),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn verdict(values: &[f64]) -> (Verdict, usize) {
        let left = RefCell::new(values.iter());
        let measure = |name: &str| {
            Ok(Measured {
                name: name.to_owned(),
                value: *left.borrow_mut().next().unwrap(),
            })
        };
        let expected = |_: &str| Figure {
            value: 1.0,
            tolerance: 0.05,
        };
        let verdicts = times(&["a"], &expected, &measure).unwrap();
        let unused = left.borrow().len();
        (verdicts[0].clone(), unused)
    }

    #[test]
    fn what_is_slower_is_so_each_time() {
        let (slow, unused) = verdict(&[1.10, 1.09, 1.13, 1.10, 1.08]);
        assert_eq!((slow.meaning, unused), (Meaning::Slower, 0));
        assert!((slow.change - 1.08).abs() < 1e-12);
    }

    #[test]
    fn one_disturbance_is_no_slowdown_and_what_is_within_is_measured_once() {
        let (disturbed, unused) = verdict(&[1.30, 1.01, 9.0]);
        assert_eq!((disturbed.meaning, unused), (Meaning::Same, 1));
        let (fast, unused) = verdict(&[0.8, 0.9, 0.7, 0.85, 0.8]);
        assert_eq!((fast.meaning, unused), (Meaning::Faster, 0));
    }
}
