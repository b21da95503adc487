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
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Error, Result, bail};
use baseline::{Baseline, Counts, Figure, processor};
use check::{COUNT_TOLERANCE, TIME_TOLERANCE};
use clap::builder::RangedU64ValueParser;
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
    #[arg(long, value_name = "RUNS", num_args = 0..=1, default_missing_value = "20",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
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
            complain(&error);
            ExitCode::from(2)
        }
    }
}

/// Which paths are meant.
#[derive(Clone, Copy)]
enum Paths {
    All,
    Counted,
    /// Those that are counted and not timed, which are in plain Rust.
    CountedAlone,
    Timed,
}

impl Gate {
    /// Names of the paths asked for that are meant.
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
        let meant = |path: &GuardedPath| match of {
            Paths::All => true,
            Paths::Counted => path.figures.counted(),
            Paths::CountedAlone => !path.figures.timed(),
            Paths::Timed => path.figures.timed(),
        };
        let kept = |name: &&str| paths.iter().any(|path| path.name == *name && meant(path));
        Ok(names.into_iter().filter(kept).collect())
    }

    /// The paths whose instructions are looked at. Those of libtorch are proven by their time, which takes seconds where
    /// counting takes minutes.
    fn counted(&self) -> Paths {
        match self.prove {
            Some(_) => Paths::CountedAlone,
            None => Paths::Counted,
        }
    }

    /// Whether nothing got slower.
    fn run(&self) -> Result<bool> {
        let program = std::env::current_exe()?;
        let part = self.only.as_deref().unwrap_or_default();
        if self.times && self.names(Paths::Timed)?.is_empty() {
            bail!(
                "no path with `{part}` in its name is timed: libtorch works in none of them; hint: leave out `--times`"
            );
        }
        if self.counts && self.names(self.counted())?.is_empty() {
            let why = match self.prove {
                Some(_) => "proven by its count: libtorch works in all of them",
                None => "counted: valgrind has no bf16",
            };
            bail!("no path with `{part}` in its name is {why}; hint: leave out `--counts`");
        }
        if let Some(revision) = &self.against {
            return self.against(revision, &program);
        }
        let mut baseline = Baseline::read()?;
        if self.renew {
            if !self.times {
                self.renew_counts(&program, &mut baseline.counts)?;
            }
            if !self.counts {
                self.renew_times(&program, &mut baseline.times)?;
            }
            baseline.write()?;
            return Ok(true);
        }
        let counts = (!self.times).then(|| self.counts(&program, &baseline.counts));
        let times = (!self.counts).then(|| self.times(&program, &baseline.times));
        together([counts, times], &mut complain)
    }

    fn renew_counts(&self, program: &Path, counts: &mut Counts) -> Result<()> {
        let tools = baseline::tools(counts::valgrind()?)?;
        if counts.tools != tools {
            if self.only.is_some() && !counts.figures.is_empty() {
                bail!("the other counts were made with other tools; hint: renew all of them, without `--only`");
            }
            counts.figures.clear();
        }
        let measured = counts::count(program, &self.names(Paths::Counted)?, &[&[]])?.concat();
        counts.tools = tools;
        let lines = renew(&mut counts.figures, &measured, COUNT_TOLERANCE);
        lines.iter().try_for_each(|line| say(line))
    }

    fn renew_times(&self, program: &Path, times: &mut BTreeMap<String, BTreeMap<String, Figure>>) -> Result<()> {
        let names = self.names(Paths::Timed)?;
        if names.is_empty() {
            return Ok(());
        }
        let measured = check::ratios(program, &names)?;
        let lines = renew(times.entry(processor()).or_default(), &measured, TIME_TOLERANCE);
        lines.iter().try_for_each(|line| say(line))
    }

    /// Whether no path takes more instructions.
    fn counts(&self, program: &Path, made: &Counts) -> Result<bool> {
        let tools = baseline::tools(counts::valgrind()?)?;
        if made.tools != tools {
            let made = &made.tools;
            bail!(
                "the counts of the baseline were made with {made:?}, here are {tools:?}; hint: compare with a commit by `--against`, or `--renew`"
            );
        }
        let names = self.names(self.counted())?;
        if names.is_empty() {
            return Ok(true);
        }
        let figures = known(&made.figures, &names)?;
        let expected = |name: &str| figures[name];
        match self.prove {
            Some(n_runs) => proven(
                prove::prove(program, &names, &expected, Kind::Counts, n_runs)?,
                n_runs,
                "instructions",
            ),
            None => judged(
                &check::counts(program, &names, &expected, &[&[]])?.concat(),
                "instructions",
            ),
        }
    }

    /// Whether no path takes more time.
    fn times(&self, program: &Path, made: &BTreeMap<String, BTreeMap<String, Figure>>) -> Result<bool> {
        let names = self.names(Paths::Timed)?;
        if names.is_empty() {
            return Ok(true);
        }
        let processor = processor();
        let Some(figures) = made.get(&processor) else {
            bail!(
                "the baseline knows no times of `{processor}`; hint: compare with a commit by `--against`, or `--renew`"
            );
        };
        let figures = known(figures, &names)?;
        let expected = |name: &str| figures[name];
        match self.prove {
            Some(n_runs) => proven(
                prove::prove(program, &names, &expected, Kind::Times, n_runs)?,
                n_runs,
                "time",
            ),
            None => judged(
                &check::times(
                    &names,
                    &expected,
                    &|name| times::beside_reference(program, name, &[]),
                    check::PAUSE,
                )?,
                "time",
            ),
        }
    }

    fn against(&self, revision: &str, program: &Path) -> Result<bool> {
        if !self.times {
            // Better known before the other commit is built.
            counts::valgrind()?;
        }
        let other = other::build(revision)?;
        let new = other::lacks(&other, &self.names(Paths::All)?)?;
        let known = |of| -> Result<Vec<&'static str>> {
            let names = self.names(of)?.into_iter();
            Ok(names.filter(|name| !new.contains(name)).collect())
        };
        for name in &new {
            say(&format!("{name}: not in `{revision}`, compared with nothing"))?;
        }
        let asked = match (self.counts, self.times) {
            (true, _) => Paths::Counted,
            (_, true) => Paths::Timed,
            _ => Paths::All,
        };
        if known(asked)?.is_empty() {
            bail!("`{revision}` has none of these paths");
        }
        let counts = || -> Result<bool> {
            // What the baseline knows to vary varies between commits, too.
            let tolerances = Baseline::read()?.counts.figures;
            let figure = |one: Measured| {
                let tolerance = tolerances
                    .get(&one.name)
                    .map_or(COUNT_TOLERANCE, |known| known.tolerance);
                let value = one.value;
                (one.name, Figure { value, tolerance })
            };
            let names = known(Paths::Counted)?;
            let before = counts::count(&other, &names, &[&[]])
                .with_context(|| format!("at `{revision}`"))?
                .concat();
            let before: BTreeMap<String, Figure> = before.into_iter().map(figure).collect();
            let verdicts = check::counts(program, &names, &|name| before[name], &[&[]])?.concat();
            judged(&verdicts, "instructions")
        };
        let times = || -> Result<bool> {
            let same = |_: &str| Figure {
                value: 1.0,
                tolerance: TIME_TOLERANCE,
            };
            let measure = |name: &str| times::beside_other(program, &other, name);
            judged(
                &check::times(&known(Paths::Timed)?, &same, &measure, check::PAUSE)?,
                "time",
            )
        };
        together([(!self.times).then(counts), (!self.counts).then(times)], &mut complain)
    }
}

