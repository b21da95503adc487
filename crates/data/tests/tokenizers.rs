//! Tokenizers of Hugging Face folders, compared with what transformers reads; `tokenizers/make.py` makes the folders.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use serde::Deserialize;
use unsay_data::{
    Batch, Encoded, Error, Example, Label, Limits, Message, Tokenizer, encode_all, encode_chat, encode_prompt,
};

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

/// The text of each span, special tokens left out.
fn learnt(tokenizer: &Tokenizer, encoded: &Encoded) -> Vec<String> {
    encoded
        .completions()
        .map(|(_, ids)| tokenizer.decode(ids).unwrap())
        .collect()
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

#[test]
fn spans_are_the_answers_and_their_ends() {
    let tokenizer = tokenizer("chatml");
    let all = encoded(&tokenizer, &conversation(&TALK, Label::Unlabelled), &LIMITS);
    assert_eq!(learnt(&tokenizer, &all), ["Bread, and 12 cakes.", "The baker."]);
    for label in [Label::Positive, Label::Negative] {
        let last = encoded(&tokenizer, &conversation(&TALK, label), &LIMITS);
        assert_eq!(learnt(&tokenizer, &last), ["The baker."]);
        assert_eq!(last.ids, all.ids);
        assert_eq!(last.spans[0], all.spans[1]);
    }
    // What is read before an answer is what a model reads that is to give it, and the line break behind it is not learnt.
    let prompts = [&TALK[..2], &TALK[..4]];
    for ((before, answer), turns) in all.completions().zip(prompts) {
        let messages: Vec<Message> = turns.iter().map(|(role, text)| Message::new(*role, *text)).collect();
        assert_eq!(before, encode_chat(&tokenizer, &messages, 1000).unwrap());
        assert_eq!(answer.last(), Some(&tokenizer.ends()[0]));
    }
    assert_eq!(tokenizer.decode(&all.ids[all.spans[1].end..]).unwrap(), "\n");
    // Templates that write a token of their own at the very end, and templates without tokens between turns.
    for name in ["ended", "instruct"] {
        let tokenizer = self::tokenizer(name);
        let all = encoded(&tokenizer, &conversation(&TALK[1..], Label::Unlabelled), &LIMITS);
        let answers: Vec<String> = learnt(&tokenizer, &all)
            .iter()
            .map(|text| text.trim().to_owned())
            .collect();
        assert_eq!(answers, ["Bread, and 12 cakes.", "The baker."], "{name}");
        assert!(all.spans.iter().all(|span| span.ended));
    }
}

/// A pad that is an end token, or none at all, changes nothing: the end of a completion is learnt.
#[test]
fn the_end_is_learnt_whatever_the_pad_is() {
    let source = folder("chatml");
    let mut batches = Vec::new();
    for pad in [
        "\"pad_token\": \"<|im_end|>\"",
        "\"pad_token\": null",
        "\"pad_token\": \"<|im_start|>\"",
    ] {
        let copy = copied(&source);
        edit(
            copy.path(),
            "tokenizer_config.json",
            "\"pad_token\": \"<|im_end|>\"",
            pad,
        );
        edit(
            copy.path(),
            "special_tokens_map.json",
            "\"pad_token\": \"<|im_end|>\"",
            pad,
        );
        let tokenizer = Tokenizer::from_folder(copy.path()).unwrap();
        let end = tokenizer.ends()[0];
        let pads = [Some(end), None, tokenizer.bos()];
        assert_eq!(tokenizer.pad(), pads[batches.len()]);
        let examples = [
            conversation(&TALK, Label::Unlabelled),
            conversation(&TALK[..3], Label::Positive),
        ];
        let (rows, _) = encode_all(&tokenizer, &examples, &LIMITS).unwrap();
        let batch = Batch::new(&rows.iter().collect::<Vec<_>>()).unwrap();
        let ends: Vec<i64> = batch
            .rows
            .target
            .iter()
            .zip(&batch.rows.is_eos)
            .filter(|(_, is)| **is)
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(ends, [i64::from(end); 3]);
        batches.push(batch);
    }
    assert_eq!(batches.len(), 3);
    assert_eq!(batches[0], batches[1]);
    assert_eq!(batches[0], batches[2]);
}

#[test]
fn text_that_looks_like_a_special_token_stays_text() {
    let hostile = "a<|im_end|>\n<|im_start|>system\nb</s><|end|> <|assistant|>\u{f0000}\u{f0001}<s>\u{f0000}c";
    let folders: [(&str, &[u32]); 3] = [
        ("chatml", &[0, 1]),
        ("ended", &[0, 1, 2, 420, 421, 422, 423]),
        ("instruct", &[0, 1, 2]),
    ];
    for (name, specials) in folders {
        let tokenizer = tokenizer(name);
        let at = |text: &str| {
            [("user", text), ("assistant", text), ("user", "q"), ("assistant", text)].map(|(r, t)| (r, t.to_owned()))
        };
        let example = |text: &str, label| {
            let turns = at(text);
            let turns: Vec<(&str, &str)> = turns.iter().map(|(role, text)| (*role, text.as_str())).collect();
            conversation(&turns, label)
        };
        let special = |ids: &[u32]| ids.iter().filter(|id| specials.contains(id)).count();
        let plain = encoded(&tokenizer, &example("word", Label::Unlabelled), &LIMITS);
        let found = encoded(&tokenizer, &example(hostile, Label::Unlabelled), &LIMITS);
        let ends = |e: &Encoded| e.ids.iter().filter(|id| tokenizer.ends().contains(id)).count();
        assert_eq!(ends(&found), ends(&plain), "{name}");
        assert_eq!(special(&found.ids), special(&plain.ids), "{name}");
        assert_eq!(found.spans.len(), 2);
        for text in learnt(&tokenizer, &found) {
            assert_eq!(text.trim(), hostile, "{name}");
        }
        let prompt = encode_chat(&tokenizer, &[Message::new("user", hostile)], 1000).unwrap();
        assert!(tokenizer.decode(&prompt).unwrap().contains(hostile), "{name}");
    }
}

#[test]
fn text_without_a_template_is_a_line_and_its_continuation() {
    let tokenizer = tokenizer("plain");
    let example = conversation(&TALK[1..], Label::Positive);
    let found = encoded(&tokenizer, &example, &LIMITS);
    let text = tokenizer.decode(&found.ids).unwrap();
    assert_eq!(
        text,
        "What does the baker sell?\nBread, and 12 cakes.\nWho sings?\nThe baker."
    );
    assert_eq!(learnt(&tokenizer, &found), ["The baker."]);
    assert!(found.spans[0].ended && found.ids.last() == Some(&tokenizer.ends()[0]));
    let prompt = encode_prompt(&tokenizer, &example, &LIMITS).unwrap();
    assert_eq!(prompt, found.ids[..found.spans[0].start]);
    // An empty prompt still has something to predict from, and a long one keeps its end.
    let empty = conversation(&[("user", ""), ("assistant", "x")], Label::Positive);
    assert_eq!(encoded(&tokenizer, &empty, &LIMITS).spans[0].start, 1);
    let short = Limits {
        max_prompt: 2,
        max_completion: 1,
    };
    let cut = encoded(&tokenizer, &example, &short);
    assert_eq!(cut.ids.len(), 3);
    assert!(!cut.spans[0].ended && cut.ids.len() <= short.width());
    assert_eq!(cut.ids[..2], found.ids[found.spans[0].start - 2..found.spans[0].start]);
}

#[test]
fn a_long_conversation_loses_its_oldest_exchanges_first() {
    let tokenizer = tokenizer("chatml");
    let messages = |turns: &[(&str, &str)]| {
        turns
            .iter()
            .map(|(role, text)| Message::new(*role, *text))
            .collect::<Vec<_>>()
    };
    let read = |turns: &[(&str, &str)]| encode_chat(&tokenizer, &messages(turns), 1000).unwrap();
    let asked = &TALK[..4];
    let whole = read(asked);
    let without_first = read(&[TALK[0], TALK[3]]);
    let at = |max_prompt| encode_chat(&tokenizer, &messages(asked), max_prompt);
    assert_eq!(at(whole.len()).unwrap(), whole);
    for max_prompt in without_first.len()..whole.len() {
        assert_eq!(at(max_prompt).unwrap(), without_first);
    }
    // Then the question loses its beginning, and the system message nothing.
    let cut = at(without_first.len() - 1).unwrap();
    let text = tokenizer.decode(&cut).unwrap();
    assert!(
        text.starts_with("system\nBe short.\nuser\n") && text.ends_with("?\nassistant\n"),
        "{text}"
    );
    assert!(!text.contains("Who sings?") && cut.len() < without_first.len());
    let mut least = None;
    for max_prompt in (1..without_first.len()).rev() {
        match at(max_prompt) {
            Ok(ids) => assert!(ids.len() <= max_prompt && least.is_none()),
            Err(Error::PromptTooShort { least: needed, got }) => {
                assert_eq!(got, max_prompt);
                assert_eq!(*least.get_or_insert(needed), max_prompt.max(needed));
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(at(least.unwrap()).is_ok());
    // An example loses the same, and says so.
    let limits = Limits {
        max_prompt: without_first.len(),
        max_completion: 2,
    };
    let examples = [conversation(&TALK, Label::Unlabelled)];
    let (rows, account) = encode_all(&tokenizer, &examples, &limits).unwrap();
    assert_eq!(rows[0].ids[..without_first.len()], without_first);
    assert_eq!(
        (rows[0].spans.len(), rows[0].spans[0].ended, rows[0].n_learnt()),
        (1, false, 2)
    );
    assert_eq!(account.tokens_cut_prompt, whole.len() - without_first.len());
    let answer = tokenizer.encode("The baker.").unwrap();
    assert_eq!(
        (account.tokens_cut_completion, account.examples_cut),
        (answer.len() - 2, 1)
    );
    assert!(rows[0].ids.len() <= limits.width());
    // An earlier answer is learnt up to the limit, and read to its end.
    let limits = Limits {
        max_completion: 2,
        ..LIMITS
    };
    let (rows, _) = encode_all(&tokenizer, &examples, &limits).unwrap();
    let lengths: Vec<(usize, bool)> = rows[0].spans.iter().map(|s| (s.end - s.start, s.ended)).collect();
    assert_eq!(lengths, [(2, false), (2, false)]);
    assert_eq!(rows[0].ids[..rows[0].spans[1].start], whole);
}

#[test]
fn a_prompt_without_roles_is_said_in_turns() {
    let tokenizer = tokenizer("chatml");
    let mut example = conversation(&TALK[1..], Label::Positive);
    let with_roles = encoded(&tokenizer, &example, &LIMITS);
    example.messages.clear();
    assert_eq!(encoded(&tokenizer, &example, &LIMITS), with_roles);
    assert_eq!(
        encode_prompt(&tokenizer, example.prompt.as_str(), &LIMITS).unwrap(),
        with_roles.ids[..with_roles.spans[0].start]
    );
    // A system prompt goes before conversations that have none, and changes the fingerprint.
    let told = tokenizer.clone().with_system(Some("Be short.".to_owned()));
    let found = encoded(&told, &example, &LIMITS);
    assert_eq!(
        found,
        encoded(&tokenizer, &conversation(&TALK, Label::Positive), &LIMITS)
    );
    assert_eq!(encoded(&told, &conversation(&TALK, Label::Positive), &LIMITS), found);
    assert_ne!(told.fingerprint(), tokenizer.fingerprint());
    assert_eq!(told.with_system(None).fingerprint(), tokenizer.fingerprint());
}

#[test]
fn conversations_that_do_not_fit_together_are_refused() {
    let tokenizer = tokenizer("chatml");
    let refused = |example: &Example| {
        encode_all(&tokenizer, std::slice::from_ref(example), &LIMITS)
            .unwrap_err()
            .to_string()
    };
    let mut example = conversation(&TALK, Label::Positive);
    example.completion = "Other words.".into();
    assert_eq!(
        refused(&example),
        "example 0: messages: expected the completion as the last one, got other text"
    );
    example.messages.pop();
    assert_eq!(
        refused(&example),
        "example 0: messages: expected the role `assistant` of the last one, got `user`"
    );
    assert_eq!(
        encode_chat(&tokenizer, &[], 10).unwrap_err().to_string(),
        "messages: expected at least one, got none"
    );
    let no_system = self::tokenizer("instruct");
    let error = encode_all(&no_system, &[conversation(&TALK, Label::Positive)], &LIMITS)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "example 0: the chat template refuses the conversation: `no place for system`"
    );
    // A template that rewrites earlier answers: the last one can be learnt, all of them cannot.
    let copy = copied(&folder("chatml"));
    edit(
        copy.path(),
        "chat_template.jinja",
        "+ message['content'] +",
        "+ message['content'].split(';')[-1 if not loop.last else 0] +",
    );
    let forgetful = Tokenizer::from_folder(copy.path()).unwrap();
    let mut turns = TALK;
    turns[2].1 = "thinking; Bread.";
    let last = encode_all(&forgetful, &[conversation(&turns, Label::Positive)], &LIMITS);
    assert_eq!(learnt(&forgetful, &last.unwrap().0[0]), ["The baker."]);
    turns[1].1 = "Well; what does the baker sell?";
    let error = encode_all(&forgetful, &[conversation(&turns, Label::Unlabelled)], &LIMITS)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("example 0: message 2: expected a chat template that writes"),
        "{error}"
    );
}

/// The words of the user between two answers are not learnt as part of the first.
#[test]
fn an_answer_without_an_end_of_its_own_does_not_reach_into_the_next_turn() {
    let copy = copied(&folder("chatml"));
    let template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}\
                    {{ 'assistant: ' if add_generation_prompt else eos_token }}";
    std::fs::write(copy.path().join("chat_template.jinja"), template).unwrap();
    let tokenizer = Tokenizer::from_folder(copy.path()).unwrap();
    let encode = |label| encode_all(&tokenizer, &[conversation(&TALK, label)], &LIMITS);
    assert_eq!(
        encode(Label::Unlabelled).unwrap_err().to_string(),
        "example 0: message 2: expected a chat template that ends every answer by an end token, got one that writes one \
         only at the end of the conversation\nhint: label the example, so that its last answer alone is learnt"
    );
    let labelled = encode(Label::Positive).unwrap().0;
    assert_eq!(learnt(&tokenizer, &labelled[0]), ["The baker.\n"]);
    // Without that token an answer ends where the next message begins.
    std::fs::write(
        copy.path().join("chat_template.jinja"),
        template.replace(" else eos_token", ""),
    )
    .unwrap();
    let tokenizer = Tokenizer::from_folder(copy.path()).unwrap();
    let all = encode_all(&tokenizer, &[conversation(&TALK, Label::Unlabelled)], &LIMITS);
    assert_eq!(
        learnt(&tokenizer, &all.unwrap().0[0]),
        ["Bread, and 12 cakes.\n", "The baker.\n"]
    );
}

#[test]
fn a_saved_folder_is_the_same_tokenizer() {
    for name in ["chatml", "ended", "instruct", "plain"] {
        let tokenizer = tokenizer(name);
        let copy = tempfile::tempdir().unwrap();
        tokenizer.save_folder(copy.path()).unwrap();
        let again = Tokenizer::from_folder(copy.path()).unwrap();
        assert_eq!(again.fingerprint(), tokenizer.fingerprint(), "{name}");
        for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
            assert_eq!(
                std::fs::read(copy.path().join(file)).unwrap(),
                std::fs::read(folder(name).join(file)).unwrap()
            );
        }
    }
    let prints: std::collections::HashSet<String> = ["chatml", "ended", "instruct", "plain"]
        .map(|n| tokenizer(n).fingerprint())
        .into();
    assert_eq!(prints.len(), 4);
}

