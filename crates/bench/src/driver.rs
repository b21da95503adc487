//! One case: start everyone, see that all do the same work, then let them take turns.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cases::{Case, Side};
use crate::material::{CHECKED, Material, Role, model_folder};
use crate::protocol::{Hello, Loaded, Ran, Task, Work};
use crate::statistics::{Median, median, with_interval};
use crate::worker::{Programs, Worker};

/// Between turns: threads of libgomp that wait for more work sleep by then.
const PAUSE: Duration = Duration::from_millis(40);
/// How far first losses may be apart, relative to the larger of 1 and theirs.
const NEAR_FP32: f64 = 1e-4;
/// The same where products are rounded to bf16, and each side rounds in places of its own.
const NEAR_BF16: f64 = 2e-2;
/// How far sums over the weights may be apart, relative to the sum of absolute values.
const NEAR_WEIGHTS: f64 = 1e-9;
/// The same where one side holds nothing but bf16.
const NEAR_ROUNDED: f64 = 1e-3;

/// What a case came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The case.
    pub(crate) name: String,
    /// What it is, in words.
    pub(crate) about: String,
    /// The commit of the project.
    pub(crate) commit: String,
    /// Steps in a turn.
    pub(crate) steps: usize,
    /// Turns of each side.
    pub(crate) rounds: usize,
    /// What each side took.
    pub(crate) sides: Vec<Cost>,
    /// What was seen to be equal before time was taken, and how nearly.
    pub(crate) checks: Vec<Check>,
    /// Ratios.
    pub(crate) ratios: Vec<Ratio>,
    /// What must not be exceeded.
    pub(crate) limits: Vec<Limit>,
}

/// A figure of ours that must not exceed another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Limit {
    /// What it is, with its unit.
    pub(crate) what: String,
    /// The figure.
    pub(crate) value: Median,
    /// At most so much is wanted.
    pub(crate) at_most: f64,
}

/// What a side took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// `unsay` or `python`.
    pub(crate) who: String,
    /// How it worked: see [`Side::way`].
    pub(crate) way: String,
    /// Seconds of a step, over turns.
    pub(crate) secs: Median,
    /// Seconds of a step in each turn.
    pub(crate) turns: Vec<f64>,
    /// Seconds of processors per step, the median over turns; of whole programs not known.
    pub(crate) cpu_secs: Option<f64>,
    /// Tokens per step, the mean over turns.
    pub(crate) tokens: f64,
    /// Tokens per second, the median over turns.
    pub(crate) tokens_per_sec: f64,
    /// The most memory that the process ever had, in MiB.
    pub(crate) peak_mib: f64,
    /// The same beyond what it had when its libraries were loaded.
    pub(crate) peak_above_mib: f64,
}

/// A ratio and what was wanted of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ratio {
    /// Our way.
    pub(crate) ours: String,
    /// Their way.
    pub(crate) theirs: String,
    /// Our tokens per second over theirs, turn by turn.
    pub(crate) ratio: Median,
    /// At least so much is wanted.
    pub(crate) goal: Option<f64>,
    /// Our peak of memory over theirs.
    pub(crate) memory: f64,
    /// The same beyond loaded libraries.
    pub(crate) memory_above: f64,
}

/// Two numbers that have to be equal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Check {
    /// What they are.
    pub(crate) what: String,
    /// Their way.
    pub(crate) theirs_way: String,
    /// Ours.
    pub(crate) ours: f64,
    /// Theirs.
    pub(crate) theirs: f64,
}

/// How to run a case.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The workers.
    pub(crate) programs: Programs,
    /// Where model folders are kept.
    pub(crate) cache: std::path::PathBuf,
    /// Turns in place of the case's own.
    pub(crate) rounds: Option<usize>,
    /// The commit of the project.
    pub(crate) commit: String,
    /// Leave our side out, or theirs.
    pub(crate) alone: Option<Alone>,
}

/// One side by itself, for profiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Alone {
    /// Ours.
    Ours,
    /// Theirs.
    Theirs,
}

/// A worker with what it said.
struct Player {
    side: Side,
    worker: Worker,
    loaded: Loaded,
    first: Ran,
    turns: Vec<Ran>,
}

impl Player {
    fn name(&self) -> String {
        name(&self.side)
    }
}

fn name(side: &Side) -> String {
    format!("{} {}", who(side), side.way)
}

fn who(side: &Side) -> &'static str {
    if side.ours { "unsay" } else { "python" }
}