/// What both kinds of figures say together: what got slower is so even where the other kind cannot tell, which is told to
/// `hear`.
fn together(kinds: [Option<Result<bool>>; 2], hear: &mut dyn FnMut(&Error)) -> Result<bool> {
    let mut slower = false;
    let mut unknown = Vec::new();
    for kind in kinds.into_iter().flatten() {
        match kind {
            Ok(good) => slower |= !good,
            Err(error) => unknown.push(error),
        }
    }
    // The last of them is told by whoever ends with it.
    let last = if slower { None } else { unknown.pop() };
    unknown.iter().for_each(hear);
    last.map_or(Ok(!slower), Err)
}

/// Says on standard error what went wrong.
fn complain(error: &Error) {
    drop(writeln!(std::io::stderr(), "error: {error:#}"));
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

/// Puts new figures in the place of old ones, and answers with how they differ. What is within its tolerance keeps its figure,
/// so that no path creeps from one renewal to the next; a tolerance that was changed by hand stays.
fn renew(figures: &mut BTreeMap<String, Figure>, measured: &[Measured], tolerance: f64) -> Vec<String> {
    let all: Vec<&str> = paths::all().iter().map(|path| path.name).collect();
    figures.retain(|name, _| all.contains(&name.as_str()));
    let mut lines = Vec::new();
    let mut slower = 0;
    for one in measured {
        // Six digits: the rest is noise in the history of the file.
        let digits = 10f64.powf(5.0 - one.value.abs().log10().floor());
        let value = (one.value * digits).round() / digits;
        let old = figures.get(&one.name).copied();
        let verdict = old.map(|old| Verdict::of(&one.name, value, old));
        let meaning = verdict.as_ref().map(|verdict| verdict.meaning);
        lines.push(match (&verdict, meaning) {
            (Some(verdict), Some(Meaning::Same)) => format!("{verdict}  kept"),
            (Some(verdict), _) => verdict.to_string(),
            (None, _) => format!("{:<34} {value:>10}  new", one.name),
        });
        slower += usize::from(meaning == Some(Meaning::Slower));
        if meaning != Some(Meaning::Same) {
            let tolerance = old.map_or(tolerance, |old| old.tolerance);
            figures.insert(one.name.clone(), Figure { value, tolerance });
        }
    }
    if slower > 0 {
        let n = measured.len();
        lines.push(format!(
            "{slower} of {n} may be slower from now on: say why in the commit"
        ));
    }
    lines
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the baseline knew no times of a processor, more instructions ended with 2 like whatever cannot be told.
    #[test]
    fn what_got_slower_is_said_even_where_the_other_figures_are_unknown() {
        let unknown = || Err(anyhow::anyhow!("no times"));
        let mut heard = 0;
        let mut told = |counts, times| together([counts, times], &mut |_| heard += 1).ok();
        assert_eq!(told(Some(Ok(false)), Some(unknown())), Some(false));
        assert_eq!(told(Some(unknown()), Some(Ok(false))), Some(false));
        assert_eq!(told(Some(Ok(true)), Some(unknown())), None);
        assert_eq!(told(Some(unknown()), Some(unknown())), None);
        assert_eq!(told(Some(Ok(true)), Some(Ok(true))), Some(true));
        assert_eq!(told(None, Some(Ok(false))), Some(false));
        assert_eq!(heard, 3, "all but the two that are handed on");
    }

    #[test]
    fn renewing_again_and_again_lets_no_path_creep() {
        let name = paths::all()[0].name;
        let mut figures = BTreeMap::new();
        let mut value = 1000.0;
        for _ in 0..30 {
            let measured = [Measured {
                name: name.to_owned(),
                value,
            }];
            renew(&mut figures, &measured, 0.01);
            value = figures[name].value * 1.009;
        }
        assert!((figures[name].value - 1000.0).abs() < 1e-9, "{figures:?}");
        let measured = |value| {
            let name = name.to_owned();
            [Measured { name, value }]
        };
        let lines = renew(&mut figures, &measured(1234.5678), 0.01);
        assert!(
            lines[0].contains("SLOWER") && lines[1].starts_with("1 of 1 may be slower"),
            "{lines:?}"
        );
        assert!(
            (figures[name].value - 1234.57).abs() < 1e-9,
            "beyond the tolerance, six digits"
        );
    }

    #[test]
    fn asking_for_times_of_paths_that_have_none_is_refused() {
        let gate = |arguments: &[&str]| Cli::parse_from([&["unsay-gate"], arguments].concat()).gate;
        let error = gate(&["--times", "--only", "data/"]).run().unwrap_err().to_string();
        assert!(
            error.starts_with("no path with `data/` in its name is timed"),
            "{error}"
        );
        let error = gate(&["--only", "nothing"]).run().unwrap_err().to_string();
        assert!(
            error.starts_with("no path has `nothing` in its name; there are data/"),
            "{error}"
        );
    }
}