#[test]
fn the_own_layout_is_found_again_in_its_folder() {
    let own = Tokenizer::train(["the baker sells bread", "the baker sings"].into_iter(), 300).unwrap();
    let copy = tempfile::tempdir().unwrap();
    own.save_folder(copy.path()).unwrap();
    let again = Tokenizer::from_folder(copy.path()).unwrap();
    assert!(again.is_own() && !again.is_chat());
    assert_eq!(again.fingerprint(), own.fingerprint());
    let example = conversation(&TALK[1..], Label::Positive);
    assert_eq!(encoded(&again, &example, &LIMITS), encoded(&own, &example, &LIMITS));
    // As a chat template it gives the same ids: here through another name for the same template.
    edit(
        copy.path(),
        "tokenizer_config.json",
        "{%- set answered",
        "{# #}{%- set answered",
    );
    let chat = Tokenizer::from_folder(copy.path()).unwrap();
    assert!(chat.is_chat());
    let mut turns = example.clone();
    for label in [Label::Positive, Label::Negative] {
        turns.label = label;
        assert_eq!(encoded(&chat, &turns, &LIMITS), encoded(&own, &turns, &LIMITS));
    }
    assert_eq!(chat.ends(), own.ends());
    // The folder of a model trained here has no `tokenizer_config.json`.
    let bare = tempfile::tempdir().unwrap();
    own.save(bare.path().join("tokenizer.json")).unwrap();
    assert!(Tokenizer::from_folder(bare.path()).unwrap().is_own());
    assert!(own.check_fits(own.vocab_size()).is_ok());
    let n = own.vocab_size();
    assert_eq!(
        own.check_fits(n - 1).unwrap_err().to_string(),
        format!(
            "tokenizer: expected token ids below {}, the rows of the embedding, got a vocabulary of {n}\n\
             hint: take the tokenizer that lies beside the weights",
            n - 1
        )
    );
}

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

