//! Reading golden files, and comparing with them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use unsay_losses::LossValue;

use crate::FILES;

/// The tolerance of a file that suggests none, and of those numbers in a file that are better than it suggests.
pub(crate) const TOLERANCE: f64 = 1e-9;

/// What compares the cases of a file: how many were compared, and how many differ on purpose and were compared with what
/// is right instead.
pub(crate) type Compare = fn(&Golden) -> (usize, usize);

pub(crate) const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// The cases of one file.
#[derive(Clone)]
pub(crate) struct Golden {
    pub(crate) cases: Vec<Value>,
    /// The relative tolerance that the file suggests.
    pub(crate) rtol: f64,
    /// Whether these are the committed numbers, all of them: what is known of them is asserted of no others.
    pub(crate) committed: bool,
}

impl Golden {
    /// Reads a file. A folder of someone's own numbers may lack it.
    pub(crate) fn read(folder: &Path, name: &str, committed: bool) -> Option<Golden> {
        let path = folder.join(format!("{name}.json"));
        if !committed && !path.exists() {
            return None;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Some(Golden {
            committed,
            ..Golden::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        })
    }

    /// Cases that stand alone: inputs that are `{"ref": id}` are those of the case `id`, or of the first where it is
    /// `shared`.
    pub(crate) fn parse(text: &str) -> Result<Golden, String> {
        let file: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let given = file["cases"].as_array().ok_or("no list of `cases`")?;
        let mut cases = given.clone();
        for (at, case) in cases.iter_mut().enumerate() {
            let id = case["id"].as_str().ok_or(format!("case {at} has no `id`"))?.to_owned();
            if let Some(named) = case["inputs"]["ref"].as_str() {
                let own = given.iter().find(|other| other["id"] == named);
                let own = own.or(given.first().filter(|_| named == "shared"));
                let own = own.ok_or(format!("`{id}` takes the inputs of `{named}`, which is no case"))?;
                case["inputs"] = own["inputs"].clone();
            }
        }
        let rtol = match &file["suggested_rtol"] {
            Value::Null => TOLERANCE,
            other => other.as_f64().ok_or("`suggested_rtol` is not a number")?,
        };
        Ok(Golden {
            cases,
            // Sums in another order differ by more than that.
            rtol: rtol.max(1e-12),
            committed: false,
        })
    }

    /// The tolerance for numbers of the committed file that are better than the file suggests.
    pub(crate) fn exact(&self) -> f64 {
        if self.committed {
            self.rtol.min(TOLERANCE)
        } else {
            self.rtol
        }
    }
}

/// Where the numbers are, and whether they are the committed ones.
pub(crate) fn folder() -> (PathBuf, bool) {
    match std::env::var_os("UNSAY_GOLDEN_DIR").filter(|named| !named.is_empty()) {
        None => (COMMITTED.into(), true),
        Some(named) => (found(Path::new(&named)), false),
    }
}

/// A folder as the user named it: tests run in the folder of the crate, and the user stands elsewhere.
fn found(named: &Path) -> PathBuf {
    match named.is_dir() {
        true => named.to_owned(),
        false => Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(named),
    }
}

/// Compares a file. The committed ones have a known number of cases compared and of those that differ on purpose. Of
/// other numbers every case must be one or the other.
#[expect(
    clippy::print_stderr,
    reason = "who brings own numbers wants to see what became of them"
)]
pub(crate) fn walk(name: &str, compare: Compare, known: (usize, usize)) {
    tch::set_num_threads(1);
    let (folder, committed) = folder();
    let Some(golden) = Golden::read(&folder, name, committed) else {
        eprintln!("{name}: skipped, as {} does not have it", folder.display());
        return;
    };
    let (compared, listed) = compare(&golden);
    eprintln!("{name}: {compared} cases compared, {listed} listed");
    assert!(compared + listed > 0, "{name}: no cases");
    assert_eq!(compared + listed, golden.cases.len(), "{name}");
    if committed {
        assert_eq!((compared, listed), known, "{name}");
    }
}

