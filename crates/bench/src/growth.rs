//! Our speed and memory as a training goes on: nothing may grow with the number of steps.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cases::Case;
use crate::driver::Options;
use crate::material::{CHECKED, Material, Role, model_folder};
use crate::protocol::{Hello, Work};
use crate::statistics::{Median, with_interval};
use crate::worker::Worker;

/// Training tokens at which is looked.
const MARKS: [u64; 3] = [10_000, 100_000, 1_000_000];
/// Steps that end at a mark and are timed.
const TIMED: u64 = 9;

/// What was seen after so many training tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// Training tokens so far.
    pub(crate) tokens: u64,
    /// Tokens per second of the last steps, one by one.
    pub(crate) tokens_per_sec: Median,
    /// Resident memory then.
    pub(crate) rss_mib: f64,
    /// The most so far.
    pub(crate) peak_mib: f64,
}

/// Trains on the data of a case up to the last mark; `most` cuts it short.
pub(crate) fn run(case: &Case, options: &Options, most: u64) -> Result<(Vec<Point>, Hello)> {
    let scratch = tempfile::tempdir().context("cannot make a folder to work in")?;
    let data = scratch.path().join("data.json");
    Material::of(case, CHECKED)?.write(&data)?;
    let command = options.programs.command(true, case.task)?;
    let mut worker = Worker::start("unsay growth", command, &scratch.path().join("stderr"))?;
    worker.load(Work {
        task: case.task,
        way: "fp32".to_owned(),
        model: model_folder(&options.cache, case.model, Role::Policy)?,
        reference: None,
        data,
        scratch: scratch.path().to_owned(),
        batch: case.batch,
        numbers: case.numbers(),
    })?;
    let per_step = (case.batch * (case.prompt + case.completion)) as u64;
    let (mut done, mut points) = (0, Vec::new());
    for mark in MARKS.into_iter().filter(|&mark| mark <= most) {
        let until = mark.div_ceil(per_step);
        let untimed = until.saturating_sub(done + TIMED);
        if untimed > 0 {
            worker.run(usize::try_from(untimed)?)?;
        }
        let ran = worker.run(usize::try_from(TIMED)?)?;
        done += untimed + TIMED;
        let speeds: Vec<f64> = ran
            .secs
            .iter()
            .zip(&ran.tokens)
            .map(|(secs, &n)| n as f64 / secs)
            .collect();
        points.push(Point {
            tokens: done * per_step,
            tokens_per_sec: with_interval(&speeds),
            rss_mib: ran.rss_mib,
            peak_mib: ran.peak_mib,
        });
    }
    let hello = worker.hello.clone();
    worker.quit()?;
    Ok((points, hello))
}
