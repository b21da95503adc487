//! Arms that train on pairs, from a manifest to the tables.
#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod common;

use std::fs;

use common::{Desk, begun, checkpoint, finished, same_tables, signal, until};

const MANIFEST: &str = "pairs.yaml";
const TEXT: &str = include_str!("fixtures/pairs.yaml");
const RESULTS: &str = "results/pairs/small";

#[test]
fn arms_on_pairs_share_their_reference_and_can_be_interrupted() {
    let desk = Desk::with(MANIFEST, TEXT);
    let plan = desk.unsay(&["plan", MANIFEST]).ok();
    let reference: Vec<&str> = plan
        .lines()
        .filter(|line| line.contains("reference for pairs"))
        .collect();
    // One for the base model of each seed, whatever the number of arms.
    assert_eq!(reference.len(), 2, "{plan}");
    assert!(
        reference[0].contains("reference for pairs, base model, seed 0"),
        "{plan}"
    );
    desk.unsay(&["run", MANIFEST, "--workers", "2"]).ok();
    let steps = finished(&desk.store());
    for arm in ["dpo", "dpo_anchored", "simpo", "bco"] {
        let dir = &steps[&format!("train {arm}, seed 1")];
        let log = fs::read_to_string(dir.join("steps.jsonl")).unwrap();
        assert_eq!(log.lines().count(), 14, "{arm}");
        for name in ["rewards/margins", "rewards/accuracies", "logps/chosen", "valid"] {
            assert!(log.contains(&format!("\"{name}\"")), "{arm} lacks {name}");
        }
        assert_eq!(log.contains("logps/chosen_below_reference"), arm != "simpo", "{arm}");
        let seen = fs::read_to_string(dir.join("supervision.json")).unwrap();
        for side in ["feedback, chosen", "feedback, rejected", "validation, rejected"] {
            assert!(seen.contains(side), "{arm}: {seen}");
        }
    }
    // At the first step the policy is the reference: no margin, to the bit where both have seen the same batch.
    let log = fs::read_to_string(steps["train dpo, seed 0"].join("steps.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert!(
        (first["metrics"]["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-4,
        "{first}"
    );

    let again = Desk::with(MANIFEST, TEXT);
    let mut child = again.start(&["run", MANIFEST]);
    let training_pairs = || {
        begun(&again.store()).iter().any(|_| {
            let whole = checkpoint(&again.store());
            whole.is_some_and(|dir| dir.join("running_mean.json").is_file())
        })
    };
    until(&mut child, "a checkpoint of the arm with a mean", training_pairs);
    signal(&child, "INT");
    child.wait().unwrap();
    again.unsay(&["run", MANIFEST]).ok();
    same_tables(&again.path(RESULTS), &desk.path(RESULTS));

    // Prompts computed apart are other steps with the same reference.
    let apart = desk
        .unsay(&["plan", MANIFEST, "--set", "finetune.share_prompt=false"])
        .ok();
    let state = |title: &str| {
        apart.lines().find(|line| line.contains(title)).unwrap()[6..13]
            .trim()
            .to_owned()
    };
    assert_eq!(
        (state("train dpo, seed 0"), state("train mle, seed 0")),
        ("to run".into(), "cached".into())
    );
    assert_eq!(state("reference for pairs, base model, seed 0"), "cached");
}

#[test]
fn mistakes_with_pairs_are_found_before_anything_runs() {
    let desk = Desk::empty();
    let refused = |from: &str, to: &str| {
        assert!(TEXT.contains(from), "{from}");
        desk.write(MANIFEST, TEXT.replace(from, to));
        desk.unsay(&["check", MANIFEST]).fails(2)
    };
    let dpo = "dpo: { pairs: { loss: { dpo: { beta: 0.1 } } } }";
    let said = refused(dpo, "dpo: { train: { loss: { dpo: { beta: 0.1 } } } }");
    assert!(
        said.contains("an arm trains with it as `pairs: { loss: { dpo: … } }`"),
        "{said}"
    );
    let said = refused(dpo, "dpo: { pairs: { loss: { nll: {} } } }");
    assert!(
        said.contains("an arm trains with it as `train: { loss: { nll: … } }`"),
        "{said}"
    );
    let said = refused(dpo, "dpo: { pairs: { loss: { dpo: { beta: -1 } } } }");
    assert!(
        said.contains("`dpo.beta` is -1") && said.contains("pairs.yaml:10:40"),
        "{said}"
    );
    let said = refused(dpo, "dpo: { pairs: { loss: { dpo: { beta: 0.1 } }, margin: 1 } }");
    assert!(said.contains("unknown key `margin`"), "{said}");
    let said = refused(
        dpo,
        "dpo: { pairs: { loss: { simpo: { beta: 2.0 } }, divergence: js } }",
    );
    assert!(said.contains("`divergence` is js"), "{said}");
    let said = refused(dpo, "dpo: { pairs: { loss: { aot: { beta: 0.1 } } } }");
    assert!(
        said.contains("`aot` compares the pairs of a batch with each other"),
        "{said}"
    );
    let said = refused("part: pairs,", "part: feedback,");
    assert!(
        said.contains("every reply has a context of its own") && said.contains("`part: pairs`"),
        "{said}"
    );
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    let only = TEXT
        .lines()
        .filter(|line| !line.contains("{ pairs: "))
        .collect::<Vec<_>>()
        .join("\n");
    desk.write(
        MANIFEST,
        only.replace("    finetune:\n", "    finetune:\n      share_prompt: false\n"),
    );
    let said = desk.unsay(&["check", MANIFEST]).fails(2);
    assert!(said.contains("no arm trains on pairs"), "{said}");
    // Own files of which no prompt has replies of both kinds.
    for split in ["train", "valid", "test"] {
        let rows = [("a", true), ("b", false), ("c", true)];
        let row =
            |(prompt, label)| format!("{{\"prompt\": \"{prompt}\", \"completion\": \"x\", \"label\": {label}}}\n");
        desk.write(&format!("{split}.jsonl"), rows.map(row).concat());
    }
    let line = TEXT.lines().find(|line| line.contains("part: pairs")).unwrap();
    let files = "      feedback: { files: { train: train.jsonl, valid: valid.jsonl, test: test.jsonl } }";
    let judged = TEXT
        .replace("judges: [oracle, a, b]", "judges: [a, b]")
        .replace("safe_oracle", "safe_a");
    desk.write(MANIFEST, judged.replace(line, files));
    let said = desk.unsay(&["plan", MANIFEST]).fails(1);
    assert!(
        said.contains("split `train`: expected positive and negative replies to one prompt, got none"),
        "{said}"
    );
}
