//! From examples to token ids: layout, truncation, and what of it is learnt.

mod conversation;
mod supervision;

use serde::{Deserialize, Serialize};

use crate::chat::{deep_stack, deep_stacks};
use crate::error::{Error, Result};
use crate::record::{Example, Label, Message};
use crate::tokenizer::{Layout, Tokenizer};
use crate::turns;

pub use supervision::Supervision;

/// The longest prompt and completion, in tokens of text: special tokens come on top. With a chat template the prompt is all
/// that comes before the answer, with the template's own tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// A longer prompt loses its beginning; with a chat template its oldest exchanges, but never a system message, and then
    /// the beginning of the last message of the user. At least 1.
    pub max_prompt: usize,
    /// A longer completion loses its end, and with it the end-of-sequence token. At least 1.
    pub max_completion: usize,
}

impl Limits {
    /// Refuses limits that leave no text.
    ///
    /// # Errors
    /// When a limit is 0.
    pub fn check(&self) -> Result<()> {
        for (setting, value) in [("max_prompt", self.max_prompt), ("max_completion", self.max_completion)] {
            if value == 0 {
                let expected = "at least 1 token";
                return Err(Error::Range {
                    setting,
                    expected,
                    got: value.to_string(),
                });
            }
        }
        Ok(())
    }

    /// The length of the longest sequence under these limits, special tokens included.
    pub fn width(&self) -> usize {
        self.max_prompt + self.max_completion + 3
    }
}

/// One example as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The whole sequence. A completion that was cut has no end token.
    pub ids: Vec<u32>,
    /// What is learnt of it: the completion, or all answers of a conversation. In order, disjoint, none of them empty, none
    /// at the very start.
    pub spans: Vec<Span>,
    /// The label of the example.
    pub label: Label,
    /// The index of the example in what was encoded.
    pub example: usize,
}

/// A stretch of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The index of its first token.
    pub start: usize,
    /// The index after its last token.
    pub end: usize,
    /// True when its last token is an end token.
    pub ended: bool,
}

impl Encoded {
    /// Of every span what the model reads before it, and the span itself.
    pub fn completions(&self) -> impl Iterator<Item = (&[u32], &[u32])> {
        let parts = |span: &Span| Some((self.ids.get(..span.start)?, self.ids.get(span.start..span.end)?));
        self.spans.iter().filter_map(parts)
    }

    /// How many tokens are learnt.
    pub fn n_learnt(&self) -> usize {
        self.spans.iter().map(|span| span.end.saturating_sub(span.start)).sum()
    }

    /// Refuses spans that are empty, out of order or outside of the sequence, and a sequence without one.
    ///
    /// # Errors
    /// Naming the example and the first such span.
    pub fn check(&self) -> Result<()> {
        let wrong = |start| Error::EmptyTarget {
            example: self.example,
            length: self.ids.len(),
            start,
        };
        let mut done = 1;
        for span in &self.spans {
            if span.start < done || span.end <= span.start || span.end > self.ids.len() {
                return Err(wrong(span.start));
            }
            done = span.end;
        }
        if self.spans.is_empty() {
            return Err(wrong(self.ids.len()));
        }
        Ok(())
    }
}

/// What comes before a completion: text with a turn per line, and messages where the data has roles.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    text: &'a str,
    messages: &'a [Message],
}

impl<'a> From<&'a str> for Prompt<'a> {
    fn from(text: &'a str) -> Self {
        Self { text, messages: &[] }
    }
}

impl<'a> From<&'a String> for Prompt<'a> {
    fn from(text: &'a String) -> Self {
        Self::from(text.as_str())
    }
}

impl<'a> From<&'a Example> for Prompt<'a> {
    fn from(example: &'a Example) -> Self {
        Self {
            text: &example.prompt,
            messages: example.prompt_messages(),
        }
    }
}

/// The ids a model reads before it writes a completion: of a text, or of the messages of an example that has some.
///
/// # Errors
/// When a limit is 0 or the tokenizer or its template refuses the text.
pub fn encode_prompt<'a>(tokenizer: &Tokenizer, prompt: impl Into<Prompt<'a>>, limits: &Limits) -> Result<Vec<u32>> {
    limits.check()?;
    let prompt = prompt.into();
    match tokenizer.layout() {
        Layout::Own | Layout::Text => Ok(text_prompt(tokenizer, prompt.text, limits.max_prompt)?.0),
        Layout::Chat(chat) => {
            let messages = match prompt.messages {
                [] => conversation::alternating(prompt.text),
                messages => messages.to_vec(),
            };
            deep_stack(|| conversation::prompt(chat, &chat.with_system(&messages), limits.max_prompt).map(|p| p.ids))
        }
    }
}

