//! A base model from outside, from a manifest to a folder that others load: adapters, the top block alone, everything.
#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use common::folder::{chat_model, edit_json};
use common::{Desk, begun, checkpoint, files, finished, names, same_tables, signal, until};

const MANIFEST: &str = "pretrained.yaml";
const TEXT: &str = include_str!("fixtures/pretrained.yaml");

fn desk() -> Desk {
    let desk = Desk::with(MANIFEST, TEXT);
    chat_model(&desk.path("base"));
    desk
}

/// Keys of a plan by title.
fn keys(desk: &Desk, options: &[&str]) -> BTreeMap<String, String> {
    let out = desk.unsay(&[&["plan", MANIFEST], options].concat()).ok();
    let steps = out.lines().skip(1).filter(|l| !l.contains("last column"));
    steps
        .map(|line| {
            let mut words = line[6..].trim_start().splitn(2, "  ");
            let state = words.next().unwrap().len();
            let rest = line[6 + state..].trim_start().trim_start_matches("run").trim_start();
            let (key, title) = rest.split_once("  ").unwrap();
            let title = title.split("  ").next().unwrap();
            (title.trim().to_owned(), key.to_owned())
        })
        .collect()
}

fn dir<'a>(steps: &'a BTreeMap<String, PathBuf>, title: &str) -> &'a PathBuf {
    steps
        .get(title)
        .unwrap_or_else(|| panic!("no step `{title}` in {:?}", steps.keys()))
}

#[test]
fn arms_that_train_an_adapter() {
    let desk = desk();
    desk.unsay(&["check", MANIFEST]).ok();
    desk.unsay(&["run", MANIFEST, "--workers", "2"]).ok();
    let steps = finished(&desk.store());
    for title in [
        "base model base",
        "states for arms, base model base",
        "states for classifiers, base model base",
        "states for own replies of cringe, iteration 1, seed 0",
    ] {
        dir(&steps, title);
    }
    let states = steps.keys().filter(|title| title.starts_with("states for")).count();
    assert_eq!(
        states, 4,
        "made once for all arms and seeds, but of each seed's own replies"
    );
    for title in [
        "train mle, seed 0",
        "train cringe, iteration 2, seed 1",
        "classifier A, seed 0",
    ] {
        let best = names(&dir(&steps, title).join("best"));
        assert_eq!(best, ["adapter_config.json", "adapter_model.safetensors"], "{title}");
    }
    // Nothing of the model itself is in the store.
    let weights = fs::metadata(desk.path("base/model.safetensors")).unwrap().len();
    assert!(
        files(&desk.store())
            .iter()
            .all(|(name, bytes)| name.ends_with(".states") || (bytes.len() as u64) < weights)
    );

    interrupted_and_continued(&desk);
    the_folder_is_found_by_its_content(&desk);
    exported(&desk);
}

/// Stopped in the middle of a training, with another number of workers.
fn interrupted_and_continued(whole: &Desk) {
    let desk = desk();
    let store = desk.store();
    let mut run = desk.start(&["run", MANIFEST, "--workers", "1"]);
    until(&mut run, "a checkpoint", || checkpoint(&store).is_some());
    signal(&run, "INT");
    assert_eq!(run.wait().unwrap().code(), Some(1), "{}", desk.read("said"));
    assert!(!begun(&store).is_empty());
    desk.unsay(&["run", MANIFEST]).ok();
    same_tables(
        &desk.path("results/pretrained/lora"),
        &whole.path("results/pretrained/lora"),
    );
}

fn the_folder_is_found_by_its_content(desk: &Desk) {
    let first = keys(desk, &[]);
    assert!(first.len() > 20, "{first:?}");
    common::copy(&desk.path("base"), &desk.path("copied/base"));
    assert_eq!(keys(desk, &["--set", "base.folder.path=copied/base"]), first);
    // What is beside the model is none of it; what belongs to it is.
    fs::write(desk.path("copied/base/README.md"), "read me").unwrap();
    assert_eq!(keys(desk, &["--set", "base.folder.path=copied/base"]), first);
    edit_json(&desk.path("copied/base/config.json"), |config| {
        config["rope_theta"] = 20_000.0.into()
    });
    let changed = keys(desk, &["--set", "base.folder.path=copied/base"]);
    let same: Vec<&String> = first
        .iter()
        .filter(|(t, k)| changed[*t] == **k)
        .map(|(t, _)| t)
        .collect();
    assert_eq!(same, ["records: dialogue", "records: feedback"]);
    let other = keys(desk, &["--set", "base.folder.system=be brief"]);
    assert_ne!(other["base model base"], first["base model base"]);
}

