//! The tokenizer of a Hugging Face folder.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizers::Tokenizer as Inner;

use super::layout::{Chat, Layout};
use super::specials::Specials;
use super::{OWN, Tokenizer, export, ids, parsed, vocab_size};
use crate::chat::{ChatTemplate, deep_stack};
use crate::error::{Error, Place, Result};
use crate::record::Message;

/// The largest `tokenizer.json`: the largest in use have some 35 MB.
const LARGEST_TOKENIZER: u64 = 256 << 20;
/// The largest of the other files: a description of 250,000 added tokens.
const LARGEST_CONFIG: u64 = 64 << 20;
/// The largest chat template: the largest in use have some 20 KB.
const LARGEST_TEMPLATE: u64 = 1 << 20;
/// More named templates than any folder has.
const MOST_TEMPLATES: usize = 64;

const TEMPLATE: &str = "chat_template.jinja";
/// Where further templates lie: the name in transformers, and the name in its documentation.
const TEMPLATE_FOLDERS: [&str; 2] = ["additional_chat_templates", "chat_templates"];

/// Classes of transformers that put the bos before plain text by their own setting, whatever `tokenizer.json` says.
const OWN_BOS: [&str; 4] = ["Llama", "CodeLlama", "Gemma", "Cohere"];

/// The special tokens that have a name, in the order of transformers.
const NAMED: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// See [`Tokenizer::from_folder`].
pub(super) fn read(folder: &Path) -> Result<Tokenizer> {
    let mut files = Files::of(folder)?;
    let path = folder.join("tokenizer.json");
    let text = files
        .keep("tokenizer.json", LARGEST_TOKENIZER)?
        .ok_or_else(|| Place::file(&path).malformed("the tokenizer of this folder", "no such file"))?;
    let mut inner = parsed(&path, &text)?;
    // Settings for calls that ask for them; transformers does not either unless told to.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(super::failed("set up"))?;
    let config = files.object("tokenizer_config.json")?;
    let map = files.object("special_tokens_map.json")?.unwrap_or_default();
    let templates = files.templates(config.as_ref())?;
    if has_own_tokens(&inner) {
        let own_template =
            matches!(templates.as_slice(), [(name, text)] if name == "default" && text == export::TEMPLATE);
        if config.is_none() || own_template {
            return Tokenizer::own(inner);
        }
    }
    let config = config.unwrap_or_default();
    check_added(&files, &config, &inner)?;
    let named = Named::of(&files, config, map, &inner)?;
    let mut specials = named.specials(&files, &inner)?;
    let layout = if templates.is_empty() {
        Layout::Text
    } else {
        let mut literal = inner.clone();
        literal.set_encode_special_tokens(false);
        let mut plain = inner.clone();
        plain.set_encode_special_tokens(true);
        let template = ChatTemplate::new(templates, named.variables())?;
        let chat = Chat {
            template,
            system: None,
            literal: Arc::new(literal),
            plain: Arc::new(plain),
        };
        specials.ends.extend(end_of_turn(&chat));
        specials.ends.sort_unstable();
        specials.ends.dedup();
        Layout::Chat(Box::new(chat))
    };
    Ok(Tokenizer::with(inner, specials, layout, files.kept, &text))
}

/// Whether the special tokens of the own layout are at their ids.
fn has_own_tokens(inner: &Inner) -> bool {
    (0u32..)
        .zip(OWN)
        .all(|(id, token)| inner.token_to_id(token) == Some(id) && inner.get_added_vocabulary().is_special_token(token))
}

/// The special token that the template writes right after an answer, if any. Some templates end a turn by another token
/// than the end of a text, and not every folder lists it.
fn end_of_turn(chat: &Chat) -> Option<u32> {
    let answer = "unsay";
    let messages = [Message::new("user", "word"), Message::new("assistant", answer)];
    let written = deep_stack(|| chat.template.render(&messages, false, &Map::new())).ok()?;
    let after = &written[written.rfind(answer)? + answer.len()..];
    let first = ids(&chat.literal, after.trim_start()).ok()?.first().copied()?;
    let token = chat.literal.id_to_token(first)?;
    let special = chat.literal.get_added_vocabulary().is_special_token(&token);
    (special && after.trim_start().starts_with(&token)).then_some(first)
}

