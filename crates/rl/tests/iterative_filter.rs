//! The filter of iterative CRINGE against the reference's own output.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests

use std::path::{Path, PathBuf};

use serde_json::Value;
use unsay_data::{Label, stream};
use unsay_rl::{Candidate, Outcome, select};

fn golden() -> Value {
    let folder = std::env::var_os("UNSAY_GOLDEN_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"),
        PathBuf::from,
    );
    let text = std::fs::read_to_string(folder.join("cringe_iterative_filter.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// 0 is negative, 1 positive, anything else has no label.
fn label(accuracy: f64) -> Label {
    match accuracy.to_bits() {
        bits if bits == 0.0_f64.to_bits() => Label::Negative,
        bits if bits == 1.0_f64.to_bits() => Label::Positive,
        _ => Label::Unlabelled,
    }
}

#[test]
fn keeps_what_parlai_keeps() {
    let golden = golden();
    let mut compared = 0;
    for case in golden["cases"].as_array().unwrap() {
        let rows: Vec<Candidate> = case["inputs"]["rows"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| Candidate {
                id: row["id"].to_string(),
                prompt: String::new(),
                completion: row["text"].as_str().unwrap().to_owned(),
                seen_prompt: true,
                messages: Vec::new(),
                label: label(row["classifier_accuracy"].as_f64().unwrap()),
            })
            .collect();
        let max_copies = case["params"]["max_copies_of_same_positive"].as_u64().unwrap();
        let max_copies = usize::try_from(max_copies).unwrap();
        let selection = select(&rows, max_copies, &mut stream(0, "select", 0)).unwrap();
        let mut kept: Vec<u64> = selection.examples.iter().map(|e| e.id.parse().unwrap()).collect();
        kept.sort_unstable();
        let want: Vec<u64> = case["outputs"]["kept_ids_sorted"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_u64().unwrap())
            .collect();
        assert_eq!(kept, want, "{}", case["id"]);
        assert_eq!(selection.outcome, Outcome::Balanced);
        let negatives = selection.examples.iter().filter(|e| e.label == Label::Negative).count();
        assert_eq!(2 * negatives, selection.counts.kept, "{}", case["id"]);
        compared += 1;
    }
    assert_eq!(compared, 3);
}
