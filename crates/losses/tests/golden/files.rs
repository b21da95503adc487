//! Reading golden files and comparing with them.

use serde_json::Value;

/// The relative tolerance of most files: they were computed in `f64`.
pub(crate) const TOLERANCE: f64 = 1e-9;

/// The cases of a file.
pub(crate) fn cases(name: &str) -> Vec<Value> {
    tch::set_num_threads(1);
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden").to_owned();
    let folder = std::env::var("UNSAY_GOLDEN_DIR").unwrap_or(own);
    let text = std::fs::read_to_string(format!("{folder}/{name}.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    file["cases"].as_array().unwrap().clone()
}

/// All numbers, however nested; `null` is not a number.
pub(crate) fn floats(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(floats).collect(),
        Value::Null => vec![f64::NAN],
        number => vec![number.as_f64().unwrap()],
    }
}

/// All whole numbers, however nested.
pub(crate) fn integers(value: &Value) -> Vec<i64> {
    floats(value).into_iter().map(|x| x as i64).collect()
}

/// All numbers in rows of one width.
pub(crate) fn rows_of(value: &Value, width: usize) -> Vec<Vec<f64>> {
    floats(value).chunks(width).map(<[f64]>::to_vec).collect()
}

/// Asserts that two numbers agree to [`TOLERANCE`].
pub(crate) fn close(what: &str, ours: f64, theirs: f64) {
    close_to(what, ours, theirs, TOLERANCE);
}

/// Asserts that two numbers agree to a relative tolerance, for files that suggest another.
pub(crate) fn close_to(what: &str, ours: f64, theirs: f64, tolerance: f64) {
    let bound = tolerance * ours.abs().max(theirs.abs()) + 1e-15;
    assert!((ours - theirs).abs() <= bound, "{what}: {ours} is not {theirs}");
}
