//! Safetensors files. What is read is checked before memory is taken for it: the header against the
//! file's length, every tensor against what is expected.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Device, Kind, Tensor};

use crate::arch::Spec;
use crate::{Error, Result, files};

/// The longest header accepted; a model of a thousand layers needs about one megabyte.
const LONGEST_HEADER: u64 = 16 << 20;

/// Writes named tensors, f32, f64, f16, bf16, i64 or u8, in the given order, with the metadata
/// `{"format": "pt"}` that Hugging Face expects. The file is replaced whole or not at all.
pub fn write<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    let mut infos = Vec::new();
    let mut sources = Vec::new();
    let mut end = 0_usize;
    for (name, tensor) in tensors {
        let kind = tensor.f_kind()?;
        let Some(dtype) = dtype(kind) else {
            return Err(Error::weights(path, format!("tensor `{name}`: cannot store {kind:?}")));
        };
        let bytes = tensor.numel() * kind.elt_size_in_bytes();
        let shape = tensor.size().into_iter().map(|n| n as usize).collect();
        infos.push((
            name.to_owned(),
            TensorInfo {
                dtype,
                shape,
                data_offsets: (end, end + bytes),
            },
        ));
        sources.push((tensor, bytes));
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
        let mut buffer = Vec::new();
        for (tensor, bytes) in &sources {
            buffer.resize(*bytes, 0);
            tensor
                .f_copy_data_u8(&mut buffer, tensor.numel())
                .map_err(std::io::Error::other)?;
            out.write_all(&buffer)?;
        }
        Ok(())
    })
}

/// Reads exactly the expected tensors, in their order, as f32 or f64 on a device: each present with its
/// shape, a float kind and finite numbers, and none besides.
pub(crate) fn read_exact(path: &Path, expected: &[Spec], device: Device) -> Result<Vec<(String, Tensor)>> {
    explain_absence(path)?;
    let mut file = Reader::open(path)?;
    let missing: Vec<&str> = expected
        .iter()
        .map(|spec| spec.name.as_str())
        .filter(|n| file.metadata.info(n).is_none())
        .collect();
    if !missing.is_empty() {
        return Err(Error::weights(path, format!("missing {}", named(&missing))));
    }
    let known: std::collections::HashSet<&str> = expected.iter().map(|spec| spec.name.as_str()).collect();
    let names = file.metadata.offset_keys();
    let unexpected: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|n| !known.contains(n))
        .collect();
    if !unexpected.is_empty() {
        return Err(Error::weights(
            path,
            format!("does not fit its config.json: unexpected {}", named(&unexpected)),
        ));
    }
    let mut double = None;
    for Spec { name, shape, .. } in expected {
        let info = file.info(name)?;
        let got: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        if got != *shape {
            return Err(Error::weights(
                path,
                format!("tensor `{name}`: expected shape {shape:?}, got {got:?}"),
            ));
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16) {
            return Err(Error::weights(
                path,
                format!("tensor `{name}`: expected a float type, got {:?}", info.dtype),
            ));
        }
        let is_double = info.dtype == Dtype::F64;
        if *double.get_or_insert(is_double) != is_double {
            return Err(Error::weights(
                path,
                format!("tensor `{name}`: F64 mixed with narrower types"),
            ));
        }
    }
    let kind = if double == Some(true) {
        Kind::Double
    } else {
        Kind::Float
    };
    let mut out = Vec::with_capacity(expected.len());
    for Spec { name, .. } in expected {
        let tensor = file.tensor(name)?.f_to_kind(kind)?;
        if tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(Error::weights(path, format!("tensor `{name}` holds NaN or infinity")));
        }
        out.push((name.clone(), tensor.f_to(device)?));
    }
    Ok(out)
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

struct Reader<'a> {
    path: &'a Path,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

impl<'a> Reader<'a> {
    /// Reads the header and checks it against the length of the file.
    fn open(path: &'a Path) -> Result<Self> {
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
            path,
            file,
            metadata,
            data_start: 8 + header,
        })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.metadata
            .info(name)
            .ok_or_else(|| Error::weights(self.path, format!("missing tensor `{name}`")))
    }

    /// One tensor as stored; its size was checked against the file's length.
    fn tensor(&mut self, name: &str) -> Result<Tensor> {
        let info = self.info(name)?;
        let Some(kind) = kind(info.dtype) else {
            return Err(Error::weights(
                self.path,
                format!("tensor `{name}`: {:?} is not supported", info.dtype),
            ));
        };
        let (start, end) = info.data_offsets;
        let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        let mut bytes = vec![0; end - start];
        self.file
            .seek(SeekFrom::Start(self.data_start + start as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(Error::io("read", self.path))?;
        Ok(Tensor::f_from_data_size(&bytes, &shape, kind)?)
    }
}

/// A missing file is explained when another common form lies in its place.
fn explain_absence(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let beside = |name: &str| path.with_file_name(name).exists();
    if beside("model.safetensors.index.json") {
        return Err(Error::weights(
            path,
            "no such file; weights split over several files are not supported",
        ));
    }
    if beside("pytorch_model.bin") {
        return Err(Error::weights(
            path,
            "no such file\nhint: convert `pytorch_model.bin` to safetensors; pickle is never read",
        ));
    }
    Ok(())
}

/// The first names of a list that may be long.
fn named(names: &[&str]) -> String {
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
