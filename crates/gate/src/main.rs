//! Keeps the hot paths fast: `just bench-gate`.
//!
//! Two kinds of figures are compared with the committed `baseline.json`, or with another commit in the same run:
//! instructions of one call, counted by valgrind, of every path; and of the paths where libtorch works also time, as a ratio
//! to a reference in the same process. Ends with 0 when nothing got slower, 1 when something did, 2 when it cannot tell.

mod baseline;
mod check;
mod counts;
mod other;
mod paths;
mod plant;
mod prove;
mod reference;
mod times;
mod verdict;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use baseline::{Baseline, Figure, processor};
use check::{COUNT_TOLERANCE, TIME_TOLERANCE};
use clap::{Args, Parser, Subcommand};
use paths::GuardedPath;
use prove::Kind;
use verdict::{Meaning, Verdict};

/// What the measuring processes run with: one thread, so that processor time is time.
const OWN_THREADS: [(&str, &str); 3] = [
    ("OMP_NUM_THREADS", "1"),
    ("RAYON_NUM_THREADS", "1"),
    ("POLARS_MAX_THREADS", "1"),
];

/// A figure of a path.
#[derive(Debug, Clone, PartialEq)]
struct Measured {
    name: String,
    value: f64,
}

/// Fails when a hot path got slower.
#[derive(Parser)]
#[command(name = "unsay-gate")]
struct Cli {
    #[command(subcommand)]
    process: Option<Process>,
    #[command(flatten)]
    gate: Gate,
}

#[derive(Args)]
struct Gate {
    /// Only paths whose names contain this
    #[arg(long, value_name = "PART")]
    only: Option<String>,
    /// Only instruction counts
    #[arg(long, conflicts_with = "times")]
    counts: bool,
    /// Only ratios of time
    #[arg(long)]
    times: bool,
    /// Write what is measured into the baseline
    #[arg(long, conflicts_with_all = ["against", "prove"])]
    renew: bool,
    /// Compare with this commit, which is built first, instead of with the baseline
    #[arg(long, value_name = "REVISION", conflicts_with = "prove")]
    against: Option<String>,
    /// Plant a slowdown of a tenth so many times, and run as often without: were all caught, was there a false alarm?
    #[arg(long, value_name = "RUNS", num_args = 0..=1, default_missing_value = "20")]
    prove: Option<usize>,
}

/// The processes that measure.
#[derive(Subcommand)]
enum Process {
    #[command(hide = true)]
    Count { names: Vec<String> },
    #[command(hide = true)]
    Time { name: String },
}

/// Writes a line at once.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.process {
        Some(Process::Count { names }) => counts::child(names).map(|()| true),
        Some(Process::Time { name }) => times::child(name).map(|()| true),
        None => cli.gate.run(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Which paths are meant.
#[derive(Clone, Copy)]
enum Paths {
    All,
    /// Those in plain Rust.
    Rust,
    Libtorch,
}

impl Gate {
    /// Names of the paths asked for.
    fn names(&self, of: Paths) -> Result<Vec<&'static str>> {
        let part = self.only.as_deref().unwrap_or_default();
        let paths = paths::all();
        let names: Vec<&str> = paths
            .iter()
            .map(|path| path.name)
            .filter(|name| name.contains(part))
            .collect();
        if names.is_empty() {
            let known: Vec<&str> = paths.iter().map(|path| path.name).collect();
            bail!("no path has `{part}` in its name; there are {}", known.join(", "));
        }
        let kept = |path: &GuardedPath| match of {
            Paths::All => true,
            Paths::Rust => !path.libtorch,
            Paths::Libtorch => path.libtorch,
        };
        let kept = |name: &&str| paths.iter().any(|path| path.name == *name && kept(path));
        Ok(names.into_iter().filter(kept).collect())
    }

    /// Whether nothing got slower.
    fn run(&self) -> Result<bool> {
        let program = std::env::current_exe()?;
        if let Some(revision) = &self.against {
            return self.against(revision, program);
        }
        let mut baseline = Baseline::read()?;
        let mut good = true;
        if !self.times {
            let tools = baseline::tools(counts::valgrind()?)?;
            // The paths of libtorch are proven by their time, which takes seconds where counting takes minutes.
            let names = self.names(match self.prove {
                Some(_) => Paths::Rust,
                None => Paths::All,
            })?;
            if self.renew {
                if baseline.counts.tools != tools {
                    if self.only.is_some() && !baseline.counts.figures.is_empty() {
                        bail!("the other counts were made with other tools; hint: renew all of them, without `--only`");
                    }
                    baseline.counts.figures.clear();
                }
                let measured = counts::count(&program, &names, None)?;
                baseline.counts.tools = tools;
                renew(&mut baseline.counts.figures, &measured, COUNT_TOLERANCE)?;
            } else {
                if baseline.counts.tools != tools {
                    let made = &baseline.counts.tools;
                    bail!(
                        "the counts of the baseline were made with {made:?}, here are {tools:?}; hint: compare with a commit by `--against`, or `--renew`"
                    );
                }
                let figures = known(&baseline.counts.figures, &names)?;
                let expected = |name: &str| figures[name];
                good &= match self.prove {
                    Some(_) if names.is_empty() => true,
                    Some(n_runs) => proven(
                        prove::prove(&program, &names, &expected, Kind::Counts, n_runs)?,
                        n_runs,
                        "instructions",
                    )?,
                    None => judged(&check::counts(&program, &names, &expected, None)?, "instructions")?,
                };
            }
        }
        let names = self.names(Paths::Libtorch)?;
        if !self.counts && !names.is_empty() {
            let processor = processor();
            if self.renew {
                let measured = check::ratios(&program, &names)?;
                renew(baseline.times.entry(processor).or_default(), &measured, TIME_TOLERANCE)?;
            } else {
                let Some(figures) = baseline.times.get(&processor) else {
                    bail!(
                        "the baseline knows no times of `{processor}`; hint: compare with a commit by `--against`, or `--renew`"
                    );
                };
                let figures = known(figures, &names)?;
                let expected = |name: &str| figures[name];
                good &= match self.prove {
                    Some(n_runs) => proven(
                        prove::prove(&program, &names, &expected, Kind::Times, n_runs)?,
                        n_runs,
                        "time",
                    )?,
                    None => judged(
                        &check::times(&names, &expected, &|name| times::beside_reference(&program, name, None))?,
                        "time",
                    )?,
                };
            }
        }
        if self.renew {
            baseline.write()?;
        }
        Ok(good)
    }

    fn against(&self, revision: &str, program: PathBuf) -> Result<bool> {
        let other = other::build(revision)?;
        let mut good = true;
        if !self.times {
            counts::valgrind()?;
            let names = self.names(Paths::All)?;
            let before: BTreeMap<String, Figure> = counts::count(&other, &names, None)
                .with_context(|| format!("at `{revision}`; hint: leave out paths that it does not have by `--only`"))?
                .into_iter()
                .map(|one| {
                    (
                        one.name,
                        Figure {
                            value: one.value,
                            tolerance: COUNT_TOLERANCE,
                        },
                    )
                })
                .collect();
            let verdicts = check::counts(&program, &names, &|name| before[name], None)?;
            good &= judged(&verdicts, "instructions")?;
        }
        if !self.counts {
            let same = |_: &str| Figure {
                value: 1.0,
                tolerance: TIME_TOLERANCE,
            };
            let verdicts = check::times(&self.names(Paths::Libtorch)?, &same, &|name| {
                times::beside_other(&program, &other, name)
            })?;
            good &= judged(&verdicts, "time")?;
        }
        Ok(good)
    }
}

