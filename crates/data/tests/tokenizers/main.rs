//! Tokenizers of Hugging Face folders, compared with what transformers reads; `make.py` makes the folders.
#![allow(clippy::unwrap_used)]

mod conversations;
mod folders;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use unsay_data::{Encoded, Example, Label, Limits, Message, Tokenizer, encode_all, encode_chat};

const LIMITS: Limits = Limits {
    max_prompt: 1000,
    max_completion: 1000,
};

#[derive(Deserialize)]
struct Expected {
    texts: Vec<Text>,
    conversations: Vec<Conversation>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    ids: Vec<u32>,
    decoded: String,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tokenizers")
        .join(name)
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::from_folder(folder(name)).unwrap()
}

fn expected(name: &str) -> Expected {
    serde_json::from_str(&std::fs::read_to_string(folder(name).join("expected.json")).unwrap()).unwrap()
}

fn conversation(turns: &[(&str, &str)], label: Label) -> Example {
    let messages: Vec<Message> = turns.iter().map(|(role, text)| Message::new(*role, *text)).collect();
    let line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    Example {
        id: "x".into(),
        prompt: turns[..turns.len() - 1]
            .iter()
            .map(|(_, text)| line(text))
            .collect::<Vec<_>>()
            .join("\n"),
        completion: line(turns[turns.len() - 1].1),
        label,
        seen_prompt: false,
        messages,
    }
}

fn encoded(tokenizer: &Tokenizer, example: &Example, limits: &Limits) -> Encoded {
    let (mut all, _) = encode_all(tokenizer, std::slice::from_ref(example), limits).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[test]
fn ids_are_those_of_transformers() {
    let (mut n_texts, mut n_prompts, mut n_whole) = (0, 0, 0);
    for name in ["chatml", "ended", "instruct", "plain"] {
        let (tokenizer, expected) = (tokenizer(name), expected(name));
        assert_eq!(tokenizer.is_chat(), name != "plain");
        for Text { text, ids } in expected.texts {
            assert_eq!(tokenizer.encode_text(&text).unwrap(), ids, "{name}: {text:?}");
            n_texts += 1;
        }
        for case in expected.conversations {
            assert_eq!(tokenizer.decode(&case.ids).unwrap(), case.decoded, "{name}");
            if case.add_generation_prompt {
                let found = encode_chat(&tokenizer, &case.messages, 1000).unwrap();
                assert_eq!(found, case.ids, "{name}: {:?}", case.messages);
                n_prompts += 1;
            } else if case.messages.last().is_some_and(|last| last.role == "assistant") {
                let turns: Vec<(&str, &str)> = case
                    .messages
                    .iter()
                    .map(|m| (m.role.as_str(), m.content.as_str()))
                    .collect();
                for label in [Label::Unlabelled, Label::Negative] {
                    let found = encoded(&tokenizer, &conversation(&turns, label), &LIMITS);
                    assert_eq!(found.ids, case.ids, "{name}: {:?}", case.messages);
                    n_whole += 1;
                }
            }
        }
    }
    assert_eq!((n_texts, n_prompts, n_whole), (20, 14, 16));
}

const TALK: [(&str, &str); 5] = [
    ("system", "Be short."),
    ("user", "What does the baker sell?"),
    ("assistant", "Bread, and 12 cakes."),
    ("user", "Who sings?"),
    ("assistant", "The baker."),
];

fn copied(source: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn edit(folder: &Path, file: &str, from: &str, to: &str) {
    let path = folder.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file}: {from}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}
