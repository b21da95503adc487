//! The model card of an exported model: what it is, what it learnt from, how it was measured, and everything needed
//! to make it again.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use unsay_data::{catalog, stream};
use unsay_report::{SummarySpec, Tables, summary};

use super::about::About;
use super::page::escape;
use crate::commands::Prepared;
use crate::commands::named::ModelPlace;
use crate::manifest::base::Base;
use crate::manifest::question::{Arm, Source};
use crate::plan::{Checkpoint, Plan, Step};
use crate::store::COMMIT;

/// What is exported.
pub struct Export<'a> {
    /// Where it comes from.
    pub origin: Origin<'a>,
    /// Whether it is an adapter by itself.
    pub adapter: bool,
}

/// Where an exported model comes from.
pub enum Origin<'a> {
    /// An arm of a manifest.
    Arm {
        /// The manifest.
        prepared: &'a Prepared,
        /// Its text.
        manifest: &'a str,
        /// Values given with `--set`.
        overrides: &'a [String],
        /// The arm.
        arm: &'a str,
        /// The run seed.
        seed: u64,
        /// Which weights.
        checkpoint: Checkpoint,
        /// The step that made it.
        step: &'a Step,
        /// The results to quote.
        results: Option<&'a Path>,
    },
    /// Another model.
    Model {
        /// As it was named.
        place: &'a ModelPlace,
        /// Its folder.
        folder: &'a Path,
        /// The adapter that was merged into it.
        adapter: Option<&'a Path>,
    },
}

/// What is known of a base model.
struct BaseModel {
    name: String,
    licence: Option<String>,
    source: Option<String>,
}

/// The card as Markdown with its YAML header.
pub fn card(export: &Export<'_>) -> Result<String> {
    match &export.origin {
        Origin::Model { place, folder, adapter } => Ok(of_model(place, folder, *adapter)),
        Origin::Arm {
            prepared,
            manifest,
            overrides,
            arm,
            seed,
            checkpoint,
            step,
            results,
        } => {
            let mut out = header(base_of(&prepared.question.base)?.as_ref(), export.adapter);
            about(&mut out, prepared, arm, *seed, *checkpoint)?;
            data(&mut out, prepared)?;
            if let Some(folder) = results {
                let about = results_of(prepared, folder, overrides)?;
                measured(&mut out, prepared, (folder, &about), arm, *seed, *checkpoint)?;
            }
            provenance(&mut out, prepared, manifest, overrides, step);
            Ok(out)
        }
    }
}

/// The header that the Hugging Face Hub reads. JSON strings are YAML strings.
fn header(base: Option<&BaseModel>, adapter: bool) -> String {
    let mut out = "---\n".to_owned();
    let mut put = |key: &str, value: Value| out.push_str(&format!("{key}: {value}\n"));
    if let Some(base) = base {
        put("base_model", json!(base.name));
        if let Some(licence) = &base.licence {
            put("license", json!(licence.to_lowercase()));
        }
    }
    put("library_name", json!(if adapter { "peft" } else { "transformers" }));
    put("pipeline_tag", json!("text-generation"));
    put("tags", json!(["unsay"]));
    out.push_str("---\n\n");
    out
}

fn base_of(base: &Base) -> Result<Option<BaseModel>> {
    Ok(match base {
        Base::Train(_) => None,
        Base::Catalog(base) => Some(in_catalog(&base.name)?),
        Base::Folder(base) => Some(in_folder(&base.path)),
    })
}

fn in_catalog(name: &str) -> Result<BaseModel> {
    let model = catalog::models::find(name)?;
    Ok(BaseModel {
        name: name.to_owned(),
        licence: Some(model.licence.to_owned()),
        source: Some(model.source.to_owned()),
    })
}

/// The name of a folder, with the licence that its own card states.
fn in_folder(folder: &Path) -> BaseModel {
    /// A card is a page of text.
    const LARGEST: u64 = 1 << 20;
    let card = folder.join("README.md");
    let readable = std::fs::metadata(&card).is_ok_and(|about| about.is_file() && about.len() <= LARGEST);
    let text = readable
        .then(|| std::fs::read_to_string(&card).ok())
        .flatten()
        .unwrap_or_default();
    let header = text
        .strip_prefix("---\n")
        .and_then(|rest| rest.split("\n---").next())
        .unwrap_or_default();
    let stated = header.lines().find_map(|line| line.strip_prefix("license:"));
    let plain = |c: &char| c.is_ascii_alphanumeric() || "-._".contains(*c);
    let stated = stated.map(|l| l.chars().filter(plain).collect::<String>());
    BaseModel {
        name: name_of(folder),
        licence: stated.filter(|licence| !licence.is_empty()),
        source: None,
    }
}

