//! A byte-level BPE tokenizer with four special tokens at fixed ids.

use std::path::Path;

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::atomic;
use crate::error::{Error, Result};

/// The special tokens in the order of their ids.
const SPECIALS: [&str; 4] = ["<|pad|>", "<|bos|>", "<|sep|>", "<|eos|>"];

/// Turns text into token ids and back.
///
/// Byte-level BPE: every text has an encoding, and decoding gives back exactly the same text. No
/// space is put before the first word, because a turn begins right after a special token or a line
/// break and the text must come back unchanged. Text that looks like a special token is plain text.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Inner,
    vocab_size: usize,
}

impl Tokenizer {
    /// Fills the right side of a batch.
    pub const PAD: u32 = 0;
    /// Begins every sequence.
    pub const BOS: u32 = 1;
    /// Stands between prompt and completion.
    pub const SEP: u32 = 2;
    /// Ends a whole completion.
    pub const EOS: u32 = 3;
    /// The smallest vocabulary: the special tokens and the 256 bytes.
    pub const LEAST_VOCAB_SIZE: usize = SPECIALS.len() + 256;

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
        let specials = SPECIALS.map(|s| AddedToken::from(s, true)).to_vec();
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
        Ok(Self::from_inner(inner))
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When the file is unreadable, is no tokenizer, or has other special tokens than this project.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        let malformed = |e: String| crate::error::Place::file(path).malformed("a tokenizer", format!("`{e}`"));
        // The library panics on some texts that are not even JSON.
        serde_json::from_slice::<serde::de::IgnoredAny>(&text).map_err(|e| malformed(e.to_string()))?;
        let inner = Inner::from_bytes(text).map_err(|e| malformed(e.to_string()))?;
        for (id, token) in (0u32..).zip(SPECIALS) {
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
        Ok(Self::from_inner(inner))
    }

