//! The base model: what all arms of a question start from. It is made by the question itself, or comes from outside
//! as a Hugging Face folder.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use unsay_data::catalog::models;
use unsay_model::{Config, Size, Trained};
use unsay_train::Settings;

use super::check::{self, path};
use super::problem::{Problem, nearest};
use super::question::{Question, Source};

/// Where the base model and its tokenizer come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Base {
    /// Made here: a tokenizer and a small decoder, trained on text.
    Train(Box<TrainedBase>),
    /// A model of the catalog (`unsay list models`).
    Catalog(CatalogBase),
    /// A model folder of your own, in the Hugging Face layout.
    Folder(FolderBase),
}

/// A base model made by the question itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainedBase {
    /// Its text; the tokenizer learns from it too.
    pub data: Source,
    /// Entries of the tokenizer, specials and the 256 bytes included.
    pub vocab_size: usize,
    /// The shape of the model.
    pub model: Size,
    /// One base model per run seed, or one for all (then its seed is 0).
    pub per_seed: bool,
    /// Processor threads of this step; part of its identity, since sums depend on it.
    pub threads: usize,
    /// The training itself.
    pub train: Settings,
}

/// A model of the catalog.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogBase {
    /// Its name.
    pub name: String,
    /// Said to a chat model before every conversation.
    pub system: Option<String>,
    /// A folder with a LoRA adapter in the PEFT layout, merged into the weights.
    pub adapter: Option<PathBuf>,
}

/// A model folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderBase {
    /// The folder.
    pub path: PathBuf,
    /// Said to a chat model before every conversation.
    pub system: Option<String>,
    /// A folder with a LoRA adapter in the PEFT layout, merged into the weights.
    pub adapter: Option<PathBuf>,
}

impl Base {
    /// The base model made here, if that is what it is.
    pub fn trained(&self) -> Option<&TrainedBase> {
        match self {
            Self::Train(made) => Some(made),
            Self::Catalog(_) | Self::Folder(_) => None,
        }
    }

    /// The adapter of a model from outside.
    pub fn adapter(&self) -> Option<&Path> {
        match self {
            Self::Train(_) => None,
            Self::Catalog(base) => base.adapter.as_deref(),
            Self::Folder(base) => base.adapter.as_deref(),
        }
    }
}

/// Entries of the vocabulary, where that is known before anything is read; none when it is out of its range.
pub(super) fn vocabulary(q: &Question) -> Option<usize> {
    q.base
        .trained()
        .map(|made| made.vocab_size)
        .filter(|v| *v >= LEAST_VOCABULARY)
}

/// 256 bytes and 4 special tokens.
const LEAST_VOCABULARY: usize = unsay_data::Tokenizer::LEAST_VOCAB_SIZE;
/// Larger vocabularies are a slip of the finger.
const LARGEST_VOCABULARY: usize = 1 << 20;

/// Problems of the block `base`.
pub(super) fn check(q: &Question, out: &mut Vec<Problem>) {
    match &q.base {
        Base::Train(made) => {
            check::source("pretraining", "base.train.data", &made.data, out);
            self::made(made, out);
        }
        Base::Catalog(base) => {
            if models::find(&base.name).is_err() {
                let known = || models::list().iter().map(|m| m.name);
                let p = Problem::value(
                    path("base.catalog.name"),
                    format!("no model `{}` in the catalog", base.name),
                );
                let all = || format!("known: {}", known().collect::<Vec<_>>().join(", "));
                out.push(p.hint(nearest(&base.name, known()).map_or_else(all, |k| format!("did you mean `{k}`?"))));
            }
        }
        Base::Folder(base) => {
            let here = "base.folder.path";
            if folder(here, &base.path, "config.json", out)
                && let Err(e) = Config::read(&base.path)
            {
                out.push(Problem::value(path(here), e.to_string()));
            }
        }
    }
    let kind = if matches!(q.base, Base::Catalog(_)) {
        "catalog"
    } else {
        "folder"
    };
    if let Some(adapter) = q.base.adapter() {
        folder(&format!("base.{kind}.adapter"), adapter, "adapter_config.json", out);
    }
}

/// Whether a folder holds a file, and the problem where it does not.
fn folder(here: &str, folder: &Path, file: &str, out: &mut Vec<Problem>) -> bool {
    let message = if !folder.is_dir() {
        format!("no folder `{}`", folder.display())
    } else if !folder.join(file).is_file() {
        format!("no `{file}` in the folder `{}`", folder.display())
    } else {
        return true;
    };
    out.push(Problem::value(path(here), message));
    false
}

fn made(base: &TrainedBase, out: &mut Vec<Problem>) {
    let m = &base.model;
    for (key, v, max) in [
        ("hidden_size", m.hidden_size, 1 << 16),
        ("intermediate_size", m.intermediate_size, 1 << 18),
        ("num_hidden_layers", m.num_hidden_layers, 1 << 10),
        ("num_attention_heads", m.num_attention_heads, 1 << 10),
        ("num_key_value_heads", m.num_key_value_heads, 1 << 10),
    ] {
        if v < 1 || v > max {
            out.push(Problem::value(
                path(&format!("base.train.model.{key}")),
                format!("wanted 1 to {max}, got {v}"),
            ));
        }
    }
    let (h, a, k) = (
        m.hidden_size,
        m.num_attention_heads.max(1),
        m.num_key_value_heads.max(1),
    );
    if h % a != 0 || (h / a) % 2 != 0 {
        out.push(Problem::value(
            path("base.train.model.num_attention_heads"),
            format!("{a} heads do not divide a width of {h} into even parts"),
        ));
    }
    if a % k != 0 {
        out.push(Problem::value(
            path("base.train.model.num_key_value_heads"),
            format!("{k} key and value heads do not divide {a} query heads"),
        ));
    }
    if !(LEAST_VOCABULARY..=LARGEST_VOCABULARY).contains(&base.vocab_size) {
        out.push(Problem::value(
            path("base.train.vocab_size"),
            format!(
                "wanted {LEAST_VOCABULARY} (256 bytes, 4 specials) to {LARGEST_VOCABULARY}, got {}",
                base.vocab_size
            ),
        ));
    }
    for (field, message) in base.train.check() {
        out.push(Problem::value(path(&format!("base.train.train.{field}")), message));
    }
    if !(1..=1024).contains(&base.threads) {
        out.push(Problem::value(
            path("base.train.threads"),
            format!("wanted 1 to 1024 threads, got {}", base.threads),
        ));
    }
}

/// Problems of a choice of trained parts, as far as the model is known before it is read.
pub(super) fn check_trained(q: &Question, here: &str, trained: &Trained, out: &mut Vec<Problem>) {
    let description = match &q.base {
        // A shape that no model can have is said elsewhere; positions are no part of what is trained.
        Base::Train(made) => Some(Config::new(&made.model, made.vocab_size, 1)).filter(|config| config.check().is_ok()),
        Base::Folder(base) => Config::read(&base.path).ok(),
        Base::Catalog(_) => None,
    };
    let kind = match trained {
        Trained::All {} => return,
        Trained::Top { .. } => "top.",
        Trained::Lora(_) => "",
    };
    let problems = match &description {
        Some(config) => trained.check_fit(config),
        None => trained.check(None),
    };
    for (field, message) in problems {
        out.push(Problem::value(path(&format!("{here}.{kind}{field}")), message));
    }
}
