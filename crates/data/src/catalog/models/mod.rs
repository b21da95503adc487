//! Models known by name: where they come from, and the Hugging Face folder that is made of them.
//!
//! A model is looked for in the mirror, as a finished folder; then in the cache; then it is made: its GGUF
//! file is taken from the mirror or fetched from its public source, checked, expanded once by the script
//! `gguf_to_hf.py` and put into the cache. Every file of the folder has its recorded SHA-256 wherever it was
//! found, so that a name always means the same numbers.

mod convert;
mod smollm2;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::fetch::{self, Tried};
use super::{File, NO_CACHE, NOTHING_TO_FILL, Places, RESTORE, Upstream, absent, cache, in_mirror};
use crate::error::{Error, Result, nearest};
use crate::hash;

/// A model of the catalog.
#[derive(Clone, Debug)]
pub struct Model {
    /// The name in manifests and on the command line.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Where it is published.
    pub source: &'static str,
    /// Under which licence.
    pub licence: &'static str,
    /// Megabytes that are fetched, with the packages that expand the weights.
    pub fetched_mb: u32,
    /// Megabytes of the finished folder.
    pub folder_mb: u32,
    /// Names the published version in the cache.
    version: &'static str,
    upstream: Upstream,
    /// The one file of the model that the source holds.
    gguf: File,
    /// Python packages that the script needs, pinned.
    packages: &'static [&'static str],
    /// Makes the folder of the GGUF file.
    script: &'static str,
    /// The finished folder.
    files: &'static [File],
}

static MODELS: [&Model; 1] = [&smollm2::MODEL];

/// All models.
pub fn list() -> &'static [&'static Model] {
    &MODELS
}

/// The model with a name.
///
/// # Errors
/// When there is none; the error lists the names.
pub fn find(name: &str) -> Result<&'static Model> {
    MODELS
        .into_iter()
        .find(|m| m.name == name)
        .ok_or_else(|| Error::UnknownName {
            kind: "model",
            got: name.to_owned(),
            known: MODELS.iter().map(|m| m.name.to_owned()).collect(),
            nearest: nearest(name, MODELS.iter().map(|m| m.name)),
        })
}

/// The hash that identifies the folder of a model, known without making it.
///
/// # Errors
/// When no model has the name.
pub fn fingerprint(name: &str) -> Result<String> {
    find(name).map(Model::fingerprint)
}

/// The Hugging Face folder of a model with checked files, made when it is in neither mirror nor cache.
///
/// `say` is told in words what takes long. The folder belongs to mirror or cache: read it, never write to it.
///
/// # Errors
/// When no model has the name, or when it cannot be had; that error says what was found at mirror, cache and
/// source.
pub fn locate(name: &str, places: &Places, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    find(name)?.locate(places, say)
}

/// The folder of a model with checked files when mirror or cache holds it; nothing is fetched or made.
///
/// # Errors
/// When no model has the name, or when mirror or cache holds other content than what is recorded.
pub fn on_disk(name: &str, places: &Places) -> Result<Option<PathBuf>> {
    find(name)?.on_disk(places)
}

/// The finished folder, or what is in its place at mirror and cache.
enum Found {
    Folder(PathBuf),
    Nothing { mirror: String },
}

impl Model {
    fn fingerprint(&self) -> String {
        let mut all = Sha256::new();
        for file in std::iter::once(&self.gguf).chain(self.files) {
            for text in [file.name, "\n", file.sha256.unwrap_or_default(), "\n"] {
                all.update(text);
            }
        }
        hash::hex(&all.finalize())
    }

    /// The folder in the cache. Its name changes with its content: a newer version of this program makes its
    /// own and does not call the older one damaged.
    fn cached(&self, cache: &Path) -> PathBuf {
        let content: String = self.fingerprint().chars().take(12).collect();
        cache.join(format!("{}-{}-{content}", self.name, self.version))
    }