/// The last part of a path: where a folder lies is of no use on another machine.
fn name_of(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or(folder.as_os_str());
    name.to_string_lossy().into_owned()
}

fn of_model(place: &ModelPlace, folder: &Path, adapter: Option<&Path>) -> String {
    let base = match place {
        ModelPlace::Catalog(name) => in_catalog(name).unwrap_or_else(|_| in_folder(folder)),
        ModelPlace::Folder(folder) => in_folder(folder),
    };
    let mut out = header(Some(&base), false);
    let name = escape(&base.name);
    let _ = match adapter {
        Some(adapter) => {
            let adapter = escape(&name_of(adapter));
            writeln!(
                out,
                "# {name} with {adapter}\n\nThe weights of {name} with the LoRA adapter {adapter} merged into them.\n"
            )
        }
        None => writeln!(out, "# {name}\n\nThe weights of {name}, written anew.\n"),
    };
    licence(&mut out, &base);
    let _ = writeln!(
        out,
        "Written by `unsay export`, version {}, commit `{COMMIT}`.",
        env!("CARGO_PKG_VERSION")
    );
    out
}

fn licence(out: &mut String, base: &BaseModel) {
    let licence = base
        .licence
        .as_deref()
        .map_or("not stated in its folder".to_owned(), escape);
    let source = base
        .source
        .as_deref()
        .map_or(String::new(), |s| format!(", source {s}"));
    let _ = writeln!(out, "Base model: {}, licence {licence}{source}.\n", escape(&base.name));
}

fn about(out: &mut String, p: &Prepared, arm: &str, seed: u64, checkpoint: Checkpoint) -> Result<()> {
    let q = &p.question;
    let _ = writeln!(
        out,
        "# {}, arm {}\n\n> {}\n",
        escape(&q.name),
        escape(arm),
        escape(&q.question)
    );
    if let Some(warning) = &q.content_warning {
        let _ = writeln!(out, "**Content warning.** {}\n", escape(warning));
    }
    match base_of(&q.base)? {
        Some(base) => {
            licence(out, &base);
            if let Some(adapter) = q.base.adapter() {
                let _ = writeln!(
                    out,
                    "The adapter {} was merged into it first.\n",
                    escape(&name_of(adapter))
                );
            }
        }
        None => out.push_str("Base model: trained from random weights by the same manifest.\n\n"),
    }
    let form = q.arms.get(arm).with_context(|| format!("no arm `{arm}`"))?;
    let (how, loss) = match form {
        Arm::Pretrained {} => ("the base model as it is".to_owned(), None),
        Arm::Train { loss } => ("trained once".to_owned(), Some(serde_json::to_string(loss)?)),
        Arm::Pairs(objective) => (
            "trained once, on pairs".to_owned(),
            Some(serde_json::to_string(objective)?),
        ),
        Arm::Iterate { loss, iterations } => (
            format!("trained {iterations} times, with its own labelled replies from the second time on"),
            Some(serde_json::to_string(loss)?),
        ),
    };
    let _ = writeln!(
        out,
        "Profile {}, run seed {seed}, weights `{}`: {how}.\n",
        escape(&p.profile),
        checkpoint.name()
    );
    if let Some(loss) = loss {
        let _ = writeln!(out, "Objective: `{loss}`\n");
        if !q.finetune.trained.is_default() {
            let _ = writeln!(
                out,
                "Trained parts: `{}`\n",
                serde_json::to_string(&q.finetune.trained)?
            );
        }
    }
    Ok(())
}