/// Runs a case. `say` hears how it goes on.
pub(crate) fn run(case: &Case, options: &Options, say: &mut dyn FnMut(&str)) -> Result<(Outcome, Vec<Hello>)> {
    let scratch = tempfile::tempdir().context("cannot make a folder to work in")?;
    let data = scratch.path().join("data.json");
    let rounds = options.rounds.unwrap_or(case.rounds);
    // One more, since loops fetch ahead.
    Material::of(case, CHECKED + rounds * case.steps + 1)?.write(&data)?;
    let mut players = Vec::new();
    for (at, side) in case.sides.iter().enumerate() {
        let left_out = if side.ours { Alone::Theirs } else { Alone::Ours };
        if options.alone != Some(left_out) {
            let own = scratch.path().join(at.to_string());
            std::fs::create_dir(&own)?;
            players.push(player(case, side, options, &data, &own)?);
        }
    }
    let checks = check(case, &players)?;
    for check in &checks {
        let Check {
            what,
            theirs_way,
            ours,
            theirs,
        } = check;
        say(&format!("{what}: unsay {ours:.6}, python {theirs_way} {theirs:.6}"));
    }
    for round in 0..rounds {
        // A B B A: whoever is second in one turn is first in the next, so that a drift hits both alike.
        let mut order: Vec<usize> = (0..players.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            std::thread::sleep(PAUSE);
            let ran = players[at].worker.run(case.steps)?;
            players[at].turns.push(ran);
        }
    }
    let outcome = Outcome {
        name: case.name.clone(),
        about: case.about(),
        commit: options.commit.clone(),
        steps: case.steps,
        rounds,
        sides: players.iter().map(cost).collect(),
        checks,
        ratios: ratios(case, &players),
        limits: Vec::new(),
    };
    let hellos = players.iter().map(|player| player.worker.hello.clone()).collect();
    for player in players {
        player.worker.quit()?;
    }
    Ok((outcome, hellos))
}

/// Starts a worker, loads, and makes the steps that are only compared.
fn player(case: &Case, side: &Side, options: &Options, data: &Path, own: &Path) -> Result<Player> {
    let command = options.programs.command(side.ours, case.task)?;
    let mut worker = Worker::start(&name(side), command, &own.join("stderr"))?;
    let reference = match case.task {
        Task::Dpo => Some(model_folder(&options.cache, case.model, Role::Reference)?),
        _ => None,
    };
    let role = if case.task == Task::Reward {
        Role::Reward
    } else {
        Role::Policy
    };
    let work = Work {
        task: case.task,
        way: side.way.clone(),
        model: model_folder(&options.cache, case.model, role)?,
        reference,
        data: data.to_owned(),
        scratch: own.to_owned(),
        batch: case.batch,
        numbers: case.numbers(),
    };
    let log = || format!("what it wrote last:\n{}", crate::worker::tail(&own.join("stderr")));
    let loaded = worker.load(work).with_context(log)?;
    let warm_up = if matches!(case.task, Task::Greedy | Task::Sample) {
        1
    } else {
        CHECKED
    };
    let first = worker.run(warm_up).with_context(log)?;
    Ok(Player {
        side: side.clone(),
        worker,
        loaded,
        first,
        turns: Vec::new(),
    })
}

/// Sees that theirs do what ours does: threads, weights, data, kind, first values, tokens.
fn check(case: &Case, players: &[Player]) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for theirs in players.iter().filter(|player| !player.side.ours) {
        let pair = |ours: &&Player| {
            let said = |comparison: &&crate::cases::Comparison| {
                comparison.ours == ours.side.way && comparison.theirs == theirs.side.way
            };
            ours.side.ours && case.comparisons.iter().any(|comparison| said(&comparison))
        };
        for ours in players.iter().filter(pair) {
            equal(ours, theirs)?;
            if case.task == Task::Greedy {
                checks.push(tokens(ours, theirs)?);
            } else if case.task != Task::Sample {
                checks.extend(values(ours, theirs)?);
            }
        }
    }
    Ok(checks)
}

fn equal(ours: &Player, theirs: &Player) -> Result<()> {
    let (a, b) = (&ours.loaded, &theirs.loaded);
    let (who_a, who_b) = (ours.name(), theirs.name());
    let differ =
        |what: &str, x: String, y: String| -> Result<()> { bail!("{what} differ: {who_a} has {x}, {who_b} has {y}") };
    let (threads_a, threads_b) = (ours.worker.hello.threads, theirs.worker.hello.threads);
    if threads_a != threads_b {
        return differ("threads", threads_a.to_string(), threads_b.to_string());
    }
    if a.data != b.data {
        return differ("tokens", format!("{:?}", a.data), format!("{:?}", b.data));
    }
    if a.compute != b.compute {
        return differ("kinds", a.compute.clone(), b.compute.clone());
    }
    let rounded = theirs.side.way.split('+').next() == Some("bf16");
    let near = if rounded { NEAR_ROUNDED } else { NEAR_WEIGHTS };
    let (x, y) = (a.weights, b.weights);
    let apart = (x.sum - y.sum).abs().max((x.abs - y.abs).abs());
    if x.n != y.n || beyond(apart, near * x.abs) {
        return differ("weights", format!("{x:?}"), format!("{y:?}"));
    }
    Ok(())
}

