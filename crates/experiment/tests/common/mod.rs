//! What the tests of the binary share: a folder to work in, the binary, and a look at what it left behind.
#![allow(dead_code, reason = "every test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

pub(crate) mod folder;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

/// The whole pipeline in seconds.
pub(crate) const TINY: &str = include_str!("../fixtures/tiny.yaml");
/// One arm on own files.
pub(crate) const FILES: &str = include_str!("../fixtures/files.yaml");
/// Arms of [`TINY`].
pub(crate) const ARMS: [&str; 5] = ["base", "mle", "unlikelihood", "cringe", "cringe_iterative"];
/// Steps of [`TINY`].
pub(crate) const STEPS: usize = 38;

/// A temporary folder in which the binary runs.
pub(crate) struct Desk(TempDir);

impl Desk {
    /// An empty folder.
    pub(crate) fn empty() -> Self {
        Self(tempfile::Builder::new().prefix("unsay-test-").tempdir().unwrap())
    }

    /// A folder with a manifest in it.
    pub(crate) fn with(name: &str, manifest: &str) -> Self {
        let desk = Self::empty();
        desk.write(name, manifest);
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path("runs/store")
    }

    /// Any program in this folder, with nothing of the surroundings that changes what unsay does.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command
            .current_dir(self.0.path())
            .env("OMP_NUM_THREADS", "1")
            .env("RUST_BACKTRACE", "0")
            .env_remove("RUST_LOG")
            .env_remove("COLUMNS")
            .env_remove("UNSAY_DATA_MIRROR")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program(env!("CARGO_BIN_EXE_unsay"));
        command.args(args);
        command
    }

    /// Runs the binary to its end.
    pub(crate) fn unsay(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    /// Starts the binary; what it says goes to the file `said`.
    pub(crate) fn start(&self, args: &[&str]) -> Child {
        let said = fs::File::create(self.path("said")).unwrap();
        let mut command = self.command(args);
        command.stdout(said.try_clone().unwrap()).stderr(said);
        command.spawn().unwrap()
    }

    /// Names in this folder, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        names(self.0.path())
    }
}

/// How a command ended and what it said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(command: &mut Command) -> Self {
        let done = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            code: done.status.code(),
            out: text(&done.stdout),
            err: text(&done.stderr),
        }
    }

    /// The standard output of a command that must succeed.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.no_panic();
        self.out
    }

    /// The error text of a command that must fail with this exit code, not panic, and say something plain.
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self.no_panic();
        assert!(self.err.contains("error: "), "{self:#?}");
        self.err
    }

    fn no_panic(&self) {
        assert!(!self.err.contains("panicked"), "{}", self.err);
        assert!(!self.err.contains("defect of unsay"), "{}", self.err);
    }
}

/// Sends a signal, by the name that `kill` knows.
pub(crate) fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// Waits until something is so while a process works; it must not end before. No clock decides anything.
pub(crate) fn until(child: &mut Child, what: &str, so: impl Fn() -> bool) {
    while !so() {
        let ended: Option<ExitStatus> = child.try_wait().unwrap();
        assert!(ended.is_none(), "ended ({ended:?}) before {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Names in a folder, sorted; none when it is not there.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every file below a folder by its path in it.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    for name in names(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            out.extend(
                files(&path)
                    .into_iter()
                    .map(|(below, bytes)| (format!("{name}/{below}"), bytes)),
            );
        } else {
            out.insert(name, fs::read(path).unwrap());
        }
    }
    out
}

/// Copies a folder and all below it.
pub(crate) fn copy(from: &Path, to: &Path) {
    let all = files(from);
    assert!(!all.is_empty(), "nothing to copy in {}", from.display());
    for (name, bytes) in all {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// The three tables of a results folder, byte for byte.
pub(crate) fn tables(results: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = files(results);
    all.retain(|name, _| name.ends_with(".parquet"));
    let found: Vec<&String> = all.keys().collect();
    assert_eq!(found, ["runs.parquet", "scores.parquet", "steps.parquet"]);
    all
}

/// Two results folders hold the same tables, byte for byte.
pub(crate) fn same_tables(found: &Path, expected: &Path) {
    let expected = tables(expected);
    for (name, bytes) in tables(found) {
        assert!(bytes == expected[&name], "{name} is not the same");
    }
}

/// Finished steps of a store by title. Each must be whole: every file that its kind leaves, none of a writing in
/// progress.
pub(crate) fn finished(store: &Path) -> BTreeMap<String, PathBuf> {
    let mut out = BTreeMap::new();
    for key in names(store) {
        let dir = store.join(&key);
        if !dir.is_dir() || key.ends_with(".partial") {
            continue;
        }
        let about: Value = serde_json::from_slice(&fs::read(dir.join("step.json")).unwrap()).unwrap();
        let kind = about["kind"].as_object().unwrap().keys().next().unwrap().clone();
        let adapter = about["kind"][&kind]["trained"]["lora"].is_object();
        let mut wanted = vec!["step.json"];
        wanted.extend(match kind.as_str() {
            "records" => vec!["train.jsonl", "valid.jsonl", "test.jsonl"],
            "tokenizer" => vec!["tokenizer.json"],
            "rollout" => vec!["selection.json"],
            "evaluate" => vec!["scores.jsonl", "generations.jsonl", "summary.json"],
            "base" => vec!["base.json"],
            // Which sets they are of is for the trainings to know.
            "states" => vec![],
            "reference" => vec!["feedback.logps", "validation.logps"],
            "train" | "train_pairs" | "classifier" if adapter => vec![
                "steps.jsonl",
                "supervision.json",
                "best/adapter_config.json",
                "best/adapter_model.safetensors",
                "last/adapter_config.json",
                "last/adapter_model.safetensors",
            ],
            "pretrain" | "train" | "train_pairs" | "classifier" => vec![
                "steps.jsonl",
                "supervision.json",
                "best/config.json",
                "best/model.safetensors",
                "last/config.json",
                "last/model.safetensors",
            ],
            other => panic!("a step of the unknown kind {other}"),
        });
        if kind == "classifier" {
            wanted.push("accuracy.json");
        }
        let mut found = files(&dir);
        for name in &wanted {
            let bytes = found.remove(*name);
            assert!(bytes.is_some_and(|b| !b.is_empty()), "{key} ({kind}) lacks {name}");
        }
        found.remove("replies.jsonl");
        found.retain(|name, bytes| kind != "states" || !name.ends_with(".states") || bytes.is_empty());
        assert!(found.is_empty(), "{key} ({kind}) holds {:?} too", found.keys());
        out.insert(about["title"].as_str().unwrap().to_owned(), dir);
    }
    out
}

/// Folders of steps that were begun.
pub(crate) fn begun(store: &Path) -> Vec<PathBuf> {
    let partial = names(store).into_iter().filter(|n| n.ends_with(".partial"));
    partial.map(|n| store.join(n)).collect()
}

/// The first checkpoint of a step that is not finished.
pub(crate) fn checkpoint(store: &Path) -> Option<PathBuf> {
    begun(store).into_iter().find_map(|step| {
        let fit = step.join("fit");
        let whole = |n: &String| n.starts_with("checkpoint-") && !n.ends_with(".partial");
        names(&fit).into_iter().find(whole).map(|n| fit.join(n))
    })
}
