//! Conversations through a chat template: what is kept of a long one, and which of its tokens are answers.
//!
//! The template is the only one who knows where an answer begins. So the conversation is rendered up to the answer, as it is
//! when the model is to write it, and once more with it: what is new is the answer.

use super::{Cut, Limits, Span};
use crate::error::{Error, Result};
use crate::record::{Example, Label, Message};
use crate::tokenizer::{Chat, Tokenizer};

/// The turns of a text by user and assistant in turn, the last by the user.
pub(super) fn alternating(prompt: &str) -> Vec<Message> {
    let turns: Vec<&str> = prompt.split('\n').collect();
    let role = |at: usize| {
        if (turns.len() - at).is_multiple_of(2) {
            "assistant"
        } else {
            "user"
        }
    };
    turns
        .iter()
        .enumerate()
        .map(|(at, turn)| Message::new(role(at), *turn))
        .collect()
}

/// The conversation of an example with its answer, and whether the data has the roles.
fn messages(example: &Example) -> Result<Vec<Message>> {
    let Some(last) = example.messages.last() else {
        let answer = Message::new("assistant", example.completion.clone());
        return Ok(alternating(&example.prompt).into_iter().chain([answer]).collect());
    };
    if last.role != "assistant" {
        return Err(Error::Conversation {
            expected: "the role `assistant` of the last one",
            got: format!("`{}`", last.role),
        });
    }
    if crate::turns::turn(&last.content) != crate::turns::turn(&example.completion) {
        return Err(Error::Conversation {
            expected: "the completion as the last one",
            got: "other text".to_owned(),
        });
    }
    Ok(example.messages.clone())
}

/// What is kept of the messages before an answer.
pub(super) struct Kept {
    messages: Vec<Message>,
    pub(super) ids: Vec<u32>,
    /// How many tokens were cut.
    cut: usize,
}

/// The messages before an answer within `max_prompt` tokens.
pub(super) fn prompt(chat: &Chat, messages: &[Message], max_prompt: usize) -> Result<Kept> {
    let read = |messages: &[Message]| {
        let rendered = chat.render(&chat.marked(messages)?, messages.len(), true)?;
        chat.ids(&rendered)
    };
    let mut messages = messages.to_vec();
    let mut ids = read(&messages)?;
    let all = ids.len();
    let first = messages.iter().take_while(|m| m.role == "system").count();
    while ids.len() > max_prompt {
        // The next exchange begins where the user speaks again.
        let Some(next) = (first + 1..messages.len()).find(|&at| messages[at].role == "user") else {
            break;
        };
        messages.drain(first..next);
        ids = read(&messages)?;
    }
    if ids.len() > max_prompt {
        ids = shortened(chat, &mut messages, max_prompt, read)?;
    }
    let cut = all.saturating_sub(ids.len());
    Ok(Kept { messages, ids, cut })
}

/// Takes as little as it can from the beginning of the user's last message. Cuts are between tokens, and a part is left.
fn shortened(
    chat: &Chat,
    messages: &mut [Message],
    max_prompt: usize,
    read: impl Fn(&[Message]) -> Result<Vec<u32>>,
) -> Result<Vec<u32>> {
    let too_short = |least| Error::PromptTooShort { least, got: max_prompt };
    let Some(at) = messages.iter().rposition(|m| m.role == "user") else {
        return Err(too_short(read(messages)?.len()));
    };
    let text = messages[at].content.clone();
    let starts = chat.token_starts(&text)?;
    let mut try_from = |start: usize| {
        messages[at].content = text[start..].to_owned();
        read(messages)
    };
    let Some(&last) = starts.last() else {
        return Err(too_short(try_from(0)?.len()));
    };
    let shortest = try_from(last)?;
    if shortest.len() > max_prompt {
        return Err(too_short(shortest.len()));
    }
    // Invariant: `fitting` fits, all before `low` do not.
    let (mut low, mut fitting, mut ids) = (0, starts.len() - 1, shortest);
    while low < fitting {
        let middle = low + (fitting - low) / 2;
        let tried = try_from(starts[middle])?;
        if tried.len() <= max_prompt {
            (fitting, ids) = (middle, tried);
        } else {
            low = middle + 1;
        }
    }
    try_from(starts[fitting])?;
    Ok(ids)
}

/// An example through the template.
pub(super) fn example(tokenizer: &Tokenizer, chat: &Chat, example: &Example, limits: &Limits) -> Result<Cut> {
    let mut all = chat.with_system(&messages(example)?);
    let Some(answer) = all.pop() else {
        return Err(Error::EmptyBatch);
    };
    let kept = prompt(chat, &all, limits.max_prompt)?;
    let mut messages = kept.messages;
    let last = messages.len();
    messages.push(answer);
    let every_answer = example.label == Label::Unlabelled && !example.messages.is_empty();
    let learnt = |at: usize| at == last || (every_answer && is_answer(&messages[at]));
    let marked = chat.marked(&messages)?;
    let whole = chat.render(&marked, messages.len(), false)?;
    let mut cut = Cut {
        ids: Vec::new(),
        spans: Vec::new(),
        prompt: kept.cut,
        completion: 0,
    };
    let mut done = None;
    for turn in (0..=last).filter(|&at| learnt(at)) {
        let before = chat.render(&marked, turn, true)?;
        if !before.begins(&whole) {
            return Err(Error::NoPrefix { turn });
        }
        // Up to the answer, as the model reads it.
        let read = match &done {
            None if turn == last => kept.ids.clone(),
            None => chat.ids(&before)?,
            Some(so_far) => chat.continuation(so_far, &cut.ids, &before)?,
        };
        cut.ids.extend(read);
        let start = cut.ids.len();
        let (through, alone) = if turn == last {
            (whole.clone(), true)
        } else {
            let through = chat.render(&marked, turn + 1, false)?;
            // Some templates end a conversation that does not go on by a token of its own: there the end of the answer is
            // looked for in the whole.
            if through.begins(&whole) && before.begins(&through) {
                (through, true)
            } else {
                let next = (turn + 1..=last).find(|&at| learnt(at)).unwrap_or(last);
                (chat.render(&marked, next, true)?, false)
            }
        };
        let rest = chat.continuation(&before, &cut.ids, &through)?;
        let end = rest.iter().position(|&id| tokenizer.is_end(id));
        if end.is_none() && !through.begins(&whole) {
            return Err(Error::NoPrefix { turn });
        }
        // What follows the answer there is said by others.
        if end.is_none() && !alone {
            return Err(Error::NoEnd { turn });
        }
        let text = end.unwrap_or(rest.len());
        let lost = text.saturating_sub(limits.max_completion);
        cut.completion += lost;
        let ended = end.is_some() && lost == 0;
        let stop = start + (text - lost) + usize::from(ended);
        cut.ids.extend(rest);
        cut.spans.push(Span {
            start,
            end: stop,
            ended,
        });
        if turn == last {
            // Nothing reads on after the last answer: what the template writes there is kept only where there is room.
            let width = if ended { limits.width().max(stop) } else { stop };
            cut.ids.truncate(width);
        }
        done = Some(through);
    }
    cut.spans.retain(|span| span.start < span.end);
    Ok(cut)
}

fn is_answer(message: &Message) -> bool {
    message.role == "assistant" && !message.content.trim().is_empty()
}
