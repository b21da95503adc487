//! What shows that the comparisons can fail: every list of the committed files cut, and every number moved.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::FILES;
use crate::files::{COMMITTED, Golden, all_close, floats, names};

/// Files whose cases are consecutive steps of one run: a case needs those before it.
const CONSECUTIVE: [&str; 2] = ["bco_pair_trl024", "bco_trl024"];

/// Lists that may be cut without a failure in some case.
const UNREAD: [(&str, &str); 6] = [
    // A loss without a KL does not read them.
    ("kto_trl024", "/inputs/policy_kl_logps"),
    ("kto_trl024", "/inputs/ref_kl_logps"),
    // Scores become rewards where rollouts are made; losses take advantages.
    ("ppo_trl_legacy", "/inputs/scores"),
    ("ppo_trl_legacy", "/outputs/rewards"),
    // Without the last token it is another text, in which as little comes again.
    ("unlikelihood_repetition_parlai", "/inputs/context"),
    ("unlikelihood_repetition_parlai", "/inputs/generations_with_bos"),
];

/// Numbers that no loss computes.
const NOT_OURS: [(&str, &str); 3] = [
    // The reference keeps a variance with its running mean; its loss reads the mean alone.
    ("bco_trl024", "/outputs/running/std"),
    ("bco_trl024", "/outputs/running/var"),
    ("ppo_trl_legacy", "/outputs/rewards"),
];

/// The paths of all values in a case that `wanted` takes, of the first and the last item of each list.
fn paths(value: &Value, at: &str, wanted: &dyn Fn(&str, &Value) -> bool, found: &mut Vec<String>) {
    if wanted(at, value) {
        found.push(at.to_owned());
    }
    match value {
        Value::Array(items) => {
            let ends = [0, items.len().saturating_sub(1)];
            for end in &ends[usize::from(items.len() < 2)..] {
                if let Some(item) = items.get(*end) {
                    paths(item, &format!("{at}/{end}"), wanted, found);
                }
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                paths(field, &format!("{at}/{name}"), wanted, found);
            }
        }
        _ => {}
    }
}

/// Changes each wanted value of each case in turn. Gives how many changes were made, and the file and path (without
/// places in lists) of those that no comparison noticed.
fn unnoticed(wanted: &dyn Fn(&str, &Value) -> bool, changes: &[fn(&mut Value)]) -> (usize, BTreeSet<(String, String)>) {
    tch::set_num_threads(1);
    let (mut made, mut green) = (0, BTreeSet::new());
    for (name, compare, _) in FILES {
        let golden = Golden::read(Path::new(COMMITTED), name, true).unwrap();
        for (at, case) in golden.cases.iter().enumerate() {
            let first = if CONSECUTIVE.contains(name) { 0 } else { at };
            let part = Golden {
                cases: golden.cases[first..=at].to_vec(),
                committed: false,
                ..golden.clone()
            };
            compare(&part);
            let mut found = Vec::new();
            paths(case, "", wanted, &mut found);
            for path in found {
                for change in changes {
                    let mut part = part.clone();
                    change(part.cases.last_mut().unwrap().pointer_mut(&path).unwrap());
                    made += 1;
                    if catch_unwind(AssertUnwindSafe(|| compare(&part))).is_ok() {
                        let digit = |part: &&str| part.parse::<usize>().is_err();
                        let general: Vec<&str> = path.split('/').filter(digit).collect();
                        green.insert(((*name).to_owned(), general.join("/")));
                    }
                }
            }
        }
    }
    (made, green)
}

fn named(list: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    list.iter()
        .map(|(file, path)| ((*file).to_owned(), (*path).to_owned()))
        .collect()
}

#[test]
fn golden_lists_that_are_cut_make_a_test_fail() {
    let list = |_: &str, value: &Value| value.as_array().is_some_and(|items| !items.is_empty());
    let empty = |value: &mut Value| value.as_array_mut().unwrap().clear();
    let short = |value: &mut Value| drop(value.as_array_mut().unwrap().pop());
    let (made, green) = unnoticed(&list, &[empty, short]);
    assert_eq!(green, named(&UNREAD));
    assert!(made > 5000, "{made} lists cut");
}

