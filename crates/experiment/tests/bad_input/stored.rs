//! Damage to what earlier steps and runs left: weights, tokenizers, records, checkpoints, results.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::common::{Desk, checkpoint, copy, files, finished, signal, until};
use super::data::desk;

const BASE: &str = "base model, seed 0";
const WEIGHTS: &str = "best/model.safetensors";
const CONFIG: &str = "best/config.json";

/// Header and data of a safetensors file.
pub(super) fn parts(path: &Path) -> (Value, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (
        serde_json::from_slice(&bytes[8..8 + n]).unwrap(),
        bytes[8 + n..].to_vec(),
    )
}

pub(super) fn write_parts(path: &Path, header: &Value, data: &[u8]) {
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length, header.as_bytes(), data].concat()).unwrap();
}

pub(super) fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

pub(super) fn edit_json(path: &Path, change: impl FnOnce(&mut Value)) {
    edit(path, |bytes| {
        let mut value = serde_json::from_slice(bytes).unwrap();
        change(&mut value);
        *bytes = value.to_string().into_bytes();
    });
}

/// A smaller vocabulary in weights and description alike: a whole model, but not for this tokenizer.
fn shrink_vocabulary(step: &Path) {
    let path = step.join(WEIGHTS);
    let (mut header, data) = parts(&path);
    let mut kept = Vec::new();
    for (name, info) in header.as_object_mut().unwrap() {
        if name == "__metadata__" {
            continue;
        }
        let [from, to] = [0, 1].map(|i| info["data_offsets"][i].as_u64().unwrap() as usize);
        let mut bytes = data[from..to].to_vec();
        if name == "model.embed_tokens.weight" {
            let rows = info["shape"][0].as_u64().unwrap() as usize;
            bytes.truncate(bytes.len() / rows * 262);
            info["shape"][0] = 262.into();
        }
        info["data_offsets"] = json!([kept.len(), kept.len() + bytes.len()]);
        kept.extend(bytes);
    }
    write_parts(&path, &header, &kept);
    edit_json(&step.join(CONFIG), |c| c["vocab_size"] = 262.into());
}

