//! Replies of a folder, one by one or in a conversation.

use std::fs;

use super::common::folder::edit_json;
use super::common::{self, signal, until};
use super::desk;

#[test]
fn any_folder_speaks() {
    let desk = desk();
    let generate = |options: &[&str]| desk.unsay(&[&["generate", "base", "--max-new-tokens", "12"], options].concat());
    let said = generate(&["--prompt", "hello there"]).ok();
    assert!(
        said.starts_with("> hello there\n") && said.lines().count() >= 2,
        "{said}"
    );
    assert_eq!(said, generate(&["--prompt", "hello there"]).ok(), "the same draws");
    assert_ne!(said, generate(&["--prompt", "hello there", "--sample-seed", "1"]).ok());
    let greedy = generate(&["--prompt", "hello there", "--greedy"]).ok();
    assert_ne!(
        greedy,
        generate(&["--prompt", "hello there", "--greedy", "--raw"]).ok(),
        "no template"
    );
    assert_ne!(
        greedy,
        generate(&["--prompt", "hello there", "--greedy", "--system", "be kind"]).ok()
    );
    assert_eq!(
        greedy,
        generate(&["--prompt", "hello there", "--greedy", "--device", "cpu"]).ok()
    );
    let beams = |options: &[&str]| generate(&[&["--prompt", "hello there", "--beams", "3"], options].concat());
    let found = beams(&[]).ok();
    assert!(found.starts_with("> hello there\n"), "{found}");
    assert_eq!(found, beams(&["--sample-seed", "1"]).ok(), "a search draws nothing");
    beams(&["--length-penalty", "-5"]).ok();
    for (options, word) in [
        (&["--greedy"][..], "`beam`: expected no greedy"),
        (
            &["--temperature", "0.5"],
            "`beam`: expected no greedy, temperature, top_k or top_p beside it, got temperature 0.5",
        ),
        (&["-n", "2"], "`-n` is not for `--beams`"),
    ] {
        let error = beams(options).fails(2);
        assert!(error.contains(word), "{error}");
    }
    let error = generate(&["--prompt", "x", "--length-penalty", "1"]).fails(2);
    assert!(error.contains("`--length-penalty` is for `--beams`"), "{error}");
    let three = generate(&[
        "--prompt",
        "hello there",
        "-n",
        "3",
        "--temperature",
        "1.5",
        "--top-k",
        "50",
        "--top-p",
        "1",
    ])
    .ok();
    assert!(three.lines().count() >= 4, "{three}");
    let bf16 = generate(&[
        "--prompt",
        "hello there",
        "--greedy",
        "--precision",
        "bf16-even-if-slower",
    ])
    .ok();
    assert!(bf16.starts_with("> hello there\n"), "{bf16}");

    desk.write("prompts", "hello there\n\nare nuts safe ?\n");
    let mut command = desk.command(&["generate", "base", "--greedy", "--max-new-tokens", "12"]);
    let lines = common::Ran::of(command.stdin(fs::File::open(desk.path("prompts")).unwrap())).ok();
    assert!(
        lines.starts_with(&greedy) && lines.contains("\n> are nuts safe ?\n"),
        "{lines}"
    );
}