/// `added_tokens_decoder` must say what `tokenizer.json` says.
fn check_added(files: &Files, config: &Map<String, Value>, inner: &Inner) -> Result<()> {
    let wrong = |key: &str, expected: &str, got: String| files.wrong("tokenizer_config.json", key, expected, got);
    let added = match config.get("added_tokens_decoder") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(added)) => added,
        Some(other) => return Err(wrong("added_tokens_decoder", "an object", kind(other))),
    };
    for (id, token) in added {
        let key = format!("added_tokens_decoder.{id}");
        let number: u32 = id.parse().map_err(|_| wrong(&key, "a token id", format!("`{id}`")))?;
        let content = match token.get("content").and_then(Value::as_str) {
            Some(content) => content,
            None => return Err(wrong(&key, "an object with `content`", kind(token))),
        };
        let found = inner.id_to_token(number);
        if found.as_deref() != Some(content) {
            let found = found.map_or("no token".to_owned(), |token| format!("`{token}`"));
            let expected = format!("the token {found} that tokenizer.json has at {number}");
            return Err(wrong(&key, &expected, format!("`{content}`")));
        }
        let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        if special && !inner.get_added_vocabulary().is_special_token(content) {
            let got = "a special one".to_owned();
            return Err(wrong(&key, "the ordinary token that tokenizer.json has", got));
        }
    }
    Ok(())
}

/// The special tokens with a name, as text.
struct Named {
    config: Map<String, Value>,
    tokens: Vec<(&'static str, String)>,
    further: Vec<String>,
}

impl Named {
    /// `tokenizer_config.json` says, or in folders before it listed the added tokens `special_tokens_map.json`.
    fn of(files: &Files, config: Map<String, Value>, map: Map<String, Value>, inner: &Inner) -> Result<Self> {
        let map_first = !config.contains_key("added_tokens_decoder");
        let mut tokens = Vec::new();
        for key in NAMED {
            let in_config = config.get(key).map(|value| ("tokenizer_config.json", value));
            let in_map = map.get(key).map(|value| ("special_tokens_map.json", value));
            let found = if map_first {
                in_map.or(in_config)
            } else {
                in_config.or(in_map)
            };
            let Some((file, value)) = found.filter(|(_, value)| !value.is_null()) else {
                continue;
            };
            let token = files.token(file, key, value)?;
            if inner.token_to_id(&token).is_none() {
                let hint = "\nhint: load the tokenizer with transformers and save it, which adds the token";
                return Err(files.wrong(file, key, "a token of tokenizer.json", format!("`{token}`{hint}")));
            }
            tokens.push((key, token));
        }
        let mut further = Vec::new();
        match config.get("additional_special_tokens") {
            None | Some(Value::Null) => {}
            Some(Value::Array(list)) => {
                for value in list {
                    further.push(files.token("tokenizer_config.json", "additional_special_tokens", value)?);
                }
            }
            Some(other) => {
                return Err(files.wrong(
                    "tokenizer_config.json",
                    "additional_special_tokens",
                    "a list",
                    kind(other),
                ));
            }
        }
        Ok(Self {
            config,
            tokens,
            further,
        })
    }

    fn get(&self, key: &str) -> Option<&str> {
        let found = self.tokens.iter().find(|(name, _)| *name == key);
        found.map(|(_, token)| token.as_str())
    }

    /// What a template may read.
    fn variables(&self) -> Map<String, Value> {
        let mut variables = Map::new();
        for (name, token) in &self.tokens {
            variables.insert((*name).to_owned(), token.clone().into());
        }
        if !self.further.is_empty() {
            variables.insert("additional_special_tokens".to_owned(), self.further.clone().into());
        }
        variables
    }