/// A damage: to which step, how, and what is said beside the file's name.
struct Case {
    what: &'static str,
    step: &'static str,
    damage: fn(&Path),
    file: &'static str,
    says: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        what: "NaN weights",
        step: BASE,
        damage: |s| {
            edit(&s.join(WEIGHTS), |b| {
                let n = b.len();
                b[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
            });
        },
        file: WEIGHTS,
        says: &["tensor `", "holds NaN or infinity"],
    },
    Case {
        what: "cut weights",
        step: BASE,
        damage: |s| edit(&s.join(WEIGHTS), |b| b.truncate(b.len() / 2)),
        file: WEIGHTS,
        says: &["the file is cut short"],
    },
    Case {
        what: "empty weights",
        step: BASE,
        damage: |s| edit(&s.join(WEIGHTS), Vec::clear),
        file: WEIGHTS,
        says: &["not a safetensors file: 0 bytes long"],
    },
    Case {
        what: "a header longer than the file",
        step: BASE,
        damage: |s| edit(&s.join(WEIGHTS), |b| b[..8].fill(0x7f)),
        file: WEIGHTS,
        says: &["not a safetensors file: a header of "],
    },
    Case {
        what: "a header that is no JSON",
        step: BASE,
        damage: |s| edit(&s.join(WEIGHTS), |b| b[8] = b'x'),
        file: WEIGHTS,
        says: &["not a safetensors file: header: "],
    },
    Case {
        what: "wrong shape",
        step: BASE,
        damage: |s| {
            let path = s.join(WEIGHTS);
            let (mut header, data) = parts(&path);
            let shape = header["model.embed_tokens.weight"]["shape"].as_array_mut().unwrap();
            shape.reverse();
            write_parts(&path, &header, &data);
        },
        file: WEIGHTS,
        says: &["tensor `model.embed_tokens.weight`: expected shape [300, 16], got [16, 300]"],
    },
    Case {
        what: "a tensor under another name",
        step: BASE,
        damage: |s| {
            let path = s.join(WEIGHTS);
            let (header, data) = parts(&path);
            let renamed = header.to_string().replace("model.norm.weight", "model.nrom.weight");
            write_parts(&path, &serde_json::from_str(&renamed).unwrap(), &data);
        },
        file: WEIGHTS,
        says: &["missing tensor `model.norm.weight`"],
    },
    Case {
        what: "no weights",
        step: BASE,
        damage: |s| fs::remove_file(s.join(WEIGHTS)).unwrap(),
        file: WEIGHTS,
        says: &["cannot open"],
    },
    Case {
        what: "a description of another width",
        step: BASE,
        damage: |s| edit_json(&s.join(CONFIG), |c| c["hidden_size"] = 64.into()),
        file: WEIGHTS,
        says: &["expected shape [300, 64], got [300, 16]"],
    },
    Case {
        what: "a description of what is not computed",
        step: BASE,
        damage: |s| edit_json(&s.join(CONFIG), |c| c["hidden_act"] = "quick_gelu".into()),
        file: CONFIG,
        says: &["`hidden_act`: expected one of silu, ", "got \"quick_gelu\""],
    },
    Case {
        what: "a description that is cut",
        step: BASE,
        damage: |s| edit(&s.join(CONFIG), |b| b.truncate(b.len() / 2)),
        file: CONFIG,
        says: &["not JSON"],
    },
    Case {
        what: "no description",
        step: BASE,
        damage: |s| fs::remove_file(s.join(CONFIG)).unwrap(),
        file: CONFIG,
        says: &["cannot open"],
    },
    Case {
        what: "a model for another tokenizer",
        step: BASE,
        damage: shrink_vocabulary,
        file: "",
        says: &["token ", "the model's vocabulary has 262"],
    },
    Case {
        what: "a tokenizer without a special token",
        step: "tokenizer",
        damage: |s| {
            let path = s.join("tokenizer.json");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(path, text.replace("<|sep|>", "<|middle|>")).unwrap();
        },
        file: "tokenizer.json",
        says: &["expected the special token `<|sep|>` with id 2, got no such token"],
    },
    Case {
        what: "a tokenizer that is cut",
        step: "tokenizer",
        damage: |s| edit(&s.join("tokenizer.json"), |b| b.truncate(1000)),
        file: "tokenizer.json",
        says: &["expected a tokenizer"],
    },
    Case {
        what: "another file as tokenizer",
        step: "tokenizer",
        damage: |s| fs::write(s.join("tokenizer.json"), "{\"version\": \"1.0\"}").unwrap(),
        file: "tokenizer.json",
        says: &["expected a tokenizer"],
    },
    Case {
        what: "records that are cut",
        step: "records: feedback",
        damage: |s| edit(&s.join("train.jsonl"), |b| b.truncate(b.len() - 20)),
        file: "train.jsonl:64",
        says: &["expected an example"],
    },
    Case {
        what: "a classifier with infinite weights",
        step: "classifier B, seed 0",
        damage: |s| {
            edit(&s.join(WEIGHTS), |b| {
                let n = b.len();
                b[n - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
            });
        },
        file: WEIGHTS,
        says: &["holds NaN or infinity"],
    },
    Case {
        what: "a language model in the place of a classifier",
        step: "classifier A, seed 0",
        damage: |s| edit_json(&s.join(CONFIG), |c| c["architectures"] = json!(["LlamaForCausalLM"])),
        file: CONFIG,
        says: &["`architectures`: expected `LlamaForSequenceClassification`"],
    },
    Case {
        what: "an accuracy without numbers",
        step: "classifier A, seed 0",
        damage: |s| fs::write(s.join("accuracy.json"), "{}").unwrap(),
        file: "accuracy.json",
        says: &["lacks `"],
    },
    Case {
        what: "scores that are cut",
        step: "evaluate mle, seed 0, best",
        damage: |s| edit(&s.join("scores.jsonl"), |b| b.truncate(b.len() - 9)),
        file: "scores.jsonl:",
        says: &["is not as written"],
    },
    Case {
        what: "a log that is cut",
        step: "train mle, seed 0",
        damage: |s| edit(&s.join("steps.jsonl"), |b| b.truncate(b.len() - 9)),
        file: "steps.jsonl",
        says: &["line 4"],
    },
];

/// Steps that must be gone for the damaged one to be read again, by the first words of their titles.
fn readers(step: &str) -> &'static [&'static str] {
    match step {
        BASE | "tokenizer" | "records: feedback" => &["classifier", "train", "evaluate"],
        "classifier B, seed 0" | "classifier A, seed 0" => &["evaluate"],
        _ => &[],
    }
}

