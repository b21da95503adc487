//! What the program says: results on standard output, failures on standard error with their exit code.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::commands::Usage;
use crate::manifest::Mistakes;

/// More mistakes than these are counted, not shown.
const MOST_SHOWN: usize = 30;

/// Says how a command failed, and with which exit code it ends.
pub fn end(error: &anyhow::Error) -> ExitCode {
    if error.is::<Unheard>() {
        return ExitCode::SUCCESS;
    }
    let mut err = std::io::stderr().lock();
    if let Some(mistakes) = error.downcast_ref::<Mistakes>() {
        let n = mistakes.shown.len();
        let what = if n == 1 { "1 mistake" } else { &format!("{n} mistakes") };
        let shown = mistakes.shown.iter().take(MOST_SHOWN);
        drop(writeln!(err, "{}", shown.cloned().collect::<Vec<_>>().join("\n")));
        if n > MOST_SHOWN {
            drop(writeln!(err, "and {} more", n - MOST_SHOWN));
        }
        drop(writeln!(err, "{what}; nothing was run"));
        return ExitCode::from(2);
    }
    if error.downcast_ref::<Usage>().is_some() {
        drop(writeln!(err, "error: {error}"));
        return ExitCode::from(2);
    }
    drop(writeln!(err, "error: {error}"));
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Most library errors name their cause already.
        if !said.contains(&cause) {
            drop(writeln!(err, "  because: {cause}"));
        }
        said = cause;
    }
    ExitCode::from(1)
}

const OUT: &str = "cannot write to standard output";

/// Nobody reads standard output any more, as behind `| head`.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output")]
pub struct Unheard;

/// Writes to standard output at once, and ends a command that has nothing to do but speak with [`Unheard`] where nobody
/// listens.
pub fn speak(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Err(Unheard.into()),
        other => other.context(OUT),
    }
}

/// Writes to standard output; a closed pipe is not an error.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e).context(OUT),
        _ => Ok(()),
    }
}
