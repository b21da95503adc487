//! Weights of a folder: in `model.safetensors`, or in shards that `model.safetensors.index.json` lists.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::arch::Spec;
use crate::folder::file_in;
use crate::weights::{Reader, named, stored_bytes, write_as};
use crate::{Error, Result, files};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A file of weights grows no larger than this, as in transformers; a larger tensor has a file to itself.
pub(crate) const LARGEST_SHARD: usize = 5_000_000_000;

/// No honest index is larger: a thousand blocks need about two megabytes.
const LARGEST_INDEX: u64 = 16 << 20;

/// What a folder must hold.
pub(crate) struct Wanted {
    /// Each tensor, in the model's order.
    pub(crate) tensors: Vec<Spec>,
    /// What names begin with, unless the whole folder leaves it out.
    pub(crate) prefix: &'static str,
    /// Tensors that may be there and are left unread.
    pub(crate) buffers: Vec<String>,
    /// A tensor that may be there too, and the one it must equal.
    pub(crate) copy: Option<(&'static str, &'static str)>,
}

#[derive(Serialize, Deserialize)]
struct Index {
    #[serde(default)]
    metadata: serde_json::Map<String, serde_json::Value>,
    weight_map: BTreeMap<String, String>,
}

/// Files that are open, and where each tensor is.
struct Source {
    /// What names the whole in messages.
    path: PathBuf,
    files: Vec<Reader>,
    place: HashMap<String, usize>,
}

/// Reads exactly the wanted tensors, in their order, as f32 or f64 on a device: each present with its shape, a
/// float kind and finite numbers, and none besides. Without a kind, f64 stays and everything else becomes f32.
pub(crate) fn read(dir: &Path, wanted: &Wanted, kind: Option<Kind>, device: Device) -> Result<Vec<(String, Tensor)>> {
    Source::open(dir)?.read(wanted, kind, device)
}

/// The same from one file beside a model, in the kind and on the device of its weights.
pub(crate) fn read_file(
    dir: &Path,
    name: &str,
    tensors: Vec<Spec>,
    (kind, device): (Kind, Device),
) -> Result<Vec<(String, Tensor)>> {
    let wanted = Wanted {
        tensors,
        prefix: "",
        buffers: Vec::new(),
        copy: None,
    };
    Source::single(file_in(dir, name)?)?.read(&wanted, Some(kind), device)
}

impl Source {
    fn open(dir: &Path) -> Result<Self> {
        let (single, index) = (file_in(dir, SINGLE)?, file_in(dir, INDEX)?);
        match (single.exists(), index.exists()) {
            (true, true) => Err(Error::weights(
                &single,
                format!("stands beside `{INDEX}`, and one of them is left over\nhint: remove the older one"),
            )),
            (false, true) => Self::shards(dir, index),
            _ => {
                explain_absence(dir, &single)?;
                Self::single(single)
            }
        }
    }

    fn single(path: PathBuf) -> Result<Self> {
        let file = Reader::open(&path)?;
        Ok(Self {
            place: file.names().into_iter().map(|name| (name, 0)).collect(),
            files: vec![file],
            path,
        })
    }

    fn read(&mut self, wanted: &Wanted, kind: Option<Kind>, device: Device) -> Result<Vec<(String, Tensor)>> {
        let bare = !self.place.keys().any(|name| name.starts_with(wanted.prefix));
        let stored = |name: &str| {
            let stripped = if bare { name.strip_prefix(wanted.prefix) } else { None };
            stripped.unwrap_or(name).to_owned()
        };
        let mut names: Vec<(String, &Spec)> = wanted.tensors.iter().map(|s| (stored(&s.name), s)).collect();
        let missing = names
            .iter()
            .map(|(n, _)| n.as_str())
            .filter(|n| !self.place.contains_key(*n));
        let missing: Vec<&str> = missing.collect();
        if !missing.is_empty() {
            return Err(Error::weights(&self.path, format!("missing {}", named(&missing))));
        }
        let copy = wanted.copy.filter(|(copy, _)| self.place.contains_key(*copy));
        let original = copy.and_then(|(copy, original)| {
            let original = wanted.tensors.iter().find(|s| s.name == original)?;
            Some((copy, original))
        });
        self.refuse_others(
            &names,
            wanted.buffers.iter().map(|n| stored(n)),
            original.map(|(copy, _)| copy),
        )?;
        names.extend(original.map(|(copy, spec)| (copy.to_owned(), spec)));
        let double = self.check(&names)?;
        let kind = kind.unwrap_or(if double { Kind::Double } else { Kind::Float });
        let mut out = Vec::with_capacity(wanted.tensors.len());
        for (stored, spec) in &names {
            let file = self.file(stored)?;
            match original.filter(|(copy, _)| copy == stored) {
                None => out.push((spec.name.clone(), file.finite_tensor(stored, kind)?.f_to(device)?)),
                Some((copy, spec)) => {
                    let same = out.iter().find(|(name, _)| *name == spec.name);
                    if !same.is_some_and(|(_, tensor)| file.equals(stored, tensor).unwrap_or(false)) {
                        return Err(Error::weights(
                            &self.path,
                            format!(
                                "`tie_word_embeddings` is true and tensor `{copy}` differs from `{}`\n\
                             hint: set it to false in config.json, or remove the tensor",
                                spec.name
                            ),
                        ));
                    }
                }
            }
        }
        Ok(out)
    }

