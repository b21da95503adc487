//! The states below what is trained, made once for all trainings that begin with them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use unsay_model::Precision;
use unsay_train::PrefixStates;

use super::sets::{self, Sets};
use super::{Outcome, Work};
use crate::manifest::question::{LimitsBlock, MixtureBlock};
use crate::plan::{Checkpoint, Frozen, StatesOf, Which};

/// The role of these states for a training.
pub const ROLE: &str = "states";

/// The role of the states of own replies, which are a source by themselves.
pub fn role_of_own(source: &str) -> String {
    format!("{ROLE}-{source}")
}

/// The file of a set of examples.
pub(super) fn file(step: &Path, set: &str) -> PathBuf {
    step.join(format!("{}.states", set.replace(' ', "-")))
}

/// Makes the files of every set that the trainings read.
pub(super) fn run(
    work: &Work<'_>,
    of: StatesOf,
    frozen: Frozen,
    limits: &LimitsBlock,
    precision: Precision,
) -> Result<Outcome> {
    let sets = match of {
        StatesOf::Arms { dialogue } => {
            // The weights of sources are no part of their states, but a source without weight is not read.
            let mixture = MixtureBlock {
                dialogue: f64::from(u8::from(dialogue)),
                feedback: 1.0,
                own: 1.0,
            };
            Sets::of_arms(work, limits, &mixture)?.into_named()
        }
        StatesOf::Classifiers {} => [Which::A, Which::B]
            .into_iter()
            .map(|which| Ok(Sets::of_classifier(work, limits, which)?.into_named()))
            .collect::<Result<Vec<_>>>()?
            .concat(),
        StatesOf::Own {} => sets::own(work, limits)?,
    };
    let decoder = work.decoder("base", Checkpoint::Best)?.with_precision(precision)?;
    let n_frozen = frozen.blocks(decoder.config().num_hidden_layers);
    let total: usize = sets.iter().map(|(_, encoded)| encoded.len()).sum();
    work.meter.start("", total as u64, 0);
    let mut before = 0;
    for (name, encoded) in sets {
        let path = file(&work.dir, &name);
        // A file that an earlier sitting finished is there whole; both classifiers have one validation set.
        if !path.is_file() {
            let mut progress = |done: usize| work.meter.set((before + done) as u64);
            let model = (decoder.trunk(), decoder.params());
            if !PrefixStates::write(&path, model, n_frozen, &encoded, &mut progress, &|| work.stop.asked())? {
                return Ok(Outcome::Stopped);
            }
        }
        before += encoded.len();
    }
    Ok(Outcome::Done)
}
