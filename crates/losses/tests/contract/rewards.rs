//! What is logged of rewards and scores.

use std::cell::Cell;

use serde_json::Value;
use unsay_losses::{paired, unpaired};

use crate::every;
use crate::subject::How;

/// What is preferred over what, as the terms of each family say it.
const SIDES: [(&str, &str); 3] = [
    ("chosen", "rejected"),
    ("desirable", "undesirable"),
    ("samples", "negative"),
];

#[test]
fn margins_are_differences_and_accuracies_are_shares() {
    let (margins, accuracies) = (Cell::new(0), Cell::new(0));
    every(|subject| {
        let ours = subject.whole(&subject.batch(7, 8), How::default()).unwrap();
        let term = |wanted: String| {
            ours.terms
                .iter()
                .find(|(name, _)| *name == wanted)
                .map(|(_, value)| *value)
        };
        for what in ["reward", "score"] {
            if let Some(margin) = term(format!("{what}_margin")) {
                let sides = SIDES.map(|(a, b)| Some(term(format!("{what}_{a}"))? - term(format!("{what}_{b}"))?));
                let difference = sides.into_iter().flatten().next().unwrap();
                assert!(
                    (margin - difference).abs() < 1e-12 * (1.0 + margin.abs()),
                    "{margin} is not {difference}"
                );
                margins.set(margins.get() + 1);
            }
        }
        for (name, value) in ours
            .terms
            .iter()
            .filter(|(name, _)| name.ends_with("accuracy") || name.ends_with("fraction"))
        {
            assert!((0.0..=1.0).contains(value), "{name}: {value}");
            accuracies.set(accuracies.get() + 1);
        }
    });
    assert_eq!((margins.get(), accuracies.get()), (200, 254));
}

/// The logged rewards are scaled by the `beta` of the manifest, or by 1 where a loss has none.
#[test]
fn rewards_are_scaled_by_the_beta_of_the_manifest() {
    let paired = paired::Loss::samples()
        .into_iter()
        .map(|loss| (serde_json::to_value(&loss).unwrap(), loss.beta()));
    let unpaired = unpaired::Loss::samples()
        .into_iter()
        .map(|loss| (serde_json::to_value(&loss).unwrap(), loss.beta()));
    let (mut without, mut compared) = (0, 0);
    for (manifest, beta) in paired.chain(unpaired) {
        let (_, parameters) = manifest.as_object().unwrap().iter().next().unwrap();
        let expected = parameters.get("beta").and_then(Value::as_f64).unwrap_or_else(|| {
            without += 1;
            1.0
        });
        assert!((beta - expected).abs() < 1e-15, "{manifest}: {beta}");
        compared += 1;
    }
    assert_eq!(
        compared,
        paired::Loss::samples().len() + unpaired::Loss::samples().len()
    );
    assert!(0 < without && without < compared, "{without}");
}
