//! What a paired loss compares with: the log-probabilities that a frozen model gives to the same completions.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use unsay_data::{EncodedPair, PairBatch};
use unsay_losses::{Needs, TokenOp};
use unsay_model::{Decoder, Trunk};

use crate::error::{Error, Result};
use crate::examples::{Examples, Place};
use crate::pairs::branches;
use crate::stored::{self, bytes_of, name};

const VERSION: u32 = 1;

/// What is in these files.
const WHAT: &str = "log-probabilities of the reference";

/// So many tokens wait in memory to be written in the order of the pairs.
const WAITING_TOKENS: usize = 1 << 16;

/// The frozen model that a paired loss compares with.
#[derive(Debug)]
pub enum Reference {
    /// The loss compares with none.
    None,
    /// Its log-probabilities are in files: one for each training source and last one for the validation set.
    Logps(Vec<ReferenceLogps>),
    /// A second model, which runs beside the first in every step. It takes over the precision of the training.
    Model(Box<Decoder>),
    /// The model that is trained, without its adapter.
    AdapterOff,
}

impl Reference {
    /// Refuses files that were made of other examples.
    pub(crate) fn check_examples(&self, examples: &Examples<EncodedPair>) -> Result<()> {
        let Self::Logps(files) = self else {
            return Ok(());
        };
        let sets: Vec<_> = examples.sources().iter().chain([examples.valid()]).collect();
        if files.len() != sets.len() {
            let expected = format!("expected {} files of log-probabilities", sets.len());
            let message = format!(
                "{expected}, one for each training source and one for the validation set, got {}",
                files.len()
            );
            return Err(Error::Data(message));
        }
        let mut both = files.iter().zip(sets);
        both.try_for_each(|(file, set)| file.check_examples(&set.encoded))
    }

    /// Words that differ when the log-probabilities differ, but for rounding.
    pub(crate) fn describe(&self) -> Result<String> {
        Ok(match self {
            Self::None => "none".to_owned(),
            Self::Logps(files) => {
                let one = |file: &ReferenceLogps| format!("{} {}", file.header.model, file.header.pairs);
                files.iter().map(one).collect::<Vec<_>>().join(", ")
            }
            Self::Model(decoder) => model_hash(decoder)?,
            Self::AdapterOff => "adapter off".to_owned(),
        })
    }
}

/// The log-probabilities that a model gives to every token of the completions of a list of pairs, in a file.
///
/// Training compares with them and needs the model no more. They belong to the weights, the precision and the tokens, so
/// losses, seeds and arms share a file. Those of an adapted model are those of the model below the adapter.
#[derive(Debug)]
pub struct ReferenceLogps {
    path: PathBuf,
    file: File,
    header: Header,
    kind: Kind,
    /// Where the numbers of each pair begin, and of its rejected completion; last the end of the file.
    offsets: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    /// Of description, precision and weights.
    model: String,
    /// The kind that the model computes in.
    computed_in: String,
    /// The kind of the numbers.
    kind: String,
    n_pairs: usize,
    /// Of all tokens, and of what of them is learnt.
    pairs: String,
}

impl ReferenceLogps {
    /// Makes the file of a model and some pairs, both completions after a prompt that is computed once. `progress` hears how
    /// many pairs are done; when `stop` says so the file is not made, and the answer is false.
    ///
    /// Memory is bounded whatever the number of pairs. The file is there whole or not at all.
    ///
    /// **Errors**: [`Error::Data`] where there are no pairs; those of the model and of the file system.
    pub fn write(
        path: &Path,
        decoder: &Decoder,
        pairs: &[EncodedPair],
        progress: &mut dyn FnMut(usize),
        stop: &dyn Fn() -> bool,
    ) -> Result<bool> {
        if pairs.is_empty() {
            return Err(Error::Data("no pairs to take log-probabilities of".into()));
        }
        let computed_in = decoder.trunk().kind()?;
        let header = Header {
            version: VERSION,
            model: model_hash(decoder)?,
            computed_in: name(computed_in)?.to_owned(),
            kind: name(kind_of_logps(computed_in))?.to_owned(),
            n_pairs: pairs.len(),
            pairs: stored::samples_hash(pairs),
        };
        let rows = |window: &[EncodedPair]| off(decoder, |decoder| rows_of(decoder, window));
        stored::write(path, &header, (pairs, WAITING_TOKENS), rows, (progress, stop))
    }

