//! `unsay-bench`: the same weights, data and threads through this project and through the Python stack, by turns.

mod cases;
mod checks;
mod driver;
mod growth;
mod material;
mod ours;
mod outcome;
mod page;
mod process;
mod protocol;
mod results;
mod statistics;
mod whole;
mod worker;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::cases::Case;
use crate::driver::{Alone, Options};
use crate::outcome::Outcome;
use crate::protocol::Hello;
use crate::results::{Environment, Results};
use crate::worker::Programs;

/// The case that is no comparison.
const GROWTH: (&str, &str) = ("growth", "our speed and memory up to 1,000,000 training tokens, 6.84M");

/// Side by side with the Python stack: the same weights, data and threads, by turns.
#[derive(Parser)]
#[command(name = "unsay-bench", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run cases, ours and theirs by turns, and show the table
    Peers(PeersArgs),
    /// Our worker: answers the driver's questions, a line of JSON each
    Worker,
}

#[derive(Args)]
struct PeersArgs {
    /// Only these cases, comma-separated; a name that ends in * is a beginning
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Show the names of the cases and what they are
    #[arg(long)]
    list: bool,
    /// Three turns each: to see that it runs, not to quote
    #[arg(long)]
    quick: bool,
    /// Turns of each side, in place of the case's own
    #[arg(long, value_name = "N", conflicts_with = "quick", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// One side alone, for a profile
    #[arg(long, value_enum)]
    alone: Option<Alone>,
    /// Threads of either side
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Where figures and page are put; runs of single cases add to it [default: results/bench of whole runs, nowhere with
    /// --quick, --rounds or --alone]
    #[arg(long, value_name = "FOLDER", conflicts_with = "alone")]
    results: Option<PathBuf>,
    /// The Python of the private environment
    #[arg(long, default_value = "python3", value_name = "FILE")]
    python: PathBuf,
    /// The folder of their workers
    #[arg(long, default_value = "crates/bench/peers", value_name = "FOLDER")]
    peers: PathBuf,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Worker => ours::serve(std::io::stdin().lock(), std::io::stdout().lock()),
        Command::Peers(args) => peers(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}

/// What can be chosen, in the order of the table.
enum Chosen {
    Case(Box<Case>),
    Whole(&'static str, &'static str),
    Growth,
}

impl Chosen {
    fn all() -> Vec<Self> {
        let cases = cases::all().into_iter().map(|case| Self::Case(Box::new(case)));
        let whole = whole::CASES.iter().map(|(name, about)| Self::Whole(name, about));
        cases.chain(whole).chain([Self::Growth]).collect()
    }

    fn name(&self) -> &str {
        match self {
            Self::Case(case) => &case.name,
            Self::Whole(name, _) => name,
            Self::Growth => GROWTH.0,
        }
    }

    fn about(&self) -> String {
        match self {
            Self::Case(case) => case.about(),
            Self::Whole(_, about) => (*about).to_owned(),
            Self::Growth => GROWTH.1.to_owned(),
        }
    }
}

fn chosen(only: &[String]) -> Result<Vec<Chosen>> {
    let all = Chosen::all();
    for name in only {
        if !all.iter().any(|case| matches(name, case.name())) {
            bail!("no case `{name}`\nhint: `--list` shows them");
        }
    }
    let wanted = |case: &Chosen| only.is_empty() || only.iter().any(|name| matches(name, case.name()));
    Ok(all.into_iter().filter(wanted).collect())
}

fn matches(wanted: &str, name: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => wanted == name,
    }
}

fn peers(args: &PeersArgs) -> Result<()> {
    let chosen = chosen(&args.only)?;
    if args.list {
        return chosen
            .iter()
            .try_for_each(|case| say(&format!("{:<24} {}", case.name(), case.about())));
    }
    let options = options(args)?;
    let sketch = args.quick || args.rounds.is_some() || args.alone.is_some();
    let folder = args
        .results
        .clone()
        .or_else(|| (!sketch).then(|| PathBuf::from("results/bench")));
    // What was measured elsewhere is refused before anything is measured.
    if let Some(folder) = &folder {
        Results::open(folder, Environment::here(options.programs.threads))?;
    } else if args.alone.is_none() {
        say("nothing will be kept of this run\nhint: `--results FOLDER` keeps it")?;
    }
    let order: Vec<String> = Chosen::all().iter().map(|case| case.name().to_owned()).collect();
    for case in &chosen {
        say(&format!("{}: {}", case.name(), case.about()))?;
        let mut hear = |line: &str| drop(say(&format!("  {line}")));
        let failed = || format!("case `{}`", case.name());
        let keep = |hellos: &[Hello], put: &mut dyn FnMut(&mut Results)| -> Result<()> {
            let Some(folder) = &folder else { return Ok(()) };
            let mut here = Environment::here(options.programs.threads);
            here.add(hellos)?;
            let mut results = Results::open(folder, here)?;
            put(&mut results);
            results.write(folder)
        };
        let (outcome, hellos) = match case {
            Chosen::Case(case) => driver::run(case, &options, &mut hear).with_context(failed)?,
            Chosen::Whole(name, _) => {
                let run = if *name == whole::CASES[0].0 {
                    whole::start
                } else {
                    whole::end_to_end
                };
                (run(&options).with_context(failed)?, Vec::new())
            }
            Chosen::Growth => {
                let (grown, hello) = grow(args, &options).with_context(failed)?;
                keep(&[hello], &mut |results| results.growth.clone_from(&grown))?;
                continue;
            }
        };
        show(&outcome)?;
        keep(&hellos, &mut |results| results.put(outcome.clone(), &order))?;
    }
    Ok(())
}

fn options(args: &PeersArgs) -> Result<Options> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let cache = cache.context("no place for models: neither XDG_CACHE_HOME nor HOME is set")?;
    let cache = cache.join("unsay/bench");
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot make `{}`", cache.display()))?;
    let rounds = if args.quick {
        Some(3)
    } else {
        args.rounds.map(usize::from)
    };
    Ok(Options {
        programs: Programs {
            ours: std::env::current_exe()?,
            python: args.python.clone(),
            peers: args.peers.clone(),
            threads: usize::from(args.threads),
        },
        cache,
        rounds,
        commit: results::commit(),
        alone: args.alone,
    })
}

