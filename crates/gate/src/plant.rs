//! A slowdown of a tenth put into one path on purpose, to see that the gate catches it.

use anyhow::{Context, Result};
use cpu_time::ThreadTime;

use crate::paths::Work;

/// Under this name the processes that measure are told the path. Nothing but the gate's own harness reads it.
pub(crate) const PLANT: &str = "UNSAY_GATE_PLANT";

/// Whether the slowdown is in this path.
pub(crate) fn is_in(name: &str) -> bool {
    std::env::var(PLANT).as_deref() == Ok(name)
}

/// How often a work is done where `calls` are counted: every tenth twice.
///
/// # Errors
/// A number of calls that has no tenth.
pub(crate) fn calls(name: &str, calls: usize) -> Result<usize> {
    if !is_in(name) {
        return Ok(calls);
    }
    let more = calls.is_multiple_of(10).then_some(calls / 10);
    Ok(calls + more.with_context(|| format!("calls of `{name}`: expected a multiple of 10, got {calls}"))?)
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