/// The ids a model reads before it answers a conversation of at most `max_prompt` tokens. Without a chat template the
/// messages are turns, whoever says them.
///
/// # Errors
/// Without a message; when the limit is 0; when the tokenizer or its template refuses the conversation.
pub fn encode_chat(tokenizer: &Tokenizer, messages: &[Message], max_prompt: usize) -> Result<Vec<u32>> {
    if messages.is_empty() {
        return Err(Error::Conversation {
            expected: "at least one",
            got: "none".to_owned(),
        });
    }
    let limits = Limits {
        max_prompt,
        max_completion: 1,
    };
    let text = turns::joined(messages.iter().map(|message| &message.content));
    encode_prompt(tokenizer, Prompt { text: &text, messages }, &limits)
}

/// The ids of a prompt without a chat template, and how many tokens were cut.
fn text_prompt(tokenizer: &Tokenizer, prompt: &str, max_prompt: usize) -> Result<(Vec<u32>, usize)> {
    let (text, last) = match tokenizer.layout() {
        Layout::Own => (tokenizer.encode(prompt)?, Some(Tokenizer::SEP)),
        Layout::Text | Layout::Chat(_) => (tokenizer.encode(&format!("{prompt}\n"))?, None),
    };
    let cut = text.len().saturating_sub(max_prompt);
    let mut ids = Vec::with_capacity(text.len() - cut + 2);
    ids.extend(tokenizer.first());
    ids.extend_from_slice(&text[cut..]);
    ids.extend(last);
    Ok((ids, cut))
}

/// The ids of a completion after its prompt, without a chat template.
fn text_completion(tokenizer: &Tokenizer, prompt: &str, completion: &str) -> Result<Vec<u32>> {
    if tokenizer.is_own() {
        return tokenizer.encode(completion);
    }
    // Some tokenizers put a space before the first word of a text, and a completion is not its first word.
    let before = tokenizer.encode(&format!("{prompt}\n"))?;
    let whole = tokenizer.encode(&format!("{prompt}\n{completion}"))?;
    match whole.strip_prefix(before.as_slice()) {
        Some(rest) if !rest.is_empty() => Ok(rest.to_vec()),
        _ => tokenizer.encode(completion),
    }
}

/// An example as ids, and what was cut of it.
struct Cut {
    ids: Vec<u32>,
    spans: Vec<Span>,
    /// Tokens cut from the prompt.
    prompt: usize,
    /// Tokens cut from the completions.
    completion: usize,
}

fn text_example(tokenizer: &Tokenizer, example: &Example, limits: &Limits) -> Result<Cut> {
    let (mut ids, prompt) = text_prompt(tokenizer, &example.prompt, limits.max_prompt)?;
    let start = ids.len();
    let completion = text_completion(tokenizer, &example.prompt, &example.completion)?;
    let cut = completion.len().saturating_sub(limits.max_completion);
    ids.extend_from_slice(&completion[..completion.len() - cut]);
    let end = tokenizer.last().filter(|_| cut == 0);
    ids.extend(end);
    let span = Span {
        start,
        end: ids.len(),
        ended: end.is_some(),
    };
    Ok(Cut {
        ids,
        spans: vec![span],
        prompt,
        completion: cut,
    })
}

/// Encodes examples in order and counts what is kept, cut and dropped.
///
/// The completion is learnt; of a conversation without a label all answers are.
///
/// # Errors
/// When a limit is 0 or the tokenizer or its template refuses an example. That nothing is left, or too little, is
/// for [`Supervision::check`] to say.
pub fn encode_all(tokenizer: &Tokenizer, examples: &[Example], limits: &Limits) -> Result<(Vec<Encoded>, Supervision)> {
    limits.check()?;
    let cut: Vec<Result<Option<Cut>>> = match tokenizer.layout() {
        Layout::Own | Layout::Text => {
            let cut = examples
                .iter()
                .map(|one| spoken(one, |one| text_example(tokenizer, one, limits)));
            cut.collect()
        }
        Layout::Chat(chat) => deep_stacks(examples, |one| {
            spoken(one, |one| conversation::example(tokenizer, chat, one, limits))
        })?,
    };
    let mut all = Vec::with_capacity(examples.len());
    let mut account = Supervision::default();
    for (index, (example, cut)) in examples.iter().zip(cut).enumerate() {
        let cut = cut.map_err(|source| Error::Example {
            example: index,
            source: Box::new(source),
        })?;
        let Some(cut) = cut else {
            account.dropped += 1;
            continue;
        };
        let encoded = Encoded {
            ids: cut.ids,
            spans: cut.spans,
            label: example.label,
            example: index,
        };
        encoded.check()?;
        account.tokens_cut_prompt += cut.prompt;
        account.tokens_cut_completion += cut.completion;
        account.examples_cut += usize::from(cut.prompt + cut.completion > 0);
        account.keep(example.label, encoded.n_learnt());
        all.push(encoded);
    }
    Ok((all, account))
}

/// An example that says something; `None` for one that does not.
fn spoken(example: &Example, encode: impl FnOnce(&Example) -> Result<Cut>) -> Result<Option<Cut>> {
    if example.completion.trim().is_empty() {
        return Ok(None);
    }
    encode(example).map(Some)
}

#[cfg(test)]
mod tests;
