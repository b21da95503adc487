//! ARCHITECTURE.md says which tests hold which invariant: they exist under the names given.
#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

use std::path::{Path, PathBuf};

/// The spans in back-ticks, in order.
fn spans(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// A file by its path below `crates/`; `…/` stands for the folder that the file before is in or below.
fn file(crates: &Path, name: &str, before: Option<&Path>) -> PathBuf {
    let Some(rest) = name.strip_prefix("…/") else {
        return crates.join(name);
    };
    let mut folders = before.unwrap().ancestors();
    folders.find_map(|f| Some(f.join(rest)).filter(|f| f.exists())).unwrap()
}

#[test]
fn tests_named_in_the_architecture_exist() {
    let crates = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(crates.join("../ARCHITECTURE.md")).unwrap();
    let invariants = text
        .split("## Invariants")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    let (mut current, mut checked): (Option<PathBuf>, usize) = (None, 0);
    for span in spans(invariants) {
        let (path, test) = match span.split_once("::") {
            Some((path, test)) => (path, Some(test)),
            None if span.contains('/') && span != "crates/" => (span, None),
            None => continue,
        };
        if !path.is_empty() {
            current = Some(file(&crates, path, current.as_deref()));
        }
        // The sentence that explains the notation comes before the first file.
        let Some(found) = current.clone() else { continue };
        assert!(found.exists(), "`{span}`: no {}", found.display());
        if let Some(test) = test {
            let source = std::fs::read_to_string(&found).unwrap();
            assert!(source.contains(&format!("fn {test}(")), "`{span}`: no such test");
            checked += 1;
        }
    }
    assert!(checked >= 50, "{checked}");
}