/// Whether a difference is more than allowed; what is not a number is.
fn beyond(difference: f64, allowed: f64) -> bool {
    difference.partial_cmp(&allowed).is_none_or(|order| order.is_gt())
}

/// The first losses, and whatever else both sides report of them.
fn values(ours: &Player, theirs: &Player) -> Result<Vec<Check>> {
    let fp32 = ours.loaded.compute == "float32";
    let near = if fp32 { NEAR_FP32 } else { NEAR_BF16 };
    let mut checks = Vec::new();
    for (what, theirs_all) in &theirs.first.values {
        let Some(ours_all) = ours.first.values.get(what) else {
            continue;
        };
        // In bf16 the updates differ too; in fp32 the norm of the gradient says that its direction is the same maths.
        for (step, (&x, &y)) in ours_all.iter().zip(theirs_all).enumerate() {
            if step > 0 && !(fp32 && what == "loss") {
                continue;
            }
            if beyond((x - y).abs(), near * y.abs().max(1.0)) {
                let (a, b) = (ours.name(), theirs.name());
                bail!("`{what}` of step {} differs: {a} has {x}, {b} has {y}", step + 1);
            }
            checks.push(Check {
                what: format!("{what}, step {}", step + 1),
                theirs_way: theirs.side.way.clone(),
                ours: x,
                theirs: y,
            });
        }
    }
    if !checks.iter().any(|check| check.what.starts_with("loss")) {
        bail!("{} and {} have no loss to compare", ours.name(), theirs.name());
    }
    Ok(checks)
}

