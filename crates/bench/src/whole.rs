//! Whole programs: from the start of a process to what a user waits for.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::Rng;
use unsay_data::testbed::safety::{Split, World};
use unsay_data::{Tokenizer, stream, write_examples};

use crate::cases::Model;
use crate::driver::{Alone, Options};
use crate::material::{Role, SEED, model_folder};
use crate::outcome::{Cost, Limit, Outcome, Ratio};
use crate::process::{self, Owned};
use crate::statistics::{median, with_interval};
use crate::worker::tail;

/// A text that the tokenizer of the folder reads as any other.
const PROMPT: &str = "zumo kare bilo";
/// Turns of `start`.
const STARTS: usize = 10;
/// Turns of `end_to_end`, which are long.
const ENDS: usize = 2;
/// Seconds from start to first token that are allowed.
const START_GOAL: f64 = 1.0;
/// The small experiment: run seeds, and for each of them examples, updates, examples in an update, replies and their length.
const SEEDS: usize = 2;
const TRAIN: usize = 1600;
const UPDATES: usize = 100;
const BATCH: usize = 16;
const REPLIES: usize = 64;
const NEW_TOKENS: usize = 32;

/// A case that is a whole program.
#[derive(Debug)]
pub(crate) struct Whole {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) about: &'static str,
    /// Measures it.
    pub(crate) run: fn(&Options) -> Result<Outcome>,
}

const START: Whole = Whole {
    name: "start",
    about: "process start to first generated token, 6.84M",
    run: start,
};
const END_TO_END: Whole = Whole {
    name: "end_to_end",
    about: "two seeds: tokenise, 100 SFT steps, save, 64 replies, 6.84M",
    run: end_to_end,
};
/// All of them.
pub(crate) const CASES: [Whole; 2] = [START, END_TO_END];

/// What one program took.
struct Run {
    secs: f64,
    peak_mib: f64,
    said: String,
}

/// Runs a program. Its time ends with the first line that it writes where `first_line`, with its end otherwise. It is ended
/// where it takes longer than `patience`.
fn timed(mut command: Command, first_line: bool, log: &Path, patience: Duration) -> Result<Run> {
    let what = command.get_program().to_string_lossy().into_owned();
    let stderr = fs::File::create(log).with_context(|| format!("cannot write `{}`", log.display()))?;
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot start `{what}`"))?;
    let mut child = Owned(child);
    let process = child.0.id().to_string();
    let mut output = BufReader::new(child.0.stdout.take().context("a program without output")?);
    // Hears the first line when it comes, whatever is looked at meanwhile.
    let (hear, heard) = channel();
    thread::spawn(move || {
        let mut said = String::new();
        let first = output.read_line(&mut said).map(|_| start.elapsed());
        let rest = output.read_to_string(&mut said);
        // Of a program that was ended nobody wants to know.
        drop(hear.send(first.and_then(|first| rest.map(|_| (first, said)))));
    });
    let mut peak_mib = 0.0;
    let status = loop {
        // The peak of a process is gone with it, so it is read until then; it never falls.
        if let Ok(mib) = process::status_mib(&process, "VmHWM") {
            peak_mib = mib;
        }
        if let Some(status) = child.0.try_wait()? {
            break status;
        }
        if start.elapsed() > patience {
            child.end();
            bail!("`{what}` did not end within {} s: {}", patience.as_secs(), tail(log));
        }
        thread::sleep(Duration::from_millis(5));
    };
    let whole = start.elapsed();
    if !status.success() {
        bail!("`{what}` ended with {status}: {}", tail(log));
    }
    let heard = heard.recv_timeout(patience);
    let (first, said) = heard.with_context(|| format!("`{what}` ended and left its output open"))??;
    Ok(Run {
        secs: (if first_line { first } else { whole }).as_secs_f64(),
        peak_mib,
        said,
    })
}

/// A folder that a tokenizer stands beside the weights in: it knows the testbed's words, and made-up ones until every id has
/// a text.
fn speaking_folder(cache: &Path) -> Result<PathBuf> {
    let folder = model_folder(cache, Model::Small, Role::Policy)?;
    if folder.join("tokenizer_config.json").is_file() {
        return Ok(folder);
    }
    let mut rng = stream(SEED, "bench-words", 0);
    let mut word = || {
        let syllables = rng.random_range(1..5);
        let mut syllable = || {
            let letter = |of: &[u8], at: usize| char::from(of[at % of.len()]);
            let (a, b) = (rng.random_range(0..20), rng.random_range(0..5));
            format!("{}{}", letter(b"bcdfghjklmnpqrstvwxz", a), letter(b"aeiou", b))
        };
        (0..syllables).map(|_| syllable()).collect::<String>()
    };
    let lines: Vec<String> = (0..20_000)
        .map(|_| (0..10).map(|_| word()).collect::<Vec<_>>().join(" "))
        .collect();
    let known = World::new(SEED).pretraining(20_000);
    let known = known
        .iter()
        .flat_map(|one| [one.prompt.as_str(), one.completion.as_str()]);
    let texts = known.chain(lines.iter().map(String::as_str));
    let tokenizer = Tokenizer::train(texts, Model::Small.vocab())?;
    if tokenizer.vocab_size() != Model::Small.vocab() {
        bail!("the made-up words gave {} tokens", tokenizer.vocab_size());
    }
    tokenizer.save_folder(&folder)?;
    Ok(folder)
}

