//! Files of the states below what is trained, made once and read in every epoch.
//!
//! ```text
//! length of the header   8 bytes, little-endian
//! header                 JSON: see Header
//! states                 example after example, token after token, D numbers each, little-endian
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};
use unsay_data::{Batch, Encoded};
use unsay_model::{Params, Trunk};

use crate::error::{Error, Result};
use crate::examples::hex;
use crate::stored::{self, bytes_of, name};

const VERSION: u32 = 1;

/// What is in these files.
const WHAT: &str = "states";

/// So many tokens wait in memory to be written in the order of the examples.
const WAITING_TOKENS: usize = 1 << 15;

/// The states of every token of a list of encoded examples after the lowest blocks of a model, in a file.
///
/// Training that leaves those blocks as they are starts from here. Labels and the split into prompt and completion
/// do not enter, so losses, seeds and arms share a file.
#[derive(Debug)]
pub struct PrefixStates {
    path: PathBuf,
    file: File,
    header: Header,
    kind: Kind,
    /// Where each example's states begin, and last the end of the file.
    offsets: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    /// Of the description, the precision and the weights up to here.
    model: String,
    n_blocks: usize,
    width: usize,
    kind: String,
    n_examples: usize,
    /// Of the token ids of all examples.
    tokens: String,
}

impl PrefixStates {
    /// Makes the file for the lowest `n_frozen` blocks of a model. `progress` hears how many examples are done; when
    /// `stop` says so the file is not made, and the answer is false.
    ///
    /// Memory is bounded whatever the number of examples. The file is there whole or not at all.
    ///
    /// **Errors**: [`Error::Data`] for examples that the model cannot read or when there are none; those of the
    /// model; those of the file system.
    pub fn write(
        path: &Path,
        (trunk, params): (&Trunk, &Params),
        n_frozen: usize,
        encoded: &[Encoded],
        progress: &mut dyn FnMut(usize),
        stop: &dyn Fn() -> bool,
    ) -> Result<bool> {
        if encoded.is_empty() {
            return Err(Error::Data("no examples to make states of".into()));
        }
        let kind = trunk.kind()?;
        let header = Header {
            version: VERSION,
            model: model_hash(trunk, params, n_frozen)?,
            n_blocks: n_frozen,
            width: trunk.config().hidden_size,
            kind: name(kind)?.to_owned(),
            n_examples: encoded.len(),
            tokens: tokens_hash(encoded),
        };
        let rows = |window: &[Encoded]| states_of(trunk, n_frozen, window);
        stored::write(path, &header, (encoded, WAITING_TOKENS), rows, (progress, stop))
    }

    /// Opens a file that was made of these examples.
    ///
    /// **Errors**: [`Error::Stored`] for one that was made of others, is cut short, or is something else.
    pub fn open(path: &Path, encoded: &[Encoded]) -> Result<Self> {
        let stored::Opened {
            file,
            header,
            start,
            end,
        } = stored::open::<Header>(path, WHAT)?;
        stored::check_version((WHAT, path), VERSION, header.version)?;
        let kind = stored::kind((WHAT, path), &header.kind)?;
        let row = (header.width as u64).saturating_mul(kind.elt_size_in_bytes() as u64);
        let sizes = encoded.iter().map(|one| (one.ids.len() as u64).saturating_mul(row));
        let states = Self {
            path: path.to_owned(),
            file,
            header,
            kind,
            offsets: stored::offsets(start, sizes),
        };
        states.check_examples(encoded)?;
        stored::check_length((WHAT, path), states.offsets.last().copied().unwrap_or(0), end)?;
        Ok(states)
    }

    /// How many blocks the states have been through.
    pub fn n_blocks(&self) -> usize {
        self.header.n_blocks
    }

    /// Words that differ when states differ.
    pub(crate) fn describe(&self) -> String {
        format!(
            "{} blocks of {} {}",
            self.header.n_blocks, self.header.model, self.header.tokens
        )
    }

