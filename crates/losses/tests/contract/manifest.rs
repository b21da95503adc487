//! The manifest form of every loss: one key, its own name, and mistakes that are named.

use std::path::Path;

use serde_json::{Map, Value, json};
use tch::Tensor;
use unsay_losses::{Card, Error, LossValue, Result};

use crate::batch::{Batch, Part};
use crate::subject::{Given, Head, How, Setting, Subject};

/// A family's registry, in a form that does not know its type.
struct Family {
    name: &'static str,
    names: &'static [&'static str],
    samples: Vec<Value>,
    read: fn(Value) -> serde_json::Result<Read>,
}

/// A loss as it was read.
struct Read {
    setting: Box<dyn Setting>,
    /// What it is written as.
    value: Value,
}

fn families() -> Vec<Family> {
    macro_rules! families {
        ($($family:ident),+) => {
            vec![$(Family {
                name: stringify!($family),
                names: unsay_losses::$family::Loss::NAMES,
                samples: unsay_losses::$family::Loss::samples()
                    .iter()
                    .map(|loss| serde_json::to_value(loss).unwrap())
                    .collect(),
                read: |value| {
                    let loss: unsay_losses::$family::Loss = serde_json::from_value(value)?;
                    let value = serde_json::to_value(&loss)?;
                    let setting = crate::$family::setting(loss);
                    Ok(Read { setting, value })
                },
            }),+]
        };
    }
    families![token, paired, director, unpaired, ranked, scores, policy]
}

/// The registries: family, names, and how many samples there are.
pub fn registries() -> Vec<(&'static str, &'static [&'static str], usize)> {
    let families = families().into_iter();
    families
        .map(|family| (family.name, family.names, family.samples.len()))
        .collect()
}

impl Family {
    fn text(&self, value: &Value) -> String {
        (self.read)(value.clone()).err().unwrap().to_string()
    }
}

/// The name of a loss in its manifest form, and its parameters.
fn parts(value: &Value) -> (&str, &Map<String, Value>) {
    let map = value.as_object().unwrap();
    assert_eq!(map.len(), 1, "{value}: one key, the name");
    let (name, parameters) = map.iter().next().unwrap();
    (name, parameters.as_object().unwrap())
}

#[test]
fn every_loss_has_one_name_in_file_manifest_and_card_and_survives_a_round_trip() {
    let (mut known, mut listed) = (Vec::new(), Vec::new());
    for family in families() {
        let mut seen: Vec<String> = Vec::new();
        for sample in &family.samples {
            let (name, _) = parts(sample);
            let again = (family.read)(sample.clone()).unwrap();
            assert_eq!(&again.value, sample);
            assert_eq!(again.setting.card().name, name);
            assert!(again.setting.problems().is_empty(), "{sample}");
            if seen.last().map(String::as_str) != Some(name) {
                seen.push(name.to_owned());
            }
        }
        assert_eq!(
            seen, family.names,
            "{}: every loss has samples, in the order of the names",
            family.name
        );
        assert!(family.names.is_sorted(), "{}", family.name);
        for name in family.names {
            let file = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("src")
                .join(family.name)
                .join(format!("{name}.rs"));
            assert!(file.is_file(), "{} is not there", file.display());
            assert!(!known.contains(name), "two losses are called `{name}`");
            known.push(name);
        }
        listed.push((family.name, family.names.len()));
    }
    // The table may have them in another order.
    let table = unsay_losses::families();
    let mut table: Vec<(&str, usize)> = table.iter().map(|family| (family.name, family.losses.len())).collect();
    table.sort_unstable();
    listed.sort_unstable();
    assert_eq!(table, listed);
}

/// Whoever runs the samples runs every branch: switches and choices take at least two values among them.
#[test]
fn samples_use_every_switch() {
    let mut switches = 0;
    for family in families() {
        for name in family.names {
            let own: Vec<_> = family
                .samples
                .iter()
                .map(parts)
                .filter(|(known, _)| known == name)
                .collect();
            for key in own[0].1.keys() {
                let mut values: Vec<&Value> = own.iter().map(|(_, parameters)| &parameters[key]).collect();
                if values.iter().all(|value| value.is_number()) {
                    continue;
                }
                values.dedup();
                assert!(values.len() > 1, "{name}: all samples have the same `{key}`");
                switches += 1;
            }
        }
    }
    assert!(switches > 0);
}

#[test]
fn every_card_is_complete() {
    let mut seen = 0;
    for family in families() {
        let mut last = "";
        for sample in &family.samples {
            let Card {
                name,
                summary,
                formula,
                on_negatives,
                source,
            } = (family.read)(sample.clone()).unwrap().setting.card();
            for field in [name, summary, formula, on_negatives, source] {
                assert!(!field.trim().is_empty() && field.trim() == field, "{name}: {field:?}");
                assert!(!field.contains('\n') && !field.ends_with('.'), "{name}: {field:?}");
            }
            assert!(
                source.chars().any(|c| c.is_ascii_digit()),
                "{name}: {source} has no year"
            );
            seen += usize::from(name != last);
            last = name;
        }
    }
    assert_eq!(seen, families().iter().map(|family| family.names.len()).sum::<usize>());
}

#[test]
fn unknown_and_missing_keys_are_named() {
    let (mut missing, mut defaulted) = (0, 0);
    for family in families() {
        let unknown = family.text(&json!({ "no_such_loss": {} }));
        assert!(
            unknown.starts_with("unknown variant `no_such_loss`, expected"),
            "{unknown}"
        );
        for name in family.names {
            assert!(unknown.contains(&format!("`{name}`")), "{unknown}");
        }
        for sample in &family.samples {
            let (name, parameters) = parts(sample);
            let mut more = parameters.clone();
            more.insert("no_such_key".to_owned(), json!(1));
            let text = family.text(&json!({ name: more }));
            assert!(text.starts_with("unknown field `no_such_key`"), "{text}");
            for key in parameters.keys() {
                let mut less = parameters.clone();
                less.remove(key);
                match (family.read)(json!({ name: less })) {
                    Ok(_) => defaulted += 1,
                    Err(error) => {
                        missing += 1;
                        assert_eq!(error.to_string(), format!("missing field `{key}`"));
                    }
                }
                let mut wrong = parameters.clone();
                wrong.insert(key.clone(), json!(["a list"]));
                let text = family.text(&json!({ name: wrong }));
                assert!(text.starts_with("invalid type: sequence"), "{sample} {key}: {text}");
            }
        }
    }
    let all = families();
    let keys = all.iter().flat_map(|family| &family.samples).map(|s| parts(s).1.len());
    assert_eq!(missing + defaulted, keys.sum::<usize>());
    assert!(missing > 0 && defaulted > 0);
}

/// A setting given what its sample asks for: the inputs fit, whatever became of the setting.
struct Spoilt {
    sample: Box<dyn Setting>,
    spoilt: Box<dyn Setting>,
}

impl Setting for Spoilt {
    fn card(&self) -> Card {
        self.spoilt.card()
    }

    fn problems(&self) -> Vec<Error> {
        self.spoilt.problems()
    }

    fn roles(&self, unit: usize) -> Vec<i8> {
        self.sample.roles(unit)
    }

    fn order(&self, batch: &Batch, units: &[usize]) -> Vec<usize> {
        self.sample.order(batch, units)
    }

    fn heads(&self) -> Vec<Head> {
        self.sample.heads()
    }

    fn candidates(&self, part: &Part<'_>) -> Option<Tensor> {
        self.sample.candidates(part)
    }

    fn per_unit(&self, part: &Part<'_>, examples: &[f64]) -> Vec<f64> {
        self.sample.per_unit(part, examples)
    }

    fn evaluate(&self, given: &Given<'_>) -> Result<LossValue> {
        self.spoilt.evaluate(given)
    }
}

/// The places of all numbers in a value, as JSON pointers.
fn numbers(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at.to_owned()),
        Value::Object(map) => map
            .iter()
            .for_each(|(key, value)| numbers(value, &format!("{at}/{key}"), found)),
        _ => {}
    }
}

