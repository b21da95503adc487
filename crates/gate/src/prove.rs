//! Whether the gate catches what it should and is silent otherwise.

use std::path::Path;

use anyhow::Result;

use crate::baseline::Figure;
use crate::verdict::{Meaning, Verdict};
use crate::{check, say, times};

/// Which figures are tried.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Instruction counts.
    Counts,
    /// Ratios of time.
    Times,
}

/// So many pairs of runs are counted in one process after the other; then come new processes.
const COUNTED_AT_ONCE: usize = 5;

/// As many runs with a tenth of one path's work done twice, the paths taking turns, as without; each over all paths. Says of
/// each run what was found, and answers with how many slowdowns were missed and how many runs raised a false alarm.
///
/// # Errors
/// When measuring ends badly.
pub(crate) fn prove(
    program: &Path,
    names: &[&str],
    expected: &dyn Fn(&str) -> Figure,
    kind: Kind,
    n_runs: usize,
) -> Result<(usize, usize)> {
    let runs = |planted: &[Option<&str>]| -> Result<Vec<Vec<Verdict>>> {
        let time = |planted: &Option<&str>| {
            check::times(names, expected, &|name| {
                times::beside_reference(program, name, *planted)
            })
        };
        match kind {
            Kind::Counts => check::counts(program, names, expected, planted),
            Kind::Times => planted.iter().map(time).collect(),
        }
    };
    let at_once = match kind {
        Kind::Counts => COUNTED_AT_ONCE,
        Kind::Times => 1,
    };
    let (mut missed, mut alarms) = (0, 0);
    for first in (0..n_runs).step_by(at_once) {
        let tries: Vec<(usize, &str)> = (first..n_runs.min(first + at_once))
            .map(|at| (at + 1, names[at % names.len()]))
            .collect();
        let planted: Vec<Option<&str>> = tries.iter().flat_map(|&(_, name)| [Some(name), None]).collect();
        let mut verdicts = runs(&planted)?.into_iter();
        for (number, name) in tries {
            let (with, clean) = (verdicts.next().unwrap_or_default(), verdicts.next().unwrap_or_default());
            let (caught, others): (Vec<&Verdict>, Vec<&Verdict>) =
                slower(&with).into_iter().partition(|verdict| verdict.name == name);
            missed += usize::from(caught.is_empty());
            // A path that nothing was planted in was clean.
            alarms += usize::from(!others.is_empty());
            let change = with.iter().find(|v| v.name == name).map_or(f64::NAN, |v| v.change);
            let word = if caught.is_empty() { "MISSED" } else { "caught" };
            let (more, false_alarms) = (100.0 * (change - 1.0), list(&others));
            say(&format!(
                "planted {number:>2}: {word} {name} {more:+.1} %{false_alarms}"
            ))?;
            let slow = slower(&clean);
            alarms += usize::from(!slow.is_empty());
            let furthest = clean.iter().map(|v| v.change - 1.0).fold(0.0, f64::max);
            let (largest, false_alarms) = (100.0 * furthest, list(&slow));
            say(&format!("clean   {number:>2}: largest {largest:+.1} %{false_alarms}"))?;
        }
    }
    Ok((missed, alarms))
}

fn slower(verdicts: &[Verdict]) -> Vec<&Verdict> {
    verdicts.iter().filter(|v| v.meaning == Meaning::Slower).collect()
}

fn list(alarms: &[&Verdict]) -> String {
    alarms
        .iter()
        .map(|v| format!("; FALSE ALARM {} {:+.1} %", v.name, 100.0 * (v.change - 1.0)))
        .collect()
}
