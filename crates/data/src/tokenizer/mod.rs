//! Text to token ids and back: the project's own byte-level BPE, or the tokenizer of a Hugging Face folder.

mod export;
mod folder;
mod layout;
mod lookalikes;
mod specials;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::atomic;
use crate::chat::deep_stack;
use crate::error::{Error, Place, Result};
use crate::hash::hex;
use crate::record::Message;

pub(crate) use layout::{Chat, Layout};
use specials::Specials;

/// The special tokens of the own layout in the order of their ids.
const OWN: [&str; 4] = ["<|pad|>", "<|bos|>", "<|sep|>", "<|eos|>"];

/// Turns text into token ids and back, and knows how a prompt and its completion are laid out.
///
/// Three layouts:
///
/// - *own*, of [`train`](Self::train) and [`load`](Self::load): `[bos] prompt [sep] completion [eos]`. Byte-level BPE: every
///   text has an encoding, and decoding gives back exactly the same text. No space is put before the first word, because
///   a turn begins right after a special token or a line break and the text must come back unchanged.
/// - *chat*, of a folder with a chat template: what the template writes, token for token as transformers'
///   `apply_chat_template` gives it.
/// - *text*, of a folder without one: `[bos] prompt "\n" completion [eos]`, with the bos only where the tokenizer adds one.
///
/// In all of them text that looks like a special token is plain text.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    /// Reads what looks like a special token as plain text.
    inner: Arc<Inner>,
    vocab_size: usize,
    specials: Specials,
    layout: Layout,
    /// The files of the folder it was read from, by name; empty for the own layout.
    files: Arc<Vec<(String, Vec<u8>)>>,
    /// Of `tokenizer.json`.
    digest: [u8; 32],
}

impl Tokenizer {
    /// Fills the right side of a batch, in the own layout.
    pub const PAD: u32 = 0;
    /// Begins every sequence of the own layout.
    pub const BOS: u32 = 1;
    /// Stands between prompt and completion in the own layout.
    pub const SEP: u32 = 2;
    /// Ends a whole completion of the own layout.
    pub const EOS: u32 = 3;
    /// The smallest own vocabulary: the special tokens and the 256 bytes.
    pub const LEAST_VOCAB_SIZE: usize = OWN.len() + 256;

