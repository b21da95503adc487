//! `peers.json`: everything that was measured, and where. Runs of single cases add to it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::growth::Growth;
use crate::outcome::{Failure, Outcome};
use crate::page;
use crate::protocol::Hello;

/// The file with everything.
const FILE: &str = "peers.json";
/// The page made from it.
const PAGE: &str = "peers.md";

/// A results folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// Where it was measured; one for all.
    pub(crate) environment: Environment,
    /// The cases, in the order of the table.
    pub(crate) cases: Vec<Outcome>,
    /// Our speed and memory as a training goes on.
    pub(crate) growth: Vec<Growth>,
    /// Cases that failed when they were run last, in the order of the table. What one came to before stays in its place.
    #[serde(default)]
    pub(crate) failed: Vec<Failure>,
}

/// Machine, versions and threads. Figures of two environments are not put into one table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Environment {
    /// The processor's name.
    pub(crate) processor: String,
    /// What it can do with bf16.
    pub(crate) bf16: Vec<String>,
    /// Its cores.
    pub(crate) cores: usize,
    /// Memory in GiB, rounded.
    pub(crate) memory_gib: u64,
    /// Threads of either side.
    pub(crate) threads: usize,
    /// Versions by name.
    pub(crate) versions: BTreeMap<String, String>,
    /// SHA-256 of the libtorch_cpu that both sides had loaded; where they differ, those of all.
    pub(crate) libtorch: Vec<String>,
}

impl Environment {
    /// This machine.
    pub(crate) fn here(threads: usize) -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpu.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let flags = field("flags").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = memory.lines().find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()
        });
        Self {
            processor: field("model name").unwrap_or_else(|| "unknown".to_owned()),
            bf16: ["avx512_bf16", "amx_bf16"]
                .iter()
                .filter(|name| flags.split_whitespace().any(|flag| flag == **name))
                .map(|name| (*name).to_owned())
                .collect(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib.map_or(0, |kib| (kib + (1 << 19)) >> 20),
            threads,
            versions: BTreeMap::new(),
            libtorch: Vec::new(),
        }
    }

    /// Adds what workers said of themselves.
    pub(crate) fn add(&mut self, hellos: &[Hello]) -> Result<()> {
        for hello in hellos {
            for (name, version) in &hello.versions {
                let known = self.versions.entry(name.clone()).or_insert_with(|| version.clone());
                if known != version {
                    bail!("two versions of `{name}` in one run: {known} and {version}");
                }
            }
            if !self.libtorch.contains(&hello.libtorch) {
                self.libtorch.push(hello.libtorch.clone());
            }
        }
        Ok(())
    }

    /// The names of what differs from another environment. What only one of them knows does not differ.
    fn differences(&self, other: &Self) -> Vec<String> {
        let mut names = Vec::new();
        let mut see = |name: &str, differs: bool| {
            if differs {
                names.push(name.to_owned());
            }
        };
        see("processor", self.processor != other.processor);
        see("bf16", self.bf16 != other.bf16);
        see("cores", self.cores != other.cores);
        see("memory", self.memory_gib != other.memory_gib);
        see("threads", self.threads != other.threads);
        for (name, version) in &self.versions {
            see(name, other.versions.get(name).is_some_and(|known| known != version));
        }
        // A case of one side alone knows one of two builds.
        let within = |a: &[String], b: &[String]| a.iter().all(|sum| b.contains(sum));
        see(
            "libtorch",
            !within(&self.libtorch, &other.libtorch) && !within(&other.libtorch, &self.libtorch),
        );
        names
    }
}

