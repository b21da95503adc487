//! Files of numbers that were made once of a model and of examples, and say so in a header.
//!
//! ```text
//! length of the header   8 bytes, little-endian
//! header                 JSON
//! numbers                little-endian
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};
use unsay_model::{Config, Param, Trunk, files};

use crate::error::{Error, Result};
use crate::examples::{Sample, hex};

/// No header is longer: it holds a few hashes and numbers.
const LONGEST: u64 = 1 << 16;

/// Writes a file, whole or not at all. `next` gives the numbers of some more examples, `None` when there are no more; when
/// `stop` says so before that the file is not made, and the answer is false.
pub(crate) fn write(
    path: &Path,
    header: &impl Serialize,
    mut next: impl FnMut() -> Result<Option<Vec<Vec<u8>>>>,
    stop: &dyn Fn() -> bool,
) -> Result<bool> {
    let mut text = serde_json::to_vec(header).map_err(|e| Error::io(path)(e.into()))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    // The closure below speaks of the file alone; what else happens in it is kept here.
    let mut ended = Ok(true);
    let written = files::write_atomic(path, |out: &mut dyn Write| {
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(&text)?;
        loop {
            if stop() {
                ended = Ok(false);
                return Err(io::Error::other("stopped"));
            }
            match next() {
                Ok(Some(rows)) => rows.iter().try_for_each(|row| out.write_all(row))?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    ended = Err(error);
                    return Err(io::Error::other("no numbers"));
                }
            }
        }
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

pub(crate) fn kind(name: &str) -> Option<Kind> {
    KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
}

pub(crate) fn name(kind: Kind) -> Result<&'static str> {
    let found = KINDS.iter().find(|(_, known)| *known == kind).map(|(name, _)| *name);
    found.ok_or_else(|| Error::Data(format!("numbers of {kind:?} cannot be stored")))
}