    /// Learns merges from texts until the vocabulary has `vocab_size` tokens.
    ///
    /// The vocabulary stays smaller when no pair of tokens occurs twice any more: ask
    /// [`vocab_size`](Self::vocab_size) afterwards. The same texts give the same tokenizer.
    ///
    /// # Errors
    /// When `vocab_size` is below [`LEAST_VOCAB_SIZE`](Self::LEAST_VOCAB_SIZE).
    pub fn train<'a>(texts: impl Iterator<Item = &'a str>, vocab_size: usize) -> Result<Self> {
        if vocab_size < Self::LEAST_VOCAB_SIZE {
            return Err(Error::VocabularyTooSmall {
                least: Self::LEAST_VOCAB_SIZE,
                got: vocab_size,
            });
        }
        let specials = OWN.map(|s| AddedToken::from(s, true)).to_vec();
        let trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size)
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(specials)
            .build();
        let mut inner = Inner::new(BPE::default());
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
        inner.with_decoder(Some(ByteLevel::new(false, false, true)));
        // The trainer wants to hand the iterator to other threads.
        let texts: Vec<&str> = texts.collect();
        inner
            .train(&mut TrainerWrapper::from(trainer), texts.into_iter())
            .map_err(failed("train"))?;
        Self::own(inner)
    }

    /// Reads a `tokenizer.json` of the own layout.
    ///
    /// # Errors
    /// When the file is unreadable, is no tokenizer, or has other special tokens than this project.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        let inner = parsed(path, &text)?;
        for (id, token) in (0u32..).zip(OWN) {
            let special = |got: String| Error::SpecialToken {
                path: path.to_path_buf(),
                token,
                expected: id,
                got,
            };
            match inner.token_to_id(token) {
                None => return Err(special("no such token".to_owned())),
                Some(found) if found != id => return Err(special(format!("id {found}"))),
                Some(_) => {}
            }
            if !inner.get_added_vocabulary().is_special_token(token) {
                return Err(special("an ordinary token".to_owned()));
            }
        }
        Self::own(inner)
    }

    /// Reads the tokenizer of a Hugging Face folder: `tokenizer.json`, and where they are present `tokenizer_config.json`,
    /// `special_tokens_map.json`, `chat_template.jinja`, `additional_chat_templates/` or `chat_templates/`, and the end
    /// tokens of `generation_config.json` and `config.json`.
    ///
    /// A folder of the own layout is recognised, by the template that [`save_folder`](Self::save_folder) writes or by its
    /// special tokens where there is no `tokenizer_config.json`.
    ///
    /// # Errors
    /// When a file is unreadable, too large, lies outside of the folder (links of the Hub's cache to its own blobs are
    /// followed), is no JSON or has values of other types; when the
    /// files contradict each other; when a chat template does not parse.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        folder::read(folder.as_ref())
    }

    /// Writes the files that transformers reads: those of the folder it came from, or for the own layout
    /// `tokenizer.json`, `tokenizer_config.json` with a chat template that gives the same ids, and
    /// `special_tokens_map.json`. A system prompt and a date set here are no part of them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save_folder(&self, folder: impl AsRef<Path>) -> Result<()> {
        export::write(self, folder.as_ref())
    }

    /// Writes a `tokenizer.json` that Hugging Face libraries read too.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let text = self.to_json()?;
        atomic::write(path.as_ref(), |w| w.write_all(text.as_bytes()))
    }

    fn own(inner: Inner) -> Result<Self> {
        let specials = Specials {
            bos: Some(Self::BOS),
            adds_bos: true,
            pad: Some(Self::PAD),
            eos: Some(Self::EOS),
            ends: vec![Self::EOS],
        };
        let text = inner.to_string(false).map_err(failed("save"))?;
        Ok(Self::with(inner, specials, Layout::Own, Vec::new(), text.as_bytes()))
    }

    /// `text` is what `tokenizer.json` says.
    fn with(mut inner: Inner, specials: Specials, layout: Layout, files: Vec<(String, Vec<u8>)>, text: &[u8]) -> Self {
        // Not part of the file: how we read text, not what the tokenizer is.
        inner.set_encode_special_tokens(true);
        let vocab_size = vocab_size(&inner);
        Self {
            inner: Arc::new(inner),
            vocab_size,
            specials,
            layout,
            files: Arc::new(files),
            digest: Sha256::digest(text).into(),
        }
    }

    fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(failed("save"))
    }

    /// The ids of a text, without any special token.
    ///
    /// # Errors
    /// When the tokenizer was loaded from a file that does not cover all bytes.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        ids(&self.inner, text)
    }

    /// The ids of a text to be continued as it is: after the bos where the tokenizer adds one, without a template.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.first().into_iter().chain(self.encode(text)?).collect())
    }

    /// The text of ids; special tokens are left out.
    ///
    /// A sequence that stops within a character (a model may do that) gives U+FFFD there.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Some(&got) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(Error::TokenId {
                vocab_size: self.vocab_size,
                got,
            });
        }
        guarded("decode", || self.inner.decode(ids, true))
    }

    /// The number of token ids, the special tokens included: one more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Refuses a model whose embedding has too few rows for the ids of this tokenizer.
    ///
    /// # Errors
    /// When `rows`, the vocabulary size of the model, is below [`vocab_size`](Self::vocab_size).
    pub fn check_fits(&self, rows: usize) -> Result<()> {
        if self.vocab_size <= rows {
            return Ok(());
        }
        Err(Error::EmbeddingTooSmall {
            vocab_size: self.vocab_size,
            rows,
        })
    }

    /// The token that fills batches, where the files name one. It may be an end token: nothing here reads it, batches go
    /// by length.
    pub fn pad(&self) -> Option<u32> {
        self.specials.pad
    }

    /// The token that begins a sequence, where the files name one.
    pub fn bos(&self) -> Option<u32> {
        self.specials.bos
    }

    /// All tokens that end a completion, in rising order; empty when the files name none.
    pub fn ends(&self) -> &[u32] {
        &self.specials.ends
    }

    /// Whether prompts go through a chat template.
    pub fn is_chat(&self) -> bool {
        matches!(self.layout, Layout::Chat(_))
    }

    /// Whether this is the project's own layout.
    pub fn is_own(&self) -> bool {
        matches!(self.layout, Layout::Own)
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The bos where the tokenizer puts one before plain text.
    pub(crate) fn first(&self) -> Option<u32> {
        self.specials.bos.filter(|_| self.specials.adds_bos)
    }

    /// The token that ends a completion without a chat template.
    pub(crate) fn last(&self) -> Option<u32> {
        self.specials.eos.or_else(|| self.specials.ends.first().copied())
    }

    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.specials.ends.binary_search(&id).is_ok()
    }

    /// The same tokenizer with a system prompt for the conversations that have none; `None` takes it away. Only chat
    /// templates read it.
    pub fn with_system(mut self, system: Option<String>) -> Self {
        if let Layout::Chat(chat) = &mut self.layout {
            chat.system = system;
        }
        self
    }

    /// The same tokenizer with another date and time for templates that write the date: seconds since 1970 of the local
    /// calendar. Without it they write 26 July 2024, so that the same data gives the same ids on every day.
    pub fn with_now(mut self, seconds: i64) -> Self {
        if let Layout::Chat(chat) = &mut self.layout {
            chat.template = chat.template.clone().with_now(seconds);
        }
        self
    }

    /// Whether the chat template writes the date.
    pub fn reads_clock(&self) -> bool {
        matches!(&self.layout, Layout::Chat(chat) if chat.template.reads_clock())
    }

    /// The text that the chat template makes of a conversation. `extra` brings further variables of the template, such as
    /// `tools` and `documents`.
    ///
    /// # Errors
    /// Without a chat template; what the template complains about or runs into.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String> {
        match &self.layout {
            Layout::Chat(chat) => deep_stack(|| chat.template.render(messages, add_generation_prompt, extra)),
            Layout::Own | Layout::Text => Err(Error::NoTemplate),
        }
    }

    /// A hash of all that changes the ids of a text or a conversation.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(&self.digest);
        let specials = &self.specials;
        part(
            format!(
                "{:?} {} {:?} {:?}",
                specials.bos, specials.adds_bos, specials.eos, specials.ends
            )
            .as_bytes(),
        );
        match &self.layout {
            Layout::Own => part(b"own"),
            Layout::Text => part(b"text"),
            Layout::Chat(chat) => {
                part(chat.template.identity().as_bytes());
                part(format!("{:?}", chat.system).as_bytes());
            }
        }
        hex(&hash.finalize())
    }
}