/// The baseline's figures of all names.
fn known(figures: &BTreeMap<String, Figure>, names: &[&str]) -> Result<BTreeMap<String, Figure>> {
    let missing: Vec<&str> = names
        .iter()
        .filter(|name| !figures.contains_key(**name))
        .copied()
        .collect();
    if !missing.is_empty() {
        bail!(
            "the baseline lacks {}; hint: `just bench-gate --renew`",
            missing.join(", ")
        );
    }
    Ok(figures.clone())
}

/// Puts new figures in the place of old ones and says how they differ. A tolerance that was changed by hand stays.
fn renew(figures: &mut BTreeMap<String, Figure>, measured: &[Measured], tolerance: f64) -> Result<()> {
    let all: Vec<&str> = paths::all().iter().map(|path| path.name).collect();
    figures.retain(|name, _| all.contains(&name.as_str()));
    for one in measured {
        // Six digits: the rest is noise in the history of the file.
        let digits = 10f64.powf(5.0 - one.value.abs().log10().floor());
        let value = (one.value * digits).round() / digits;
        let old = figures.get(&one.name).copied();
        let change = old.map_or(String::new(), |old| {
            format!("{:>+7.2} %", 100.0 * (value / old.value - 1.0))
        });
        say(&format!("{:<34} {value:>14} {change}", one.name))?;
        let tolerance = old.map_or(tolerance, |old| old.tolerance);
        figures.insert(one.name.clone(), Figure { value, tolerance });
    }
    Ok(())
}

/// Says every verdict and what follows; whether nothing got slower.
fn judged(verdicts: &[Verdict], what: &str) -> Result<bool> {
    say(&format!("{what}:"))?;
    for verdict in verdicts {
        say(&format!("  {verdict}"))?;
    }
    let count = |meaning| verdicts.iter().filter(|v| v.meaning == meaning).count();
    let (slower, faster) = (count(Meaning::Slower), count(Meaning::Faster));
    if slower > 0 {
        say(&format!("  {slower} of {} got slower", verdicts.len()))?;
    }
    if faster > 0 {
        say(&format!(
            "  {faster} of {} got faster: keep that by `just bench-gate --renew`",
            verdicts.len()
        ))?;
    }
    Ok(slower == 0)
}

fn proven((missed, alarms): (usize, usize), n_runs: usize, what: &str) -> Result<bool> {
    let caught = n_runs - missed;
    say(&format!(
        "{what}: {caught} of {n_runs} planted slowdowns caught, {alarms} false alarms in {n_runs} clean runs and beside the planted ones"
    ))?;
    Ok(missed == 0 && alarms == 0)
}
