//! Safetensors files. What is read is checked before memory is taken for it: the header against the
//! file's length, every tensor against what is expected.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result, files};

/// The longest header accepted; a model of a thousand layers needs about one megabyte.
const LONGEST_HEADER: u64 = 16 << 20;

/// Data goes between file and tensor in pieces of at most this many numbers, so that a large tensor is never
/// there twice.
const PIECE: usize = 1 << 20;

/// Writes named tensors, f32, f64, f16, bf16, i64 or u8, in the given order, with the metadata
/// `{"format": "pt"}` that Hugging Face expects. The file is replaced whole or not at all.
pub fn write<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    write_as(path, &tensors, None)
}

/// The same with every tensor rounded to a kind, where one is given.
pub(crate) fn write_as(path: &Path, tensors: &[(&str, &Tensor)], kind: Option<Kind>) -> Result<()> {
    let mut infos = Vec::new();
    let mut end = 0_usize;
    for (name, tensor) in tensors {
        let kind = kind.map_or_else(|| tensor.f_kind(), Ok)?;
        let Some(dtype) = dtype(kind) else {
            return Err(Error::weights(path, format!("tensor `{name}`: cannot store {kind:?}")));
        };
        let bytes = stored_bytes(tensor, Some(kind))?;
        let shape = tensor.size().into_iter().map(|n| n as usize).collect();
        infos.push((
            (*name).to_owned(),
            TensorInfo {
                dtype,
                shape,
                data_offsets: (end, end + bytes),
            },
        ));
        end += bytes;
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let broken = |e: &dyn std::fmt::Display| Error::weights(path, e.to_string());
    let metadata = Metadata::new(Some(format), infos).map_err(|e| broken(&e))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| broken(&e))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    files::write_atomic(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (name, tensor) in tensors {
            write_data(out, name, tensor, kind)?;
        }
        Ok(())
    })
}

/// How many bytes a tensor takes in a file.
pub(crate) fn stored_bytes(tensor: &Tensor, kind: Option<Kind>) -> Result<usize> {
    let kind = kind.map_or_else(|| tensor.f_kind(), Ok)?;
    Ok(tensor.numel() * kind.elt_size_in_bytes())
}

fn write_data(out: &mut dyn Write, name: &str, tensor: &Tensor, kind: Option<Kind>) -> std::io::Result<()> {
    let other = |e: tch::TchError| std::io::Error::other(e);
    let flat = tensor.f_detach().and_then(|t| t.f_reshape([-1])).map_err(other)?;
    let mut buffer = Vec::new();
    for start in (0..flat.numel()).step_by(PIECE) {
        let n = PIECE.min(flat.numel() - start);
        let mut piece = flat.f_narrow(0, start as i64, n as i64).map_err(other)?;
        if let Some(kind) = kind {
            let rounded = piece.f_to_kind(kind).map_err(other)?;
            let finite = |t: &Tensor| t.f_isfinite()?.f_all()?.f_int64_value(&[]);
            if finite(&rounded).map_err(other)? == 0 && finite(&piece).map_err(other)? == 1 {
                let what = format!("tensor `{name}` holds numbers too large for {kind:?}");
                return Err(std::io::Error::other(what));
            }
            piece = rounded;
        }
        let bytes = n * piece.f_kind().map_err(other)?.elt_size_in_bytes();
        buffer.resize(bytes, 0);
        piece.f_copy_data_u8(&mut buffer, n).map_err(other)?;
        out.write_all(&buffer)?;
    }
    Ok(())
}

/// Reads every tensor of a file in the kind it is stored in, on the CPU, in the file's order.
pub fn read(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let mut file = Reader::open(path)?;
    let names = file.metadata.offset_keys();
    names
        .into_iter()
        .map(|name| file.tensor(&name).map(|tensor| (name, tensor)))
        .collect()
}

