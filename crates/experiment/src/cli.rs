//! The command line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::commands;
use crate::manifest::{Mistakes, Override};

/// Trains language models on what they should not say, and measures whether it worked.
#[derive(Parser)]
#[command(name = "unsay", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  unsay run experiments/cringe_safety.yaml                    the default profile, to its figures
  unsay run experiments/cringe_safety.yaml --profile real     the same question on real data
  unsay run experiments/cringe_safety.yaml --set arms.cringe.train.loss.cringe.k=10 --results /tmp/k10
  unsay generate experiments/cringe_safety.yaml --arms mle,cringe --prompt 'hello there'

Exit codes: 0 done, 1 failed or interrupted, 2 wrong usage or a mistake in the manifest.";

#[derive(Subcommand)]
enum Command {
    /// Run an experiment: what is not in the store yet, then tables, figures and page
    Run(RunArgs),
    /// Check a manifest, all profiles of it, and show every mistake at once
    Check(CheckArgs),
    /// Show the steps of an experiment and which of them are in the store
    Plan(RunArgs),
    /// Remake the figures and the page of a results folder from its tables alone
    Report(ReportArgs),
    /// List what can be named in a manifest
    List(ListArgs),
    /// Complete a prompt with the models of two or more arms, side by side
    Generate(GenerateArgs),
}

/// Which question.
#[derive(Args, Clone)]
pub struct ManifestArgs {
    /// The manifest, e.g. experiments/cringe_safety.yaml
    pub manifest: PathBuf,
    /// Profile of the manifest [default: its first]
    #[arg(long, short)]
    pub profile: Option<String>,
    /// Override one value, e.g. --set evaluate.split=valid (repeatable)
    #[arg(long = "set", value_name = "KEY.KEY=VALUE")]
    pub set: Vec<Override>,
    /// Folder of checkpoints and finished steps
    #[arg(long, default_value = "runs", value_name = "FOLDER")]
    pub runs: PathBuf,
}

/// Where models compute.
#[derive(Args, Clone)]
pub struct DeviceArgs {
    /// Where models compute: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
}

/// How to run it.
#[derive(Args, Clone)]
pub struct RunArgs {
    /// Which question.
    #[command(flatten)]
    pub question: ManifestArgs,
    /// Folder for tables and figures [default: results/NAME/PROFILE]; needed with --set, so that the results of
    /// the manifest as it stands are not overwritten
    #[arg(long, value_name = "FOLDER")]
    pub results: Option<PathBuf>,
    /// Steps at a time [default: one per processor core]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// Where models compute.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// What to check.
#[derive(Args)]
pub struct CheckArgs {
    /// The manifest
    pub manifest: PathBuf,
    /// Override one value first (repeatable)
    #[arg(long = "set", value_name = "KEY.KEY=VALUE")]
    pub set: Vec<Override>,
}

/// What to remake.
#[derive(Args)]
pub struct ReportArgs {
    /// A results folder, e.g. results/cringe_safety/testbed
    pub results: PathBuf,
}

/// What to list.
#[derive(Args)]
pub struct ListArgs {
    /// What to list
    #[arg(value_enum)]
    pub what: commands::list::What,
    /// Of losses: the page docs/losses.md, with formulas and sources
    #[arg(long)]
    pub page: bool,
}

/// What to complete.
#[derive(Args)]
pub struct GenerateArgs {
    /// Which question.
    #[command(flatten)]
    pub question: ManifestArgs,
    /// Arms to compare, in this order
    #[arg(long, value_delimiter = ',', required = true)]
    pub arms: Vec<String>,
    /// The prompt; turns of a dialogue separated by \n. Without it, prompts are read line by line
    #[arg(long)]
    pub prompt: Option<String>,
    /// Run seed whose models are used [default: the first of the manifest]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Completions per arm
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub n: u16,
    /// Always the likeliest token, instead of the sampling of the manifest
    #[arg(long)]
    pub greedy: bool,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    pub sample_seed: u64,
    /// Where models compute.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let result = match cli.command {
        Command::Run(args) => commands::run::run(&args),
        Command::Check(args) => commands::check::check(&args),
        Command::Plan(args) => commands::plan::plan(&args),
        Command::Report(args) => commands::report::report(&args),
        Command::List(args) => commands::list::list(&args),
        Command::Generate(args) => commands::generate::generate(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

/// More mistakes than these are counted, not shown.
const MOST_SHOWN: usize = 30;

fn fail(error: &anyhow::Error) -> ExitCode {
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
    if error.downcast_ref::<commands::Usage>().is_some() {
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

/// Writes to standard output; a closed pipe is not an error.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}
