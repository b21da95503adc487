//! Time of a path, in blocks of calls that alternate with a reference in the same process, or with another program.
//!
//! What is measured is the processor time of the thread that works, so a process that has to wait for its turn does not
//! look slow; and ratios of neighbouring blocks, so a processor that is slower for a while does not either.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use cpu_time::ThreadTime;

use crate::plant::{self, PLANT};
use crate::reference::Reference;
use crate::{Measured, OWN_THREADS, paths};

/// A block takes at least so long.
const BLOCK_NANOS: f64 = 8e6;

/// Rounds of one measurement: a block of the reference and a block of the path each.
const ROUNDS: usize = 50;

/// Nanoseconds for which this thread has kept a processor busy.
fn timed(work: &mut dyn FnMut(), calls: usize) -> f64 {
    let start = ThreadTime::now();
    for _ in 0..calls {
        work();
    }
    start.elapsed().as_nanos() as f64
}

/// Calls in a block, a multiple of 10.
fn block(work: &mut dyn FnMut()) -> usize {
    let tens = (1..=3).map(|_| timed(work, 10)).fold(f64::INFINITY, f64::min);
    10 * (BLOCK_NANOS / tens).ceil().max(1.0) as usize
}

/// For each line it reads: a block of the reference and one of the path, in nanoseconds of one call.
///
/// # Errors
/// A name that is not known; when nobody reads.
pub(crate) fn child(name: &str) -> Result<()> {
    tch::set_num_threads(1);
    let path = paths::named(name).with_context(|| format!("no path is called `{name}`"))?;
    let mut work = (path.make)();
    let reference = Reference::new();
    let mut refer = || reference.work();
    for _ in 0..10 {
        refer();
        work();
    }
    let (reference_calls, path_calls) = (block(&mut refer), block(&mut work));
    let planted = plant::calls(name, path_calls)?;
    let mut out = std::io::stdout();
    for _ in std::io::stdin().lines() {
        let per_reference = timed(&mut refer, reference_calls) / reference_calls as f64;
        let per_call = timed(&mut work, planted) / path_calls as f64;
        writeln!(out, "{per_reference} {per_call}")?;
        out.flush()?;
    }
    Ok(())
}

/// A process that measures one path.
struct Process {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    fn start(program: &Path, name: &str, planted: Option<&str>) -> Result<Self> {
        let mut child = Command::new(program)
            .args(["time", name])
            .envs(OWN_THREADS)
            .env(PLANT, planted.unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let ask = child.stdin.take().context("no input")?;
        let answers = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, ask, answers })
    }

    /// Nanoseconds of the reference and of the path.
    fn round(&mut self) -> Result<[f64; 2]> {
        writeln!(self.ask, "round")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let numbers: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match numbers[..] {
            [reference, path] if reference > 0.0 && path > 0.0 => Ok([reference, path]),
            _ => bail!("a measuring process said `{}`", line.trim()),
        }
    }

    fn end(mut self) -> Result<()> {
        drop(self.ask);
        let status = self.child.wait()?;
        if !status.success() {
            bail!("a measuring process ended with {status}");
        }
        Ok(())
    }
}

/// The median; 0 of nothing.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Time of the path over time of the reference: the median over rounds.
///
/// # Errors
/// When the measuring process ends badly.
pub(crate) fn ratio(program: &Path, name: &str, planted: Option<&str>) -> Result<Measured> {
    let mut process = Process::start(program, name, planted)?;
    let rounds: Vec<[f64; 2]> = (0..ROUNDS).map(|_| process.round()).collect::<Result<_>>()?;
    process.end()?;
    // Each block of the path lies between two of the reference.
    let mut ratios: Vec<f64> = rounds
        .windows(2)
        .map(|pair| pair[0][1] / f64::midpoint(pair[0][0], pair[1][0]))
        .collect();
    Ok(Measured {
        name: name.to_owned(),
        value: median(&mut ratios),
    })
}

/// Time of the path in `program` over its time in `other`, by turns: the median over rounds.
///
/// # Errors
/// When a measuring process ends badly.
pub(crate) fn against(program: &Path, other: &Path, name: &str) -> Result<Measured> {
    let mut own = Process::start(program, name, None)?;
    let mut their = Process::start(other, name, None)?;
    let mut ratios = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let (ours, theirs) = match round % 2 {
            0 => (own.round()?, their.round()?),
            _ => {
                let theirs = their.round()?;
                (own.round()?, theirs)
            }
        };
        ratios.push(ours[1] / theirs[1]);
    }
    own.end()?;
    their.end()?;
    Ok(Measured {
        name: name.to_owned(),
        value: median(&mut ratios),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(&mut [4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
        assert!(median(&mut []).abs() < 1e-12);
    }
}