/// A folder with a finished run of the manifest on own files.
fn done() -> Desk {
    let desk = desk();
    desk.unsay(&["run", "m.yaml"]).ok();
    desk
}

fn removed(steps: &std::collections::BTreeMap<String, PathBuf>, titles: &[&str]) {
    for (title, dir) in steps {
        if titles.iter().any(|t| title.starts_with(t)) {
            fs::remove_dir_all(dir).unwrap();
        }
    }
}

#[test]
fn a_damaged_step_is_named_with_its_file_and_what_to_do() {
    let whole = done();
    let results = whole.path("results/files/own");
    for case in CASES {
        let desk = desk();
        copy(&whole.store(), &desk.store());
        let steps = finished(&desk.store());
        let damaged = &steps[case.step];
        // Damage to results shows when they are collected; all else when a later step reads it.
        let accuracy = case.file == "accuracy.json";
        removed(&steps, if accuracy { &[] } else { readers(case.step) });
        (case.damage)(damaged);
        let err = desk.unsay(&["run", "m.yaml", "--workers", "1"]).fails(1);
        let relative = format!("runs/store/{}", damaged.file_name().unwrap().display());
        for says in case.says {
            assert!(err.contains(says), "{}: `{says}` is not in\n{err}", case.what);
        }
        if !case.file.is_empty() {
            let named = err.contains(&format!("`{relative}/{}", case.file));
            assert!(
                named && err.contains(&format!("hint: remove `{relative}` to make it again")),
                "{}\n{err}",
                case.what
            );
        }
        assert!(
            files(&desk.path("results")).is_empty(),
            "{}: results of damaged steps",
            case.what
        );
        // Doing what the hint says heals it.
        if case.what == "NaN weights" || case.what == "scores that are cut" {
            fs::remove_dir_all(damaged).unwrap();
            desk.unsay(&["run", "m.yaml"]).ok();
            super::common::same_tables(&desk.path("results/files/own"), &results);
        }
    }
    assert_eq!(CASES.len(), 22);
}

#[test]
fn generate_names_damaged_weights() {
    let desk = done();
    let steps = finished(&desk.store());
    edit(&steps["train mle, seed 0"].join(WEIGHTS), |b| b.truncate(100));
    let err = desk
        .unsay(&["generate", "m.yaml", "--arms", "mle", "--prompt", "hi"])
        .fails(1);
    assert!(err.contains(WEIGHTS) && err.contains("not a safetensors file"), "{err}");
}

