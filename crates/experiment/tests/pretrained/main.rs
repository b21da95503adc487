//! A base model from outside, from a manifest to a folder that others load: adapters, the top block alone, everything.
#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

#[path = "../common/mod.rs"]
mod common;

mod cards;
mod speaking;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use common::folder::{chat_model, edit_json};
use common::{Desk, begun, checkpoint, files, finished, names, same_tables, signal, until};

const MANIFEST: &str = "pretrained.yaml";

const TEXT: &str = include_str!("../fixtures/pretrained.yaml");

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