fn data(out: &mut String, p: &Prepared) -> Result<()> {
    out.push_str("## Data\n\n| role | source | licence |\n|---|---|---|\n");
    let q = &p.question;
    let pretraining = q.base.trained().map(|made| ("pretraining", &made.data));
    let roles = [("feedback", &q.data.feedback), ("dialogue", &q.data.dialogue)];
    for (role, source) in pretraining.into_iter().chain(roles) {
        let (source, licence) = match source {
            Source::Testbed { .. } => ("made by unsay".to_owned(), "MIT".to_owned()),
            Source::Catalog { name, .. } => {
                let dataset = catalog::find(name)?;
                (format!("{name}, {}", dataset.source), dataset.licence.to_owned())
            }
            Source::Files(_) => ("files of the author".to_owned(), "not stated".to_owned()),
        };
        let _ = writeln!(out, "| {role} | {} | {} |", escape(&source), escape(&licence));
    }
    out.push('\n');
    Ok(())
}

/// What a results folder says of itself, refused where that is another question, profile or state of the manifest.
fn results_of(p: &Prepared, folder: &Path, overrides: &[String]) -> Result<About> {
    let about = About::read(folder)?;
    if about.name != p.question.name || about.profile != p.profile {
        anyhow::bail!(
            "`{}` holds results of `{}`, profile `{}`; hint: name others with --results",
            folder.display(),
            about.name,
            about.profile
        );
    }
    let differs = [
        ("overrides", about.overrides != overrides),
        ("arms", !about.arms.iter().eq(p.question.arms.keys())),
        ("seeds", about.seeds != p.question.seeds),
        ("split", about.split != p.question.evaluate.split.name()),
    ];
    if let Some((what, _)) = differs.iter().find(|(_, differs)| *differs) {
        anyhow::bail!(
            "`{}` holds results with other {what} than this manifest; hint: unsay run makes them anew, --results names \
             others",
            folder.display()
        );
    }
    Ok(about)
}

/// The numbers of the arm as the page of the results shows them.
fn measured(
    out: &mut String,
    p: &Prepared,
    (folder, about): (&Path, &About),
    arm: &str,
    seed: u64,
    checkpoint: Checkpoint,
) -> Result<()> {
    let tables = Tables::read(folder)?;
    let table = SummarySpec {
        checkpoints: vec![checkpoint.name().to_owned()],
        baseline: None,
        ..p.question.table.clone()
    };
    let _ = writeln!(
        out,
        "## Measured\n\nOn the {} split, over the run seeds {:?}; this is seed {seed}.\n",
        about.split, about.seeds
    );
    out.push_str(&summary(&tables, &table, &[arm.to_owned()], &|purpose| {
        stream(0, purpose, 0)
    })?);
    out.push('\n');
    Ok(())
}

fn provenance(out: &mut String, p: &Prepared, manifest: &str, overrides: &[String], step: &Step) {
    let _ = writeln!(
        out,
        "## Provenance\n\nWritten by `unsay export`, version {}, commit `{COMMIT}`. The steps that made it, by key:\n\n\
         | step | key |\n|---|---|",
        env!("CARGO_PKG_VERSION")
    );
    for step in line_of(&p.plan, step) {
        let _ = writeln!(out, "| {} | `{}` |", escape(&step.title), step.key);
    }
    if !overrides.is_empty() {
        let given: Vec<String> = overrides.iter().map(|o| format!("`{}`", o.replace('`', "'"))).collect();
        let _ = writeln!(out, "\nWith overrides: {}.", given.join(", "));
    }
    // A fence longer than any in the text: nothing of the manifest is read as Markdown.
    let longest = manifest.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat((longest + 1).max(3));
    let _ = writeln!(out, "\nThe manifest:\n\n{fence}yaml\n{}\n{fence}", manifest.trim_end());
}

/// A step with all that it was made from, in the order of the plan.
fn line_of<'a>(plan: &'a Plan, step: &Step) -> Vec<&'a Step> {
    let mut wanted: Vec<bool> = plan.steps.iter().map(|s| s.key == step.key).collect();
    // Inputs come before what is made of them, so one look from the end finds all.
    for i in (0..plan.steps.len()).rev() {
        if wanted[i] {
            plan.steps[i].inputs.iter().for_each(|(_, input)| wanted[*input] = true);
        }
    }
    plan.steps
        .iter()
        .zip(wanted)
        .filter(|(_, w)| *w)
        .map(|(s, _)| s)
        .collect()
}
