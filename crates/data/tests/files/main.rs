//! Datasets from files: every shape and format, and every way they can be wrong.

// The allowance for tests does not reach the helpers of a test file.
#![allow(clippy::unwrap_used)]

mod refused;
mod shapes;

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use unsay_data::{Columns, Example, Files, Label, read_examples, read_file, write_examples};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The message for a file, with its path shortened to its name.
    fn refused(&self, name: &str, content: impl AsRef<[u8]>, columns: Option<&Columns>) -> String {
        let path = self.file(name, content);
        let error = read_file(&path, columns, "train").unwrap_err().to_string();
        error.replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn columns(json: &str) -> Columns {
    serde_json::from_str(json).unwrap()
}

fn safety() -> Columns {
    columns(
        r#"{"prompt": "context", "completion": "response",
            "label": {"column": "label", "positive": ["Safe"], "negative": ["Unsafe"]}}"#,
    )
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn read(path: &Path) -> Vec<(String, String, Label)> {
    let examples = read_file(path, None, "train").unwrap();
    examples
        .into_iter()
        .map(|e| (e.prompt, e.completion, e.label))
        .collect()
}

fn is(prompt: &str, completion: &str, label: Label) -> (String, String, Label) {
    (prompt.to_owned(), completion.to_owned(), label)
}

#[test]
fn three_files_are_a_dataset_with_a_fingerprint() {
    let folder = Folder::new();
    let row = |p: &str| format!("{{\"prompt\": \"{p}\", \"completion\": \"c\"}}\n");
    let files = Files {
        train: folder.file("a.jsonl", row("x") + &row("y")),
        valid: folder.file("b.jsonl", row("y")),
        test: folder.file("c.jsonl", row("z")),
        columns: None,
    };
    let splits = files.read().unwrap();
    let seen = |examples: &[Example]| -> Vec<bool> { examples.iter().map(|e| e.seen_prompt).collect() };
    assert_eq!(seen(&splits.train), [true, true]);
    assert_eq!(seen(&splits.valid), [true]);
    assert_eq!(seen(&splits.test), [false]);
    let before = files.fingerprint().unwrap();
    assert_eq!(files.fingerprint().unwrap(), before);
    folder.file("c.jsonl", row("x"));
    assert_ne!(files.fingerprint().unwrap(), before);
    folder.file("c.jsonl", row("z"));
    assert_eq!(files.fingerprint().unwrap(), before);
    let columns = Some(columns(r#"{"prompt": "prompt", "completion": "completion"}"#));
    assert_ne!(Files { columns, ..files }.fingerprint().unwrap(), before);
}

#[test]
fn the_normal_form_comes_back() {
    let folder = Folder::new();
    let path = folder.path("examples.jsonl");
    let example = |id: &str, completion: &str, label| Example {
        id: id.into(),
        prompt: "a\n\"b\" \u{1F600}".into(),
        completion: completion.into(),
        label,
        seen_prompt: id == "1",
        messages: Vec::new(),
    };
    let examples = [
        example("1", "x", Label::Positive),
        example("2", "<|eos|>", Label::Unlabelled),
    ];
    write_examples(&path, &examples).unwrap();
    assert_eq!(read_examples(&path).unwrap(), examples);
    assert!(write_examples(folder.path("empty.jsonl"), &[]).is_err());
    assert!(!folder.path("empty.jsonl").exists());

    let refused = |content: &str| {
        let path = folder.file("bad.jsonl", content);
        let error = read_examples(path).unwrap_err().to_string();
        error.replace(&format!("{}/", folder.0.path().display()), "")
    };
    assert_eq!(refused("\n"), "`bad.jsonl`: expected at least one row, got none");
    assert_eq!(
        refused(r#"{"id": "1", "prompt": "", "completion": "x", "label": "good", "seen_prompt": true}"#),
        "`bad.jsonl:1:60`: expected an example, got an error: unknown variant `good`, \
         expected one of `positive`, `negative`, `unlabelled`"
    );
    assert_eq!(
        refused(r#"{"id": "1", "prompt": "", "completion": " ", "label": "positive", "seen_prompt": true}"#),
        "`bad.jsonl:1`: expected a completion, got empty text"
    );
}
