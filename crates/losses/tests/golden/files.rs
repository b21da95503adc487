//! Reading golden files and comparing with them.

use serde_json::Value;

/// The relative tolerance of most files: they were computed in `f64`.
pub(crate) const TOLERANCE: f64 = 1e-9;

/// Every file of the folder; each is walked by a test.
const FILES: [&str; 28] = [
    "bco_pair_trl024",
    "bco_trl024",
    "cringe_agent_reduction",
    "cringe_loss",
    "d2o",
    "director_decode",
    "director_loss",
    "dpo_family_trl024",
    "dpo_family_trl_head",
    "dpo_original",
    "grpo",
    "halos_pairwise",
    "kl_estimators",
    "kto_halos",
    "kto_trl024",
    "npo",
    "orpo_trl024",
    "pairwise_cringe",
    "policy_value_losses",
    "ppo_trl_legacy",
    "ppo_update_step",
    "reward_model_loss",
    "rloo",
    "simpo_cpo",
    "unlikelihood_repetition_parlai",
    "unlikelihood_reward",
    "unlikelihood_sequence_fairseq",
    "unlikelihood_token_fairseq",
];

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// Whether the numbers are the committed ones, and not those of a folder in `UNSAY_GOLDEN_DIR`.
pub(crate) fn committed() -> bool {
    std::env::var_os("UNSAY_GOLDEN_DIR").is_none()
}

/// The cases of a file.
pub(crate) fn cases(name: &str) -> Vec<Value> {
    assert!(FILES.contains(&name), "`{name}` is not in the list of golden files");
    tch::set_num_threads(1);
    let folder = std::env::var("UNSAY_GOLDEN_DIR").unwrap_or(COMMITTED.to_owned());
    let path = format!("{folder}/{name}.json");
    let hint = "a folder in UNSAY_GOLDEN_DIR holds every file; copy those that you do not replace";
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}; {hint}"));
    let file: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"));
    file["cases"]
        .as_array()
        .unwrap_or_else(|| panic!("{path}: no list of `cases`"))
        .clone()
}

/// Asserts how many cases of a file were compared, and how many are listed as different on purpose.
///
/// The committed files have a known number of each. Of other numbers every case must have been one or the other.
#[expect(
    clippy::print_stderr,
    reason = "who brings own numbers wants to see what became of them"
)]
pub(crate) fn counted(name: &str, (compared, listed): (usize, usize), known: (usize, usize)) {
    eprintln!("{name}: {compared} cases compared, {listed} listed");
    match committed() {
        true => assert_eq!((compared, listed), known, "{name}"),
        false => assert_eq!((compared + listed, compared > 0), (cases(name).len(), true), "{name}"),
    }
}

#[test]
fn golden_files_are_all_walked() {
    let mut found: Vec<String> = std::fs::read_dir(COMMITTED)
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .collect();
    found.sort();
    assert_eq!(found, FILES);
    let tests = concat!(
        include_str!("director.rs"),
        include_str!("kl.rs"),
        include_str!("policy.rs"),
        include_str!("ranked.rs"),
        include_str!("repetition.rs"),
        include_str!("scores.rs"),
        include_str!("token.rs"),
        include_str!("unpaired.rs"),
        include_str!("with_reference.rs"),
        include_str!("without_reference.rs")
    );
    for name in FILES {
        assert!(tests.contains(&format!("cases(\"{name}\")")), "no test reads `{name}`");
        assert!(
            tests.contains(&format!("counted(\"{name}\"")) || tests.contains(&format!("counted(\n        \"{name}\"")),
            "no test counts `{name}`"
        );
    }
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
