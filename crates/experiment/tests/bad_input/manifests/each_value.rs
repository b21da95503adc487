//! Every value made nonsense, every key left out.

use serde_yaml::Value as Yaml;
use unsay_experiment::manifest::Manifest;

use crate::common::TINY;

/// Paths of all values that hold no others.
fn leaves(value: &Yaml, path: &str, out: &mut Vec<String>) {
    let below = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match value {
        Yaml::Mapping(map) if !map.is_empty() => {
            map.iter()
                .for_each(|(k, v)| leaves(v, &below(k.as_str().unwrap()), out));
        }
        Yaml::Sequence(items) if !items.is_empty() => {
            items
                .iter()
                .enumerate()
                .for_each(|(i, v)| leaves(v, &below(&i.to_string()), out));
        }
        _ => out.push(path.to_owned()),
    }
}

#[test]
fn every_value_made_nonsense_is_one_mistake_and_two_are_two() {
    let mut question: Yaml = serde_yaml::from_str(TINY).unwrap();
    let profile = question.as_mapping_mut().unwrap().remove("profiles").unwrap()["small"].clone();
    question
        .as_mapping_mut()
        .unwrap()
        .extend(profile.as_mapping().unwrap().clone());
    let mut paths = Vec::new();
    leaves(&question, "", &mut paths);
    assert!(paths.len() > 150, "{}", paths.len());
    let manifest = Manifest::parse("m.yaml".into(), TINY.into()).unwrap();
    let nonsense = |path: &String| format!("{path}={{ wrong: [x] }}").parse().unwrap();
    let mut last: Option<&String> = None;
    for path in &paths {
        let one = manifest.resolve(None, &[nonsense(path)]).unwrap_err().shown;
        assert_eq!(one.len(), 1, "{one:#?}");
        assert!(one[0].contains(&format!("--> --set {path}=")), "{one:#?}");
        if let Some(last) = last {
            let two = manifest
                .resolve(None, &[nonsense(last), nonsense(path)])
                .unwrap_err()
                .shown;
            assert_eq!(two.len(), 2, "{two:#?}");
        }
        last = Some(path);
    }
}

/// Removes the `n`th key of all, counted from the root; the path of what was removed.
fn without(value: &mut Yaml, n: &mut usize) -> Option<String> {
    let keyed: Vec<(String, &mut Yaml)> = match value {
        Yaml::Mapping(map) => {
            let keys: Vec<Yaml> = map.keys().cloned().collect();
            if *n < keys.len() {
                map.remove(&keys[*n]);
                return keys[*n].as_str().map(str::to_owned);
            }
            *n -= keys.len();
            map.iter_mut()
                .map(|(k, v)| (k.as_str().unwrap().to_owned(), v))
                .collect()
        }
        Yaml::Sequence(items) => items.iter_mut().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        _ => return None,
    };
    let mut keyed = keyed.into_iter();
    keyed.find_map(|(key, below)| without(below, n).map(|path| format!("{key}.{path}")))
}

#[test]
fn every_key_left_out_is_one_mistake_unless_it_has_a_default() {
    let (mut refused, mut accepted) = (Vec::new(), Vec::new());
    for n in 0.. {
        let mut value: Yaml = serde_yaml::from_str(TINY).unwrap();
        let Some(path) = without(&mut value, &mut n.clone()) else {
            break;
        };
        let found = Manifest::parse("m.yaml".into(), serde_yaml::to_string(&value).unwrap())
            .and_then(|manifest| manifest.resolve(None, &[]).map(|_| ()));
        match found {
            Ok(()) => accepted.push(path),
            Err(mistakes) => {
                assert_eq!(mistakes.shown.len(), 1, "{path}\n{mistakes}");
                refused.push(path);
            }
        }
    }
    for needed in [
        "name",
        "seeds",
        "profiles",
        "profiles.small.data",
        "profiles.small.base.train.train.lr",
    ] {
        assert!(refused.contains(&needed.to_owned()), "{needed}: {accepted:#?}");
    }
    for free in [
        "content_warning",
        "arms.base",
        "profiles.small.base.train.train.warmup",
        "profiles.small.table.baseline",
    ] {
        assert!(accepted.contains(&free.to_owned()), "{free}: {refused:#?}");
    }
    assert!(
        refused.len() > 60 && accepted.len() > 20,
        "{} {}",
        refused.len(),
        accepted.len()
    );
}
