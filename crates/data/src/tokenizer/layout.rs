//! How a prompt and its completion become one sequence.

use std::sync::Arc;

use tokenizers::Tokenizer as Inner;

use super::lookalikes::{Marks, Piece};
use crate::chat::ChatTemplate;
use crate::error::{Error, Result};
use crate::record::Message;

/// The three layouts.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    /// `[bos] prompt [sep] completion [eos]`.
    Own,
    /// `[bos] prompt "\n" completion [eos]`, for models without a chat template.
    Text,
    /// What a template writes.
    Chat(Box<Chat>),
}

/// A chat template together with the tokenizer that reads what it writes.
#[derive(Clone, Debug)]
pub(crate) struct Chat {
    pub(crate) template: ChatTemplate,
    /// Put before conversations that begin without a system message.
    pub(crate) system: Option<String>,
    /// Reads special tokens in text: the template's own are meant.
    pub(super) literal: Arc<Inner>,
    /// Reads them as plain text.
    pub(super) plain: Arc<Inner>,
}

/// A conversation whose look-alikes are marked.
#[derive(Clone, Debug)]
pub(crate) struct Marked {
    messages: Vec<Message>,
    marks: Marks,
}

/// A rendered conversation in which the special tokens that a message spells out are still told from the template's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// What the template wrote, with marks around text that only looks like a special token.
    text: String,
    marks: Marks,
}

impl Rendered {
    /// Whether this is how the other one begins.
    pub(crate) fn begins(&self, whole: &Self) -> bool {
        whole.text.starts_with(&self.text)
    }

    /// What `self` goes on with after `start`.
    pub(crate) fn after(&self, start: &Self) -> Option<Self> {
        self.text.strip_prefix(&start.text).map(|rest| Self {
            text: rest.to_owned(),
            marks: self.marks,
        })
    }
}

impl Chat {
    /// With the system prompt where the conversation has none.
    pub(crate) fn with_system(&self, messages: &[Message]) -> Vec<Message> {
        let has_own = messages.first().is_some_and(|first| first.role == "system");
        let system = self.system.as_ref().filter(|_| !has_own);
        let system = system.map(|text| Message::new("system", text.clone()));
        system.into_iter().chain(messages.iter().cloned()).collect()
    }

    /// The messages with marks around what looks like a special token. One choice of marks serves a whole conversation, so
    /// that what is rendered of its parts can be compared.
    pub(crate) fn marked(&self, messages: &[Message]) -> Result<Marked> {
        let texts = messages.iter().flat_map(|m| [m.role.as_str(), m.content.as_str()]);
        let marks = Marks::choose(texts.chain([self.template.identity()])).ok_or(Error::NoMarks)?;
        let around = |text: &str| marks.around(&self.literal, text);
        let messages = messages
            .iter()
            .map(|m| Message::new(around(&m.role), around(&m.content)));
        Ok(Marked {
            messages: messages.collect(),
            marks,
        })
    }

    /// What the template writes for the first `n` messages.
    pub(crate) fn render(&self, marked: &Marked, n: usize, add_generation_prompt: bool) -> Result<Rendered> {
        let messages = marked.messages.get(..n).unwrap_or(&marked.messages);
        let text = self
            .template
            .render(messages, add_generation_prompt, &serde_json::Map::new())?;
        Ok(Rendered {
            text,
            marks: marked.marks,
        })
    }

    /// The ids of what was rendered.
    pub(crate) fn ids(&self, rendered: &Rendered) -> Result<Vec<u32>> {
        if !rendered.marks.occur_in(&rendered.text) {
            // The way of transformers, to the letter.
            return super::ids(&self.literal, &rendered.text);
        }
        let mut ids = Vec::new();
        for piece in rendered.marks.pieces(&self.literal, &rendered.text) {
            match piece {
                Piece::Special(id) => ids.push(id),
                Piece::Text(text) => ids.extend(super::ids(&self.plain, &text)?),
            }
        }
        Ok(ids)
    }

    /// The ids with which `whole` goes on after `start`, whose ids are `read`.
    ///
    /// They are those of the whole text when it begins with the same ids, and those of the rest on its own where a token
    /// would reach over the seam: what stands before it is read as it is before an answer.
    pub(crate) fn continuation(&self, start: &Rendered, read: &[u32], whole: &Rendered) -> Result<Vec<u32>> {
        let all = self.ids(whole)?;
        if let Some(rest) = all.strip_prefix(read) {
            return Ok(rest.to_vec());
        }
        match whole.after(start) {
            Some(rest) => self.ids(&rest),
            None => Err(Error::NoPrefix { turn: 0 }),
        }
    }

    /// Where in a text its tokens begin, in bytes, the first left out: where it may be cut so that something is left.
    pub(crate) fn token_starts(&self, text: &str) -> Result<Vec<usize>> {
        let encoding = super::guarded("encode", || self.plain.encode(text, false))?;
        let inside = |start: &usize| *start > 0 && text.is_char_boundary(*start) && !text[*start..].trim().is_empty();
        let mut starts: Vec<usize> = encoding
            .get_offsets()
            .iter()
            .map(|(start, _)| *start)
            .filter(inside)
            .collect();
        starts.sort_unstable();
        starts.dedup();
        Ok(starts)
    }
}