fn grow(args: &PeersArgs, options: &Options) -> Result<(Vec<growth::Growth>, Hello)> {
    let all = cases::all();
    let (mut grown, mut said) = (Vec::new(), None);
    for case in all.iter().filter(|case| growth::CASES.contains(&case.name.as_str())) {
        let (growth, hello) = growth::run(case, options, if args.quick { 100_000 } else { u64::MAX })?;
        say(&format!("  {}", growth.about))?;
        for point in &growth.points {
            say(&format!(
                "  {:>8} tokens: {:>6.0} tok/s  resident {:.0} MiB, peak {:.0} MiB",
                point.tokens, point.tokens_per_sec, point.rss_mib, point.peak_mib
            ))?;
        }
        let speed = growth.speed;
        say(&format!(
            "  late / early: speed {:.3} [{:.3}, {:.3}], memory {:.3}",
            speed.value,
            speed.low,
            speed.high,
            growth.memory()
        ))?;
        grown.push(growth);
        said = Some(hello);
    }
    Ok((grown, said.context("no case to train on")?))
}

fn show(outcome: &Outcome) -> Result<()> {
    for limit in &outcome.limits {
        let (value, most) = (limit.value.value, limit.at_most);
        let met = if value <= most { "met" } else { "not met" };
        say(&format!("  {}: {value:.3}, goal at most {most}: {met}", limit.what))?;
    }
    for cost in &outcome.sides {
        let above = cost.peak_above_mib;
        let above = above.map_or(String::new(), |mib| format!(", {mib:.0} above libraries"));
        let busy = cost.cpu_secs.map_or(String::new(), |secs| format!("  cpu {secs:.4} s"));
        say(&format!(
            "  {:<7} {:<18} {:>9.4} s [{:.4}, {:.4}]{busy}  {:>7.0} tok/s  peak {:.0} MiB{above}",
            cost.who, cost.way, cost.secs.value, cost.secs.low, cost.secs.high, cost.tokens_per_sec, cost.peak_mib
        ))?;
    }
    for ratio in &outcome.ratios {
        let above = ratio.memory_above;
        let above = above.map_or(String::new(), |share| format!(", above libraries {share:.2}"));
        let goal = ratio.goal.map_or(String::new(), |goal| {
            format!(
                "  goal {goal}: {}",
                if ratio.ratio.value >= goal { "met" } else { "not met" }
            )
        });
        say(&format!(
            "  {} / {}: {:.2} [{:.2}, {:.2}] n={}  memory {:.2}{above}{goal}",
            ratio.ours, ratio.theirs, ratio.ratio.value, ratio.ratio.low, ratio.ratio.high, ratio.ratio.n, ratio.memory
        ))?;
    }
    Ok(())
}