    /// Opens a file that was made of these pairs.
    ///
    /// **Errors**: [`Error::Stored`] for one that was made of others, is cut short, or is something else.
    pub fn open(path: &Path, pairs: &[EncodedPair]) -> Result<Self> {
        let stored::Opened {
            file,
            header,
            start,
            end,
        } = stored::open::<Header>(path, WHAT)?;
        stored::check_version((WHAT, path), VERSION, header.version)?;
        let kind = stored::kind((WHAT, path), &header.kind)?;
        let bytes = kind.elt_size_in_bytes() as u64;
        let branches = pairs.iter().flat_map(EncodedPair::branches);
        let sizes = branches.map(|branch| (branch.n_learnt as u64).saturating_mul(bytes));
        let logps = Self {
            path: path.to_owned(),
            file,
            header,
            kind,
            offsets: stored::offsets(start, sizes),
        };
        logps.check_examples(pairs)?;
        stored::check_length((WHAT, path), logps.offsets.last().copied().unwrap_or(0), end)?;
        Ok(logps)
    }

    /// Refuses a file that was made of another model than this one, or in another precision.
    ///
    /// **Errors**: [`Error::Stored`] naming the file.
    pub fn check_model(&self, decoder: &Decoder) -> Result<()> {
        self.check_kind(decoder.trunk())?;
        match model_hash(decoder)? == self.header.model {
            true => Ok(()),
            false => Err(self.foreign("made of a model with other weights".to_owned())),
        }
    }

    /// Refuses a file that was made in another precision than that of a model.
    pub(crate) fn check_kind(&self, trunk: &Trunk) -> Result<()> {
        let (expected, found) = (name(trunk.kind()?)?, &self.header.computed_in);
        match expected == found {
            true => Ok(()),
            false => Err(self.foreign(format!("expected {expected}, as the model computes, got {found}"))),
        }
    }

    fn check_examples(&self, pairs: &[EncodedPair]) -> Result<()> {
        let (expected, got) = (pairs.len(), self.header.n_pairs);
        if expected != got {
            return Err(self.foreign(format!("expected those of {expected} pairs, got {got}")));
        }
        match stored::samples_hash(pairs) == self.header.pairs {
            true => Ok(()),
            false => Err(self.foreign("made of other tokens than those of the pairs".to_owned())),
        }
    }

    fn foreign(&self, what: String) -> Error {
        let hint = "hint: make them again for this model and these pairs";
        Error::stored(WHAT, &self.path, format!("{what}\n{hint}"))
    }

    /// The numbers of one pair's chosen (`side` 0) or rejected completion.
    fn read(&self, index: usize, side: usize, into: &mut Vec<u8>) -> Result<()> {
        let at = 2 * index + side;
        let Some(&[start, end]) = self.offsets.get(at..at + 2) else {
            return Err(self.foreign(format!("no pair {index}")));
        };
        let before = into.len();
        into.resize(before + (end - start) as usize, 0);
        stored::read_at(&self.file, &self.path, start, &mut into[before..])
    }
}

/// The log-probabilities `[N]` of the pairs at some places, chosen completions before rejected ones.
pub(crate) fn read(files: &[ReferenceLogps], places: &[Place]) -> Result<Tensor> {
    let missing = |place: &Place| Error::Data(format!("no log-probabilities of the reference for {place:?}"));
    let (valid, sources) = files
        .split_last()
        .ok_or_else(|| Error::Data("no file of log-probabilities".into()))?;
    let mut bytes = Vec::new();
    for side in [0, 1] {
        for place in places {
            let (file, index) = match *place {
                Place::Train { source, index } => (sources.get(source).ok_or_else(|| missing(place))?, index),
                Place::Valid { index } => (valid, index),
            };
            file.read(index, side, &mut bytes)?;
        }
    }
    let n = bytes.len() / valid.kind.elt_size_in_bytes();
    Ok(Tensor::f_from_data_size(&bytes, &[n as i64], valid.kind)?)
}

