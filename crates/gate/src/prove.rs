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
    let run = |planted: Option<&str>| -> Result<Vec<Verdict>> {
        match kind {
            Kind::Counts => check::counts(program, names, expected, planted),
            Kind::Times => check::times(names, expected, &|name| times::beside_reference(program, name, planted)),
        }
    };
    let (mut missed, mut alarms) = (0, 0);
    for at in 0..n_runs {
        let name = names[at % names.len()];
        let verdicts = run(Some(name))?;
        let (caught, others): (Vec<&Verdict>, Vec<&Verdict>) =
            slower(&verdicts).into_iter().partition(|verdict| verdict.name == name);
        missed += usize::from(caught.is_empty());
        // A path that nothing was planted in was clean.
        alarms += usize::from(!others.is_empty());
        let change = verdicts.iter().find(|v| v.name == name).map_or(f64::NAN, |v| v.change);
        let word = if caught.is_empty() { "MISSED" } else { "caught" };
        say(&format!(
            "planted {:>2}: {word} {name} {:+.1} %{}",
            at + 1,
            100.0 * (change - 1.0),
            list(&others)
        ))?;
        let clean = run(None)?;
        let slow = slower(&clean);
        alarms += usize::from(!slow.is_empty());
        let furthest = clean.iter().map(|v| v.change - 1.0).fold(0.0, f64::max);
        say(&format!(
            "clean   {:>2}: largest {:+.1} %{}",
            at + 1,
            100.0 * furthest,
            list(&slow)
        ))?;
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
