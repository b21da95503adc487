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

/// So many slowdowns are counted in one process after the other; then come new processes.
const COUNTED_AT_ONCE: usize = 10;

/// So many of them are planted in one run, each in a path of its own: the count of a path hardly depends on the others, its
/// time is taken in a process of its own, and a run is long.
const PLANTED_AT_ONCE: usize = 5;

/// Runs over all paths, one for each list of paths that a slowdown is planted in.
type Measure<'a> = &'a dyn Fn(&[&[&str]]) -> Result<Vec<Vec<Verdict>>>;

/// As many slowdowns by a tenth of one path's work done twice, the paths taking turns, as runs over all paths without. Says of
/// each what was found, and answers with how many slowdowns were missed and how many runs raised a false alarm.
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
    let count = |planted: &[&[&str]]| check::counts(program, names, expected, planted);
    let time = |planted: &[&[&str]]| {
        let run = |planted: &&[&str]| {
            check::times(
                names,
                expected,
                &|name| times::beside_reference(program, name, planted),
                check::PAUSE,
            )
        };
        planted.iter().map(run).collect()
    };
    let (at_once, measure): (_, Measure<'_>) = match kind {
        Kind::Counts => ((COUNTED_AT_ONCE, PLANTED_AT_ONCE), &count),
        Kind::Times => ((PLANTED_AT_ONCE, PLANTED_AT_ONCE), &time),
    };
    tried(names, at_once, n_runs, measure, &mut say)
}

/// Tries slowdowns, so many in one measurement and so many of these in one run.
fn tried(
    names: &[&str],
    (measured, planted): (usize, usize),
    n_runs: usize,
    measure: Measure<'_>,
    say: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<(usize, usize)> {
    let tries: Vec<(usize, &str)> = (0..n_runs).map(|at| (at + 1, names[at % names.len()])).collect();
    let (mut missed, mut alarms) = (0, 0);
    for tries in tries.chunks(measured) {
        let groups = || tries.chunks(planted.min(names.len()));
        let of_groups: Vec<Vec<&str>> = groups()
            .map(|group| group.iter().map(|&(_, name)| name).collect())
            .collect();
        let mut runs: Vec<&[&str]> = Vec::new();
        for names in &of_groups {
            runs.push(names);
            runs.extend(names.iter().map(|_| &[][..]));
        }
        let mut verdicts = measure(&runs)?.into_iter();
        for (group, names) in groups().zip(&of_groups) {
            let with = verdicts.next().unwrap_or_default();
            for (number, name) in group {
                let found = with.iter().find(|verdict| verdict.name == *name);
                let caught = found.is_some_and(|verdict| verdict.meaning == Meaning::Slower);
                missed += usize::from(!caught);
                let word = if caught { "caught" } else { "MISSED" };
                let more = 100.0 * found.map_or(f64::NAN, |verdict| verdict.change - 1.0);
                say(&format!("planted {number:>2}: {word} {name} {more:+.1} %"))?;
            }
            // A path that nothing was planted in was clean.
            let beside = slower(&with).filter(|verdict| !names.contains(&verdict.name.as_str()));
            let beside = list(beside);
            if !beside.is_empty() {
                alarms += 1;
                say(&format!("beside them{beside}"))?;
            }
            for (number, _) in group {
                let clean = verdicts.next().unwrap_or_default();
                let false_alarms = list(slower(&clean));
                alarms += usize::from(!false_alarms.is_empty());
                let furthest = clean.iter().map(|v| v.change - 1.0).fold(0.0, f64::max);
                say(&format!(
                    "clean   {number:>2}: largest {:+.1} %{false_alarms}",
                    100.0 * furthest
                ))?;
            }
        }
    }
    Ok((missed, alarms))
}

fn slower(verdicts: &[Verdict]) -> impl Iterator<Item = &Verdict> {
    verdicts.iter().filter(|v| v.meaning == Meaning::Slower)
}

fn list<'a>(alarms: impl Iterator<Item = &'a Verdict>) -> String {
    alarms
        .map(|v| format!("; FALSE ALARM {} {:+.1} %", v.name, 100.0 * (v.change - 1.0)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// What a proof finds where a path with a slowdown takes a tenth more, `b` goes unnoticed, and the clean runs of these
    /// numbers, and those where `b` alone has a slowdown, raise an alarm.
    fn found(n_runs: usize, alarming: &[usize]) -> ((usize, usize), Vec<String>, Vec<usize>) {
        let figure = Figure {
            value: 1.0,
            tolerance: 0.01,
        };
        let (n_clean, sizes) = (RefCell::new(0), RefCell::new(Vec::new()));
        let measure = |runs: &[&[&str]]| {
            sizes.borrow_mut().push(runs.len());
            let run = |planted: &&[&str]| {
                let alarm = planted.is_empty() && {
                    *n_clean.borrow_mut() += 1;
                    alarming.contains(&n_clean.borrow())
                };
                let value = |name: &str| match name {
                    "c" if alarm || **planted == ["b"] => 1.05,
                    "b" => 1.0,
                    _ if planted.contains(&name) => 1.1,
                    _ => 1.0,
                };
                let verdict = |name: &&str| Verdict::of(name, value(name), figure);
                ["a", "b", "c"].iter().map(verdict).collect()
            };
            Ok(runs.iter().map(run).collect())
        };
        let mut lines = Vec::new();
        let mut hear = |line: &str| {
            lines.push(line.to_owned());
            Ok(())
        };
        let sums = tried(&["a", "b", "c"], (4, 2), n_runs, &measure, &mut hear).unwrap();
        (sums, lines, sizes.into_inner())
    }

    #[test]
    fn every_slowdown_has_its_line_and_a_clean_run() {
        let (sums, lines, sizes) = found(5, &[2]);
        assert_eq!(
            sums,
            (2, 2),
            "the second and the fifth are in `b`; beside the fifth `c` is slower"
        );
        assert_eq!(
            sizes,
            [6, 2],
            "two runs with two slowdowns and four without; one and one"
        );
        let expected = [
            "planted  1: caught a +10.0 %",
            "planted  2: MISSED b +0.0 %",
            "clean    1: largest +0.0 %",
            "clean    2: largest +5.0 %; FALSE ALARM c +5.0 %",
            "planted  3: caught c +10.0 %",
            "planted  4: caught a +10.0 %",
            "clean    3: largest +0.0 %",
            "clean    4: largest +0.0 %",
            "planted  5: MISSED b +0.0 %",
            "beside them; FALSE ALARM c +5.0 %",
            "clean    5: largest +0.0 %",
        ];
        assert_eq!(lines, expected);
    }
}