    fn specials(&self, files: &Files, inner: &Inner) -> Result<Specials> {
        let id = |key| self.get(key).and_then(|token| inner.token_to_id(token));
        let model = files.model_ids("config.json", inner)?;
        let generation = files.model_ids("generation_config.json", inner)?;
        let mut ends: Vec<u32> = id("eos_token").into_iter().chain(generation.ends).collect();
        if ends.is_empty() {
            ends = model.ends;
        }
        ends.sort_unstable();
        ends.dedup();
        // A token set to null is none; one that is not spoken of may be named by the model's own description.
        let unsaid = |key: &str| self.get(key).is_none() && !self.config.contains_key(key);
        let bos = id("bos_token").or(model.bos.filter(|_| unsaid("bos_token")));
        let pad = id("pad_token").or(model.pad.filter(|_| unsaid("pad_token")));
        let class = self
            .config
            .get("tokenizer_class")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let adds_bos = if OWN_BOS.iter().any(|own| class.starts_with(own)) {
            match self.config.get("add_bos_token") {
                None | Some(Value::Null) => true,
                Some(Value::Bool(adds)) => *adds,
                Some(other) => {
                    return Err(files.wrong("tokenizer_config.json", "add_bos_token", "true or false", kind(other)));
                }
            }
        } else {
            let empty = super::guarded("encode", || inner.encode_fast("", true))?;
            bos.is_some() && empty.get_ids().first().copied() == bos
        };
        Ok(Specials {
            bos,
            adds_bos: adds_bos && bos.is_some(),
            pad,
            eos: id("eos_token"),
            ends,
        })
    }
}

/// Ids that a description of the model names.
#[derive(Default)]
struct ModelIds {
    bos: Option<u32>,
    pad: Option<u32>,
    ends: Vec<u32>,
}

/// The files of a folder, and those of them that belong to the tokenizer.
struct Files {
    folder: PathBuf,
    /// With links resolved.
    real: PathBuf,
    kept: Vec<(String, Vec<u8>)>,
}

impl Files {
    fn of(folder: &Path) -> Result<Self> {
        Ok(Self {
            folder: folder.to_path_buf(),
            real: folder.canonicalize().map_err(Error::io("read", folder))?,
            kept: Vec::new(),
        })
    }

    /// The content of a file of the folder; `None` when there is no such file.
    fn read(&self, name: &str, largest: u64) -> Result<Option<Vec<u8>>> {
        let path = self.folder.join(name);
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.symlink_metadata().is_err() => return Ok(None),
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        if !real.starts_with(&self.real) && !self.is_blob(name, &real) {
            let got = format!(
                "a link to `{}`\nhint: copy the folder with its links followed, `cp -rL`",
                real.display()
            );
            return Err(Place::file(&path).malformed("a file of this folder", got));
        }
        let file = std::fs::File::open(&real).map_err(Error::io("read", &path))?;
        if !file.metadata().map_err(Error::io("read", &path))?.is_file() {
            return Err(Place::file(&path).malformed("a file", "something else"));
        }
        let mut bytes = Vec::new();
        file.take(largest + 1)
            .read_to_end(&mut bytes)
            .map_err(Error::io("read", &path))?;
        if bytes.len() as u64 > largest {
            let expected = format!("a file of at most {} MiB", largest >> 20);
            return Err(Place::file(&path).malformed(expected, "a larger one"));
        }
        Ok(Some(bytes))
    }

    /// The form of the Hub's own cache: `<repository>/snapshots/<revision>/<file>` is a link to `../../blobs/<name>`, from
    /// a folder in it with as many more steps up.
    fn is_blob(&self, name: &str, real: &Path) -> bool {
        let snapshots = self
            .real
            .parent()
            .filter(|p| p.file_name() == Some(OsStr::new("snapshots")));
        let Some(repository) = snapshots.and_then(Path::parent) else {
            return false;
        };
        let Ok(link) = self.folder.join(name).read_link() else {
            return false;
        };
        let Some(blob) = link.file_name() else { return false };
        let up = "../".repeat(name.matches('/').count() + 2);
        let written = Path::new(&up).join("blobs").join(blob);
        link == written && real == repository.join("blobs").join(blob)
    }

    /// The same for a file that goes wherever the tokenizer goes.
    fn keep(&mut self, name: &str, largest: u64) -> Result<Option<Vec<u8>>> {
        let bytes = self.read(name, largest)?;
        if let Some(bytes) = &bytes {
            self.kept.push((name.to_owned(), bytes.clone()));
        }
        Ok(bytes)
    }

    fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>> {
        let bytes = self.keep(name, LARGEST_CONFIG)?;
        bytes.map(|bytes| self.parsed(name, &bytes)).transpose()
    }

    fn parsed(&self, name: &str, bytes: &[u8]) -> Result<Map<String, Value>> {
        let place = || Place::file(&self.folder.join(name));
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(other) => Err(place().malformed("a JSON object", kind(&other))),
            Err(e) => Err(place().malformed("a JSON object", format!("`{e}`"))),
        }
    }

    fn wrong(&self, file: &str, key: &str, expected: &str, got: impl Into<String>) -> Error {
        Place::file(&self.folder.join(file)).malformed(format!("{expected} in `{key}`"), got)
    }

    /// A token by its text, or by an object with `content`.
    fn token(&self, file: &str, key: &str, value: &Value) -> Result<String> {
        let text = match value {
            Value::String(text) => Some(text),
            Value::Object(object) => match object.get("content") {
                Some(Value::String(text)) => Some(text),
                _ => None,
            },
            _ => None,
        };
        match text {
            Some(text) => Ok(text.clone()),
            None => Err(self.wrong(file, key, "a token or an object with `content`", kind(value))),
        }
    }

