//! Instructions of a path, counted by valgrind's callgrind.
//!
//! Counting does not see caches, memory bandwidth and threads, but it sees work: the same program counts the same on a
//! busy machine. Valgrind shows every program the same processor, so libtorch takes the same kernels everywhere.

use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::plant::{self, PLANT};
use crate::{Measured, OWN_THREADS};

/// How often a path is done while it is counted, so that a tenth of it can be planted.
const CALLS: usize = 10;

/// Done before counting starts: what is needed once is not the path's.
const WARM_UP: usize = 2;

/// How callgrind calls the function below.
const COUNTED: &str = "unsay_gate::counts::unsay_gate_counted";

/// Callgrind writes a file and starts at zero where this function begins, and again where it ends, each time; what other
/// threads do meanwhile is counted too.
#[inline(never)]
fn unsay_gate_counted(work: &mut dyn FnMut(), calls: usize) {
    for _ in 0..calls {
        work();
    }
    // Otherwise the loop would be the caller's.
    black_box(calls);
}

/// Does each path under the eyes of callgrind.
///
/// # Errors
/// A name that is not known.
pub(crate) fn child(names: &[String]) -> Result<()> {
    tch::set_num_threads(1);
    for planted in plant::in_runs() {
        for name in names {
            let path = paths::named(name).with_context(|| format!("no path is called `{name}`"))?;
            let mut work = (path.make)();
            for _ in 0..WARM_UP {
                work();
            }
            unsay_gate_counted(&mut work, plant::calls(planted.contains(name), CALLS)?);
        }
    }
    Ok(())
}

/// The version of valgrind.
///
/// # Errors
/// Where there is none.
pub(crate) fn valgrind() -> Result<String> {
    let said = Command::new("valgrind").arg("--version").stderr(Stdio::null()).output();
    let said = said.context("no valgrind found; hint: install it, or take the times alone with `--times`")?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// Instructions of one call of each path, in the order of the names, by the gate `program`: once for each of `planted`, all in the
/// same processes, since to start one takes longer than most paths.
///
/// # Errors
/// When the program ends badly or does not count each path once a run.
pub(crate) fn count(program: &Path, names: &[&str], planted: &[&[&str]]) -> Result<Vec<Vec<Measured>>> {
    // Two processes take every other path: those of libtorch, which come last, take longest.
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (at, name) in names.iter().enumerate() {
        if at % 2 == 0 {
            first.push(*name)
        } else {
            second.push(*name)
        }
    }
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| count_some(program, &first, planted));
        let second = count_some(program, &second, planted);
        (first.join(), second)
    });
    let first = first.ok().context("counting ended by a panic")??;
    let together = |(first, second): (Vec<Measured>, Vec<Measured>)| {
        let (mut first, mut second) = (first.into_iter(), second.into_iter());
        let turns = (0..names.len()).filter_map(|at| if at % 2 == 0 { first.next() } else { second.next() });
        turns.collect()
    };
    Ok(first.into_iter().zip(second?).map(together).collect())
}

fn count_some(program: &Path, names: &[&str], planted: &[&[&str]]) -> Result<Vec<Vec<Measured>>> {
    if names.is_empty() {
        return Ok(vec![Vec::new(); planted.len()]);
    }
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("out");
    let said = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--dump-before={COUNTED}"))
        .arg(format!("--dump-after={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .arg("count")
        .args(names)
        .envs(OWN_THREADS)
        .env(PLANT, plant::of_runs(planted))
        .stdin(Stdio::null())
        .output()?;
    if !said.status.success() {
        let all = String::from_utf8_lossy(&said.stderr).into_owned();
        let last: Vec<&str> = all.lines().rev().take(10).collect();
        bail!("counting ended with {}: {}", said.status, last.join(" | "));
    }
    let read = |run: usize, at: usize, name: &str| -> Result<Measured> {
        // Each path has two files: what came before it, and itself.
        let file = folder.path().join(format!("out.{}", 2 * (run * names.len() + at) + 2));
        let text = std::fs::read_to_string(&file).with_context(|| format!("`{name}` was not counted"))?;
        let instructions = collected(&text).with_context(|| format!("`{name}`: no count in callgrind's file"))?;
        Ok(Measured {
            name: name.to_owned(),
            value: instructions / CALLS as f64,
        })
    };
    let run = |run| names.iter().enumerate().map(|(at, name)| read(run, at, name)).collect();
    (0..planted.len()).map(run).collect()
}

/// What a file of callgrind says it collected.
fn collected(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("summary: "))?;
    let number: f64 = line.trim().parse().ok()?;
    (number > 0.0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_and_an_empty_one_is_none() {
        assert_eq!(collected("events: Ir\nsummary: 1234\n\nfn=(1)\n"), Some(1234.0));
        assert_eq!(collected("events: Ir\nsummary: 0\n"), None);
        assert_eq!(collected("events: Ir\n"), None);
    }
}