/// A file whose header is read.
pub(crate) struct Reader {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

impl Reader {
    /// Reads the header and checks it against the length of the file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        let broken = |what: String| Error::weights(path, format!("not a safetensors file: {what}"));
        let mut prefix = [0; 8];
        if length < 8 {
            return Err(broken(format!("{length} bytes long")));
        }
        file.read_exact(&mut prefix).map_err(Error::io("read", path))?;
        let header = u64::from_le_bytes(prefix);
        if header > LONGEST_HEADER || header > length - 8 {
            return Err(broken(format!("a header of {header} bytes in a file of {length}")));
        }
        let mut bytes = vec![0; header as usize];
        file.read_exact(&mut bytes).map_err(Error::io("read", path))?;
        let metadata: Metadata = serde_json::from_slice(&bytes).map_err(|e| broken(format!("header: {e}")))?;
        let (stated, found) = (metadata.data_len() as u64, length - 8 - header);
        if stated != found {
            let cut = if found < stated { "; the file is cut short" } else { "" };
            return Err(broken(format!(
                "the header states {stated} bytes of data, {found} follow{cut}"
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            metadata,
            data_start: 8 + header,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names in the file's order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.metadata
            .info(name)
            .ok_or_else(|| Error::weights(&self.path, format!("missing tensor `{name}`")))
    }

    /// Refuses a tensor of another shape or without a float type; whether it is f64.
    pub(crate) fn check_float(&self, name: &str, shape: &[i64]) -> Result<bool> {
        let info = self.info(name)?;
        let got: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        if got != shape {
            let what = format!("tensor `{name}`: expected shape {shape:?}, got {got:?}");
            return Err(Error::weights(&self.path, what));
        }
        match info.dtype {
            Dtype::F64 => Ok(true),
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(false),
            other => {
                let what = format!("tensor `{name}`: expected F32, F64, F16 or BF16, got {other:?}");
                Err(Error::weights(&self.path, what))
            }
        }
    }

    /// One tensor as stored; its size was checked against the file's length.
    fn tensor(&mut self, name: &str) -> Result<Tensor> {
        let kind = self.kind(name)?;
        self.tensor_as(name, kind, |_| Ok(()))
    }

    /// One tensor in a kind; NaN and infinity are errors.
    pub(crate) fn finite_tensor(&mut self, name: &str, kind: Kind) -> Result<Tensor> {
        let path = self.path.clone();
        self.tensor_as(name, kind, |piece| {
            if piece.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Err(Error::weights(&path, format!("tensor `{name}` holds NaN or infinity")));
            }
            Ok(())
        })
    }

    /// Whether a tensor is equal to another one, number for number in the other one's kind.
    pub(crate) fn equals(&mut self, name: &str, other: &Tensor) -> Result<bool> {
        let (kind, flat) = (other.f_kind()?, other.f_detach()?.f_to(Device::Cpu)?.f_reshape([-1])?);
        let mut same = true;
        self.pieces(name, |start, piece| {
            let beside = flat.f_narrow(0, start as i64, piece.numel() as i64)?;
            same &= piece.f_to_kind(kind)?.f_equal(&beside)?;
            Ok(())
        })?;
        Ok(same)
    }

    fn kind(&self, name: &str) -> Result<Kind> {
        let dtype = self.info(name)?.dtype;
        kind(dtype).ok_or_else(|| {
            let what = format!("tensor `{name}`: {dtype:?} is not supported");
            Error::weights(&self.path, what)
        })
    }

    fn tensor_as(&mut self, name: &str, kind: Kind, check: impl Fn(&Tensor) -> Result<()>) -> Result<Tensor> {
        let shape: Vec<i64> = self.info(name)?.shape.iter().map(|&n| n as i64).collect();
        let out = Tensor::f_empty(shape, (kind, Device::Cpu))?;
        let flat = out.f_view([-1])?;
        self.pieces(name, |start, piece| {
            let piece = piece.f_to_kind(kind)?;
            check(&piece)?;
            flat.f_narrow(0, start as i64, piece.numel() as i64)?.f_copy_(&piece)?;
            Ok(())
        })?;
        Ok(out)
    }

    /// Hands a tensor's numbers over in pieces with the index of their first, in the kind they are stored in.
    fn pieces(&mut self, name: &str, mut each: impl FnMut(usize, &Tensor) -> Result<()>) -> Result<()> {
        let kind = self.kind(name)?;
        let (start, end) = self.info(name)?.data_offsets;
        let step = PIECE * kind.elt_size_in_bytes();
        self.file
            .seek(SeekFrom::Start(self.data_start + start as u64))
            .map_err(Error::io("read", &self.path))?;
        let mut bytes = Vec::new();
        for at in (start..end).step_by(step) {
            bytes.resize(step.min(end - at), 0);
            self.file
                .read_exact(&mut bytes)
                .map_err(Error::io("read", &self.path))?;
            let n = bytes.len() / kind.elt_size_in_bytes();
            let piece = Tensor::f_from_data_size(&bytes, &[n as i64], kind)?;
            each((at - start) / kind.elt_size_in_bytes(), &piece)?;
        }
        Ok(())
    }
}

/// The first names of a list that may be long.
pub(crate) fn named(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(5).map(|n| format!("`{n}`")).collect();
    let more = names.len() - shown.len();
    let rest = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!(
        "{} {}{rest}",
        if names.len() == 1 { "tensor" } else { "tensors" },
        shown.join(", ")
    )
}

fn dtype(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Int64 => Dtype::I64,
        Kind::Uint8 => Dtype::U8,
        _ => return None,
    })
}

fn kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::U8 => Kind::Uint8,
        _ => return None,
    })
}