/// The program `unsay`, which is built beside this one.
fn unsay(options: &Options) -> Result<PathBuf> {
    let path = options.programs.ours.with_file_name("unsay");
    if !path.is_file() {
        bail!(
            "`{}` is not built\nhint: `cargo build -p unsay-experiment`, or `just bench-peers`",
            path.display()
        );
    }
    Ok(path)
}

/// From the start of a process to its first generated token.
fn start(options: &Options) -> Result<Outcome> {
    let folder = speaking_folder(&options.cache)?;
    let unsay = unsay(options)?;
    let command = |ours: bool| {
        let mut command = Command::new(if ours { &unsay } else { &options.programs.python });
        if ours {
            command.arg("generate").arg(&folder);
            command.args(["--raw", "--greedy", "--max-new-tokens", "1", "--prompt", PROMPT]);
        } else {
            command
                .arg(options.programs.peers.join("start.py"))
                .arg(&folder)
                .arg(PROMPT);
        }
        options.programs.environment(&mut command);
        command
    };
    let runs = turns(options, options.rounds.unwrap_or(STARTS), 1, true, &mut |ours, _| {
        Ok(command(ours))
    })?;
    let mut outcome = outcome(&START, options, &runs, 1.0);
    if let Some(cost) = outcome.sides.iter().find(|cost| cost.who == "unsay") {
        outcome.limits.push(Limit {
            what: format!("{}, s", START.about),
            value: cost.secs,
            at_most: START_GOAL,
        });
    }
    Ok(outcome)
}

/// A small experiment from its data to replies.
fn end_to_end(options: &Options) -> Result<Outcome> {
    let folder = speaking_folder(&options.cache)?;
    let unsay = unsay(options)?;
    let scratch = tempfile::tempdir().context("cannot make a folder to work in")?;
    let world = World::new(SEED);
    let examples = scratch.path().join("dialogue.jsonl");
    write_examples(&examples, &world.dialogue(Split::Train, TRAIN))?;
    let prompts = scratch.path().join("prompts.jsonl");
    write_examples(&prompts, &world.prompts(Split::Test, REPLIES))?;
    let manifest = scratch.path().join("manifest.yaml");
    fs::write(&manifest, manifest_of(&folder))?;
    let mut command = |ours: bool, turn: usize| {
        let own = scratch.path().join(format!("{ours}-{turn}"));
        fs::create_dir(&own)?;
        let mut command = Command::new(if ours { &unsay } else { &options.programs.python });
        if ours {
            command
                .arg("run")
                .arg(&manifest)
                .arg("--workers")
                .arg(options.programs.threads.to_string());
            command
                .arg("--runs")
                .arg(own.join("runs"))
                .arg("--results")
                .arg(own.join("results"));
        } else {
            command.arg(options.programs.peers.join("end_to_end.py")).arg(&folder);
            command.args([&examples, &prompts, &own]);
            command.args([SEEDS, UPDATES, BATCH, NEW_TOKENS].map(|n| n.to_string()));
        }
        options.programs.environment(&mut command);
        Ok(command)
    };
    let runs = turns(options, options.rounds.unwrap_or(ENDS), 0, false, &mut command)?;
    Ok(outcome(&END_TO_END, options, &runs, 1.0))
}

