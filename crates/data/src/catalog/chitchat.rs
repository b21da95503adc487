//! Chit Chat Challenge: conversations of people with each other, as plain dialogue.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Converted, Dataset, File, Form, Upstream};
use crate::error::{Error, Place, Result};
use crate::files::jsonl;
use crate::record::{Example, Label, Splits};
use crate::turns;

/// How many turns before a reply are its prompt.
const CONTEXT_TURNS: usize = 3;

/// A longer turn (82 of 138,737) is a monologue or a key held down, up to 95,440 characters.
const LONGEST_TURN: usize = 2_000;

const FILES: &[File] = &[File {
    name: "dataset.json",
    sha256: Some("d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a"),
}];

/// Every turn that answers another is one unlabelled example. Turns that are empty or longer than
/// 2,000 characters are left out and counted; after a long one the dialogue begins anew.
pub(super) static DATASET: Dataset = Dataset {
    name: "chitchat",
    what: "7,168 conversations between people about everything and nothing, without labels",
    source: "Python package chitchat-dataset 0.9.0",
    licence: "MIT",
    content_warning: None,
    version: "0.9.0",
    converter: 1,
    upstream: Upstream::Python {
        requirement: "chitchat-dataset==0.9.0",
        wheel: "chitchat_dataset-0.9.0-py3-none-any.whl",
        sha256: "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
        folder: "chitchat_dataset",
    },
    files: FILES,
    mirror: FILES,
    read,
};

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Vec<Message>>,
}

#[derive(Deserialize)]
struct Message {
    text: String,
    sender: String,
}

fn read(folder: &Path, _: Form) -> Result<Converted> {
    let path = folder.join(FILES[0].name);
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let all: BTreeMap<String, Conversation> = serde_json::from_slice(&bytes).map_err(|e| {
        let place = Place::line(&path, e.line() as u64);
        let got = format!("an error: {}", jsonl::json_message(&e));
        place.malformed("conversations with messages", got)
    })?;
    let mut converted = Converted::default();
    for (id, conversation) in all {
        let Splits { train, valid, test } = &mut converted.splits;
        // The id alone decides, so a conversation stays in its split whatever else is there.
        let into = match first_bytes(&id) % 100 {
            0..90 => train,
            90..95 => valid,
            _ => test,
        };
        converted.dropped += examples(&id, conversation, into);
    }
    let Splits { train, valid, test } = &converted.splits;
    if [train, valid, test].iter().any(|split| split.is_empty()) {
        return Err(Error::NoRows { path });
    }
    converted.splits.mark_seen_prompts();
    Ok(converted)
}

fn first_bytes(id: &str) -> u64 {
    let digest = Sha256::digest(id);
    digest
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Adds the examples of one conversation; gives the number of turns left out.
fn examples(id: &str, conversation: Conversation, into: &mut Vec<Example>) -> usize {
    let mut dropped = 0;
    let mut said: Vec<(String, String)> = Vec::new();
    for group in conversation.messages {
        let mut empty = true;
        for message in group {
            let text = turns::turn(&message.text);
            if text.is_empty() {
                continue;
            }
            empty = false;
            match said.last_mut() {
                Some((sender, turn)) if *sender == message.sender => {
                    turn.push(' ');
                    turn.push_str(&text);
                }
                _ => said.push((message.sender, text)),
            }
        }
        dropped += usize::from(empty);
    }
    let mut begin = 0;
    for (at, (_, turn)) in said.iter().enumerate() {
        if turn.chars().count() > LONGEST_TURN {
            dropped += 1;
            begin = at + 1;
        } else if at > begin {
            let context = &said[begin.max(at.saturating_sub(CONTEXT_TURNS))..at];
            into.push(Example {
                id: format!("{id}:{}", at + 1),
                prompt: turns::joined(context.iter().map(|(_, turn)| turn)),
                completion: turn.clone(),
                label: Label::Unlabelled,
                seen_prompt: false,
                messages: Vec::new(),
            });
        }
    }
    dropped
}

#[cfg(test)]
mod tests {
    use super::{Conversation, Example, LONGEST_TURN, examples};

    fn read(groups: &[&[(&str, &str)]]) -> (Vec<Example>, usize) {
        let messages = groups.iter().map(|group| {
            let message = |(sender, text): &(&str, &str)| serde_json::json!({"sender": sender, "text": text});
            group.iter().map(message).collect::<Vec<_>>()
        });
        let json = serde_json::json!({ "messages": messages.collect::<Vec<_>>() });
        let conversation: Conversation = serde_json::from_value(json).unwrap();
        let mut all = Vec::new();
        let dropped = examples("c", conversation, &mut all);
        (all, dropped)
    }

    fn pairs(all: &[Example]) -> Vec<(&str, &str)> {
        all.iter().map(|e| (e.prompt.as_str(), e.completion.as_str())).collect()
    }

    #[test]
    fn a_reply_follows_up_to_three_turns() {
        let (all, dropped) = read(&[
            &[("a", "one"), ("a", " 1\n")],
            &[("b", "two")],
            &[("a", "three")],
            &[("b", "four")],
            &[("a", "five\nV")],
        ]);
        assert_eq!(
            pairs(&all),
            [
                ("one 1", "two"),
                ("one 1\ntwo", "three"),
                ("one 1\ntwo\nthree", "four"),
                ("two\nthree\nfour", "five V"),
            ]
        );
        assert_eq!(all[0].id, "c:2");
        assert_eq!(dropped, 0);
    }

    #[test]
    fn empty_turns_join_what_stands_around_them() {
        let (all, dropped) = read(&[
            &[("a", "one")],
            &[("b", " "), ("b", "")],
            &[("a", "more")],
            &[("b", "two")],
        ]);
        assert_eq!(pairs(&all), [("one more", "two")]);
        assert_eq!(dropped, 1);
    }

    #[test]
    fn the_dialogue_begins_anew_after_a_turn_that_is_too_long() {
        let long = "a ".repeat(LONGEST_TURN);
        let (all, dropped) = read(&[
            &[("a", "one")],
            &[("b", "two")],
            &[("a", &long)],
            &[("b", "three")],
            &[("a", "four")],
        ]);
        assert_eq!(pairs(&all), [("one", "two"), ("three", "four")]);
        assert_eq!(dropped, 1);
        assert!(read(&[&[("a", "hello?")]]).0.is_empty());
    }
}
