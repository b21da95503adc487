//! What the card of an exported model says and does not say.

use std::fs;

use super::{MANIFEST, TEXT, desk};

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