    /// Refuses other examples than those the file was made of.
    pub(crate) fn check_examples(&self, encoded: &[Encoded]) -> Result<()> {
        let (expected, got) = (encoded.len(), self.header.n_examples);
        if expected != got {
            return Err(self.foreign(format!("expected the states of {expected} examples, got {got}")));
        }
        match tokens_hash(encoded) == self.header.tokens {
            true => Ok(()),
            false => Err(self.foreign("made of other tokens than those of the examples".to_owned())),
        }
    }

    /// Refuses a model that is another one below, or that trains there. `known` are hashes found before.
    pub(crate) fn check_model(
        &self,
        trunk: &Trunk,
        params: &Params,
        n_frozen: usize,
        known: &mut Vec<(usize, String)>,
    ) -> Result<()> {
        let n_blocks = self.header.n_blocks;
        if n_blocks > n_frozen {
            let got = format!("expected states of at most {n_frozen} blocks, which are not trained, got {n_blocks}");
            return Err(self.foreign(got));
        }
        let (expected, found) = (name(trunk.kind()?)?, &self.header.kind);
        if expected != found {
            return Err(self.foreign(format!("expected {expected}, as the model computes, got {found}")));
        }
        let model = match known.iter().find(|(blocks, _)| *blocks == n_blocks) {
            Some((_, model)) => model.clone(),
            None => {
                let model = model_hash(trunk, params, n_blocks)?;
                known.push((n_blocks, model.clone()));
                model
            }
        };
        match model == self.header.model {
            true => Ok(()),
            false => Err(self.foreign("made of a model with other weights".to_owned())),
        }
    }

    /// The states [B, T, D] of one example of each pair, padded on the right with zeros.
    pub(crate) fn read(examples: &[(&Self, usize)]) -> Result<Tensor> {
        let Some((first, _)) = examples.first() else {
            return Err(Error::Data("a batch without examples".into()));
        };
        let (kind, width) = (first.kind, first.header.width);
        let row = width * kind.elt_size_in_bytes();
        let mut spans = Vec::with_capacity(examples.len());
        for (states, index) in examples {
            let Some(&[start, end]) = states.offsets.get(*index..*index + 2) else {
                return Err(states.foreign(format!("no example {index}")));
            };
            spans.push((start, (end - start) as usize));
        }
        let longest = spans.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        let mut bytes = vec![0; longest * examples.len()];
        for ((slot, (states, _)), (start, n)) in bytes.chunks_exact_mut(longest.max(1)).zip(examples).zip(spans) {
            stored::read_at(&states.file, &states.path, start, &mut slot[..n])?;
        }
        let size = [examples.len(), longest / row.max(1), width].map(|n| n as i64);
        Ok(Tensor::f_from_data_size(&bytes, &size, kind)?)
    }

    pub(crate) fn foreign(&self, what: String) -> Error {
        Error::stored(
            WHAT,
            &self.path,
            format!("{what}\nhint: make the states again for this model and these examples"),
        )
    }
}

/// The bytes of each example's states.
fn states_of(trunk: &Trunk, n_frozen: usize, encoded: &[Encoded]) -> Result<Vec<Vec<u8>>> {
    let mut rows = vec![Vec::new(); encoded.len()];
    for group in stored::passes(encoded) {
        let picked: Vec<&Encoded> = group.iter().map(|&position| &encoded[position]).collect();
        let batch = Batch::new(&picked)?;
        let ids = Tensor::f_from_slice(&batch.ids)?.f_view([batch.n_examples as i64, batch.width as i64])?;
        let states = trunk.states_below(&ids, n_frozen)?.f_to(tch::Device::Cpu)?;
        for (at, &position) in group.iter().enumerate() {
            let own = states
                .f_get(at as i64)?
                .f_narrow(0, 0, encoded[position].ids.len() as i64)?
                .f_contiguous()?;
            rows[position] = bytes_of(&own)?;
        }
    }
    Ok(rows)
}

/// A hash of what decides the states.
fn model_hash(trunk: &Trunk, params: &Params, n_blocks: usize) -> Result<String> {
    stored::model_hash(trunk, n_blocks, params.below(n_blocks))
}

fn tokens_hash(encoded: &[Encoded]) -> String {
    let mut hash = Sha256::new();
    for one in encoded {
        hash.update((one.ids.len() as u64).to_le_bytes());
        one.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    }
    hex(&hash.finalize())
}
