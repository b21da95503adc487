//! Time of a path beside that of a reference in the same process, or of the same path in another program, by turns.
//!
//! What counts are the shortest of the single calls in a turn, in processor time of the thread that works: a call cannot be
//! faster than the machine lets it, while whatever else runs there makes some calls slower, and not all paths by the same share.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cpu_time::ThreadTime;

use crate::plant::{self, PLANT};
use crate::reference::Reference;
use crate::{OWN_THREADS, paths};

/// The reference and the path take turns of at least so long.
const TURN: Duration = Duration::from_millis(12);

/// Turns of each in one measurement.
const ROUNDS: usize = 60;

/// Memory is kept. Otherwise glibc hands large blocks back at every call or at none, as it happens in a process: the reference
/// took 460 microseconds in 37 of 40 processes and 340 in three, and one of these made every path slower.
/// Huge pages, which a run asks for as well, are not asked for: the kernel has some at one time and none at another.
const KEPT_MEMORY: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776",
);

/// The shortest call within a turn.
fn turn(work: &mut dyn FnMut()) -> Duration {
    let start = ThreadTime::now();
    let mut shortest = Duration::MAX;
    while start.elapsed() < TURN {
        let call = ThreadTime::now();
        work();
        shortest = shortest.min(call.elapsed());
    }
    shortest
}

/// For each line it reads: the shortest call of the reference and of the path in a turn each, in nanoseconds.
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
    if plant::in_runs().iter().flatten().any(|planted| planted == name) {
        work = plant::slower(work);
    }
    let mut out = std::io::stdout();
    for _ in std::io::stdin().lines() {
        let both = [turn(&mut refer), turn(&mut work)].map(|call| call.as_nanos());
        writeln!(out, "{} {}", both[0], both[1])?;
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
    fn start(program: &Path, name: &str, planted: &[&str]) -> Result<Self> {
        let mut child = Command::new(program)
            .args(["time", name])
            .envs(OWN_THREADS)
            .envs([KEPT_MEMORY])
            .env(PLANT, plant::of_runs(&[planted]))
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

/// How many times as long the path takes as what it is compared with, given both their shortest calls in turns that follow
/// each other: the tenth of all turns. Turns are neighbours, so a minute in which the processor is faster makes both shorter;
/// a disturbance makes most ratios larger and few smaller.
fn ratio(mut turns: Vec<[f64; 2]>) -> f64 {
    let at = turns.len() / 10;
    let of = |[other, path]: &[f64; 2]| path / other;
    let (_, tenth, _) = turns.select_nth_unstable_by(at, |a, b| of(a).total_cmp(&of(b)));
    of(tenth)
}

/// How many times as long the path takes as the reference.
///
/// # Errors
/// When the measuring process ends badly.
pub(crate) fn beside_reference(program: &Path, name: &str, planted: &[&str]) -> Result<f64> {
    let mut process = Process::start(program, name, planted)?;
    let turns = (0..ROUNDS).map(|_| process.round()).collect::<Result<_>>()?;
    process.end()?;
    Ok(ratio(turns))
}

/// How many times as long the path takes in `program` as in `other`.
///
/// # Errors
/// When a measuring process ends badly.
pub(crate) fn beside_other(program: &Path, other: &Path, name: &str) -> Result<f64> {
    let mut own = Process::start(program, name, &[])?;
    let mut their = Process::start(other, name, &[])?;
    let mut both = || {
        let ([_, path], [_, other]) = (own.round()?, their.round()?);
        Ok([other, path])
    };
    let turns = (0..ROUNDS).map(|_| both()).collect::<Result<_>>()?;
    own.end()?;
    their.end()?;
    Ok(ratio(turns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_faster_minute_nor_a_disturbance_is_seen() {
        let calm = |i: usize| [2.0, 6.0 + i as f64 / 1e3];
        let faster = [0.5, 1.5];
        let disturbed = |i: usize| [2.0, 8.0 + i as f64];
        // Where the fastest call of all was of the path.
        let lucky = [2.0, 4.5];
        let turns = (0..20).map(calm).chain([faster, lucky]).chain((0..18).map(disturbed));
        let found = ratio(turns.rev().collect());
        assert!((found - 3.0).abs() < 0.005, "{found}");
    }
}
