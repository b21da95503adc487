//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands;
use crate::manifest::Override;
use crate::output;

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
  unsay chat smollm2-135m-instruct                            a conversation with a model of the catalog
  unsay export experiments/cringe_safety.yaml --arm cringe --to my-model

Exit codes: 0 done, 1 failed or interrupted, 2 wrong usage or a mistake in the manifest.";

const GENERATE: &str = "\
Examples:
  unsay generate experiments/cringe_safety.yaml --arms mle,cringe --prompt 'hello there'
  unsay generate smollm2-135m-instruct --greedy --prompt 'What is the capital of France?'
  unsay generate my-model --raw --prompt 'Once upon a time' -n 3 --temperature 1
  unsay generate my-model < prompts.txt                       a prompt per line";

const CHAT: &str = "\
In the conversation:
  /reset          forget what was said
  /system TEXT    start anew with another instruction; without TEXT with none
  /save FILE      write the conversation as a line of JSON that manifests can read (`messages`)
  /quit           leave, as Ctrl-D does; Ctrl-C stops a reply

What no longer fits into the model is forgotten, the oldest exchange first; this is said when it happens.

Examples:
  unsay chat smollm2-135m-instruct
  unsay chat my-model --adapter my-adapter --system 'Answer in one sentence.'
  unsay chat my-model < questions.txt                         a question per line";

const EXPORT: &str = "\
Examples:
  unsay export experiments/cringe_safety.yaml --arm cringe --to cringe-model
  unsay export experiments/cringe_safety.yaml --profile smollm2 --arm cringe --merge --to merged
  unsay export my-model --adapter my-adapter --to merged";

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
    /// Complete prompts: with the models of several arms side by side, or with any model
    #[command(after_help = GENERATE)]
    Generate(GenerateArgs),
    /// Talk to a model in the terminal
    #[command(after_help = CHAT)]
    Chat(ChatArgs),
    /// Write a model as a folder that other tools load, with a card that says where it comes from
    #[command(after_help = EXPORT)]
    Export(ExportArgs),
}

/// Where checkpoints and finished steps are, unless said otherwise.
const RUNS: &str = "runs";

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
    #[arg(long, default_value = RUNS, value_name = "FOLDER")]
    pub runs: PathBuf,
}

impl ManifestArgs {
    /// A manifest with options that may be left out.
    pub fn of(manifest: PathBuf, profile: Option<&String>, set: &[Override], runs: Option<&PathBuf>) -> Self {
        Self {
            manifest,
            profile: profile.cloned(),
            set: set.to_vec(),
            runs: runs.cloned().unwrap_or_else(|| RUNS.into()),
        }
    }

    /// The command that fills the store with what these name.
    pub fn command(&self) -> String {
        let mut command = format!("unsay run {}", self.manifest.display());
        if let Some(profile) = &self.profile {
            command.push_str(&format!(" --profile {profile}"));
        }
        for set in &self.set {
            command.push_str(&format!(" --set {}", set.text));
        }
        if !self.set.is_empty() {
            command.push_str(" --results FOLDER");
        }
        if self.runs.as_os_str() != RUNS {
            command.push_str(&format!(" --runs {}", self.runs.display()));
        }
        command
    }
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
    /// A manifest, to compare arms; a model folder; or a model of the catalog (`unsay list models`)
    #[arg(value_name = "MANIFEST|FOLDER|NAME")]
    pub what: String,
    /// The prompt; a manifest's prompts separate the turns of a dialogue by \n. Without it, prompts are read line by line
    #[arg(long)]
    pub prompt: Option<String>,
    /// Completions of each prompt, by each arm
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub n: u16,
    /// Seed of the draws
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    pub sample_seed: u64,
    /// Always the likeliest token
    #[arg(long)]
    pub greedy: bool,
    /// Where models compute.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Which arms.
    #[command(flatten)]
    pub arms: ArmsArgs,
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Continue the text of the prompt; without it a model with a chat template answers
    #[arg(long, help_heading = MODELS)]
    pub raw: bool,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

const MANIFESTS: &str = "Of manifests";
const MODELS: &str = "Of model folders and the catalog";

/// Which arms of a manifest.
#[derive(Args)]
#[command(next_help_heading = MANIFESTS)]
pub struct ArmsArgs {
    /// Arms to compare, in this order
    #[arg(long, value_delimiter = ',')]
    pub arms: Vec<String>,
    /// Run seed whose models are used [default: the first of the manifest]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Profile of the manifest [default: its first]
    #[arg(long, short)]
    pub profile: Option<String>,
    /// Override one value, e.g. --set evaluate.split=valid (repeatable)
    #[arg(long = "set", value_name = "KEY.KEY=VALUE")]
    pub set: Vec<Override>,
    /// Folder of checkpoints and finished steps [default: runs]
    #[arg(long, value_name = "FOLDER")]
    pub runs: Option<PathBuf>,
}

/// Which model, and what is said to it first.
#[derive(Args)]
#[command(next_help_heading = MODELS)]
pub struct ModelArgs {
    /// A LoRA adapter in the PEFT layout on the model
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    /// What a chat model is told before the conversation
    #[arg(long)]
    pub system: Option<String>,
    /// The kind that the model computes in [default: fp32]
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionName>,
}

/// The kind that a model computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionName {
    /// Everything in f32
    Fp32,
    /// States and products in bf16, where that is faster
    Bf16,
    /// The same where it is slower
    Bf16EvenIfSlower,
}

