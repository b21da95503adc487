//! A slowdown of a tenth put into one path on purpose, to see that the gate catches it.

use anyhow::{Context, Result};
use cpu_time::ThreadTime;

use crate::paths::Work;

/// Under this name the processes that measure are told the path: one for each run over all paths, with commas between them,
/// and nothing for a run without. Nothing but the gate's own harness reads it.
pub(crate) const PLANT: &str = "UNSAY_GATE_PLANT";

/// What [`PLANT`] says of such runs.
pub(crate) fn of_runs(planted: &[Option<&str>]) -> String {
    let names: Vec<&str> = planted.iter().map(|name| name.unwrap_or_default()).collect();
    names.join(",")
}

/// The path of each run, empty in a run without.
pub(crate) fn in_runs() -> Vec<String> {
    let said = std::env::var(PLANT).unwrap_or_default();
    said.split(',').map(str::to_owned).collect()
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