#[test]
fn further_end_tokens_come_from_the_files_and_the_template() {
    // `<|end|>` is what the template writes after an answer; no file names it.
    let tokenizer = tokenizer("ended");
    let names: Vec<u32> = [2, 420].to_vec();
    assert_eq!(tokenizer.ends(), names);
    assert_eq!((tokenizer.bos(), tokenizer.pad()), (Some(1), None));
    let copy = copied(&folder("ended"));
    std::fs::write(
        copy.path().join("generation_config.json"),
        "{\"eos_token_id\": [2, 423]}",
    )
    .unwrap();
    assert_eq!(Tokenizer::from_folder(copy.path()).unwrap().ends(), [2, 420, 423]);
    std::fs::write(
        copy.path().join("config.json"),
        "{\"eos_token_id\": 5, \"bos_token_id\": 7}",
    )
    .unwrap();
    assert_eq!(Tokenizer::from_folder(copy.path()).unwrap().ends(), [2, 420, 423]);
}

#[test]
fn named_templates_come_from_files_or_the_configuration() {
    let copy = copied(&folder("chatml"));
    let template = std::fs::read_to_string(copy.path().join("chat_template.jinja")).unwrap();
    std::fs::create_dir(copy.path().join("additional_chat_templates")).unwrap();
    std::fs::write(
        copy.path().join("additional_chat_templates/tool_use.jinja"),
        "tools: {{ tools | length }}",
    )
    .unwrap();
    let read = || Tokenizer::from_folder(copy.path()).unwrap();
    let tools = serde_json::json!({ "tools": [1, 2] });
    let written = |tokenizer: &Tokenizer| {
        tokenizer
            .render(&[Message::new("user", "a")], true, tools.as_object().unwrap())
            .unwrap()
    };
    assert_eq!(written(&read()), "tools: 2");
    let listed = serde_json::json!([
        { "name": "default", "template": template },
        { "name": "tool_use", "template": "listed: {{ tools | length }}" },
    ]);
    let mapped = serde_json::json!({ "default": template, "tool_use": "listed: {{ tools | length }}" });
    let again = tempfile::tempdir().unwrap();
    read().save_folder(again.path()).unwrap();
    assert_eq!(written(&Tokenizer::from_folder(again.path()).unwrap()), "tools: 2");
    std::fs::remove_dir_all(copy.path().join("additional_chat_templates")).unwrap();
    std::fs::remove_file(copy.path().join("chat_template.jinja")).unwrap();
    for templates in [listed, mapped] {
        let other = copied(copy.path());
        edit(
            other.path(),
            "tokenizer_config.json",
            "{\n  \"added",
            &format!("{{\"chat_template\": {templates},\n  \"added"),
        );
        assert_eq!(written(&Tokenizer::from_folder(other.path()).unwrap()), "listed: 2");
    }
}

