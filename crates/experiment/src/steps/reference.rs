//! The log-probabilities of pairs under the model that paired losses compare with, taken once.

use std::path::{Path, PathBuf};

use anyhow::Result;
use unsay_model::Precision;
use unsay_train::ReferenceLogps;

use super::sets::Sets;
use super::{Outcome, Work};
use crate::manifest::question::LimitsBlock;
use crate::plan::Checkpoint;

/// The role of these log-probabilities for a training.
pub const ROLE: &str = "reference";

/// The file of a set of pairs.
pub(super) fn file(step: &Path, set: &str) -> PathBuf {
    step.join(format!("{}.logps", set.replace(' ', "-")))
}

/// Makes the files of every set that the trainings read.
pub(super) fn run(work: &Work<'_>, limits: &LimitsBlock, precision: Precision) -> Result<Outcome> {
    let sets = Sets::of_pairs(work, limits)?.into_named();
    let decoder = work.decoder("base", Checkpoint::Best)?.with_precision(precision)?;
    let total: usize = sets.iter().map(|(_, pairs)| pairs.len()).sum();
    work.meter.start("", total as u64, 0);
    let mut before = 0;
    for (name, pairs) in sets {
        let path = file(&work.dir, &name);
        // A file that an earlier sitting finished is there whole.
        if !path.is_file() {
            let mut progress = |done: usize| work.meter.set((before + done) as u64);
            if !ReferenceLogps::write(&path, &decoder, &pairs, &mut progress, &|| work.stop.asked())? {
                return Ok(Outcome::Stopped);
            }
        }
        before += pairs.len();
    }
    Ok(Outcome::Done)
}