/// The names of the files in a folder that something compares, and of those that nothing does.
pub(crate) fn names(folder: &Path) -> Result<(Vec<String>, Vec<String>), String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let files = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = files
        .filter_map(|file| Some(file.strip_suffix(".json")?.to_owned()))
        .collect();
    names.sort();
    let (known, others) = names
        .into_iter()
        .partition::<Vec<_>, _>(|name| FILES.iter().any(|(known, ..)| known == name));
    match known.is_empty() {
        true => Err(format!("{}: no golden file", folder.display())),
        false => Ok((known, others)),
    }
}

#[test]
fn golden_files_are_all_walked() {
    let known: Vec<String> = FILES.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(names(Path::new(COMMITTED)).unwrap(), (known, Vec::new()));
    for other in names(&folder().0).unwrap().1 {
        eprintln!("{other}: nothing compares it");
    }
}

/// The id of a case, for messages: what kind of case it is, its parameters and inputs say.
pub(crate) fn id(case: &Value) -> &str {
    case["id"].as_str().unwrap()
}

/// A number.
pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

/// How many items a list has at each depth. Lists at one depth are as long as each other.
pub(crate) fn shape(value: &Value) -> Vec<usize> {
    let Value::Array(items) = value else {
        return Vec::new();
    };
    let inner: Vec<Vec<usize>> = items.iter().map(shape).collect();
    assert!(inner.windows(2).all(|two| two[0] == two[1]), "a ragged list: {inner:?}");
    [vec![items.len()], inner.first().cloned().unwrap_or_default()].concat()
}

/// All numbers of a list whose lists are as long as each other; `null` is not a number.
pub(crate) fn floats(value: &Value) -> Vec<f64> {
    assert!(value.is_array(), "{value} is not a list");
    shape(value);
    fn flat(value: &Value) -> Vec<f64> {
        match value {
            Value::Array(items) => items.iter().flat_map(flat).collect(),
            Value::Null => vec![f64::NAN],
            Value::Bool(flag) => vec![f64::from(u8::from(*flag))],
            other => vec![number(other)],
        }
    }
    flat(value)
}

/// All whole numbers of a list.
pub(crate) fn integers(value: &Value) -> Vec<i64> {
    let whole = |x: f64| {
        assert!(x.fract().abs() < 1e-12, "{x} is not a whole number");
        x as i64
    };
    floats(value).into_iter().map(whole).collect()
}

/// All flags of a list, which may be written as 0 and 1.
pub(crate) fn flags(value: &Value) -> Vec<bool> {
    integers(value).into_iter().map(|x| x == 1).collect()
}

/// The numbers of a list in rows, as long as the innermost lists.
pub(crate) fn rows_of(value: &Value) -> Vec<Vec<f64>> {
    let width = shape(value).last().copied().unwrap_or(0);
    floats(value).chunks(width.max(1)).map(<[f64]>::to_vec).collect()
}

/// A named part of a loss.
pub(crate) fn term(value: &LossValue, name: &str) -> f64 {
    let term = value.terms.iter().find(|(own, _)| *own == name);
    term.unwrap_or_else(|| panic!("no term {name}")).1.double_value(&[])
}

/// The loss.
pub(crate) fn total(value: &LossValue) -> f64 {
    value.total.double_value(&[])
}

/// Asserts that two numbers agree to a relative tolerance.
pub(crate) fn close(what: &str, ours: f64, theirs: f64, rtol: f64) {
    all_close(what, &[ours], &[theirs], rtol);
}

/// Asserts that two lists are as long as each other, and that their numbers agree to a relative tolerance.
///
/// Where terms of the size of the largest number cancel, what is left is their rounding.
pub(crate) fn all_close(what: &str, ours: &[f64], theirs: &[f64], rtol: f64) {
    assert_eq!(ours.len(), theirs.len(), "{what}: how many numbers");
    let largest = theirs.iter().fold(1.0, |largest: f64, x| largest.max(x.abs()));
    for (at, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let bound = rtol * ours.abs().max(theirs.abs()) + 1e-15 * largest;
        assert!(
            (ours - theirs).abs() <= bound,
            "{what}, number {at}: {ours} is not {theirs}"
        );
    }
}
