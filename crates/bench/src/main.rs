//! `unsay-bench`: the same weights, data and threads through this project and through the Python stack, by turns.

mod cases;
mod checks;
mod driver;
#[cfg(test)]
mod fake;
mod growth;
mod material;
mod ours;
mod outcome;
mod page;
mod peers;
mod process;
mod protocol;
mod results;
mod statistics;
mod whole;
mod worker;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::driver::{Alone, Options};
use crate::results::{Environment, Results};
use crate::worker::{PATIENCE, Programs};

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
        Command::Peers(args) => run_peers(&args),
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

fn run_peers(args: &PeersArgs) -> Result<()> {
    let chosen = peers::chosen(&args.only)?;
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
    peers::run(&chosen, &options, folder.as_deref())
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
            patience: PATIENCE,
        },
        cache,
        rounds,
        commit: results::commit(),
        alone: args.alone,
        growth_tokens: if args.quick { 100_000 } else { u64::MAX },
    })
}
