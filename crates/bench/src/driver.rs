//! One case: start everyone, see that all do the same work, then let them take turns.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cases::{Case, Comparison, Side};
use crate::checks::check;
use crate::material::{CHECKED, Material, Role, model_folder};
use crate::outcome::{Check, Cost, Outcome, Ratio};
use crate::protocol::{Hello, Loaded, Ran, Task, Work};
use crate::statistics::{median, with_interval};
use crate::worker::{Programs, Worker};

/// Between turns: threads of libgomp that wait for more work sleep by then.
const PAUSE: Duration = Duration::from_millis(40);

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
    /// Training tokens up to which growth is looked at.
    pub(crate) growth_tokens: u64,
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
#[derive(Debug)]
pub(crate) struct Player {
    pub(crate) side: Side,
    pub(crate) worker: Worker,
    pub(crate) loaded: Loaded,
    /// What the steps gave that are only compared.
    pub(crate) first: Ran,
    turns: Vec<Ran>,
}

impl Player {
    pub(crate) fn name(&self) -> String {
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
            ours_way,
            theirs_way,
            ours,
            theirs,
        } = check;
        say(&format!(
            "{what}: unsay {ours_way} {ours:.6}, python {theirs_way} {theirs:.6}"
        ));
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
    let mut worker = Worker::start(&name(side), command, &own.join("stderr"), options.programs.patience)?;
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
    let loaded = worker.load(work)?;
    let warm_up = if matches!(case.task, Task::Greedy | Task::Sample) {
        1
    } else {
        CHECKED
    };
    let first = worker.run(warm_up)?;
    Ok(Player {
        side: side.clone(),
        worker,
        loaded,
        first,
        turns: Vec::new(),
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
        peak_above_mib: Some(peak(player) - player.worker.hello.rss_mib),
        turns,
    }
}

fn ratios(case: &Case, players: &[Player]) -> Vec<Ratio> {
    let find = |ours: bool, way: &str| {
        let is = |player: &&Player| player.side.ours == ours && player.side.way == way;
        players.iter().find(is)
    };
    let one = |comparison: &Comparison| {
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
            memory_above: Some((peak(ours) - ours.worker.hello.rss_mib) / (peak(theirs) - theirs.worker.hello.rss_mib)),
        })
    };
    case.comparisons.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cases::all;
    use crate::fake::{Fake, programs};

    /// `sft_64_fp32` with three turns of two workers that are made up.
    fn compare(theirs: &Fake) -> (Result<Outcome>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            programs: programs(folder.path(), &Fake::OURS, theirs),
            cache: folder.path().to_owned(),
            rounds: Some(3),
            commit: "abc".to_owned(),
            alone: None,
            growth_tokens: 0,
        };
        let case = all().into_iter().find(|case| case.name == "sft_64_fp32").unwrap();
        let outcome = run(&case, &options, &mut |_| ()).map(|(outcome, _)| outcome);
        let order = fs::read_to_string(folder.path().join("order")).unwrap_or_default();
        (outcome, order.lines().map(str::to_owned).collect())
    }

    #[test]
    fn turns_alternate_and_ratios_are_those_of_turns() {
        let (outcome, order) = compare(&Fake::THEIRS);
        let outcome = outcome.unwrap();
        let expected = [
            "ours 3", "theirs 3", "ours 3", "theirs 3", "theirs 3", "ours 3", "ours 3", "theirs 3",
        ];
        assert_eq!(order, expected, "three steps that are compared, then turns of three");
        let ratio = &outcome.ratios[0];
        assert!((ratio.ratio.value - 1.5).abs() < 1e-12 && ratio.ratio.n == 3);
        assert!((ratio.memory - 1.0).abs() < 1e-12);
        let cost = &outcome.sides[1];
        assert!((cost.tokens_per_sec - 1024.0 / 0.75).abs() < 1e-9 && cost.peak_above_mib == Some(200.0));
        assert_eq!(outcome.checks.len(), 3, "the losses of three steps");
    }

    #[test]
    fn other_work_is_refused_by_name() {
        let same = Fake::THEIRS;
        for (theirs, expected) in [
            (Fake { sum: 1.1, ..same }, "weights differ: unsay fp32 has Weights"),
            (Fake { checksum: 8, ..same }, "tokens differ"),
            (
                Fake {
                    compute: "bfloat16",
                    ..same
                },
                "kinds differ: unsay fp32 has float32, python fp32 has bfloat16",
            ),
            (
                Fake { loss: 9.01, ..same },
                "`loss` of step 1 differs: unsay fp32 has 9, python fp32 has 9.01",
            ),
        ] {
            let error = format!("{:#}", compare(&theirs).0.unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }
}
