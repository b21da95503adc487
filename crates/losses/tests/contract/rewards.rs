//! What only losses with implicit rewards promise.

use serde_json::Value;
use unsay_losses::{paired, unpaired};

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