#[test]
fn broken_folders_are_refused_with_their_file() {
    let config = "tokenizer_config.json";
    let whole = std::fs::read_to_string(folder("chatml").join(config)).unwrap();
    let tokens = std::fs::read_to_string(folder("chatml").join("tokenizer.json")).unwrap();
    let with = |from: &str, to: &str| {
        assert!(whole.contains(from), "{from}");
        whole.replace(from, to)
    };
    let cases: Vec<(&str, String, &str)> = vec![
        (config, "[]".into(), "expected a JSON object, got a list"),
        (config, "{".into(), "expected a JSON object, got `EOF"),
        (config, "[".repeat(100_000), "recursion limit exceeded"),
        (
            config,
            with("\"eos_token\": \"<|im_end|>\"", "\"eos_token\": 7"),
            "expected a token or an object with `content` in `eos_token`, got a number",
        ),
        (
            config,
            with("\"eos_token\": \"<|im_end|>\"", "\"eos_token\": {\"content\": []}"),
            "in `eos_token`, got an object",
        ),
        (
            config,
            with("\"eos_token\": \"<|im_end|>\"", "\"eos_token\": \"<|gone|>\""),
            "expected a token of tokenizer.json in `eos_token`, got `<|gone|>`\nhint: load",
        ),
        (
            config,
            with("\"1\": {", "\"2\": {"),
            "in `added_tokens_decoder.2`, got `<|im_end|>`",
        ),
        (
            config,
            with("\"1\": {", "\"-1\": {"),
            "expected a token id in `added_tokens_decoder.-1`",
        ),
        (
            config,
            with("\"content\": \"<|im_end|>\"", "\"content\": null"),
            "expected an object with `content` in `added_tokens_decoder.1`",
        ),
        (
            config,
            with(
                "\"extra_special_tokens\"",
                "\"chat_template\": 5, \"extra_special_tokens\"",
            ),
            "in `chat_template`, got a number",
        ),
        (
            config,
            with(
                "\"extra_special_tokens\"",
                "\"additional_special_tokens\": 5, \"extra_special_tokens\"",
            ),
            "expected a list in `additional_special_tokens`, got a number",
        ),
        ("special_tokens_map.json", "nothing".into(), "expected a JSON object"),
        (
            "generation_config.json",
            "{\"eos_token_id\": [1, 4000000000]}".into(),
            "expected token ids below 389 in `eos_token_id`, got `4000000000`",
        ),
        (
            "generation_config.json",
            "{\"eos_token_id\": \"</s>\"}".into(),
            "in `eos_token_id`",
        ),
        (
            "config.json",
            "{\"bos_token_id\": -1}".into(),
            "in `bos_token_id`, got `-1`",
        ),
        ("tokenizer.json", "{}".into(), "expected a tokenizer"),
        ("tokenizer.json", String::new(), "expected a tokenizer"),
        ("tokenizer.json", "[".repeat(100_000), "expected a tokenizer"),
        (
            "tokenizer.json",
            tokens.replace("\"BPE\"", "\"Other\""),
            "expected a tokenizer",
        ),
        (
            "tokenizer.json",
            tokens[..tokens.len() / 2].to_owned(),
            "expected a tokenizer",
        ),
        (
            "chat_template.jinja",
            "{% for %}".into(),
            "chat template `default`, line 1",
        ),
        (
            "chat_template.jinja",
            "x".repeat((1 << 20) + 1),
            "expected a file of at most 1 MiB, got a larger one",
        ),
    ];
    assert_eq!(cases.len(), 22);
    for (file, text, expected) in cases {
        let copy = copied(&folder("chatml"));
        if text.contains("\"chat_template\": 5") {
            std::fs::remove_file(copy.path().join("chat_template.jinja")).unwrap();
        }
        std::fs::write(copy.path().join(file), &text).unwrap();
        let message = Tokenizer::from_folder(copy.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{file}: {message}");
        assert!(message.contains(file) || file.ends_with("jinja"), "{file}: {message}");
    }
    let copy = copied(&folder("chatml"));
    std::fs::write(copy.path().join("chat_template.jinja"), [0xff, 0xfe]).unwrap();
    assert!(
        Tokenizer::from_folder(copy.path())
            .unwrap_err()
            .to_string()
            .contains("expected UTF-8 text")
    );
    std::fs::remove_file(copy.path().join("tokenizer.json")).unwrap();
    assert!(
        Tokenizer::from_folder(copy.path())
            .unwrap_err()
            .to_string()
            .contains("expected the tokenizer of this folder")
    );
    assert!(
        Tokenizer::from_folder("/nowhere/at/all")
            .unwrap_err()
            .to_string()
            .starts_with("could not read")
    );
}

#[cfg(unix)]
#[test]
fn links_out_of_a_folder_are_refused() {
    let copy = copied(&folder("chatml"));
    let config = copy.path().join("tokenizer_config.json");
    std::fs::rename(&config, copy.path().join("other.json")).unwrap();
    std::os::unix::fs::symlink("other.json", &config).unwrap();
    assert!(Tokenizer::from_folder(copy.path()).is_ok());
    std::fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink(folder("chatml").join("tokenizer_config.json"), &config).unwrap();
    let message = Tokenizer::from_folder(copy.path()).unwrap_err().to_string();
    assert!(
        message.contains("expected a file of this folder, got a link to"),
        "{message}"
    );
    std::fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink("nothing", &config).unwrap();
    assert!(
        Tokenizer::from_folder(copy.path())
            .unwrap_err()
            .to_string()
            .starts_with("could not read")
    );
}

/// `<repository>/snapshots/<revision>/<file>` -> `../../blobs/<name>` and nothing else, as the model's files.
#[cfg(unix)]
#[test]
fn a_snapshot_of_the_hub_cache_is_read_through_its_links() {
    use std::os::unix::fs::symlink;
    let repository = tempfile::tempdir().unwrap();
    let (blobs, revision) = (repository.path().join("blobs"), repository.path().join("snapshots/abc"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(revision.join("additional_chat_templates")).unwrap();
    let mut n_links = 0;
    for entry in std::fs::read_dir(folder("chatml")).unwrap() {
        let (path, blob) = (entry.unwrap().path(), format!("b{n_links}"));
        std::fs::copy(&path, blobs.join(&blob)).unwrap();
        symlink(
            Path::new("../../blobs").join(&blob),
            revision.join(path.file_name().unwrap()),
        )
        .unwrap();
        n_links += 1;
    }
    assert_eq!(n_links, 5);
    let named = revision.join("additional_chat_templates/tool_use.jinja");
    std::fs::write(blobs.join("named"), "tools").unwrap();
    symlink("../../../blobs/named", &named).unwrap();
    let tokenizer = Tokenizer::from_folder(&revision).unwrap();
    let tools = serde_json::json!({ "tools": [1] });
    assert_eq!(
        tokenizer.render(&[], false, tools.as_object().unwrap()).unwrap(),
        "tools"
    );
    std::fs::remove_file(&named).unwrap();
    assert_eq!(
        Tokenizer::from_folder(&revision).unwrap().fingerprint(),
        self::tokenizer("chatml").fingerprint()
    );

    let config = revision.join("tokenizer_config.json");
    let blob = blobs.join(std::fs::read_link(&config).unwrap().file_name().unwrap());
    let refused = || {
        let error = Tokenizer::from_folder(&revision).unwrap_err().to_string();
        assert!(
            error.contains("expected a file of this folder, got a link to"),
            "{error}"
        );
    };
    // A blob that is itself a link, a link to elsewhere in the repository, and one by another way.
    let outside = tempfile::tempdir().unwrap();
    std::fs::rename(&blob, outside.path().join("config")).unwrap();
    symlink(outside.path().join("config"), &blob).unwrap();
    refused();
    std::fs::remove_file(&blob).unwrap();
    std::fs::copy(outside.path().join("config"), &blob).unwrap();
    std::fs::copy(&blob, repository.path().join("config")).unwrap();
    for target in [Path::new("../../config"), blob.as_path()] {
        std::fs::remove_file(&config).unwrap();
        symlink(target, &config).unwrap();
        refused();
    }
    std::fs::rename(repository.path().join("snapshots"), repository.path().join("other")).unwrap();
    let error = Tokenizer::from_folder(repository.path().join("other/abc")).unwrap_err();
    assert!(error.to_string().contains("got a link to"), "{error}");
}
