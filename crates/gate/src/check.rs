//! Measures the paths and says what changed.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::baseline::Figure;
use crate::times::{Least, beside_reference};
use crate::verdict::{Meaning, Verdict};
use crate::{Measured, counts};

/// Instruction counts of the same program differ by less than this: hash maps have random keys.
pub(crate) const COUNT_TOLERANCE: f64 = 0.01;

/// Ratios of time may differ by this from one run to the next.
pub(crate) const TIME_TOLERANCE: f64 = 0.05;

/// So often a path that is slower is measured in all, each time in a new process. What is slower is so each time; what
/// was disturbed is not.
const TRIES: usize = 8;

/// Before the second try; each later one waits twice as long. Neighbours on the same memory make some paths a tenth slower,
/// beside the reference too, for seconds or for half a minute.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// Measures the time of each path beside what it is compared with, and those that are slower again, up to [`TRIES`] times in
/// all, after a `pause` that doubles. The smallest ratio counts.
///
/// # Errors
/// When a measuring process ends badly.
pub(crate) fn times(
    names: &[&str],
    expected: &dyn Fn(&str) -> Figure,
    measure: &dyn Fn(&str) -> Result<Least>,
    mut pause: Duration,
) -> Result<Vec<Verdict>> {
    let mut all = names
        .iter()
        .map(|name| {
            let least = measure(name)?;
            Ok((least, Verdict::of(name, least.ratio(), expected(name))))
        })
        .collect::<Result<Vec<(Least, Verdict)>>>()?;
    for _ in 1..TRIES {
        if all.iter().all(|(_, verdict)| verdict.meaning != Meaning::Slower) {
            break;
        }
        std::thread::sleep(pause);
        pause *= 2;
        for (name, (least, verdict)) in names.iter().zip(&mut all) {
            if verdict.meaning == Meaning::Slower {
                *least = least.and(measure(name)?);
                *verdict = Verdict::of(name, least.ratio(), expected(name));
            }
        }
    }
    Ok(all.into_iter().map(|(_, verdict)| verdict).collect())
}

/// Counts the instructions of each path, once for each of `planted`.
///
/// # Errors
/// When counting ends badly.
pub(crate) fn counts(
    program: &Path,
    names: &[&str],
    expected: &dyn Fn(&str) -> Figure,
    planted: &[&[&str]],
) -> Result<Vec<Vec<Verdict>>> {
    let verdict = |one: &Measured| Verdict::of(&one.name, one.value, expected(&one.name));
    let runs = counts::count(program, names, planted)?;
    Ok(runs.iter().map(|run| run.iter().map(verdict).collect()).collect())
}

/// The smallest ratio of each path to the reference in several processes: what a baseline holds.
///
/// # Errors
/// When a measuring process ends badly.
pub(crate) fn ratios(program: &Path, names: &[&str]) -> Result<Vec<Measured>> {
    let mut all = vec![f64::INFINITY; names.len()];
    for _ in 0..TRIES {
        for (name, least) in names.iter().zip(&mut all) {
            *least = least.min(beside_reference(program, name, &[])?.ratio());
        }
    }
    let measured = names.iter().zip(all).map(|(name, value)| Measured {
        name: (*name).to_owned(),
        value,
    });
    Ok(measured.collect())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// The verdict after measuring such ratios, and how many of them were not asked for.
    fn verdict(ratios: &[f64]) -> (Verdict, usize) {
        let left = RefCell::new(ratios.iter());
        let measure = |_: &str| {
            Ok(Least {
                path: *left.borrow_mut().next().unwrap(),
                other: 1.0,
            })
        };
        let expected = |_: &str| Figure {
            value: 1.0,
            tolerance: 0.05,
        };
        let verdicts = times(&["a"], &expected, &measure, Duration::ZERO).unwrap();
        let unused = left.borrow().len();
        (verdicts[0].clone(), unused)
    }

    #[test]
    fn what_is_slower_is_so_each_time() {
        let (slow, unused) = verdict(&[1.10, 1.09, 1.13, 1.10, 1.08, 1.2, 1.3, 1.1]);
        assert_eq!((slow.meaning, unused), (Meaning::Slower, 0));
        assert!((slow.change - 1.08).abs() < 1e-12);
    }

    #[test]
    fn one_disturbance_is_no_slowdown_and_what_is_within_or_faster_is_measured_once() {
        let (disturbed, unused) = verdict(&[1.30, 1.01, 9.0]);
        assert_eq!((disturbed.meaning, unused), (Meaning::Same, 1));
        let (fast, unused) = verdict(&[0.8, 9.0]);
        assert_eq!((fast.meaning, unused), (Meaning::Faster, 1));
    }
}