/// The log-probabilities `[N]` that a model gives to the completions of a batch, without a graph. Its adapter, if it has
/// one, counts.
pub(crate) fn logps_of(decoder: &Decoder, batch: &PairBatch) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let predicting = Predicting::of(batch)?;
    let ids = Tensor::f_from_slice(&batch.ids)?;
    let states = decoder
        .trunk()
        .hidden_branched(&ids, &branches(batch)?, Some(&predicting.tokens))?;
    // Nothing is trained, so nothing is kept for a way back.
    let detached = (decoder, decoder.output_embedding().f_detach()?);
    let logp = predicting
        .op(&states, detached, batch, &Needs::default())?
        .forward()?
        .logp;
    Ok(logp.f_detach()?)
}

/// `f` on a model with its adapter off, where it has one.
pub(crate) fn off<R>(decoder: &Decoder, f: impl FnOnce(&Decoder) -> Result<R>) -> Result<R> {
    match decoder.adapter() {
        Some(_) => decoder.without_adapter(f),
        None => f(decoder),
    }
}

/// The tokens of a batch whose states predict a completion's.
pub(crate) struct Predicting {
    /// Each once, `[R]`.
    pub(crate) tokens: Tensor,
    /// Which of them predicts each token of a completion, `[N]`: the last one of a prompt predicts the first of both.
    of_rows: Tensor,
}

impl Predicting {
    pub(crate) fn of(batch: &PairBatch) -> Result<Self> {
        let mut places = HashMap::with_capacity(batch.position.len());
        let mut tokens = Vec::with_capacity(batch.position.len());
        let mut place = |&token: &i64| {
            *places.entry(token).or_insert_with(|| {
                tokens.push(token);
                tokens.len() as i64 - 1
            })
        };
        let of_rows: Vec<i64> = batch.position.iter().map(&mut place).collect();
        Ok(Self {
            tokens: Tensor::f_from_slice(&tokens)?,
            of_rows: Tensor::f_from_slice(&of_rows)?,
        })
    }

    /// The op over the states of these tokens, [R, D], and an output embedding of the decoder.
    pub(crate) fn op(
        &self,
        states: &Tensor,
        (decoder, embedding): (&Decoder, Tensor),
        batch: &PairBatch,
        needs: &Needs,
    ) -> Result<TokenOp> {
        let device = states.device();
        // As the gradient of a look-up is a sum in one fixed order, it is the same each time.
        let rows = Tensor::f_embedding(states, &self.of_rows.f_to_device(device)?, -1, false, false)?;
        let targets = Tensor::f_from_slice(&batch.target)?.f_to_device(device)?;
        let op = TokenOp::new(&rows, &embedding, &targets, needs)?;
        Ok(op.with_onednn(decoder.products().rows()))
    }
}

/// The bytes of each pair's log-probabilities.
fn rows_of(decoder: &Decoder, pairs: &[EncodedPair]) -> Result<Vec<Vec<u8>>> {
    let mut rows = vec![Vec::new(); pairs.len()];
    for group in stored::passes(pairs) {
        let picked: Vec<&EncodedPair> = group.iter().map(|&position| &pairs[position]).collect();
        let batch = PairBatch::new(&picked, true)?;
        let logps = logps_of(decoder, &batch)?.f_to(Device::Cpu)?;
        let mut start = 0;
        for (completion, &n) in batch.lengths.iter().enumerate() {
            let own = logps.f_narrow(0, start, n as i64)?.f_contiguous()?;
            rows[group[completion % group.len()]].extend(bytes_of(&own)?);
            start += n as i64;
        }
    }
    Ok(rows)
}

/// A hash of what decides a model's log-probabilities; an adapter does not.
fn model_hash(decoder: &Decoder) -> Result<String> {
    let trunk = decoder.trunk();
    stored::model_hash(trunk, trunk.n_blocks(), decoder.params().base())
}

/// Sums are taken in f32 or wider.
fn kind_of_logps(computed_in: Kind) -> Kind {
    match computed_in {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    }
}
