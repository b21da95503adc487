//! A slowdown of a tenth put into one path on purpose, to see that the gate catches it.

use anyhow::{Context, Result};
use cpu_time::ThreadTime;

use crate::paths::Work;

/// Under this name the processes that measure are told the paths: those of one run over all paths with `+` between them, runs
/// with commas, and nothing for a run without. Nothing but the gate's own harness reads it.
pub(crate) const PLANT: &str = "UNSAY_GATE_PLANT";

/// What [`PLANT`] says of such runs.
pub(crate) fn of_runs(planted: &[&[&str]]) -> String {
    let runs: Vec<String> = planted.iter().map(|names| names.join("+")).collect();
    runs.join(",")
}

/// The paths of each run, none in a run without.
pub(crate) fn in_runs() -> Vec<Vec<String>> {
    read(&std::env::var(PLANT).unwrap_or_default())
}

fn read(said: &str) -> Vec<Vec<String>> {
    let names = |run: &str| {
        run.split('+')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    };
    said.split(',').map(names).collect()
}

/// How often a work is done where `calls` are counted: every tenth twice.
///
/// # Errors
/// A number of calls that has no tenth.
pub(crate) fn calls(is_planted: bool, calls: usize) -> Result<usize> {
    if !is_planted {
        return Ok(calls);
    }
    let more = calls.is_multiple_of(10).then_some(calls / 10);
    Ok(calls + more.with_context(|| format!("calls: expected a multiple of 10, got {calls}"))?)
}

/// The same work, and then something to do for a tenth of the time that its shortest call of many takes.
pub(crate) fn slower(mut work: Work) -> Work {
    let mut call = || {
        let start = ThreadTime::now();
        work();
        start.elapsed()
    };
    let tenth = (0..100).map(|_| call()).min().unwrap_or_default() / 10;
    Box::new(move || {
        work();
        let start = ThreadTime::now();
        while start.elapsed() < tenth {
            std::hint::spin_loop();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_runs_is_read() {
        for runs in [&[&[][..]][..], &[&["a/b"]], &[&["a/b", "c/d"], &[], &[], &["e"]]] {
            assert_eq!(read(&of_runs(runs)), runs);
        }
    }
}
