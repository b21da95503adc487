//! How a micro-batch goes through the trunk: from its tokens or from states made before, with activations kept or not.

use tch::{Device, Tensor};
use unsay_data::Batch;
use unsay_model::{Branches, Params, Staged, Trunk};

use crate::error::Result;
use crate::examples::{Examples, Place};
use crate::prefix_states::PrefixStates;
use crate::settings::Settings;

/// One part in so many of what goes through the model must be padding for a batch to be laid end to end.
const WORTH: i64 = 10;

/// What the passes of one run have in common.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    replay: bool,
    n_frozen: usize,
    /// One for each training source, and last the validation set's.
    prefix: Option<Vec<PrefixStates>>,
}

/// One pass: final states at the rows asked for, and the way back to the parameters.
pub(crate) enum Forward<'a> {
    /// libtorch kept what its own way back needs.
    Plain(Tensor),
    Staged(Box<Staged<'a>>),
}

impl Forward<'_> {
    /// Final states [N, D].
    pub(crate) fn states(&self) -> &Tensor {
        match self {
            Self::Plain(states) => states,
            Self::Staged(staged) => staged.states(),
        }
    }

    /// What is left to do once the gradient has reached the states.
    pub(crate) fn backward(self) -> Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Staged(staged) => Ok(staged.backward()?),
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

    /// Final states at `rows`, flat positions in the batch as it is padded, the examples at `places`.
    pub(crate) fn forward<'a>(
        &self,
        trunk: &'a Trunk,
        (batch, places): (&Batch, &[Place]),
        rows: &[i64],
        train: bool,
    ) -> Result<Forward<'a>> {
        if let Some(files) = &self.prefix {
            let (states, n_frozen) = read(files, places)?;
            let rows = Some(&Tensor::f_from_slice(rows)?);
            return Ok(match self.staged(trunk, train) {
                true => Forward::Staged(Box::new(trunk.hidden_above_staged(
                    &states,
                    n_frozen,
                    rows,
                    self.replay,
                )?)),
                false => Forward::Plain(trunk.hidden_above(&states, n_frozen, rows)?),
            });
        }
        if trunk.takes_branches()
            && let Some(EndToEnd { ids, branches, rows }) = EndToEnd::of(batch, rows)?
        {
            let (ids, rows) = (Tensor::f_from_slice(&ids)?, Tensor::f_from_slice(&rows)?);
            return self.branched(trunk, (&ids, &branches), &rows, train);
        }
        // The model checks the ids before they leave the host.
        let ids = Tensor::f_from_slice(&batch.ids)?.f_view([batch.n_examples as i64, batch.width as i64])?;
        let rows = Tensor::f_from_slice(rows)?;
        Ok(match self.staged(trunk, train) {
            true => Forward::Staged(Box::new(trunk.hidden_staged(
                &ids,
                self.n_frozen,
                Some(&rows),
                self.replay,
            )?)),
            false => Forward::Plain(trunk.hidden_at(&ids, &rows)?),
        })
    }

    /// Final states at `rows` of ids that share their beginnings.
    pub(crate) fn branched<'a>(
        &self,
        trunk: &'a Trunk,
        of: (&Tensor, &Branches),
        rows: &Tensor,
        train: bool,
    ) -> Result<Forward<'a>> {
        Ok(match self.staged(trunk, train) {
            true => Forward::Staged(Box::new(trunk.hidden_branched_staged(
                of,
                self.n_frozen,
                Some(rows),
                self.replay,
            )?)),
            false => Forward::Plain(trunk.hidden_branched(of.0, of.1, Some(rows))?),
        })
    }

    /// Whether the way back is made here. On a CUDA device the host would start many short ways back where autograd's is one,
    /// and memory is all that is saved.
    fn staged(&self, trunk: &Trunk, train: bool) -> bool {
        train && (self.replay || trunk.device() == Device::Cpu)
    }

    /// What changes the numbers of a run beyond its settings: states made in other batches are rounded differently.
    pub(crate) fn describe(&self) -> String {
        let files = self.prefix.iter().flatten();
        files.map(|states| format!(" above {}", states.describe())).collect()
    }
}

/// A batch without its padding: only attention pads what it takes apart. States are the same but for rounding.
#[derive(Debug)]
struct EndToEnd {
    ids: Vec<i64>,
    branches: Branches,
    /// Where the wanted rows are.
    rows: Vec<i64>,
}

impl EndToEnd {
    /// Of a batch that is padded enough for the look-ups of attention to cost less than the padding.
    fn of(batch: &Batch, rows: &[i64]) -> Result<Option<Self>> {
        let n_real: i64 = batch.lengths.iter().sum();
        let n_padded = batch.ids.len() as i64 - n_real;
        if n_padded * WORTH < batch.ids.len() as i64 {
            return Ok(None);
        }
        let (mut ids, mut branches) = (Vec::with_capacity(n_real as usize), Branches::default());
        let mut starts = Vec::with_capacity(batch.n_examples);
        for (padded, &length) in batch.ids.chunks(batch.width.max(1)).zip(&batch.lengths) {
            starts.push(ids.len() as i64);
            ids.extend(&padded[..length as usize]);
            branches.push(length as usize, &[])?;
        }
        let width = batch.width as i64;
        let moved = rows.iter().map(|row| starts[(row / width) as usize] + row % width);
        Ok(Some(Self {
            rows: moved.collect(),
            ids,
            branches,
        }))
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

#[cfg(test)]
mod tests {
    use unsay_data::{Encoded, Label, Span};

    use super::*;

    fn batch(lengths: &[u32]) -> Batch {
        let encoded = |n: u32| Encoded {
            ids: (1..=n).collect(),
            spans: vec![Span {
                start: 1,
                end: n as usize,
                ended: false,
            }],
            label: Label::Positive,
            example: 0,
        };
        let all: Vec<Encoded> = lengths.iter().map(|&n| encoded(n)).collect();
        Batch::new(&all.iter().collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn rows_of_an_end_to_end_batch_have_the_tokens_of_the_padded_one() {
        let batch = batch(&[3, 7, 2]);
        let rows = &batch.rows.position;
        let moved = EndToEnd::of(&batch, rows).unwrap().unwrap();
        assert_eq!(moved.ids, [1, 2, 3, 1, 2, 3, 4, 5, 6, 7, 1, 2]);
        assert_eq!((moved.branches.n_tokens(), moved.branches.longest()), (12, 7));
        assert_eq!(moved.rows, [0, 1, 3, 4, 5, 6, 7, 8, 10]);
        for (padded, own) in rows.iter().zip(&moved.rows) {
            assert_eq!(batch.ids[*padded as usize], moved.ids[*own as usize]);
        }
    }

    #[test]
    fn a_batch_stays_padded_where_little_is_padding() {
        for (lengths, lies_end_to_end) in [(&[9, 9][..], false), (&[10, 9], false), (&[10, 8], true), (&[5], false)] {
            let batch = batch(lengths);
            let found = EndToEnd::of(&batch, &batch.rows.position).unwrap();
            assert_eq!(found.is_some(), lies_end_to_end, "{lengths:?}");
        }
    }
}