    /// Opens every shard; index and shards must agree on what is where.
    fn shards(dir: &Path, path: PathBuf) -> Result<Self> {
        let index = read_index(&path)?;
        let names: Vec<&String> = index
            .weight_map
            .values()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        let mut files = Vec::with_capacity(names.len());
        let mut place = HashMap::with_capacity(index.weight_map.len());
        for (i, &name) in names.iter().enumerate() {
            let shard = file_in(dir, name)?;
            if !shard.exists() {
                return Err(Error::weights(&path, format!("missing shard `{name}`")));
            }
            let file = Reader::open(&shard)?;
            for tensor in file.names() {
                match index.weight_map.get(&tensor) {
                    Some(listed) if listed == name => {
                        place.insert(tensor, i);
                    }
                    Some(listed) => {
                        let what = format!("holds tensor `{tensor}`, which the index puts into `{listed}`");
                        return Err(Error::weights(&shard, what));
                    }
                    None => {
                        let what = format!("holds tensor `{tensor}`, which the index does not list");
                        return Err(Error::weights(&shard, what));
                    }
                }
            }
            files.push(file);
        }
        if let Some((tensor, shard)) = index.weight_map.iter().find(|(name, _)| !place.contains_key(*name)) {
            return Err(Error::weights(
                &path,
                format!("lists tensor `{tensor}`, which `{shard}` does not hold"),
            ));
        }
        Ok(Self { path, files, place })
    }

    fn file(&mut self, name: &str) -> Result<&mut Reader> {
        let at = self.place.get(name).copied();
        at.and_then(|at| self.files.get_mut(at))
            .ok_or_else(|| Error::weights(&self.path, format!("missing tensor `{name}`")))
    }

    fn refuse_others(
        &self,
        names: &[(String, &Spec)],
        buffers: impl Iterator<Item = String>,
        copy: Option<&str>,
    ) -> Result<()> {
        let mut known: HashSet<String> = buffers.collect();
        known.extend(names.iter().map(|(name, _)| name.clone()));
        known.extend(copy.map(str::to_owned));
        let mut others: Vec<&str> = self
            .place
            .keys()
            .map(String::as_str)
            .filter(|n| !known.contains(*n))
            .collect();
        others.sort_unstable();
        if others.is_empty() {
            return Ok(());
        }
        let what = format!("does not fit its description: unexpected {}", named(&others));
        Err(Error::weights(&self.path, what))
    }

    /// Shapes and types, before any data is read; whether all are f64.
    fn check(&mut self, names: &[(String, &Spec)]) -> Result<bool> {
        let mut double = None;
        for (name, spec) in names {
            let file = self.file(name)?;
            let is_double = file.check_float(name, &spec.shape)?;
            if *double.get_or_insert(is_double) != is_double {
                let what = format!("tensor `{name}`: F64 mixed with narrower types");
                return Err(Error::weights(file.path(), what));
            }
        }
        Ok(double == Some(true))
    }
}

fn read_index(path: &Path) -> Result<Index> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(LARGEST_INDEX + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    if bytes.len() as u64 > LARGEST_INDEX {
        return Err(Error::weights(
            path,
            format!("larger than {LARGEST_INDEX} bytes, not an index of shards"),
        ));
    }
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|e| Error::weights(path, format!("not an index of shards: {e}")))?;
    if index.weight_map.is_empty() {
        return Err(Error::weights(path, "not an index of shards: `weight_map` is empty"));
    }
    Ok(index)
}