    fn model_ids(&self, file: &str, inner: &Inner) -> Result<ModelIds> {
        let Some(bytes) = self.read(file, LARGEST_CONFIG)? else {
            return Ok(ModelIds::default());
        };
        let object = self.parsed(file, &bytes)?;
        let n_tokens = vocab_size(inner);
        let id = |key: &str, value: &Value| {
            let small = value.as_u64().and_then(|id| u32::try_from(id).ok());
            let inside = small.filter(|&id| (id as usize) < n_tokens);
            let expected = format!("token ids below {n_tokens}");
            inside.ok_or_else(|| self.wrong(file, key, &expected, format!("`{value}`")))
        };
        let one = |key: &str| match object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => id(key, value).map(Some),
        };
        let ends = match object.get("eos_token_id") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) => list
                .iter()
                .map(|value| id("eos_token_id", value))
                .collect::<Result<_>>()?,
            Some(value) => vec![id("eos_token_id", value)?],
        };
        Ok(ModelIds {
            bos: one("bos_token_id")?,
            pad: one("pad_token_id")?,
            ends,
        })
    }

    /// The chat templates by name: those in files of their own, else those in `tokenizer_config.json`.
    fn templates(&mut self, config: Option<&Map<String, Value>>) -> Result<Vec<(String, String)>> {
        let mut templates = Vec::new();
        if let Some(bytes) = self.keep(TEMPLATE, LARGEST_TEMPLATE)? {
            templates.push(("default".to_owned(), self.utf8(TEMPLATE, bytes)?));
        }
        for folder in TEMPLATE_FOLDERS {
            for name in self.names_in(folder)? {
                let file = format!("{folder}/{name}.jinja");
                if let Some(bytes) = self.keep(&file, LARGEST_TEMPLATE)? {
                    let text = self.utf8(&file, bytes)?;
                    if templates.iter().any(|(known, _)| *known == name) {
                        let place = Place::file(&self.folder.join(&file));
                        return Err(place.malformed("one template of each name", format!("a second `{name}`")));
                    }
                    templates.push((name, text));
                }
            }
        }
        if templates.is_empty() {
            templates = self.templates_in(config.and_then(|config| config.get("chat_template")))?;
        }
        Ok(templates)
    }

    fn utf8(&self, file: &str, bytes: Vec<u8>) -> Result<String> {
        let place = || Place::file(&self.folder.join(file));
        String::from_utf8(bytes).map_err(|_| place().malformed("UTF-8 text", "other bytes"))
    }

    /// The names of the templates in a folder beside the others, in order.
    fn names_in(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.folder.join(folder);
        if !path.is_dir() {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(Error::io("read", &path))? {
            let name = entry.map_err(Error::io("read", &path))?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".jinja"));
            names.extend(name.map(str::to_owned));
            if names.len() > MOST_TEMPLATES {
                let expected = format!("at most {MOST_TEMPLATES} templates");
                return Err(Place::file(&path).malformed(expected, "more"));
            }
        }
        names.sort();
        Ok(names)
    }

    fn templates_in(&self, value: Option<&Value>) -> Result<Vec<(String, String)>> {
        let key = "chat_template";
        let expected = "a template, or templates by name,";
        let wrong = |value: &Value| self.wrong("tokenizer_config.json", key, expected, kind(value));
        let text = |value: &Value| match value.as_str() {
            Some(text) if text.len() as u64 <= LARGEST_TEMPLATE => Ok(text.to_owned()),
            Some(_) => Err(self.wrong("tokenizer_config.json", key, "at most 1 MiB", "more")),
            None => Err(wrong(value)),
        };
        match value {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(one @ Value::String(_)) => Ok(vec![("default".to_owned(), text(one)?)]),
            Some(Value::Object(named)) => named.iter().map(|(name, one)| Ok((name.clone(), text(one)?))).collect(),
            Some(Value::Array(list)) => list
                .iter()
                .map(
                    |one| match (one.get("name").and_then(Value::as_str), one.get("template")) {
                        (Some(name), Some(template)) => Ok((name.to_owned(), text(template)?)),
                        _ => Err(wrong(one)),
                    },
                )
                .collect(),
            Some(other) => Err(wrong(other)),
        }
    }
}

fn kind(value: &Value) -> String {
    crate::shapes::kind(value).to_owned()
}
