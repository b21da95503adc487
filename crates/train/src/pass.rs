//! How a micro-batch goes through the trunk: from its tokens or from states made before, with activations kept or not.

use tch::Tensor;
use unsay_model::{Branches, Params, Replayed, Trunk};

use crate::error::Result;
use crate::examples::{Examples, Place};
use crate::prefix_states::PrefixStates;
use crate::settings::Settings;

/// What the passes of one run have in common.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    replay: bool,
    n_frozen: usize,
    /// One for each training source, and last the validation set's.
    prefix: Option<Vec<PrefixStates>>,
}

/// One pass: its final states, and the way back to the parameters.
pub(crate) enum Forward<'a> {
    /// libtorch kept what its own way back needs.
    Plain(Tensor),
    Replayed(Replayed<'a>),
}

impl Forward<'_> {
    /// Final states [B, T, D], of branches [1, N, D].
    pub(crate) fn states(&self) -> &Tensor {
        match self {
            Self::Plain(states) => states,
            Self::Replayed(replayed) => replayed.states(),
        }
    }

    /// What is left to do once the gradient has reached the states.
    pub(crate) fn backward(self) -> Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Replayed(replayed) => Ok(replayed.backward()?),
        }
    }
}

impl Pass {
    /// Takes files of states, each made of the examples in its place.
    pub(crate) fn with_prefix_states(self, states: Vec<PrefixStates>, examples: &Examples) -> Result<Self> {
        let sets: Vec<_> = examples.sources().iter().chain([examples.valid()]).collect();
        if states.len() != sets.len() {
            let expected = format!("expected {} files of states, one for each training source", sets.len());
            let message = format!("{expected} and one for the validation set, got {}", states.len());
            return Err(crate::Error::Data(message));
        }
        for (states, set) in states.iter().zip(sets) {
            states.check_examples(&set.encoded)?;
        }
        Ok(Self {
            prefix: Some(states),
            ..self
        })
    }

    /// Takes the settings over, and checks that files of states are those of this model.
    pub(crate) fn configured(self, settings: &Settings, trunk: &Trunk, params: &Params) -> Result<Self> {
        let n_frozen = params.n_frozen();
        if let Some(files) = &self.prefix {
            // What stands above the states of a batch is computed from one block on.
            if let Some((first, other)) = uneven(files) {
                return Err(other.foreign(format!(
                    "expected states of {} blocks, as the other files have, got {}",
                    first.n_blocks(),
                    other.n_blocks()
                )));
            }
            let mut known = Vec::new();
            for states in files {
                states.check_model(trunk, params, n_frozen, &mut known)?;
            }
        }
        Ok(Self {
            replay: settings.checkpoint_activations,
            n_frozen,
            ..self
        })
    }

    /// Final states of right-padded ids [B, T], the examples at `places`.
    pub(crate) fn forward<'a>(
        &self,
        trunk: &'a Trunk,
        ids: &Tensor,
        places: &[Place],
        train: bool,
    ) -> Result<Forward<'a>> {
        let replay = self.replay && train;
        let Some(files) = &self.prefix else {
            return Ok(match replay {
                true => Forward::Replayed(trunk.hidden_replayed(ids, self.n_frozen)?),
                false => Forward::Plain(trunk.hidden(ids)?),
            });
        };
        let (states, n_frozen) = read(files, places)?;
        Ok(match replay {
            true => Forward::Replayed(trunk.hidden_above_replayed(&states, n_frozen)?),
            false => Forward::Plain(trunk.hidden_above(&states, n_frozen)?),
        })
    }

    /// Final states of ids `[N]` that share their beginnings.
    pub(crate) fn branched<'a>(
        &self,
        trunk: &'a Trunk,
        ids: &Tensor,
        branches: &Branches,
        train: bool,
    ) -> Result<Forward<'a>> {
        Ok(match self.replay && train {
            true => Forward::Replayed(trunk.hidden_branched_replayed(ids, self.n_frozen, branches)?),
            false => Forward::Plain(trunk.hidden_branched(ids, branches)?),
        })
    }

    /// What changes the numbers of a run beyond its settings: states made in other batches are rounded differently.
    pub(crate) fn describe(&self) -> String {
        let files = self.prefix.iter().flatten();
        files.map(|states| format!(" above {}", states.describe())).collect()
    }
}

/// The first file, and one of another number of blocks.
fn uneven(files: &[PrefixStates]) -> Option<(&PrefixStates, &PrefixStates)> {
    let first = files.first()?;
    let other = files.iter().find(|file| file.n_blocks() != first.n_blocks())?;
    Some((first, other))
}

/// The states of examples [B, T, D], and how many blocks they have been through.
fn read(files: &[PrefixStates], places: &[Place]) -> Result<(Tensor, usize)> {
    let (valid, sources) = files
        .split_last()
        .ok_or_else(|| crate::Error::Data("no file of states".into()))?;
    let find = |place: &Place| match *place {
        Place::Train { source, index } => sources.get(source).map(|states| (states, index)),
        Place::Valid { index } => Some((valid, index)),
    };
    let found = places
        .iter()
        .map(|place| find(place).ok_or_else(|| crate::Error::Data(format!("no states for {place:?}"))));
    let found = found.collect::<Result<Vec<_>>>()?;
    Ok((PrefixStates::read(&found)?, valid.n_blocks()))
}
