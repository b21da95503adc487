//! The store: one folder per finished step under its key. A step works in `<key>.partial`, which survives a
//! kill and holds its checkpoints, and the folder gets its name only when everything is on disk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::plan::{Plan, Step};

/// The commit that this program was built from, with `+changes` when a crate had changes beside it.
pub const COMMIT: &str = env!("UNSAY_COMMIT");

/// A folder of finished steps.
pub struct Store {
    root: PathBuf,
    /// Held while this process works in the store.
    _lock: Option<File>,
}

impl Store {
    /// Opens the store for working in it; one process at a time.
    pub fn open(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot make the store `{}`", root.display()))?;
        let path = root.join("lock");
        let lock = File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
        if lock.try_lock().is_err() {
            bail!(
                "another run is working in `{}`; hint: wait for it, or give another folder with --runs",
                root.display()
            );
        }
        Ok(Self {
            root: root.to_owned(),
            _lock: Some(lock),
        })
    }

    /// Opens the store for looking.
    pub fn view(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            _lock: None,
        }
    }

    /// True when the step is finished.
    pub fn has(&self, step: &Step) -> bool {
        self.root.join(&step.key).join("step.json").is_file()
    }

    /// True when the step was begun and not finished.
    pub fn begun(&self, step: &Step) -> bool {
        self.root.join(format!("{}.partial", step.key)).is_dir()
    }

    /// The folder of a finished step.
    pub fn dir(&self, step: &Step) -> PathBuf {
        self.root.join(&step.key)
    }

    /// The folder that an unfinished step works in, made if it is not there.
    pub fn work_dir(&self, step: &Step) -> Result<PathBuf> {
        let dir = self.root.join(format!("{}.partial", step.key));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
        Ok(dir)
    }

    /// Declares a step finished: writes `step.json`, puts all on disk, gives the folder its name.
    pub fn finish(&self, plan: &Plan, step: &Step, wall_secs: f64) -> Result<()> {
        let work = self.work_dir(step)?;
        let inputs: serde_json::Map<String, serde_json::Value> = step
            .inputs
            .iter()
            .map(|(role, i)| (role.clone(), plan.steps[*i].key.clone().into()))
            .collect();
        let about = serde_json::json!({
            "title": step.title, "kind": step.kind, "seed": step.seed, "inputs": inputs, "wall_secs": wall_secs, "commit": COMMIT,
        });
        write_atomic(
            &work.join("step.json"),
            serde_json::to_string_pretty(&about)?.as_bytes(),
        )?;
        sweep(&work)?;
        let done = self.dir(step);
        fs::rename(&work, &done).with_context(|| format!("cannot rename `{}`", work.display()))?;
        sync_dir(&self.root)
    }

    /// Commit of the program that finished a step.
    pub fn commit(&self, step: &Step) -> Option<String> {
        let text = fs::read_to_string(self.dir(step).join("step.json")).ok()?;
        let about: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(
            about
                .get("commit")
                .and_then(|c| c.as_str())
                .unwrap_or("unknown")
                .to_owned(),
        )
    }

    /// Seconds that a finished step took in its last sitting.
    pub fn wall_secs(&self, step: &Step) -> Option<f64> {
        let text = fs::read_to_string(self.dir(step).join("step.json")).ok()?;
        serde_json::from_str::<serde_json::Value>(&text)
            .ok()?
            .get("wall_secs")?
            .as_f64()
    }
}

/// Writes a file so that it is there whole or not at all.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(unsay_model::files::write_atomic(path, |out| out.write_all(bytes))?)
}

/// Removes what a kill in the middle of a writing left: everything is written under a temporary name first.
fn sweep(dir: &Path) -> Result<()> {
    let swept = || -> std::io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let temporary = path.extension().is_some_and(|e| e == "partial" || e == "tmp");
            match (path.is_dir(), temporary) {
                (true, true) => fs::remove_dir_all(&path)?,
                (false, true) => fs::remove_file(&path)?,
                (true, false) => sweep(&path).map_err(std::io::Error::other)?,
                (false, false) => {}
            }
        }
        Ok(())
    };
    swept().with_context(|| format!("cannot clear `{}`", dir.display()))
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .with_context(|| format!("cannot sync `{}`", dir.display()))
}
