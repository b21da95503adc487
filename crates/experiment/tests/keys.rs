//! A step keeps its key as long as nothing changes what it writes: finished work is found again by it.
#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

use std::path::Path;

use unsay_experiment::manifest::Manifest;
use unsay_experiment::plan::{Place, Plan, build};

fn plan(device: Place) -> Plan {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/cringe_safety.yaml");
    let (_, question) = Manifest::read(&file).unwrap().resolve(Some("testbed"), &[]).unwrap();
    build::build(&question, device).unwrap()
}

/// One step of each kind of the main job. A line changes only with the version of its kind of step or of the
/// testbed, or with the manifest itself.
const KEYS: [(&str, &str); 9] = [
    ("records: pretraining", "93c80f35c54df100aa9847b5"),
    ("records: feedback", "8c9e316646b0b233f05acdd3"),
    ("tokenizer", "a6ec310771510c8596a0bd85"),
    ("base model, seed 0", "769186ea9246a37944619bb1"),
    ("classifier A, seed 0", "bd51752a8074d090d2ca71cf"),
    ("train cringe, seed 0", "fe96aa7e853f924a8480416e"),
    (
        "own replies of cringe_iterative, iteration 1, seed 0",
        "66649d8f6c1bb4c6d79ae457",
    ),
    (
        "train cringe_iterative, iteration 2, seed 0",
        "6e037da05bd873b56d3820da",
    ),
    ("evaluate base, seed 0, best", "4516e27fff780747564715bb"),
];

#[test]
fn the_main_job_keeps_its_keys() {
    let plan = plan(Place::Cpu);
    let found = KEYS.map(|(title, _)| {
        let step = plan.steps.iter().find(|s| s.title == title).unwrap();
        (title, step.key.as_str())
    });
    assert_eq!(found, KEYS);
}

#[test]
fn another_kind_of_device_is_another_step_where_a_model_computes() {
    let (here, there) = (plan(Place::Cpu), plan(Place::Cuda));
    let mut same = Vec::new();
    for (a, b) in here.steps.iter().zip(&there.steps) {
        assert_eq!(a.title, b.title);
        if a.key == b.key {
            same.push(a.title.as_str());
        }
    }
    assert_eq!(
        same,
        [
            "records: pretraining",
            "records: feedback",
            "records: dialogue",
            "tokenizer"
        ]
    );
    assert!(here.steps.len() > 40);
}