/// How tokens are chosen.
#[derive(Args)]
#[command(next_help_heading = MODELS)]
pub struct SamplingArgs {
    /// Longest reply in tokens [default: 256, at most half of the model's positions]
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// No end of the reply before so many tokens [default: 0]
    #[arg(long, value_name = "N")]
    pub min_new_tokens: Option<usize>,
    /// Divides the logits; 0.0001 to 10000 [default: 0.7]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Only the K likeliest tokens [default: all]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Then only the smallest set with this mass [default: 0.9]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// No N tokens in a row twice in a reply
    #[arg(long, value_name = "N")]
    pub block_ngram: Option<usize>,
    /// Search with N beams instead of drawing; 2 to 256
    #[arg(long, value_name = "N")]
    pub beams: Option<usize>,
    /// Power of the length that a beam's log-probability is divided by; -10 to 10 [default: 1]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub length_penalty: Option<f64>,
}

/// Whom to talk to.
#[derive(Args)]
pub struct ChatArgs {
    /// A model folder, or a model of the catalog (`unsay list models`)
    #[arg(value_name = "FOLDER|NAME")]
    pub what: String,
    /// Always the likeliest token
    #[arg(long)]
    pub greedy: bool,
    /// Seed of the draws
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    pub sample_seed: u64,
    /// Where models compute.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// What to export.
#[derive(Args)]
pub struct ExportArgs {
    /// A manifest, for one of its arms; a model folder; or a model of the catalog
    #[arg(value_name = "MANIFEST|FOLDER|NAME")]
    pub what: String,
    /// The folder to write; it must be empty or not there
    #[arg(long, value_name = "FOLDER")]
    pub to: PathBuf,
    /// An adapter goes into the weights; without it an adapter of an arm is written by itself
    #[arg(long)]
    pub merge: bool,
    /// The type that weights are stored in [default: f32]
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeName>,
    /// Where models compute.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// The arm
    #[arg(long, help_heading = MANIFESTS)]
    pub arm: Option<String>,
    /// Run seed whose model is exported [default: the first of the manifest]
    #[arg(long, help_heading = MANIFESTS)]
    pub seed: Option<u64>,
    /// Which weights of the arm's last training [default: best]
    #[arg(long, value_enum, help_heading = MANIFESTS)]
    pub checkpoint: Option<CheckpointName>,
    /// Profile of the manifest [default: its first]
    #[arg(long, short, help_heading = MANIFESTS)]
    pub profile: Option<String>,
    /// Override one value, as the run did (repeatable)
    #[arg(long = "set", value_name = "KEY.KEY=VALUE", help_heading = MANIFESTS)]
    pub set: Vec<Override>,
    /// Folder of checkpoints and finished steps [default: runs]
    #[arg(long, value_name = "FOLDER", help_heading = MANIFESTS)]
    pub runs: Option<PathBuf>,
    /// Folder of the results that the model card quotes [default: results/NAME/PROFILE, where there is one]
    #[arg(long, value_name = "FOLDER", help_heading = MANIFESTS)]
    pub results: Option<PathBuf>,
    /// A LoRA adapter in the PEFT layout, merged into the weights
    #[arg(long, value_name = "FOLDER", help_heading = MODELS)]
    pub adapter: Option<PathBuf>,
}

/// A type that weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DtypeName {
    /// 32 bits, as they are trained
    F32,
    /// 16 bits with the range of f32
    Bf16,
    /// 16 bits with a range up to 65504
    F16,
}

/// Weights of a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckpointName {
    /// Best by the validation objective
    Best,
    /// The last
    Last,
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
        Command::Chat(args) => commands::chat::chat(&args),
        Command::Export(args) => commands::export::export(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => output::end(&error),
    }
}