/// Every number of every sample in turn far outside, at and near the ends of what it could be: taken, or refused by an
/// error that names loss and parameter, and then computing is refused with the same error.
#[test]
fn every_parameter_outside_its_range_is_named_and_computes_nothing() {
    let wrong = [-1e300, -1e9, -5.0, -1e-9, 0.0, 0.5, 1.0, 1e9, 1e300];
    let (mut ranges, mut leaves, mut free) = (0, 0, Vec::new());
    for family in families() {
        for sample in &family.samples {
            let (name, _) = parts(sample);
            let mut places = Vec::new();
            numbers(sample, "", &mut places);
            // As text, a number follows a colon.
            let text = sample.to_string();
            let starts = text.split(':').skip(1).filter_map(|value| value.bytes().next());
            leaves += starts.filter(|c| c.is_ascii_digit() || *c == b'-').count();
            for place in places {
                let key = place.rsplit('/').next().unwrap();
                let mut refused = 0;
                for number in wrong {
                    let mut spoilt = sample.clone();
                    let leaf = spoilt.pointer_mut(&place).unwrap();
                    let whole = leaf.is_u64();
                    *leaf = if whole { json!(number as i64) } else { json!(number) };
                    let read = match (family.read)(spoilt.clone()) {
                        Ok(read) => read,
                        Err(error) => {
                            let text = error.to_string();
                            assert!(
                                whole && text.starts_with("invalid value: integer `"),
                                "{spoilt}: {text}"
                            );
                            continue;
                        }
                    };
                    let problems: Vec<String> = read.setting.problems().iter().map(ToString::to_string).collect();
                    let pair = Spoilt {
                        sample: (family.read)(sample.clone()).unwrap().setting,
                        spoilt: read.setting,
                    };
                    let subject = Subject {
                        family: family.name,
                        name: "",
                        text: spoilt.to_string(),
                        setting: Box::new(pair),
                    };
                    let outcome = subject.whole(&subject.batch(3, 4), How::default());
                    let Some(first) = problems.first() else {
                        continue;
                    };
                    assert!(first.starts_with(&format!("`{name}.")), "{spoilt}: {first}");
                    let error = outcome.err().map(|error| error.to_string());
                    assert_eq!(
                        error.as_ref(),
                        Some(first),
                        "{spoilt}: a loss outside its range computes nothing"
                    );
                    refused += usize::from(problems.iter().any(|p| p.starts_with(&format!("`{name}.{key}` is "))));
                }
                ranges += 1;
                if refused == 0 {
                    free.push(format!("{name}.{key}"));
                }
            }
        }
    }
    free.dedup();
    assert_eq!(
        free,
        ["alphapo.alpha", "pairwise_cringe.b"],
        "these take every finite number"
    );
    assert!(ranges == leaves && ranges > 0, "{ranges} of {leaves}");
}