/// Writes a folder's weights, in `kind` where one is given: one file, or shards of at most `largest` bytes of
/// data. Each file is replaced whole or not at all, the index last.
pub(crate) fn write(dir: &Path, tensors: &[(&str, &Tensor)], kind: Option<Kind>, largest: usize) -> Result<()> {
    let mut groups: Vec<(usize, Vec<(&str, &Tensor)>)> = Vec::new();
    for &(name, tensor) in tensors {
        let bytes = stored_bytes(tensor, kind)?;
        match groups.last_mut() {
            Some((used, group)) if *used + bytes <= largest => {
                *used += bytes;
                group.push((name, tensor));
            }
            _ => groups.push((bytes, vec![(name, tensor)])),
        }
    }
    let other = dir.join(if groups.len() > 1 { SINGLE } else { INDEX });
    if other.exists() {
        let what =
            "is of an earlier model in another form, and would be read with this one\nhint: save into an empty folder";
        return Err(Error::weights(&other, what));
    }
    let n = groups.len();
    if n <= 1 {
        return write_as(&dir.join(SINGLE), tensors, kind);
    }
    let mut weight_map = BTreeMap::new();
    let mut total = 0;
    for (i, (bytes, group)) in groups.iter().enumerate() {
        let name = format!("model-{:05}-of-{n:05}.safetensors", i + 1);
        write_as(&dir.join(&name), group, kind)?;
        weight_map.extend(group.iter().map(|(tensor, _)| ((*tensor).to_owned(), name.clone())));
        total += bytes;
    }
    let metadata = serde_json::Map::from_iter([("total_size".to_owned(), total.into())]);
    let index = Index { metadata, weight_map };
    let path = dir.join(INDEX);
    let text = serde_json::to_vec_pretty(&index).map_err(|e| Error::weights(&path, e.to_string()))?;
    files::write_atomic(&path, |out| out.write_all(&text))
}

/// A missing file is explained when another common form lies in its place.
fn explain_absence(dir: &Path, single: &Path) -> Result<()> {
    if !single.exists() && dir.join("pytorch_model.bin").exists() {
        return Err(Error::weights(
            single,
            "no such file\nhint: convert `pytorch_model.bin` to safetensors; pickle is never read",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> Vec<(String, Tensor)> {
        let make = |i: i64| (format!("t{i}"), Tensor::full([2, 5], i, (Kind::Float, Device::Cpu)));
        (0..6).map(make).collect()
    }

    fn wanted(list: &[(String, Tensor)]) -> Wanted {
        Wanted {
            tensors: list.iter().map(|(name, _)| Spec::matrix(name, 2, 5)).collect(),
            prefix: "",
            buffers: Vec::new(),
            copy: None,
        }
    }

    #[test]
    fn more_than_a_file_holds_goes_into_shards_that_are_read_as_one() {
        let list = tensors();
        let borrowed: Vec<_> = list.iter().map(|(n, t)| (n.as_str(), t)).collect();
        // Of 40 bytes each in f32 and 20 in f16.
        let cases = [
            (1000, None, 1),
            (100, None, 3),
            (100, Some(Kind::Half), 2),
            (1, None, 6),
        ];
        for (largest, kind, files) in cases {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), &borrowed, kind, largest).unwrap();
            let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
            assert_eq!(names.len(), if files == 1 { 1 } else { files + 1 });
            if files > 1 {
                let index = read_index(&folder.path().join(INDEX)).unwrap();
                assert_eq!(index.metadata["total_size"], if kind.is_some() { 120 } else { 240 });
                let last = format!("model-0000{files}-of-0000{files}.safetensors");
                assert_eq!(index.weight_map["t5"], last);
            }
            let back = read(folder.path(), &wanted(&list), None, Device::Cpu).unwrap();
            assert_eq!(back, list);
        }
    }

    #[test]
    fn one_form_is_not_written_beside_the_other() {
        let list = tensors();
        let borrowed: Vec<_> = list.iter().map(|(n, t)| (n.as_str(), t)).collect();
        for (first, second) in [(1000, 100), (100, 1000)] {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), &borrowed, None, first).unwrap();
            let error = write(folder.path(), &borrowed, None, second).unwrap_err().to_string();
            assert!(error.contains("hint: save into an empty folder"), "{error}");
            assert_eq!(read(folder.path(), &wanted(&list), None, Device::Cpu).unwrap(), list);
        }
    }
}
