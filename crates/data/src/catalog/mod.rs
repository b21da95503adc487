//! Datasets and [`models`] known by name: where they come from, how they are checked and read.
//!
//! Either is looked for in a mirror folder, then in the local cache, then at its public source,
//! from which it is put into the cache. Nothing is read whose content is not the recorded one, and
//! nothing is replaced by something else.

mod cache;
mod chitchat;
mod diasafety;
mod fetch;
pub mod models;
mod places;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result, nearest};
use crate::hash;
use crate::record::Splits;

pub use places::Places;

/// A dataset of the catalog.
#[derive(Debug)]
pub struct Dataset {
    /// The name in manifests.
    pub name: &'static str,
    /// What it holds.
    pub what: &'static str,
    /// Where it is published.
    pub source: &'static str,
    /// Under which licence.
    pub licence: &'static str,
    /// What a reader should be prepared for.
    pub content_warning: Option<&'static str>,
    /// Names the published version in the cache.
    version: &'static str,
    /// Grows when the same files would be read as other examples.
    converter: u32,
    upstream: Upstream,
    /// The published files.
    files: &'static [File],
    /// The files of a mirror.
    mirror: &'static [File],
    read: fn(&Path, Form) -> Result<Converted>,
}

/// A file of a dataset or model and its recorded SHA-256.
#[derive(Clone, Copy, Debug)]
struct File {
    name: &'static str,
    /// Absent where the commit identifies the content instead.
    sha256: Option<&'static str>,
}

/// Where a dataset or model is published.
#[derive(Clone, Copy, Debug)]
enum Upstream {
    /// In a git repository. The commit is itself a hash of all content.
    Git {
        url: &'static str,
        commit: &'static str,
        folder: &'static str,
    },
    /// In a Python package.
    Python {
        requirement: &'static str,
        wheel: &'static str,
        sha256: &'static str,
        folder: &'static str,
    },
}

/// The two forms in which a dataset lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Mirror,
    Published,
}

/// What a converter makes of the files.
#[derive(Debug, Default)]
struct Converted {
    splits: Splits,
    dropped: usize,
}

/// A dataset that was read.
#[derive(Debug)]
pub struct Loaded {
    /// Its examples.
    pub splits: Splits,
    /// Rows left out because their completion is empty or no dialogue; the dataset's documentation
    /// says which.
    pub dropped: usize,
    /// Where it was found.
    pub origin: Origin,
}

/// Where a dataset was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In this folder of the mirror.
    Mirror(PathBuf),
    /// In this folder of the cache.
    Cache(PathBuf),
    /// At its public source; it now lies in this folder of the cache.
    Source(PathBuf),
}

static DATASETS: [&Dataset; 2] = [&diasafety::DATASET, &chitchat::DATASET];

/// All datasets.
pub fn list() -> &'static [&'static Dataset] {
    &DATASETS
}

/// The dataset with a name.
///
/// # Errors
/// When there is none; the error lists the names.
pub fn find(name: &str) -> Result<&'static Dataset> {
    DATASETS
        .into_iter()
        .find(|d| d.name == name)
        .ok_or_else(|| Error::UnknownName {
            kind: "dataset",
            got: name.to_owned(),
            known: DATASETS.iter().map(|d| d.name.to_owned()).collect(),
            nearest: nearest(name, DATASETS.iter().map(|d| d.name)),
        })
}

/// The hash that identifies the examples of a dataset, known without reading it.
///
/// # Errors
/// When no dataset has the name.
pub fn fingerprint(name: &str) -> Result<String> {
    find(name).map(Dataset::fingerprint)
}

/// Reads a dataset, fetching it when it is in neither mirror nor cache.
///
/// # Errors
/// When no dataset has the name, when it is found nowhere, or when what is found is not what is recorded.
pub fn load(name: &str, places: &Places) -> Result<Loaded> {
    find(name)?.load(places)
}

impl Dataset {
    fn fingerprint(&self) -> String {
        let mut all = Sha256::new();
        let mut add = |text: &str| {
            all.update(text);
            all.update("\n");
        };
        add(self.name);
        add(&self.converter.to_string());
        match &self.upstream {
            Upstream::Git { commit, folder, .. } => [*commit, *folder].into_iter().for_each(&mut add),
            Upstream::Python { sha256, folder, .. } => {
                [*sha256, *folder].into_iter().for_each(&mut add);
            }
        }
        for file in self.files.iter().chain(self.mirror) {
            add(file.name);
            add(file.sha256.unwrap_or_default());
        }
        hash::hex(&all.finalize())
    }

    fn load(&self, places: &Places) -> Result<Loaded> {
        let (origin, form) = self.locate(places)?;
        let (Origin::Mirror(folder) | Origin::Cache(folder) | Origin::Source(folder)) = &origin;
        let Converted { splits, dropped } = (self.read)(folder, form)?;
        Ok(Loaded {
            splits,
            dropped,
            origin,
        })
    }

    /// The folder with checked files, fetched if need be.
    fn locate(&self, places: &Places) -> Result<(Origin, Form)> {
        let mirror = match in_mirror(self.name, self.mirror, places.mirror.as_deref())? {
            Ok(folder) => return Ok((Origin::Mirror(folder), Form::Mirror)),
            Err(why) => why,
        };
        let nowhere = |cache: String, source_tried: String| nowhere("dataset", self.name, mirror, cache, source_tried);
        let Some(cache) = &places.cache else {
            return Err(nowhere(NO_CACHE.to_owned(), NOTHING_TO_FILL.to_owned()));
        };
        let folder = cache.join(format!("{}-{}", self.name, self.version));
        if folder.exists() {
            cache::check(&folder, self.files)?;
            return Ok((Origin::Cache(folder), Form::Published));
        }
        let fetched = cache::fill(&folder, self.files, |temporary, into| {
            fetch::fetch(&self.upstream, self.files, temporary, into, &places.environment)
        })?;
        match fetched {
            Ok(()) => Ok((Origin::Source(folder), Form::Published)),
            Err(source_tried) => Err(nowhere(absent(&folder), source_tried)),
        }
    }
}

const NO_CACHE: &str = "no folder: neither XDG_CACHE_HOME nor HOME is set";
const NOTHING_TO_FILL: &str = "not tried, because there is no cache to put it into";
const RESTORE: &str = "restore the file, or set UNSAY_DATA_MIRROR to another folder";

fn absent(path: &Path) -> String {
    format!("`{}` does not exist", path.display())
}

fn nowhere(kind: &'static str, name: &'static str, mirror: String, cache: String, source_tried: String) -> Error {
    let advice = format!("connect to the network once, or set UNSAY_DATA_MIRROR to a folder that holds `{name}`");
    Error::Unavailable {
        kind,
        name,
        mirror,
        cache,
        source_tried,
        advice: advice.into(),
    }
}

/// The folder of the mirror with all these files, checked; or why there is none.
fn in_mirror(name: &str, files: &[File], mirror: Option<&Path>) -> Result<std::result::Result<PathBuf, String>> {
    let Some(mirror) = mirror else {
        return Ok(Err("UNSAY_DATA_MIRROR is not set".to_owned()));
    };
    let folder = mirror.join(name);
    let mut paths = files.iter().map(|f| folder.join(f.name));
    if let Some(missing) = paths.find(|path| !path.exists()) {
        return Ok(Err(absent(&missing)));
    }
    for file in files {
        if let Some(expected) = file.sha256 {
            cache::check_file(&folder.join(file.name), expected, RESTORE.to_owned())?;
        }
    }
    Ok(Ok(folder))
}

#[cfg(test)]
mod tests;