/// How many of the greedy tokens are equal; in fp32 all have to be.
fn tokens(ours: &Player, theirs: &Player) -> Result<Check> {
    let (a, b) = (&ours.first.ids, &theirs.first.ids);
    let total: usize = b.iter().map(Vec::len).sum();
    let equal: usize = a
        .iter()
        .zip(b)
        .map(|(x, y)| x.iter().zip(y).take_while(|(x, y)| x == y).count())
        .sum();
    if total == 0 || a.iter().map(Vec::len).sum::<usize>() != total {
        bail!("{} and {} made different numbers of tokens", ours.name(), theirs.name());
    }
    if ours.loaded.compute == "float32" && equal < total {
        let (a, b) = (ours.name(), theirs.name());
        bail!("{a} and {b} differ after {equal} of {total} greedy tokens");
    }
    Ok(Check {
        what: "equal greedy tokens, up to the first that differs in a row".to_owned(),
        theirs_way: theirs.side.way.clone(),
        ours: equal as f64,
        theirs: total as f64,
    })
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

fn secs(ran: &Ran) -> f64 {
    mean(ran.secs.iter().copied())
}

fn speed(ran: &Ran) -> f64 {
    ran.tokens.iter().sum::<u64>() as f64 / ran.secs.iter().sum::<f64>()
}

fn peak(player: &Player) -> f64 {
    let ran = player.turns.iter().chain([&player.first]);
    ran.map(|ran| ran.peak_mib).fold(0.0, f64::max)
}

fn cost(player: &Player) -> Cost {
    let turns: Vec<f64> = player.turns.iter().map(secs).collect();
    let busy: Vec<f64> = player
        .turns
        .iter()
        .map(|ran| ran.cpu_secs / ran.secs.len() as f64)
        .collect();
    let speeds: Vec<f64> = player.turns.iter().map(speed).collect();
    let tokens = |ran: &Ran| mean(ran.tokens.iter().map(|&n| n as f64));
    Cost {
        who: who(&player.side).to_owned(),
        way: player.side.way.clone(),
        secs: with_interval(&turns),
        cpu_secs: Some(median(&busy)),
        tokens: mean(player.turns.iter().map(tokens)),
        tokens_per_sec: median(&speeds),
        peak_mib: peak(player),
        peak_above_mib: peak(player) - player.worker.hello.rss_mib,
        turns,
    }
}

fn ratios(case: &Case, players: &[Player]) -> Vec<Ratio> {
    let find = |ours: bool, way: &str| {
        let is = |player: &&Player| player.side.ours == ours && player.side.way == way;
        players.iter().find(is)
    };
    let one = |comparison: &crate::cases::Comparison| {
        let ours = find(true, &comparison.ours)?;
        let theirs = find(false, &comparison.theirs)?;
        let turns: Vec<f64> = ours
            .turns
            .iter()
            .zip(&theirs.turns)
            .map(|(x, y)| speed(x) / speed(y))
            .collect();
        Some(Ratio {
            ours: comparison.ours.clone(),
            theirs: comparison.theirs.clone(),
            ratio: with_interval(&turns),
            goal: comparison.goal,
            memory: peak(ours) / peak(theirs),
            memory_above: (peak(ours) - ours.worker.hello.rss_mib) / (peak(theirs) - theirs.worker.hello.rss_mib),
        })
    };
    case.comparisons.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::cases::all;

    /// A worker that makes steps of `secs` and says what it is told to have found.
    fn fake(folder: &Path, name: &str, secs: f64, loaded: &str, loss: f64) -> PathBuf {
        let order = folder.join("order");
        let script = format!(
            r#"#!/bin/sh
echo '{{"is":"hello","threads":2,"versions":{{}},"libtorch":"x","rss_mib":100}}'
while read -r line; do
    case "$line" in
    *'"load"'*) echo '{loaded}' ;;
    *'"run"'*)
        n=$(printf '%s' "$line" | tr -dc 0-9)
        printf '{name} %s\n' "$n" >> '{order}'
        secs= tokens= losses= comma=
        for _ in $(seq "$n"); do
            secs="$secs${{comma}}{secs}" tokens="$tokens${{comma}}1024" losses="$losses${{comma}}{loss}" comma=,
        done
        echo '{{"is":"ran","secs":['"$secs"'],"cpu_secs":1,"tokens":['"$tokens"'],"values":{{"loss":['"$losses"']}},"rss_mib":1,"peak_mib":300}}'
        ;;
    *) exit 0 ;;
    esac
done
"#,
            order = order.display()
        );
        let path = folder.join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn loaded(sum: f64, checksum: u64, compute: &str) -> String {
        format!(
            r#"{{"is":"loaded","weights":{{"n":9,"sum":{sum},"abs":10.0}},"data":{{"tokens":8,"targets":4,"checksum":{checksum}}},"compute":"{compute}"}}"#
        )
    }

    /// `sft_64_fp32` with three turns of two workers that are made up.
    fn compare(theirs: &str, loss: f64) -> (Result<Outcome>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let ours = fake(folder.path(), "ours", 0.5, &loaded(1.0, 7, "float32"), 9.0);
        let python = fake(folder.path(), "theirs", 0.75, theirs, loss);
        let options = Options {
            programs: Programs {
                ours,
                python,
                peers: PathBuf::from("peers"),
                threads: 2,
            },
            cache: folder.path().to_owned(),
            rounds: Some(3),
            commit: "abc".to_owned(),
            alone: None,
        };
        let case = all().into_iter().find(|case| case.name == "sft_64_fp32").unwrap();
        let outcome = run(&case, &options, &mut |_| ()).map(|(outcome, _)| outcome);
        let order = fs::read_to_string(folder.path().join("order")).unwrap_or_default();
        (outcome, order.lines().map(str::to_owned).collect())
    }

    #[test]
    fn turns_alternate_and_ratios_are_those_of_turns() {
        let (outcome, order) = compare(&loaded(1.0, 7, "float32"), 9.0);
        let outcome = outcome.unwrap();
        let expected = [
            "ours 3", "theirs 3", "ours 3", "theirs 3", "theirs 3", "ours 3", "ours 3", "theirs 3",
        ];
        assert_eq!(order, expected, "three steps that are compared, then turns of three");
        let ratio = &outcome.ratios[0];
        assert!((ratio.ratio.value - 1.5).abs() < 1e-12 && ratio.ratio.n == 3);
        assert!((ratio.memory - 1.0).abs() < 1e-12);
        let cost = &outcome.sides[1];
        assert!((cost.tokens_per_sec - 1024.0 / 0.75).abs() < 1e-9 && (cost.peak_above_mib - 200.0).abs() < 1e-9);
        assert_eq!(outcome.checks.len(), 3, "the losses of three steps");
    }

    #[test]
    fn other_work_is_refused_by_name() {
        for (theirs, loss, expected) in [
            (loaded(1.1, 7, "float32"), 9.0, "weights differ: unsay fp32 has Weights"),
            (loaded(1.0, 8, "float32"), 9.0, "tokens differ"),
            (
                loaded(1.0, 7, "bfloat16"),
                9.0,
                "kinds differ: unsay fp32 has float32, python fp32 has bfloat16",
            ),
            (
                loaded(1.0, 7, "float32"),
                9.01,
                "`loss` of step 1 differs: unsay fp32 has 9, python fp32 has 9.01",
            ),
        ] {
            let error = format!("{:#}", compare(&theirs, loss).0.unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }
}
