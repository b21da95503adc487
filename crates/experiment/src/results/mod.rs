//! Results of a run: tables, then everything that is made from them.
//!
//! `write` is the only part that reads the store; figures and page are remade from a results folder alone.

mod about;
pub mod card;
mod collect;
mod page;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use unsay_report::{Tables, render_all};

use crate::commands::Prepared;
use crate::store::{Store, write_atomic};
use about::About;
pub use collect::SHARED;

/// Folder of the figures in a results folder.
const FIGURES: &str = "figures";
/// The page.
const PAGE: &str = "README.md";

/// Where the results of a manifest as it stands lie.
pub fn folder(p: &Prepared) -> PathBuf {
    PathBuf::from("results").join(&p.question.name).join(&p.profile)
}

/// Whether a folder holds the results of a run that was finished.
pub fn finished(folder: &Path) -> bool {
    folder.join(about::FILE).is_file()
}

/// Writes tables, figures and page of a finished run.
pub fn write(p: &Prepared, store: &Store, folder: &Path, overrides: &[String]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
    collect::tables(p, store)?.write(folder)?;
    About::of(p, store, overrides)?.write(folder)?;
    remake(folder)?;
    Ok(())
}

/// Remakes figures and page from the tables, and names what was written.
pub fn remake(folder: &Path) -> Result<Vec<PathBuf>> {
    let about = About::read(folder)?;
    let tables = Tables::read(folder)?;
    let figures = folder.join(FIGURES);
    std::fs::create_dir_all(&figures).with_context(|| format!("cannot make `{}`", figures.display()))?;
    let mut files = render_all(&about.figures, &tables, &about.arms, &figures)?;
    let page = folder.join(PAGE);
    write_atomic(&page, page::page(&about, &tables)?.as_bytes())?;
    files.push(page);
    Ok(files)
}