fn vocab_size(inner: &Inner) -> usize {
    let last = inner.get_vocab(true).into_values().max().unwrap_or(0);
    last as usize + 1
}

/// What `tokenizer.json` says.
fn parsed(path: &Path, text: &[u8]) -> Result<Inner> {
    let malformed = |e: String| Place::file(path).malformed("a tokenizer", format!("`{e}`"));
    // The library panics on some texts that are not even JSON, and on some that are.
    serde_json::from_slice::<serde::de::IgnoredAny>(text).map_err(|e| malformed(e.to_string()))?;
    match catch_unwind(|| Inner::from_bytes(text)) {
        Ok(read) => read.map_err(|e| malformed(e.to_string())),
        Err(_) => Err(malformed(
            "settings that the tokenizer library cannot cope with".to_owned(),
        )),
    }
}

/// The ids of a text for this reader of special tokens, none added.
fn ids(inner: &Inner, text: &str) -> Result<Vec<u32>> {
    let encoding = guarded("encode", || inner.encode_fast(text, false))?;
    Ok(encoding.get_ids().to_vec())
}

/// Calls the library, which panics on tokenizers whose parts do not fit together. It is called by shared reference and
/// keeps no state but a cache behind a lock of its own, so that nothing half-done is seen afterwards.
fn guarded<T>(action: &'static str, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(done) => done.map_err(failed(action)),
        Err(_) => Err(Error::Tokenizer {
            action,
            message: "the tokenizer library gave up; the parts of this tokenizer do not fit together".to_owned(),
        }),
    }
}

fn failed(action: &'static str) -> impl FnOnce(tokenizers::Error) -> Error {
    move |e| Error::Tokenizer {
        action,
        message: e.to_string(),
    }
}

#[cfg(test)]
mod tests;
