//! The page of a results folder.

use std::fmt::Write as _;

use anyhow::Result;
use unsay_report::Tables;

use super::about::About;

/// The page as Markdown, from the tables and what the folder says of itself.
pub fn page(about: &About, tables: &Tables) -> Result<String> {
    let _ = tables;
    let mut out = format!("# {}: {}\n\n{}\n\n", about.name, about.profile, about.question);
    for figure in &about.figures {
        let _ = writeln!(out, "![{0}](figures/{0}.svg)\n", figure.name());
    }
    Ok(out)
}
