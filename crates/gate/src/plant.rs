//! A slowdown put into one path on purpose, to see that the gate catches it: a tenth of the work is done twice.

use anyhow::{Context, Result};

/// Under this name the processes that measure are told the path. Nothing but the gate's own harness reads it.
pub(crate) const PLANT: &str = "UNSAY_GATE_PLANT";

/// How often a work is done when it is asked for `calls` times.
///
/// # Errors
/// A number of calls that has no tenth.
pub(crate) fn calls(name: &str, calls: usize) -> Result<usize> {
    if std::env::var(PLANT).as_deref() != Ok(name) {
        return Ok(calls);
    }
    let more = calls.is_multiple_of(10).then_some(calls / 10);
    Ok(calls + more.with_context(|| format!("calls of `{name}`: expected a multiple of 10, got {calls}"))?)
}
