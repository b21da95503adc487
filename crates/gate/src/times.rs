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

/// Processes of either program in one measurement of both.
const PAIRS: usize = 3;

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

/// How many times as long the path takes as the reference, given both their shortest calls in turns that follow each other:
/// the tenth percentile. Turns are neighbours, so a minute in which the processor is faster makes both shorter; a disturbance
/// makes most ratios larger and few smaller.
fn ratio(mut turns: Vec<[f64; 2]>) -> f64 {
    let at = turns.len() / 10;
    let of = |[reference, path]: &[f64; 2]| path / reference;
    let (_, tenth, _) = turns.select_nth_unstable_by(at, |a, b| of(a).total_cmp(&of(b)));
    of(tenth)
}

/// How many times as long a path takes as the reference, here and in what it is compared with: the least that was seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Least {
    pub(crate) path: f64,
    /// 1 where the reference itself is what it is compared with.
    pub(crate) other: f64,
}

impl Least {
    /// With what was seen another time.
    pub(crate) fn and(self, again: Self) -> Self {
        Self {
            path: self.path.min(again.path),
            other: self.other.min(again.other),
        }
    }

    /// How many times as long the path takes.
    pub(crate) fn ratio(self) -> f64 {
        self.path / self.other
    }
}

/// The path beside the reference.
///
/// # Errors
/// When the measuring process ends badly.
pub(crate) fn beside_reference(program: &Path, name: &str, planted: &[&str]) -> Result<Least> {
    let mut process = Process::start(program, name, planted)?;
    let turns = (0..ROUNDS).map(|_| process.round()).collect::<Result<_>>()?;
    process.end()?;
    Ok(Least {
        path: ratio(turns),
        other: 1.0,
    })
}

/// The path in `program` and the same in `other`, by turns, each beside its own reference. What slows a process now and then
/// does so to either, so both are seen in several.
///
/// # Errors
/// When a measuring process ends badly.
pub(crate) fn beside_other(program: &Path, other: &Path, name: &str) -> Result<Least> {
    let mut least = Least {
        path: f64::INFINITY,
        other: f64::INFINITY,
    };
    for _ in 0..PAIRS {
        let mut both = [Process::start(program, name, &[])?, Process::start(other, name, &[])?];
        let mut turns = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (process, turns) in both.iter_mut().zip(&mut turns) {
                turns.push(process.round()?);
            }
        }
        both.into_iter().try_for_each(Process::end)?;
        let [path, other] = turns.map(ratio);
        least = least.and(Least { path, other });
    }
    Ok(least)
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
        let lucky = [2.0, 1.2];
        let turns = (0..20).map(calm).chain([faster, lucky]).chain((0..18).map(disturbed));
        let found = ratio(turns.rev().collect());
        assert!((found - 3.0).abs() < 0.005, "{found}");
    }

    #[test]
    fn each_side_keeps_the_least_that_was_seen_of_it() {
        let one = Least { path: 6.6, other: 6.3 };
        let again = Least { path: 7.0, other: 6.0 };
        assert!((one.and(again).ratio() - 1.1).abs() < 1e-12);
    }
}