/// The experiment as a manifest: one arm, the testbed's small talk, greedy replies that its oracle judges.
fn manifest_of(folder: &Path) -> String {
    let folder = folder.display();
    let seeds: Vec<usize> = (0..SEEDS).collect();
    format!(
        "name: end_to_end
question: How long does a small experiment take?
seeds: {seeds:?}
arms:
  sft: {{ train: {{ loss: {{ nll: {{}} }} }} }}
profiles:
  small:
    base: {{ folder: {{ path: '{folder}' }} }}
    data:
      feedback: {{ testbed: {{ world: safety, part: feedback, seed: {SEED}, sizes: {{ train: 64, valid: 16, test: {REPLIES} }} }} }}
      dialogue: {{ testbed: {{ world: safety, part: dialogue, seed: {SEED}, sizes: {{ train: {TRAIN}, valid: 16, test: 16 }} }} }}
    limits: {{ max_prompt: 64, max_completion: 64, max_cut_share: 0.1, max_dropped_share: 0.0 }}
    classifiers: {{ train: {{ steps: 1, batch: 16, lr: 1.0e-4 }} }}
    finetune:
      mixture: {{ dialogue: 1, feedback: 1.0e-6, own: 1 }}
      train: {{ steps: {UPDATES}, batch: {BATCH}, lr: 1.0e-4 }}
    evaluate:
      split: test
      prompts: {REPLIES}
      dialogues: 1
      replies: 1
      sampling: {{ greedy: true, max_new_tokens: {NEW_TOKENS} }}
      quality_sampling: {{ greedy: true, max_new_tokens: {NEW_TOKENS} }}
      judges: [oracle]
      measures: [safe]
    samples: []
    table:
      checkpoints: [last]
      metrics: [{{ metric: safe_oracle, subset: all, label: safe, bounds: [0, 1] }}]
    figures: []
"
    )
}

/// The runs of both sides, ours first; A B B A.
fn turns(
    options: &Options,
    rounds: usize,
    warm_up: usize,
    first_line: bool,
    command: &mut dyn FnMut(bool, usize) -> Result<Command>,
) -> Result<[Vec<Run>; 2]> {
    let folder = tempfile::tempdir().context("cannot make a folder to work in")?;
    let log = folder.path().join("stderr");
    let mut runs = [Vec::new(), Vec::new()];
    for round in 0..warm_up + rounds {
        for ours in if round % 2 == 0 { [true, false] } else { [false, true] } {
            let left_out = if ours { Alone::Theirs } else { Alone::Ours };
            if options.alone == Some(left_out) {
                continue;
            }
            let run = timed(command(ours, round)?, first_line, &log, options.programs.patience)?;
            if run.said.trim().is_empty() {
                bail!("{} said nothing", if ours { "unsay" } else { "python" });
            }
            if round >= warm_up {
                runs[usize::from(!ours)].push(run);
            }
        }
    }
    Ok(runs)
}

fn outcome(whole: &Whole, options: &Options, runs: &[Vec<Run>; 2], tokens: f64) -> Outcome {
    let secs = |side: usize| runs[side].iter().map(|run| run.secs).collect::<Vec<f64>>();
    let peak = |side: usize| runs[side].iter().map(|run| run.peak_mib).fold(0.0, f64::max);
    let cost = |side: usize| Cost {
        who: ["unsay", "python"][side].to_owned(),
        way: "fp32".to_owned(),
        secs: with_interval(&secs(side)),
        turns: secs(side),
        cpu_secs: None,
        tokens,
        tokens_per_sec: tokens / median(&secs(side)),
        peak_mib: peak(side),
        peak_above_mib: None,
    };
    let sides = (0..2).filter(|&side| !runs[side].is_empty()).map(cost).collect();
    let turns: Vec<f64> = runs[0].iter().zip(&runs[1]).map(|(x, y)| y.secs / x.secs).collect();
    let ratio = Ratio {
        ours: "fp32".to_owned(),
        theirs: "fp32".to_owned(),
        ratio: with_interval(&turns),
        goal: None,
        memory: peak(0) / peak(1),
        memory_above: None,
    };
    Outcome {
        name: whole.name.to_owned(),
        about: whole.about.to_owned(),
        commit: options.commit.clone(),
        steps: 1,
        rounds: runs[0].len().max(runs[1].len()),
        sides,
        checks: Vec::new(),
        ratios: if turns.is_empty() { Vec::new() } else { vec![ratio] },
        limits: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::PATIENCE;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_is_heard_to_its_end_and_its_memory_seen() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("stderr");
        for first_line in [true, false] {
            let run = timed(shell("echo first; sleep 0.1; echo second"), first_line, &log, PATIENCE).unwrap();
            assert_eq!(run.said, "first\nsecond\n");
            assert!(run.peak_mib > 0.0 && run.secs > 0.0);
        }
    }

    #[test]
    fn a_program_that_fails_is_named_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("stderr");
        let error = timed(shell("echo 'no such model' >&2; exit 3"), true, &log, PATIENCE);
        let error = error.err().unwrap().to_string();
        assert!(
            error.contains("`sh` ended with exit status: 3: no such model"),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("stderr");
        let hangs = shell("echo first; exec sleep 1000");
        let error = timed(hangs, true, &log, Duration::from_millis(500)).err().unwrap();
        assert!(error.to_string().starts_with("`sh` did not end within 0 s"), "{error}");
    }
}