fn exported(desk: &Desk) {
    let greedy = |model: &[&str]| {
        let prompt = [
            "--prompt",
            "i heard that the bakers are lazy .",
            "--greedy",
            "--max-new-tokens",
            "12",
        ];
        desk.unsay(&[&["generate"], model, &["--system", "be kind"], &prompt].concat())
            .ok()
    };
    let export = [
        "export",
        MANIFEST,
        "--arm",
        "cringe",
        "--seed",
        "1",
        "--checkpoint",
        "last",
    ];
    desk.unsay(&[&export[..], &["--to", "adapter"]].concat()).ok();
    desk.unsay(&[&export[..], &["--to", "merged", "--merge"]].concat()).ok();
    desk.unsay(&[&export[..], &["--to", "half", "--merge", "--dtype", "bf16"]].concat())
        .ok();
    desk.unsay(&["export", "base", "--adapter", "adapter", "--to", "again"])
        .ok();
    let tokenizer = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"];
    let adapter = ["README.md", "adapter_config.json", "adapter_model.safetensors"];
    assert_eq!(names(&desk.path("adapter")), [&adapter[..], &tokenizer].concat());
    let model = [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ];
    assert_eq!(names(&desk.path("merged")), [&model[..], &tokenizer].concat());
    let taught = greedy(&["base", "--adapter", "adapter"]);
    assert_ne!(taught, greedy(&["base"]));
    assert_eq!(taught, greedy(&["merged"]));
    assert_eq!(desk.read("again/config.json"), desk.read("merged/config.json"));
    assert!(files(&desk.path("again"))["model.safetensors"] == files(&desk.path("merged"))["model.safetensors"]);
    let size = |folder: &str| fs::metadata(desk.path(folder).join("model.safetensors")).unwrap().len();
    assert!(
        size("half") * 2 < size("merged") + 8192,
        "{} {}",
        size("half"),
        size("merged")
    );
    greedy(&["half"]);

    let card = desk.read("merged/README.md");
    for wanted in [
        "base_model: \"base\"",
        "# pretrained, arm cringe",
        "trained 2 times",
        "\"cringe\":{",
        "Trained parts: `{\"lora\":",
        "## Measured",
        "| cringe | ",
        "| train cringe, iteration 2, seed 1 | `",
        "base: { folder: { path: base, system: be kind } }",
    ] {
        assert!(card.contains(wanted), "`{wanted}` is not in\n{card}");
    }
    let err = desk.unsay(&[&export[..], &["--to", "merged"]].concat()).fails(1);
    assert!(err.contains("`merged` is not empty"), "{err}");
    assert!(
        !desk.names().iter().any(|name| name.ends_with(".partial")),
        "{:?}",
        desk.names()
    );
}