#[test]
fn a_damaged_checkpoint_is_named_with_what_to_do() {
    let desk = desk();
    let args = [
        "run",
        "m.yaml",
        "--results",
        "out",
        "--set",
        "base.train.train.steps=100000",
    ];
    let mut run = desk.start(&args);
    until(&mut run, "a checkpoint", || checkpoint(&desk.store()).is_some());
    signal(&run, "INT");
    assert_eq!(run.wait().unwrap().code(), Some(1));
    let folder = checkpoint(&desk.store()).unwrap();
    let fit = folder.parent().unwrap();
    let hint = format!(
        "hint: remove `runs/{}`",
        fit.display().to_string().split_once("/runs/").unwrap().1
    );
    let names = [
        "model.safetensors",
        "optimizer.safetensors",
        "config.json",
        "trainer_state.json",
    ];
    for name in names {
        let path = folder.join(name);
        let sound = fs::read(&path).unwrap();
        for damage in ["cut", "changed", "gone"] {
            match damage {
                // The hashes of the other files are in it; a change of one of them is blamed on the file.
                "changed" if name == "trainer_state.json" => fs::write(&path, "{}").unwrap(),
                "cut" => fs::write(&path, &sound[..sound.len() / 2]).unwrap(),
                "changed" => edit(&path, |b| b[sound.len() / 2] ^= 1),
                _ => fs::remove_file(&path).unwrap(),
            }
            let err = desk.unsay(&args).fails(1);
            assert!(
                err.contains("error: step `base model, seed 0` failed"),
                "{name} {damage}\n{err}"
            );
            assert!(err.contains(&format!("/{name}`")), "{name} {damage}\n{err}");
            assert!(err.contains(&hint), "{name} {damage}: `{hint}` is not in\n{err}");
            fs::write(&path, &sound).unwrap();
        }
    }
    assert!(
        checkpoint(&desk.store()).is_some(),
        "looking at a damaged checkpoint removes nothing"
    );
}

#[test]
fn damaged_results_are_named() {
    let whole = done();
    let results = whole.path("results/files/own");
    type Case = (&'static str, fn(&Path), &'static [&'static str]);
    let cases: [Case; 7] = [
        (
            "cut table",
            |r| edit(&r.join("runs.parquet"), |b| b.truncate(b.len() / 2)),
            &["runs.parquet", "not a readable Parquet file"],
        ),
        (
            "empty table",
            |r| edit(&r.join("steps.parquet"), Vec::clear),
            &["steps.parquet", "not a readable Parquet file"],
        ),
        (
            "no table",
            |r| fs::remove_file(r.join("scores.parquet")).unwrap(),
            &["scores.parquet"],
        ),
        (
            "another table",
            |r| {
                edit(&r.join("runs.parquet"), |b| {
                    *b = fs::read(r.join("scores.parquet")).unwrap()
                })
            },
            &["runs.parquet", "other columns"],
        ),
        (
            "cut description",
            |r| edit(&r.join("about.json"), |b| b.truncate(b.len() / 2)),
            &["about.json", "is not as written by unsay"],
        ),
        (
            "a figure of nothing",
            |r| {
                edit(&r.join("about.json"), |b| {
                    *b = String::from_utf8_lossy(b).replace("safe_b", "safe_c").into_bytes()
                });
            },
            &["safe_c", "which the runs table lacks"],
        ),
        (
            "an arm of nothing",
            |r| {
                edit(&r.join("about.json"), |b| {
                    *b = String::from_utf8_lossy(b).replace("\"mle\"", "\"mel\"").into_bytes()
                });
            },
            &["`mel`", "none of the tables"],
        ),
    ];
    for (what, damage, says) in cases {
        let desk = Desk::empty();
        copy(&results, &desk.path("r"));
        damage(&desk.path("r"));
        let page = desk.read("r/README.md");
        let err = desk.unsay(&["report", "r"]).fails(1);
        for says in says {
            assert!(err.contains(says), "{what}: `{says}` is not in\n{err}");
        }
        assert_eq!(desk.read("r/README.md"), page, "{what}: the page stays as it was");
        assert!(
            !files(&desk.path("r"))
                .keys()
                .any(|n| n.ends_with(".partial") || n.ends_with(".tmp")),
            "{what}"
        );
    }
}
