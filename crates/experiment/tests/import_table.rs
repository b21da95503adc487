//! The crates import each other as the table says, and nothing else; outside libraries stay with their owners.
#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

use std::collections::BTreeSet;
use std::path::PathBuf;

/// Crate, and the workspace crates it may import.
const TABLE: &[(&str, &[&str])] = &[
    ("data", &[]),
    ("losses", &[]),
    ("model", &[]),
    ("report", &[]),
    ("reward", &["data", "model"]),
    ("train", &["data", "model", "losses"]),
    ("rl", &["data", "model", "losses", "reward", "train"]),
    ("eval", &["data", "model", "reward"]),
    ("bench", &["data", "losses", "model", "train"]),
    (
        "experiment",
        &["data", "model", "losses", "reward", "train", "rl", "eval", "report"],
    ),
    (
        "gate",
        &["data", "model", "losses", "reward", "train", "rl", "eval", "report"],
    ),
];

/// Outside library, and the only crates that may name it.
const OWNERS: &[(&str, &[&str])] = &[
    ("serde_yaml", &["experiment"]),
    ("clap", &["bench", "experiment", "gate"]),
    ("indicatif", &["experiment"]),
    ("anyhow", &["bench", "experiment", "gate"]),
    ("polars", &["data", "report"]),
    ("minijinja", &["data"]),
    ("minijinja-contrib", &["data"]),
    ("tokenizers", &["data"]),
    ("plotters", &["report"]),
    ("statrs", &["report"]),
];

fn crates() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Names in `[dependencies]` (not those for tests and benches).
fn dependencies(name: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(crates().join(name).join("Cargo.toml")).unwrap();
    let section = text.split("[dependencies]").nth(1).unwrap_or_default();
    let lines = section.lines().take_while(|l| !l.starts_with('['));
    lines
        .filter_map(|l| l.split(['.', ' ', '=']).next())
        .filter(|n| !n.is_empty() && !n.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_crate_imports_only_what_the_table_allows() {
    let mut found: Vec<String> = std::fs::read_dir(crates())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    let mut known: Vec<&str> = TABLE.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    assert_eq!(found, known, "the table names every crate");
    let mut arrows = 0;
    for (name, allowed) in TABLE {
        for dependency in dependencies(name) {
            if let Some(imported) = dependency.strip_prefix("unsay-") {
                arrows += 1;
                assert!(allowed.contains(&imported), "`{name}` may not import `{imported}`");
            }
        }
    }
    assert!(
        arrows > 15,
        "only {arrows} imports found: is the reading of Cargo.toml still right?"
    );
}

#[test]
fn outside_libraries_stay_with_their_owners() {
    let mut uses = 0;
    for (library, owners) in OWNERS {
        for (name, _) in TABLE {
            if dependencies(name).contains(*library) {
                uses += 1;
                assert!(
                    owners.contains(name),
                    "`{name}` may not depend on `{library}`; it belongs to {owners:?}"
                );
            }
        }
    }
    assert!(uses >= OWNERS.len(), "only {uses} uses found");
}
