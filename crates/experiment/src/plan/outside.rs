//! A base model from outside: what identifies it, and where it lies.
//!
//! A model folder is not copied into the store. It is identified by the hash of its files, which is taken anew each
//! time a plan is made, so a folder that has changed is another base model, and everything that depends on it is made
//! again. While a run goes on, sizes and times of the files are looked at each time the model is read.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use sha2::{Digest, Sha256};
use unsay_data::Tokenizer;
use unsay_data::catalog::{Places, models};

use crate::manifest::base::Base;

/// A base model from outside with its tokenizer.
#[derive(Clone, Debug, Serialize)]
pub struct Outside {
    /// Hash of the content of a folder, or of what the catalog records.
    pub fingerprint: String,
    /// Said to a chat model before every conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Hash of the content of the adapter that is merged into it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Where it lies: no part of what it is.
    #[serde(skip)]
    place: Place,
    #[serde(skip)]
    adapter_folder: Option<Content>,
}

#[derive(Clone, Debug)]
enum Place {
    Catalog(String),
    Folder(Content),
}

impl Outside {
    /// The base model that a manifest names. Reads folders whole; downloads nothing.
    pub fn of(base: &Base) -> Result<Self> {
        let (fingerprint, place, system) = match base {
            Base::Train(_) => bail!("a base model that is trained here does not come from outside"),
            Base::Catalog(base) => (
                models::fingerprint(&base.name)?,
                Place::Catalog(base.name.clone()),
                base.system.clone(),
            ),
            Base::Folder(base) => {
                let content = Content::read(&base.path)?;
                (content.hash(), Place::Folder(content), base.system.clone())
            }
        };
        let adapter_folder = base.adapter().map(Content::read).transpose()?;
        Ok(Self {
            fingerprint,
            system,
            adapter: adapter_folder.as_ref().map(Content::hash),
            place,
            adapter_folder,
        })
    }

    /// Its name in titles and model cards.
    pub fn name(&self) -> String {
        match &self.place {
            Place::Catalog(name) => name.clone(),
            Place::Folder(content) => content.folder.file_name().map_or_else(
                || content.folder.display().to_string(),
                |name| name.to_string_lossy().into_owned(),
            ),
        }
    }

    /// The entry of the catalog, if it comes from there.
    pub fn in_catalog(&self) -> Option<&str> {
        match &self.place {
            Place::Catalog(name) => Some(name),
            Place::Folder(_) => None,
        }
    }

    /// Its folder, fetched if need be. A folder of one's own must still be what it was when the plan was made.
    pub fn folder(&self, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        match &self.place {
            Place::Catalog(name) => Ok(models::locate(name, &Places::from_environment(), say)?),
            Place::Folder(content) => content.unchanged(),
        }
    }

    /// Its tokenizer, of its folder.
    pub fn tokenizer(&self, folder: &Path) -> Result<Tokenizer> {
        let tokenizer = Tokenizer::from_folder(folder)?;
        if tokenizer.ends().is_empty() {
            bail!(
                "`{}` names no token that ends a reply; hint: `eos_token` in tokenizer_config.json",
                folder.display()
            );
        }
        if self.system.is_some() && !tokenizer.is_chat() {
            bail!("`{}` has no chat template that could read `system`", folder.display());
        }
        Ok(tokenizer.with_system(self.system.clone()))
    }

    /// The folder of the adapter that is merged into it.
    pub fn adapter_folder(&self) -> Result<Option<PathBuf>> {
        self.adapter_folder.as_ref().map(Content::unchanged).transpose()
    }
}

/// The files of a folder that make up a model and its tokenizer, as they were when they were read.
#[derive(Clone, Debug)]
struct Content {
    folder: PathBuf,
    files: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    bytes: u64,
    modified: Option<SystemTime>,
    sha256: String,
}

/// A folder whose chat templates are files of their own.
const TEMPLATES: [&str; 2] = ["chat_templates", "additional_chat_templates"];

impl Content {
    fn read(folder: &Path) -> Result<Self> {
        let files = names(folder)?.into_iter().map(|name| Entry::read(folder, name));
        Ok(Self {
            folder: folder.to_owned(),
            files: files.collect::<Result<_>>()?,
        })
    }

    fn hash(&self) -> String {
        let mut all = Sha256::new();
        for file in &self.files {
            all.update(format!("{}\n{}\n", file.name, file.sha256));
        }
        hex(&all.finalize())
    }

    /// The folder, when it has the files that were read, with their sizes and times.
    fn unchanged(&self) -> Result<PathBuf> {
        let known = self.files.iter().map(|file| &file.name);
        if !names(&self.folder)?.iter().eq(known) {
            bail!(
                "`{}` has other files since this run began; hint: give the same command again",
                self.folder.display()
            );
        }
        for file in &self.files {
            let path = self.folder.join(&file.name);
            let now = fs::metadata(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            if now.len() != file.bytes || now.modified().ok() != file.modified {
                bail!(
                    "`{}` has changed since this run began; hint: give the same command again",
                    path.display()
                );
            }
        }
        Ok(self.folder.clone())
    }
}

/// Names of all files that make up the model of a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = listed(folder, "")?;
    for below in TEMPLATES {
        if folder.join(below).is_dir() {
            names.extend(listed(&folder.join(below), &format!("{below}/"))?);
        }
    }
    names.sort();
    Ok(names)
}

/// Names of the files of a model in one folder.
fn listed(folder: &Path, before: &str) -> Result<Vec<String>> {
    let read = || -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            if let Some(name) = path.file_name().and_then(|n| n.to_str())
                && ["json", "jinja", "safetensors"].contains(&kind)
                && path.is_file()
            {
                names.push(format!("{before}{name}"));
            }
        }
        Ok(names)
    };
    read().with_context(|| format!("cannot read the folder `{}`", folder.display()))
}

impl Entry {
    fn read(folder: &Path, name: String) -> Result<Self> {
        let path = folder.join(&name);
        let read = || -> std::io::Result<Self> {
            let mut file = File::open(&path)?;
            let about = file.metadata()?;
            let mut hash = Sha256::new();
            let mut buffer = vec![0; 1 << 20];
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    n => hash.update(&buffer[..n]),
                }
            }
            Ok(Self {
                bytes: about.len(),
                modified: about.modified().ok(),
                sha256: hex(&hash.finalize()),
                name,
            })
        };
        read().with_context(|| format!("cannot read `{}`", path.display()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test: a panic is the report")]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_changes_while_a_run_goes_on_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("config.json", "{}");
        write("README.md", "read me");
        let content = Content::read(folder.path()).unwrap();
        write("README.md", "what is beside the model may change");
        assert_eq!(content.unchanged().unwrap(), folder.path());

        // A template beside the tokenizer changes what the model reads, though no file of before is touched.
        write("chat_template.jinja", "{{ messages }}");
        let error = content.unchanged().unwrap_err().to_string();
        assert!(error.contains("other files since this run began"), "{error}");
        fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();

        write("config.json", "{ }");
        let error = content.unchanged().unwrap_err().to_string();
        assert!(
            error.contains("config.json` has changed since this run began"),
            "{error}"
        );
        fs::remove_file(folder.path().join("config.json")).unwrap();
        content.unchanged().unwrap_err();
    }
}
