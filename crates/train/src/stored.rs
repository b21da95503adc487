//! Files of numbers that were made once of a model and of examples, and say so in a header.
//!
//! ```text
//! length of the header   8 bytes, little-endian
//! header                 JSON
//! numbers                little-endian
//! ```

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};
use unsay_model::{Config, Param, Trunk, files};

use crate::error::{Error, Result};
use crate::examples::{Sample, hex};
use crate::objective::micro_batches;

/// No header is longer: it holds a few hashes and numbers.
const LONGEST: u64 = 1 << 16;

/// So many tokens go through the model at once while a file is made, if all samples were as long as the longest.
const PASS_TOKENS: usize = 1 << 12;

/// Which of some samples go through the model together while a file is made.
pub(crate) fn passes(samples: &[impl Sample]) -> Vec<Vec<usize>> {
    let lengths: Vec<usize> = samples.iter().map(Sample::n_tokens).collect();
    let longest = lengths.iter().copied().max().unwrap_or(1).max(1);
    micro_batches(&lengths, (PASS_TOKENS / longest).max(1))
}

/// Neighbouring samples, at most so many tokens at a time (at least one sample).
fn windows<S: Sample>(samples: &[S], most: usize) -> impl Iterator<Item = &[S]> {
    let mut rest = samples;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fit = rest.iter().take_while(|one| {
            tokens += one.n_tokens();
            tokens <= most
        });
        let n = fit.count().max(1).min(rest.len());
        let (window, others) = rest.split_at(n);
        rest = others;
        (!window.is_empty()).then_some(window)
    })
}

/// Writes a file, whole or not at all: the numbers that `rows_of` gives for neighbouring samples, of which at most `waiting`
/// tokens are in memory at once. `progress` hears how many samples are done; when `stop` says so before the end the file is
/// not made, and the answer is false.
pub(crate) fn write<S: Sample>(
    path: &Path,
    header: &impl Serialize,
    (samples, waiting): (&[S], usize),
    rows_of: impl Fn(&[S]) -> Result<Vec<Vec<u8>>>,
    (progress, stop): (&mut dyn FnMut(usize), &dyn Fn() -> bool),
) -> Result<bool> {
    let mut text = serde_json::to_vec(header).map_err(|e| Error::io(path)(e.into()))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    // The closure below speaks of the file alone; what else happens in it is kept here.
    let mut ended = Ok(true);
    let written = files::write_atomic(path, |out: &mut dyn Write| {
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(&text)?;
        let mut done = 0;
        for window in windows(samples, waiting) {
            if stop() {
                ended = Ok(false);
                return Err(io::Error::other("stopped"));
            }
            match rows_of(window) {
                Ok(rows) => rows.iter().try_for_each(|row| out.write_all(row))?,
                Err(error) => {
                    ended = Err(error);
                    return Err(io::Error::other("no numbers"));
                }
            }
            done += window.len();
            progress(done);
        }
        Ok(())
    });
    match ended {
        Ok(true) => Ok(written.map(|()| true)?),
        ended => ended,
    }
}

/// A file with its header, and where its numbers begin and end.
pub(crate) struct Opened<H> {
    pub(crate) file: File,
    pub(crate) header: H,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Opens a file of `what`, such as states.
///
/// **Errors**: [`Error::Stored`] for something else.
pub(crate) fn open<H: DeserializeOwned>(path: &Path, what: &'static str) -> Result<Opened<H>> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let end = file.metadata().map_err(Error::io(path))?.len();
    let foreign = |problem: String| Error::stored(what, path, format!("not a file of {what}: {problem}"));
    if end < 8 {
        return Err(foreign(format!("{end} bytes long")));
    }
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(Error::io(path))?;
    let length = u64::from_le_bytes(prefix);
    if length > LONGEST || length > end - 8 {
        return Err(foreign(format!("a header of {length} bytes in a file of {end}")));
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).map_err(Error::io(path))?;
    let header = serde_json::from_slice(&text).map_err(|e| foreign(format!("header: {e}")))?;
    Ok(Opened {
        file,
        header,
        start: 8 + length,
        end,
    })
}

/// Where parts of so many bytes begin in a file, and last where they end.
pub(crate) fn offsets(start: u64, sizes: impl Iterator<Item = u64>) -> Vec<u64> {
    let ends = sizes.scan(start, |end, size| {
        *end = end.saturating_add(size);
        Some(*end)
    });
    [start].into_iter().chain(ends).collect()
}

/// Reads a part of a file.
pub(crate) fn read_at(mut file: &File, path: &Path, start: u64, into: &mut [u8]) -> Result<()> {
    file.seek(SeekFrom::Start(start))
        .and_then(|_| file.read_exact(into))
        .map_err(Error::io(path))
}

/// Refuses a file of another version of its format.
pub(crate) fn check_version((what, path): (&'static str, &Path), expected: u32, got: u32) -> Result<()> {
    match expected == got {
        true => Ok(()),
        false => {
            let problem = format!("expected version {expected}, got {got}\nhint: remove it and make it again");
            Err(Error::stored(what, path, problem))
        }
    }
}

/// Refuses a file that is not as long as its header says.
pub(crate) fn check_length((what, path): (&'static str, &Path), expected: u64, got: u64) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    let cut = if got < expected { "; it is cut short" } else { "" };
    let problem = format!("expected {expected} bytes, got {got}{cut}\nhint: remove it and make it again");
    Err(Error::stored(what, path, problem))
}

/// A hash of what decides what comes out of a model's lowest blocks, or with all its tensors of the whole: description,
/// precision, weights.
pub(crate) fn model_hash<'a>(
    trunk: &Trunk,
    n_blocks: usize,
    params: impl Iterator<Item = &'a Param>,
) -> Result<String> {
    let mut hash = Sha256::new();
    // What a description holds besides, such as the number of a classifier's labels, does not change what is computed.
    let config = Config {
        other: Default::default(),
        ..trunk.config().clone()
    };
    hash.update(format!("{config:?}\n{n_blocks}\n{:?}\n", trunk.kind()?));
    for param in params {
        hash.update(format!("{} {:?}\n", param.name(), param.value().size()));
        hash.update(bytes_of(&param.value().f_detach()?.f_to(tch::Device::Cpu)?)?);
    }
    Ok(hex(&hash.finalize()))
}

/// A hash of everything of some examples that decides what is made of them.
pub(crate) fn samples_hash(samples: &[impl Sample]) -> String {
    let mut hash = Sha256::new();
    samples
        .iter()
        .for_each(|sample| sample.feed(&mut |bytes| hash.update(bytes)));
    hex(&hash.finalize())
}

pub(crate) fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = vec![0; tensor.numel() * tensor.f_kind()?.elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

const KINDS: [(&str, Kind); 3] = [("f32", Kind::Float), ("f64", Kind::Double), ("bf16", Kind::BFloat16)];

/// The kind of the numbers of a file, by the name in its header.
pub(crate) fn kind((what, path): (&'static str, &Path), name: &str) -> Result<Kind> {
    let found = KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
    found.ok_or_else(|| Error::stored(what, path, format!("not a file of {what}: kind `{name}`")))
}

pub(crate) fn name(kind: Kind) -> Result<&'static str> {
    let found = KINDS.iter().find(|(_, known)| *known == kind).map(|(name, _)| *name);
    found.ok_or_else(|| Error::Data(format!("numbers of {kind:?} cannot be stored")))
}