/// Every number under a value, moved by a little.
fn moved(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(moved),
        Value::Bool(flag) => *flag = !*flag,
        Value::Number(x) => *value = json!(1.001 * x.as_f64().unwrap() + 0.001),
        _ => {}
    }
}

#[test]
fn golden_numbers_that_are_moved_make_a_test_fail() {
    let whole = |path: &str, value: &Value| {
        let theirs = path.starts_with("/outputs/") || path.starts_with("/grads/");
        let last = path.rsplit('/').next().unwrap();
        let within = last.parse::<usize>().is_ok();
        theirs && !within && (value.is_number() || value.is_boolean() || value.is_array() && !floats(value).is_empty())
    };
    let (made, green) = unnoticed(&whole, &[moved]);
    assert_eq!(green, named(&NOT_OURS));
    assert!(made > 500, "{made} numbers moved");
}

/// A folder of made files, for one test.
fn folder(test: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&folder).unwrap();
    for (name, text) in files {
        std::fs::write(folder.join(name), text).unwrap();
    }
    folder
}

#[test]
fn golden_folders_of_own_numbers_may_lack_files_and_have_others() {
    let own = folder("golden_own", &[("npo.json", r#"{"cases": []}"#), ("notes.txt", "")]);
    assert_eq!(names(&own).unwrap(), (vec!["npo".to_owned()], Vec::new()));
    assert!(Golden::read(&own, "npo", false).unwrap().cases.is_empty());
    assert!(Golden::read(&own, "rloo", false).is_none());
    assert!(catch_unwind(|| Golden::read(&own, "rloo", true).is_none()).is_err());
    let other = folder("golden_unknown", &[("npo.json", "{}"), ("npoo.json", "{}")]);
    assert_eq!(names(&other).unwrap().1, ["npoo"]);
    let none = folder("golden_none", &[]);
    assert!(names(&none).unwrap_err().ends_with("no golden file"));
}

#[test]
fn golden_files_say_their_tolerance_and_whose_inputs_a_case_takes() {
    let parsed = |text: &str| Golden::parse(text).map(|golden| (golden.rtol, golden.cases));
    let cases = r#"[{"id": "a", "inputs": {"x": 1}}, {"id": "b", "inputs": {"x": 2}},
        {"id": "c", "inputs": {"ref": "b"}}, {"id": "d", "inputs": {"ref": "shared"}}]"#;
    for (suggested, rtol) in [("1e-5", 1e-5), ("0", 1e-12), ("null", 1e-9)] {
        let (read, cases) = parsed(&format!(r#"{{"suggested_rtol": {suggested}, "cases": {cases}}}"#)).unwrap();
        assert!((read - rtol).abs() < 1e-20);
        let inputs: Vec<i64> = cases.iter().map(|case| case["inputs"]["x"].as_i64().unwrap()).collect();
        assert_eq!(inputs, [1, 2, 2, 1]);
    }
    for (text, error) in [
        ("{}", "no list of `cases`"),
        (r#"{"cases": [{}]}"#, "case 0 has no `id`"),
        (
            r#"{"cases": [{"id": "a", "inputs": {"ref": "z"}}]}"#,
            "`a` takes the inputs of `z`, which is no case",
        ),
        (
            r#"{"cases": [], "suggested_rtol": "tight"}"#,
            "`suggested_rtol` is not a number",
        ),
    ] {
        assert_eq!(parsed(text).unwrap_err(), error);
    }
}

#[test]
fn golden_comparisons_want_lists_of_one_length_and_numbers() {
    let fails = |ours: &[f64], theirs: &[f64]| catch_unwind(|| all_close("a list", ours, theirs, 1e-9)).is_err();
    assert!(!fails(&[], &[]) && !fails(&[1.0, 1e6], &[1.0 + 1e-10, 1e6]));
    assert!(fails(&[1.0], &[]) && fails(&[], &[1.0]) && fails(&[1.0, 2.0], &[1.0]));
    assert!(fails(&[1.0], &[1.0 + 1e-8]) && fails(&[f64::NAN], &[f64::NAN]) && fails(&[1e-14], &[0.0]));
    assert!(
        catch_unwind(|| floats(&json!([[1.0, 2.0], [3.0]]))).is_err(),
        "a ragged list"
    );
    assert!(catch_unwind(|| floats(&json!(1.0))).is_err(), "no list");
}
