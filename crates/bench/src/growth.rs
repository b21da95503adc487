//! Our speed and memory as a training goes on: nothing may grow with the number of steps.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cases::Case;
use crate::driver::Options;
use crate::material::{CHECKED, Material, Role, model_folder};
use crate::protocol::{Hello, Work};
use crate::statistics::{Median, with_interval};
use crate::worker::Worker;

/// The cases whose data are trained on: examples of one length, and of many.
pub(crate) const CASES: [&str; 2] = ["sft_64_fp32", "sft_spread_fp32"];
/// Training tokens at which is looked.
const MARKS: [u64; 3] = [10_000, 100_000, 1_000_000];
/// Turns of the training that has come far and of one that has begun.
const TURNS: usize = 15;
/// Steps of a turn.
const STEPS: usize = 3;
/// Steps that are asked for at once: all those to the last mark in one answer would take longer than a worker is waited for.
const ASKED_AT_ONCE: usize = 100;

/// A training that went on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Growth {
    /// What was trained.
    pub(crate) about: String,
    /// The commit of the project.
    pub(crate) commit: String,
    /// Memory on the way.
    pub(crate) points: Vec<Point>,
    /// Its speed after the last mark over that of a training just past the first one, which took turns with it.
    pub(crate) speed: Median,
}

/// What was seen after so many training tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// Training tokens so far.
    pub(crate) tokens: u64,
    /// Those of the largest batch so far, whose activations decide how much memory a training takes.
    pub(crate) largest_batch: u64,
    /// Tokens per second since the point before, or since the start.
    pub(crate) tokens_per_sec: f64,
    /// Resident memory then, in MiB.
    pub(crate) rss_mib: f64,
    /// The most so far.
    pub(crate) peak_mib: f64,
}

impl Growth {
    /// Resident memory at the last point over that at the first.
    pub(crate) fn memory(&self) -> f64 {
        match (self.points.first(), self.points.last()) {
            (Some(first), Some(last)) => last.rss_mib / first.rss_mib,
            _ => f64::NAN,
        }
    }
}

/// A training under way.
struct Training {
    worker: Worker,
    tokens: u64,
    largest_batch: u64,
    points: Vec<Point>,
}

impl Training {
    fn start(case: &Case, options: &Options, folder: &Path) -> Result<Self> {
        std::fs::create_dir(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        let data = folder.join("data.json");
        Material::of(case, CHECKED)?.write(&data)?;
        let command = options.programs.command(true, case.task)?;
        let log = folder.join("stderr");
        let mut worker = Worker::start("unsay growth", command, &log, options.programs.patience)?;
        worker.load(Work {
            task: case.task,
            way: "fp32".to_owned(),
            model: model_folder(&options.cache, case.model, Role::Policy)?,
            reference: None,
            data,
            scratch: folder.to_owned(),
            batch: case.batch,
            numbers: case.numbers(),
        })?;
        Ok(Self {
            worker,
            tokens: 0,
            largest_batch: 0,
            points: Vec::new(),
        })
    }

    /// So many steps; their tokens per second.
    fn run(&mut self, steps: usize) -> Result<f64> {
        let (mut tokens, mut secs, mut left) = (0, 0.0, steps);
        loop {
            let n = left.min(ASKED_AT_ONCE);
            let ran = self.worker.run(n)?;
            tokens += ran.tokens.iter().sum::<u64>();
            let largest = ran.tokens.iter().copied().max().unwrap_or_default();
            self.largest_batch = self.largest_batch.max(largest);
            secs += ran.secs.iter().sum::<f64>();
            left -= n;
            if left == 0 {
                self.tokens += tokens;
                self.points.push(Point {
                    tokens: self.tokens,
                    largest_batch: self.largest_batch,
                    tokens_per_sec: tokens as f64 / secs,
                    rss_mib: ran.rss_mib,
                    peak_mib: ran.peak_mib,
                });
                return Ok(tokens as f64 / secs);
            }
        }
    }

    /// Goes on to a mark, given tokens per step on average.
    fn reach(&mut self, mark: u64, per_step: u64) -> Result<()> {
        let steps = mark.saturating_sub(self.tokens).div_ceil(per_step);
        self.run(usize::try_from(steps.max(1))?).map(drop)
    }
}

/// Trains on the data of a case up to the last mark that `most` allows.
pub(crate) fn run(case: &Case, options: &Options, most: u64) -> Result<(Growth, Hello)> {
    let scratch = tempfile::tempdir().context("cannot make a folder to work in")?;
    let per_step = (case.batch * (case.prompt + case.completion)) as u64;
    let mut late = Training::start(case, options, &scratch.path().join("late"))?;
    for mark in MARKS.into_iter().filter(|&mark| mark <= most) {
        late.reach(mark, per_step)?;
    }
    let points = std::mem::take(&mut late.points);
    let mut early = Training::start(case, options, &scratch.path().join("early"))?;
    early.reach(MARKS[0], per_step)?;
    let mut speeds = Vec::with_capacity(TURNS);
    for turn in 0..TURNS {
        let (late, early) = match turn % 2 {
            0 => (late.run(STEPS)?, early.run(STEPS)?),
            _ => {
                let early = early.run(STEPS)?;
                (late.run(STEPS)?, early)
            }
        };
        speeds.push(late / early);
    }
    let hello = late.worker.hello.clone();
    late.worker.quit()?;
    early.worker.quit()?;
    let growth = Growth {
        about: case.about(),
        commit: options.commit.clone(),
        points,
        speed: with_interval(&speeds),
    };
    Ok((growth, hello))
}