    fn on_disk(&self, places: &Places) -> Result<Option<PathBuf>> {
        Ok(match self.look(places)? {
            Found::Folder(folder) => Some(folder),
            Found::Nothing { .. } => None,
        })
    }

    /// Looks at mirror and cache; damage there is an error, because another folder would hide it.
    fn look(&self, places: &Places) -> Result<Found> {
        let mirror = match in_mirror(self.name, self.files, places.mirror.as_deref()) {
            Ok(Ok(folder)) => return Ok(Found::Folder(folder)),
            Ok(Err(why)) => why,
            Err(damage) => {
                let rest = "not looked into, because the mirror is damaged";
                return Err(self.unavailable(in_words(&damage), rest, rest, RESTORE.to_owned()));
            }
        };
        let Some(folder) = places.cache.as_deref().map(|cache| self.cached(cache)) else {
            return Ok(Found::Nothing { mirror });
        };
        if !folder.exists() {
            return Ok(Found::Nothing { mirror });
        }
        let Err(damage) = cache::check(&folder, self.files) else {
            return Ok(Found::Folder(folder));
        };
        let again = format!("remove the folder `{}` to make it again", folder.display());
        let source = "not tried, because the cache holds a damaged folder";
        Err(self.unavailable(mirror, &in_words(&damage), source, again))
    }

    fn locate(&self, places: &Places, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        let mirror = match self.look(places)? {
            Found::Folder(folder) => return Ok(folder),
            Found::Nothing { mirror } => mirror,
        };
        let connect = format!(
            "connect to the network once with python3 and pip installed, or set UNSAY_DATA_MIRROR to a folder that \
             holds `{}`",
            self.name
        );
        let Some(cache) = &places.cache else {
            return Err(self.unavailable(mirror, NO_CACHE, NOTHING_TO_FILL, connect));
        };
        let folder = self.cached(cache);
        let made = cache::fill(&folder, self.files, |temporary, into| {
            self.make(places, temporary, into, say)
        });
        let why = match made {
            Ok(Ok(())) => return Ok(folder),
            Ok(Err(why)) => why,
            Err(Error::Digest {
                path,
                expected,
                got,
                kind,
                ..
            }) => {
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                format!("`{file}`: expected {kind} {expected}, got {got}")
            }
            Err(other) => return Err(other),
        };
        Err(self.unavailable(mirror, &absent(&folder), &why, connect))
    }

    /// Makes the folder in `into`; `temporary` is for everything else.
    fn make(&self, places: &Places, temporary: &Path, into: &Path, say: &mut dyn FnMut(&str)) -> Result<Tried> {
        let alone = std::slice::from_ref(&self.gguf);
        let folder = match in_mirror(self.name, alone, places.mirror.as_deref())? {
            Ok(folder) => folder,
            Err(_) => {
                say(&format!(
                    "fetching `{}` from its {}: {} MB once, {} MB on disk",
                    self.name, self.source, self.fetched_mb, self.folder_mb
                ));
                let folder = temporary.join("source");
                std::fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
                let fetched = fetch::fetch(&self.upstream, alone, temporary, &folder, &places.environment)?;
                if fetched.is_err() {
                    return Ok(fetched);
                }
                if let Some(expected) = self.gguf.sha256 {
                    cache::check_file(&folder.join(self.gguf.name), expected, String::new())?;
                }
                folder
            }
        };
        convert::convert(
            self,
            &folder.join(self.gguf.name),
            temporary,
            into,
            &places.environment,
            say,
        )
    }

    fn unavailable(&self, mirror: String, cache: &str, source_tried: &str, advice: String) -> Error {
        Error::Unavailable {
            kind: "model",
            name: self.name,
            mirror,
            cache: cache.to_owned(),
            source_tried: source_tried.to_owned(),
            advice: advice.into(),
        }
    }
}

/// What was found, without the advice that goes with it where nothing else is known.
fn in_words(error: &Error) -> String {
    let text = error.to_string();
    text.split("\nhint: ").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
