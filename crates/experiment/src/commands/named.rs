//! What a word on the command line names: a manifest, a model folder, or a model of the catalog.

use std::path::{Path, PathBuf};

use anyhow::Result;
use unsay_data::catalog::models;

use super::Usage;

/// What was named.
#[derive(Debug, PartialEq, Eq)]
pub enum Named {
    /// A file, taken for a manifest.
    Manifest(PathBuf),
    /// A model.
    Model(ModelPlace),
}

/// Where a model lies.
#[derive(Debug, PartialEq, Eq)]
pub enum ModelPlace {
    /// In a folder.
    Folder(PathBuf),
    /// In the catalog, under a name.
    Catalog(String),
}

impl Named {
    /// A file is a manifest, a folder a model; what is neither names an entry of the catalog.
    pub fn find(what: &str) -> Result<Self> {
        let path = Path::new(what);
        if path.is_dir() {
            let holds = |file: &str| path.join(file).is_file();
            if holds("adapter_config.json") && !holds("config.json") {
                return Err(Usage(format!(
                    "`{what}` is an adapter, not a model; hint: name the model that it is on, with `--adapter {what}`"
                ))
                .into());
            }
            return Ok(Self::Model(ModelPlace::Folder(path.to_owned())));
        }
        if path.exists() {
            return Ok(Self::Manifest(path.to_owned()));
        }
        if models::find(what).is_ok() {
            return Ok(Self::Model(ModelPlace::Catalog(what.to_owned())));
        }
        let known: Vec<&str> = models::list().iter().map(|m| m.name).collect();
        Err(Usage(format!(
            "`{what}` is no manifest, no folder and no model of the catalog; hint: the catalog has {}",
            known.join(", ")
        ))
        .into())
    }
}

/// Refuses options that were given and mean nothing for what was named.
pub fn refuse(given: &[(&str, bool)], what: &str, why: &str) -> Result<()> {
    let given: Vec<String> = given
        .iter()
        .filter(|(_, given)| *given)
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    if given.is_empty() {
        return Ok(());
    }
    let verb = if given.len() == 1 { "is" } else { "are" };
    Err(Usage(format!("{} {verb} not for {what}: {why}", given.join(", "))).into())
}
