//! `unsay export`: a model as a folder that other tools load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use tch::Kind;
use unsay_data::Tokenizer;
use unsay_data::catalog::{Places, models};
use unsay_model::Decoder;

use super::generate::{ending, seed_of};
use super::named::{ModelPlace, Named, refuse};
use super::voice::say;
use super::{Usage, open, prepare};
use crate::cli::{CheckpointName, DtypeName, ExportArgs, ManifestArgs};
use crate::output::print;
use crate::plan::Checkpoint;
use crate::results;
use crate::results::card::{self, Export, Origin};
use crate::steps::Models;
use crate::store::{Store, write_atomic};

/// A model with what its folder says of it.
struct Exported {
    decoder: Decoder,
    tokenizer: Tokenizer,
    /// The folder whose generation settings go along.
    like: Option<PathBuf>,
    /// What an adapter that is written by itself belongs on.
    base: String,
    card: String,
}

/// Writes the model of an arm, or a model with its adapter merged.
pub fn export(args: &ExportArgs) -> Result<ExitCode> {
    free(&args.to)?;
    let exported = match Named::find(&args.what)? {
        Named::Manifest(manifest) => {
            refuse(
                &[("--adapter", args.adapter.is_some())],
                "a manifest",
                "its arms have their own",
            )?;
            of_arm(args, manifest)?
        }
        Named::Model(place) => {
            let given = [
                ("--arm", args.arm.is_some()),
                ("--seed", args.seed.is_some()),
                ("--checkpoint", args.checkpoint.is_some()),
                ("--profile", args.profile.is_some()),
                ("--set", !args.set.is_empty()),
                ("--runs", args.runs.is_some()),
                ("--results", args.results.is_some()),
            ];
            refuse(&given, "a model", "give a manifest to export one of its arms")?;
            of_model(args, &place)?
        }
    };
    let temporary = beside(&args.to)?;
    let written = write(exported, args, &temporary).and_then(|()| {
        fs::rename(&temporary, &args.to).with_context(|| format!("cannot make `{}`", args.to.display()))
    });
    if written.is_err() {
        drop(fs::remove_dir_all(&temporary));
    }
    written?;
    print(&format!("written to {}\n", args.to.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses a target with anything in it.
fn free(to: &Path) -> Result<()> {
    if !to.exists() {
        return Ok(());
    }
    let mut entries = fs::read_dir(to).with_context(|| format!("cannot write into `{}`", to.display()))?;
    if entries.next().is_some() {
        bail!(
            "`{}` is not empty; hint: name a folder that is not there yet",
            to.display()
        );
    }
    Ok(())
}

/// A folder beside the target that gets its name when all is written.
fn beside(to: &Path) -> Result<PathBuf> {
    let name = to
        .file_name()
        .with_context(|| format!("`{}` names no folder", to.display()))?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.partial", std::process::id()));
    let temporary = to.with_file_name(temporary);
    fs::create_dir_all(&temporary).with_context(|| format!("cannot make `{}`", temporary.display()))?;
    Ok(temporary)
}

fn of_arm(args: &ExportArgs, manifest: PathBuf) -> Result<Exported> {
    let Some(arm) = &args.arm else {
        return Err(Usage("a manifest needs `--arm`: which of them to export".into()).into());
    };
    let device = open(&args.device)?;
    let question = ManifestArgs::of(manifest, args.profile.as_ref(), &args.set, args.runs.as_ref());
    let p = prepare(&question, device)?;
    let store = Store::view(&question.runs.join("store"));
    let seed = seed_of(&p, args.seed)?;
    let checkpoint = match args.checkpoint {
        None | Some(CheckpointName::Best) => Checkpoint::Best,
        Some(CheckpointName::Last) => Checkpoint::Last,
    };
    let models = Models {
        plan: &p.plan,
        store: &store,
        device,
        say: &say,
    };
    let (evaluate, model) = ending(&p, &models, &question, (arm, seed, checkpoint))?;
    // Where the arm as the manifest stands was not measured, results that lie there are of another state of it.
    let measured = p.plan.points.iter().filter(|point| point.arm == *arm);
    let measured = measured
        .map(|point| &p.plan.steps[point.evaluate])
        .all(|step| store.has(step));
    let results = match (&args.results, args.set.is_empty()) {
        (Some(folder), _) => Some(folder.clone()),
        (None, true) => Some(results::folder(&p)).filter(|folder| measured && results::finished(folder)),
        (None, false) => None,
    };
    let origin = Origin::Arm {
        prepared: &p,
        manifest: &fs::read_to_string(&question.manifest)
            .with_context(|| format!("cannot read `{}`", question.manifest.display()))?,
        overrides: &args.set.iter().map(|o| o.text.clone()).collect::<Vec<_>>(),
        arm,
        seed,
        checkpoint,
        step: model,
        results: results.as_deref(),
    };
    let decoder = models.decoder(model, checkpoint)?;
    if args.merge && decoder.adapter().is_none() {
        return Err(Usage(format!("`--merge` wants an adapter, and arm `{arm}` trains none")).into());
    }
    let base = models.base(model)?;
    Ok(Exported {
        card: card::card(&Export {
            origin,
            adapter: decoder.adapter().is_some() && !args.merge,
        })?,
        decoder,
        tokenizer: models.tokenizer(models.input(evaluate, "tokenizer")?)?,
        like: base.as_ref().map(|b| b.folder(&mut |line| say(line))).transpose()?,
        base: base.map_or_else(String::new, |b| b.name()),
    })
}

fn of_model(args: &ExportArgs, place: &ModelPlace) -> Result<Exported> {
    let device = open(&args.device)?;
    let (folder, name) = match place {
        ModelPlace::Folder(folder) => (folder.clone(), folder.display().to_string()),
        ModelPlace::Catalog(name) => (
            models::locate(name, &Places::from_environment(), &mut say)?,
            name.clone(),
        ),
    };
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let mut decoder = Decoder::load(&folder, device)?;
    tokenizer.check_fits(decoder.config().vocab_size)?;
    if let Some(adapter) = &args.adapter {
        decoder.load_adapter(adapter)?.iter().for_each(|note| say(note));
    } else if args.merge {
        return Err(Usage("`--merge` wants an `--adapter` to merge".into()).into());
    }
    let origin = Origin::Model {
        place,
        folder: &folder,
        adapter: args.adapter.as_deref(),
    };
    Ok(Exported {
        card: card::card(&Export { origin, adapter: false })?,
        decoder,
        tokenizer,
        like: Some(folder),
        base: name,
    })
}

fn write(exported: Exported, args: &ExportArgs, to: &Path) -> Result<()> {
    write_atomic(&to.join("README.md"), exported.card.as_bytes())?;
    exported.tokenizer.save_folder(to)?;
    if exported.decoder.adapter().is_some() && !args.merge && args.adapter.is_none() {
        if args.dtype.is_some() {
            return Err(
                Usage("`--dtype` is for weights, and an adapter is written in f32; hint: `--merge`".into()).into(),
            );
        }
        return Ok(exported.decoder.save_adapter(to, &exported.base)?);
    }
    write_atomic(&to.join(GENERATION), &generation_config(&exported)?)?;
    let kind = match args.dtype {
        None | Some(DtypeName::F32) => Kind::Float,
        Some(DtypeName::Bf16) => Kind::BFloat16,
        Some(DtypeName::F16) => Kind::Half,
    };
    let mut decoder = exported.decoder;
    if decoder.adapter().is_some() {
        decoder.merge_adapter()?;
    }
    Ok(decoder.save_as(to, kind)?)
}

/// How tools generate unless told otherwise.
const GENERATION: &str = "generation_config.json";

/// `generation_config.json`: that of the base model where it has one, else the tokens that begin, end and fill up.
fn generation_config(exported: &Exported) -> Result<Vec<u8>> {
    if let Some(file) = exported
        .like
        .as_ref()
        .map(|folder| folder.join(GENERATION))
        .filter(|f| f.is_file())
    {
        return fs::read(&file).with_context(|| format!("cannot read `{}`", file.display()));
    }
    let mut config = Map::new();
    let tokenizer = &exported.tokenizer;
    let mut put = |key: &str, value: Option<Value>| value.map(|value| config.insert(key.to_owned(), value));
    put("bos_token_id", tokenizer.bos().map(|id| json!(id)));
    put(
        "eos_token_id",
        Some(match tokenizer.ends() {
            [one] => json!(one),
            many => json!(many),
        }),
    );
    put("pad_token_id", tokenizer.pad().map(|id| json!(id)));
    Ok(format!("{}\n", serde_json::to_string_pretty(&config)?).into_bytes())
}