impl Results {
    /// What a folder holds; nothing yet where it has no file.
    pub(crate) fn open(folder: &Path, here: Environment) -> Result<Self> {
        let path = folder.join(FILE);
        let mut found = match fs::read_to_string(&path) {
            Ok(text) => {
                serde_json::from_str(&text).with_context(|| format!("`{}` is not as written here", path.display()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self {
                environment: here.clone(),
                cases: Vec::new(),
                growth: Vec::new(),
                failed: Vec::new(),
            },
            Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", path.display())),
        };
        let differ = found.environment.differences(&here);
        if !differ.is_empty() {
            bail!(
                "`{}` was measured elsewhere: {} differ\nhint: give another folder with `--results`, or remove it",
                path.display(),
                differ.join(", ")
            );
        }
        for (name, version) in here.versions {
            found.environment.versions.insert(name, version);
        }
        for sum in here.libtorch {
            if !found.environment.libtorch.contains(&sum) {
                found.environment.libtorch.push(sum);
            }
        }
        Ok(found)
    }

    /// Puts a case in, in the place of an older one of its name. Cases that are not in `order` are no more, and leave.
    pub(crate) fn put(&mut self, outcome: Outcome, order: &[String]) {
        self.forget_failure(&outcome.name, order);
        self.cases
            .retain(|case| case.name != outcome.name && order.contains(&case.name));
        self.cases.push(outcome);
        self.cases
            .sort_by_key(|case| order.iter().position(|known| *known == case.name));
    }

    /// Puts in how trainings go on, which is the case of this name.
    pub(crate) fn put_growth(&mut self, growth: Vec<Growth>, name: &str, order: &[String]) {
        self.forget_failure(name, order);
        self.growth = growth;
    }

    fn forget_failure(&mut self, name: &str, order: &[String]) {
        self.failed
            .retain(|failure| failure.name != name && order.contains(&failure.name));
    }

    /// Says of a case that it failed, in the place of an older failure of its name.
    pub(crate) fn fail(&mut self, failure: Failure, order: &[String]) {
        self.forget_failure(&failure.name, order);
        self.failed.push(failure);
        self.failed
            .sort_by_key(|failure| order.iter().position(|known| *known == failure.name));
    }

    /// Writes file and page.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        let json = format!("{}\n", serde_json::to_string_pretty(self)?);
        for (name, text) in [(FILE, json), (PAGE, page::of(self))] {
            let path = folder.join(name);
            let unfinished = path.with_extension("partial");
            fs::write(&unfinished, text)
                .and_then(|()| fs::rename(&unfinished, &path))
                .with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        Ok(())
    }
}

/// The commit of the project in this folder, with `+changes` where its crates differ from it.
pub(crate) fn commit() -> String {
    let git = |arguments: &[&str]| {
        let out = Command::new("git").args(arguments).output().ok()?;
        out.status
            .success()
            .then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        "crates",
        "Cargo.toml",
        "build",
    ]);
    let changed = changed.is_some_and(|files| !files.is_empty());
    format!("{commit}{}", if changed { "+changes" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, rounds: usize) -> Outcome {
        Outcome {
            name: name.to_owned(),
            about: String::new(),
            commit: String::new(),
            steps: 1,
            rounds,
            sides: Vec::new(),
            checks: Vec::new(),
            ratios: Vec::new(),
            limits: Vec::new(),
        }
    }

    fn here() -> Environment {
        Environment {
            processor: "p".to_owned(),
            versions: [("torch".to_owned(), "2.11.0".to_owned())].into(),
            ..Environment::default()
        }
    }

    #[test]
    fn cases_are_replaced_by_name_and_keep_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let order = ["a".to_owned(), "b".to_owned()];
        let mut results = Results::open(folder.path(), here()).unwrap();
        results.cases.push(outcome("renamed since", 1));
        for (name, rounds) in [("b", 1), ("a", 1), ("b", 2)] {
            results.put(outcome(name, rounds), &order);
        }
        results.write(folder.path()).unwrap();
        let read = Results::open(folder.path(), here()).unwrap();
        let names: Vec<_> = read
            .cases
            .iter()
            .map(|case| (case.name.as_str(), case.rounds))
            .collect();
        assert_eq!(names, [("a", 1), ("b", 2)]);
        assert!(folder.path().join(PAGE).is_file());
    }

    /// A run of our side alone was refused where the sides load two builds of libtorch.
    #[test]
    fn one_of_two_builds_of_libtorch_is_no_other_environment() {
        let with = |sums: &[&str]| Environment {
            libtorch: sums.iter().map(|sum| (*sum).to_owned()).collect(),
            ..here()
        };
        for (a, b) in [
            (&["x", "y"][..], &["x"][..]),
            (&["x"], &["x", "y"]),
            (&["y", "x"], &["x", "y"]),
            (&[], &["x"]),
        ] {
            assert!(with(a).differences(&with(b)).is_empty(), "{a:?} and {b:?}");
        }
        assert_eq!(with(&["x"]).differences(&with(&["y"])), ["libtorch"]);
        assert_eq!(with(&["x", "y"]).differences(&with(&["x", "z"])), ["libtorch"]);
    }

    #[test]
    fn figures_of_two_environments_are_not_mixed() {
        let folder = tempfile::tempdir().unwrap();
        Results::open(folder.path(), here())
            .unwrap()
            .write(folder.path())
            .unwrap();
        let mut other = here();
        other.threads = 7;
        other.versions.insert("torch".to_owned(), "2.12.0".to_owned());
        let error = Results::open(folder.path(), other).unwrap_err().to_string();
        assert!(
            error.contains("measured elsewhere: threads, torch differ\nhint:"),
            "{error}"
        );
    }
}