    /// Writes a `tokenizer.json` that Hugging Face libraries read too.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let text = self.to_json()?;
        atomic::write(path.as_ref(), |w| w.write_all(text.as_bytes()))
    }

    fn from_inner(mut inner: Inner) -> Self {
        // Not part of the file: how we read text, not what the tokenizer is.
        inner.set_encode_special_tokens(true);
        let last = inner.get_vocab(true).into_values().max().unwrap_or(0);
        Self {
            inner,
            vocab_size: last as usize + 1,
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
        let encoding = self.inner.encode_fast(text, false).map_err(failed("encode"))?;
        Ok(encoding.get_ids().to_vec())
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
        self.inner.decode(ids, true).map_err(failed("decode"))
    }

    /// The number of token ids, the special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

fn failed(action: &'static str) -> impl FnOnce(tokenizers::Error) -> Error {
    move |e| Error::Tokenizer {
        action,
        message: e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{SPECIALS, Tokenizer};
    use proptest::prelude::*;

    const TEXTS: [&str; 5] = [
        "the cat sat on the mat",
        "the dog sat on the log\nthe cat saw the dog",
        "what do you think of the cat?",
        "I think the cat is a good cat <|eos|> <|eos|> <|eos|>",
        "naïve café, 12 34 12 34",
    ];

    fn small() -> Tokenizer {
        Tokenizer::train(TEXTS.into_iter(), 320).unwrap()
    }

    #[test]
    fn training_twice_gives_the_same_file() {
        let words = ["ab", "abc", "bca", "cab", "abcab", "aab", "bb", "cca"];
        let texts: Vec<String> = (0..400usize)
            .map(|i| {
                (0..7)
                    .map(|j| words[(i * 31 + j * j * 17 + i * j) % words.len()])
                    .collect::<Vec<_>>()
                    .concat()
            })
            .collect();
        let train = || Tokenizer::train(texts.iter().map(String::as_str), 700).unwrap();
        let first = train().to_json().unwrap();
        for _ in 0..5 {
            assert_eq!(first, train().to_json().unwrap());
        }
    }

    #[test]
    fn special_tokens_have_their_ids_and_are_not_read_from_text() {
        let tokenizer = small();
        for (id, special) in SPECIALS.iter().enumerate() {
            assert_eq!(tokenizer.inner.token_to_id(special), Some(id as u32));
            let ids = tokenizer.encode(special).unwrap();
            assert!(ids.iter().all(|&i| i > Tokenizer::EOS), "{special}: {ids:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), *special);
        }
    }

    #[test]
    fn special_tokens_are_left_out_of_decoded_text() {
        let tokenizer = small();
        let mut ids = vec![Tokenizer::BOS];
        ids.extend(tokenizer.encode("the cat").unwrap());
        ids.extend([Tokenizer::SEP, Tokenizer::EOS, Tokenizer::PAD]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "the cat");
    }

    #[test]
    fn merges_shorten_common_words() {
        let tokenizer = small();
        assert_eq!(tokenizer.encode(" the").unwrap().len(), 1);
        assert!(tokenizer.vocab_size() > Tokenizer::LEAST_VOCAB_SIZE);
        assert!(tokenizer.vocab_size() <= 320);
    }

    #[test]
    fn a_vocabulary_holds_the_bytes() {
        let error = Tokenizer::train(TEXTS.into_iter(), 259).unwrap_err();
        assert_eq!(error.to_string(), "vocab_size: expected at least 260, got 259");
        let bytes = Tokenizer::train(TEXTS.into_iter(), 260).unwrap();
        assert_eq!(bytes.vocab_size(), 260);
        assert_eq!(bytes.encode("cat").unwrap().len(), 3);
        let untrained = Tokenizer::train(std::iter::empty(), 1000).unwrap();
        assert_eq!(untrained.vocab_size(), 260);
    }

    #[test]
    fn unknown_ids_are_refused() {
        let tokenizer = small();
        let n = tokenizer.vocab_size();
        let error = tokenizer.decode(&[5, n as u32]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("tokenizer: expected token ids below {n}, got {n}")
        );
    }

    #[test]
    fn a_saved_tokenizer_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let tokenizer = small();
        tokenizer.save(&path).unwrap();
        let loaded = Tokenizer::load(&path).unwrap();
        assert_eq!(loaded.to_json().unwrap(), tokenizer.to_json().unwrap());
        assert_eq!(loaded.vocab_size(), tokenizer.vocab_size());
        let text = "the cat <|eos|> sat";
        assert_eq!(loaded.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    }

    #[test]
    fn a_tokenizer_with_other_special_tokens_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let refused = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Tokenizer::load(&path).unwrap_err().to_string()
        };
        let json = small().to_json().unwrap();
        let renamed = refused(&json.replace("<|sep|>", "<|middle|>"));
        assert!(
            renamed.ends_with("the special token `<|sep|>` with id 2, got no such token"),
            "{renamed}"
        );
        let swapped = json
            .replace("<|bos|>", "<|x|>")
            .replace("<|eos|>", "<|bos|>")
            .replace("<|x|>", "<|eos|>");
        let swapped = refused(&swapped);
        assert!(swapped.ends_with("`<|bos|>` with id 1, got id 3"), "{swapped}");
        assert!(refused("{}").contains("expected a tokenizer"));
        assert!(refused("").contains("expected a tokenizer"));
        // A cut inside of the decoder made the library panic.
        let cuts: Vec<usize> = json
            .match_indices(['{', '"', ','])
            .map(|(at, _)| at)
            .take(200)
            .collect();
        assert_eq!(cuts.len(), 200);
        for cut in cuts {
            assert!(refused(&json[..cut]).contains("expected a tokenizer"), "cut at {cut}");
        }
        let missing = Tokenizer::load(folder.path().join("none.json"))
            .unwrap_err()
            .to_string();
        assert!(missing.starts_with("could not read `"), "{missing}");
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in any::<String>(), at in 0usize..4, head in ".{0,5}") {
            let tokenizer = small();
            let text = format!("{head}{}{text}\r\n {}", SPECIALS[at], SPECIALS[3 - at]);
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert!(ids.iter().all(|&i| i > Tokenizer::EOS));
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}