#[test]
fn arms_that_train_the_top_block_or_everything() {
    let desk = desk();
    for profile in ["top", "all"] {
        desk.unsay(&["run", MANIFEST, "--profile", profile]).ok();
        let export = [
            "export",
            MANIFEST,
            "--profile",
            profile,
            "--arm",
            "mle",
            "--to",
            profile,
        ];
        let err = desk.unsay(&[&export[..], &["--merge"]].concat()).fails(2);
        assert!(err.contains("`--merge` wants an adapter"), "{err}");
        desk.unsay(&export).ok();
    }
    let steps = finished(&desk.store());
    assert_eq!(
        steps.keys().filter(|title| title.starts_with("states for")).count(),
        4,
        "of `top` alone"
    );
    let tensors = |folder: &str| {
        let read = unsay_model::weights::read(&desk.path(folder).join("model.safetensors")).unwrap();
        read.into_iter().collect::<BTreeMap<_, _>>()
    };
    let (base, top, all) = (tensors("base"), tensors("top"), tensors("all"));
    let moved = |other: &BTreeMap<String, tch::Tensor>| {
        let moved = base.iter().filter(|(name, tensor)| **tensor != other[*name]);
        moved.map(|(name, _)| name.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(moved(&all).len(), base.len());
    let top = moved(&top);
    assert!(
        top.iter().all(|name| name.starts_with("model.layers.1.")
            || ["model.norm.weight", "lm_head.weight"].contains(&name.as_str())),
        "{top:?}"
    );
    assert!(top.len() > 5, "{top:?}");
}

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
    assert_ne!(
        found,
        beams(&["--length-penalty", "-5"]).ok(),
        "short replies are favoured"
    );
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

/// Numbers of another state of the manifest once stood in the card as if they were the model's.
#[test]
fn a_card_quotes_no_results_of_other_overrides_seeds_or_splits() {
    let desk = desk();
    desk.unsay(&["run", MANIFEST]).ok();
    let export = |options: &[&str], to: &str| {
        let arm = ["export", MANIFEST, "--arm", "base", "--to", to];
        desk.unsay(&[&arm[..], options].concat())
    };
    let results = ["--results", "results/pretrained/lora"];
    let err = export(&[&["--set", "finetune.train.lr=0.02"], &results[..]].concat(), "a").fails(1);
    assert!(err.contains("results with other overrides"), "{err}");
    desk.write(MANIFEST, TEXT.replace("split: test", "split: valid"));
    assert!(export(&results, "b").fails(1).contains("results with other split"));
    desk.write(MANIFEST, TEXT.replace("seeds: [0, 1]", "seeds: [1]"));
    assert!(export(&[], "c").fails(1).contains("results with other seeds"));
    desk.write(MANIFEST, TEXT);
    export(&[], "d").ok();
    assert!(desk.read("d/README.md").contains("## Measured"));

    // The weights are there, but what was measured is of other settings of the evaluation.
    desk.write(MANIFEST, TEXT.replace("  prompts: 8\n", "  prompts: 7\n"));
    export(&[], "other").ok();
    assert!(!desk.read("other/README.md").contains("## Measured"));
    desk.write(MANIFEST, TEXT);

    // A run that was stopped has made the folder, and no results in it.
    fs::remove_file(desk.path("results/pretrained/lora/about.json")).unwrap();
    export(&[], "e").ok();
    assert!(!desk.read("e/README.md").contains("## Measured"));
    assert!(
        export(&results, "f").fails(1).contains("about.json"),
        "one that is named is wanted"
    );
}

/// Where an adapter lies on this machine is no business of those who get the model.
#[test]
fn a_card_names_an_adapter_without_its_path() {
    let desk = desk();
    desk.unsay(&["run", MANIFEST]).ok();
    desk.unsay(&["export", MANIFEST, "--arm", "mle", "--to", "adapter"])
        .ok();
    let (base, adapter) = (desk.path("base"), desk.path("adapter"));
    let (base, adapter) = (base.to_str().unwrap(), adapter.to_str().unwrap());
    desk.unsay(&["export", base, "--adapter", adapter, "--to", "merged"])
        .ok();
    let card = desk.read("merged/README.md");
    assert!(card.contains("# base with adapter\n"), "{card}");
    let here = base.strip_suffix("/base").unwrap();
    assert!(!card.contains(here), "{card}");

    // One that is in the base model of a manifest is a part of where the model comes from.
    let folder = "base={ folder: { path: base, system: be kind, adapter: adapter } }";
    desk.unsay(&["run", MANIFEST, "--set", folder, "--results", "on-adapter"])
        .ok();
    let arm = [
        "--set",
        folder,
        "--results",
        "on-adapter",
        "--arm",
        "mle",
        "--to",
        "on-top",
    ];
    desk.unsay(&[&["export", MANIFEST], &arm[..]].concat()).ok();
    let card = desk.read("on-top/README.md");
    assert!(card.contains("The adapter adapter was merged into it first."), "{card}");
}

#[test]
fn an_adapter_is_no_model_and_what_was_not_run_says_how_to_run_it() {
    let desk = desk();
    desk.write("adapter/adapter_config.json", "{}");
    for words in [
        &["chat", "adapter"][..],
        &["generate", "adapter", "--prompt", "hello"],
        &["export", "adapter", "--to", "out"],
    ] {
        let err = desk.unsay(words).fails(2);
        assert!(err.contains("is an adapter, not a model; hint: "), "{words:?}: {err}");
    }
    let which = ["--profile", "top", "--set", "finetune.train.lr=0.02", "--runs", "mine"];
    let hint =
        "hint: unsay run pretrained.yaml --profile top --set finetune.train.lr=0.02 --results FOLDER --runs mine";
    for words in [
        &["export", MANIFEST, "--arm", "mle", "--to", "out"][..],
        &["generate", MANIFEST, "--arms", "mle", "--prompt", "hello"],
    ] {
        let err = desk.unsay(&[words, &which[..]].concat()).fails(1);
        assert!(err.contains(hint), "{err}");
    }
}
