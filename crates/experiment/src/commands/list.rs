//! `unsay list`.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::cli::ListArgs;
use crate::manifest::Manifest;
use crate::output::print;

/// What can be listed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum What {
    /// Objectives, by family; those of `token` go to `arms.NAME.train.loss`, of `paired` to `arms.NAME.pairs.loss`
    Losses,
    /// Measures for `evaluate.measures`
    Measures,
    /// Datasets for `data.ROLE.catalog.name`
    Datasets,
    /// Pretrained models that are known by name
    Models,
    /// The manifests in `experiments/`
    Experiments,
}

/// Lists.
pub fn list(args: &ListArgs) -> Result<ExitCode> {
    let mut out = String::new();
    match args.what {
        What::Losses if args.page => out = unsay_losses::page(),
        _ if args.page => anyhow::bail!("`--page` is for `unsay list losses`"),
        What::Losses => {
            for family in unsay_losses::families() {
                let _ = writeln!(out, "{}: {}", family.name, family.feedback);
                for loss in family.losses {
                    let _ = writeln!(out, "  {:<26} {}", loss.card.name, loss.card.summary);
                }
            }
        }
        What::Measures => {
            for e in unsay_eval::registry() {
                let series: Vec<&str> = e.series.iter().chain(e.corpus).map(|s| s.name).collect();
                let _ = writeln!(
                    out,
                    "{:<12} {}\n{:<12} gives: {}",
                    e.name,
                    e.summary,
                    "",
                    series.join(", ")
                );
            }
        }
        What::Datasets => {
            for d in unsay_data::catalog::list() {
                let _ = writeln!(
                    out,
                    "{:<12} {}\n{:<12} licence {}, source {}",
                    d.name, d.what, "", d.licence, d.source
                );
            }
        }
        What::Models => {
            for m in unsay_data::catalog::models::list() {
                let _ = writeln!(
                    out,
                    "{:<22} {}\n{:<22} licence {}, source {}\n{:<22} fetched when first used: {} MB, then {} MB on disk",
                    m.name, m.what, "", m.licence, m.source, "", m.fetched_mb, m.folder_mb
                );
            }
        }
        What::Experiments => {
            let mut files: Vec<_> = std::fs::read_dir("experiments")
                .context("cannot read the folder `experiments`; hint: give the command in the root of the project")?
                .filter_map(Result::ok)
                .map(|e| e.path())
                .collect();
            files.retain(|f| f.extension().is_some_and(|e| e == "yaml"));
            files.sort();
            for file in files {
                let manifest = Manifest::read(&file)?;
                let profiles: Vec<&str> = manifest.profiles().collect();
                let (_, question) = manifest.resolve(None, &[])?;
                let _ = writeln!(
                    out,
                    "{:<36} {}\n{:<36} profiles: {}",
                    file.display(),
                    question.question,
                    "",
                    profiles.join(", ")
                );
            }
        }
    }
    print(&out)?;
    Ok(ExitCode::SUCCESS)
}