#[test]
fn a_conversation_through_a_pipe() {
    let desk = desk();
    let talk = |options: &[&str], lines: &str| {
        desk.write("lines", lines);
        let mut command = desk.command(&[&["chat", "base", "--greedy", "--max-new-tokens", "12"], options].concat());
        common::Ran::of(command.stdin(fs::File::open(desk.path("lines")).unwrap()))
    };
    let first = desk
        .unsay(&[
            "generate",
            "base",
            "--greedy",
            "--max-new-tokens",
            "12",
            "--prompt",
            "hello there",
        ])
        .ok();
    let said = talk(&[], "hello there\nare nuts safe ?\n/save talk.jsonl\n/quit\nnot read\n");
    assert!(!said.out.contains("> "), "no sign where nobody types");
    let out = said.ok();
    let reply = first.lines().nth(1).unwrap();
    assert!(out.starts_with(reply), "{out} {first}");

    let line = desk.read("talk.jsonl");
    let saved: serde_json::Value = serde_json::from_str(&line).unwrap();
    let roles: Vec<&str> = saved["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    let read = unsay_data::Files {
        train: desk.path("talk.jsonl"),
        valid: desk.path("talk.jsonl"),
        test: desk.path("talk.jsonl"),
        columns: None,
    };
    assert_eq!(read.read().unwrap().train.len(), 1, "manifests read it");

    // A conversation that is forgotten leaves no trace in what follows.
    let afresh = talk(&[], "are nuts safe ?\n").ok();
    assert_eq!(
        talk(&[], "hello there\n/reset\nare nuts safe ?\n").ok().lines().last(),
        afresh.lines().last()
    );
    let kind = talk(&["--system", "be kind"], "are nuts safe ?\n").ok();
    assert_eq!(talk(&[], "/system be kind\nare nuts safe ?\n").ok(), kind);
    assert_ne!(kind, afresh);

    // 160 positions: what no longer fits is forgotten, and this is said.
    let long = talk(
        &[],
        &"my brother is allergic to nuts and wants to try the almond cake .\n".repeat(8),
    );
    assert!(long.err.contains("160 positions are full: the oldest"), "{}", long.err);
    long.ok();
    let err = talk(&[], &format!("{}\n", "nuts ".repeat(200))).fails(1);
    assert!(err.contains("longer than the 148 tokens"), "{err}");
    assert!(talk(&[], "/sing\n").fails(1).contains("no command `/sing`"));
    assert!(talk(&[], "/save talk.jsonl\n").fails(1).contains("is there already"));
}

/// Ctrl-C stops the reply, not the conversation.
#[test]
fn an_interrupt_stops_a_reply() {
    let desk = desk();
    edit_json(&desk.path("base/config.json"), |config| {
        config["max_position_embeddings"] = 100_000.into()
    });
    let long = ["--max-new-tokens", "90000", "--min-new-tokens", "90000"];
    let mut command = desk.command(&[&["chat", "base", "--greedy"], &long[..]].concat());
    let out = fs::File::create(desk.path("out")).unwrap();
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(out)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    {
        use std::io::Write as _;
        child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"hello\n/save talk.jsonl\n/quit\n")
            .unwrap();
    }
    until(&mut child, "its first words", || !desk.read("out").is_empty());
    signal(&child, "INT");
    assert!(child.wait().unwrap().success());
    assert!(desk.read("out").ends_with(" …\n"));
    assert!(desk.read("talk.jsonl").contains("assistant"));
}

/// `| head` once left the program completing prompts that nobody read, for ever where they had no end.
#[test]
fn nobody_listens_and_it_ends() {
    let desk = desk();
    for words in [
        &["generate", "base", "--greedy", "--max-new-tokens", "4"][..],
        &["chat", "base", "--greedy", "--max-new-tokens", "4"],
    ] {
        let mut command = desk.command(words);
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let mut prompts = child.stdin.take().unwrap();
        let mut given = 0;
        // The pipe is full or closed long before so many lines are read where nobody listens.
        while std::io::Write::write_all(&mut prompts, b"hello there\n").is_ok() {
            given += 1;
            assert!(given < 100_000, "{words:?} goes on");
        }
        assert_eq!(child.wait().unwrap().code(), Some(0), "{words:?}");
    }
}

/// A model of 160 positions has no room for the longest reply of others.
#[test]
fn a_reply_of_no_stated_length_fits_a_small_model() {
    let desk = desk();
    desk.unsay(&["generate", "base", "--prompt", "hello there"]).ok();
    let err = desk
        .unsay(&["generate", "base", "--prompt", "hello", "--max-new-tokens", "300"])
        .fails(1);
    assert!(err.contains("300"), "an option is not changed: {err}");
    desk.write("lines", "hello there\n");
    let mut command = desk.command(&["chat", "base"]);
    common::Ran::of(command.stdin(fs::File::open(desk.path("lines")).unwrap())).ok();
}

#[test]
fn a_conversation_without_words_is_not_saved() {
    let desk = desk();
    desk.write("lines", "/system be kind\n/save talk.jsonl\n");
    let mut command = desk.command(&["chat", "base"]);
    let err = common::Ran::of(command.stdin(fs::File::open(desk.path("lines")).unwrap())).fails(1);
    assert!(err.contains("nothing was said"), "{err}");
    assert!(!desk.path("talk.jsonl").exists());
}
