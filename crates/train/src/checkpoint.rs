//! The folder of a training run: checkpoints that are there whole or not at all.
//!
//! ```text
//! steps.jsonl            one record per step
//! checkpoint-00000120/   the model, optimizer.safetensors, trainer_state.json
//! best-00000080/         the model with the lowest validation loss so far
//! ```
//!
//! A folder is written under a name ending in `.partial`, synced, and renamed. What an older checkpoint needs
//! is removed only after a newer one is in place, so at every moment the newest checkpoint is complete, with
//! the best weights that it names. Its state lists a hash of every file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::examples::hex;
use crate::record::{LogMark, StepLog};

const LOG: &str = "steps.jsonl";
const STATE: &str = "trainer_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const CHECKPOINT: &str = "checkpoint-";
const BEST: &str = "best-";
const PARTIAL: &str = ".partial";

/// The step with the lowest validation loss so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// The step after which it was measured.
    pub step: u64,
    /// The loss.
    pub loss: f64,
}

/// Everything of a checkpoint beside weights and moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrainerState {
    settings_hash: String,
    pub(crate) step: u64,
    pub(crate) best: Option<Best>,
    log: LogMark,
    files: BTreeMap<String, String>,
    best_files: BTreeMap<String, String>,
}

/// A run's folder, open for writing.
#[derive(Debug)]
pub(crate) struct RunFolder {
    root: PathBuf,
    settings_hash: String,
    pub(crate) log: StepLog,
    last: Option<u64>,
    best_files: BTreeMap<String, String>,
}

/// What a resumed run starts from.
pub(crate) struct Resumed {
    pub(crate) state: TrainerState,
    pub(crate) weights: PathBuf,
    pub(crate) optimizer: PathBuf,
}

impl RunFolder {
    /// Opens a folder, made if it does not exist, and finds the newest checkpoint. Steps and best weights from
    /// after that checkpoint are removed, as they will be made again.
    pub(crate) fn open(root: &Path, settings_hash: &str) -> Result<(Self, Option<Resumed>)> {
        fs::create_dir_all(root).map_err(Error::io(root))?;
        let last = numbered(root, CHECKPOINT)?.into_iter().max();
        let resumed = match last {
            Some(step) => Some(read_checkpoint(root, step, settings_hash)?),
            None => None,
        };
        let log = StepLog::open(&root.join(LOG), resumed.as_ref().map(|r| &r.state.log))?;
        let best = resumed.as_ref().and_then(|r| r.state.best.as_ref());
        let best_files = resumed.as_ref().map(|r| r.state.best_files.clone()).unwrap_or_default();
        let folder = Self {
            root: root.to_owned(),
            settings_hash: settings_hash.to_owned(),
            log,
            last,
            best_files,
        };
        folder.tidy(best.map(|b| b.step))?;
        Ok((folder, resumed))
    }

    /// The newest checkpoint's folder, which holds the weights.
    pub(crate) fn last(&self) -> Option<PathBuf> {
        self.last.map(|step| self.root.join(name(CHECKPOINT, step)))
    }

    /// The folder of the best weights found at a step.
    pub(crate) fn best(&self, step: u64) -> PathBuf {
        self.root.join(name(BEST, step))
    }

    /// Keeps the best weights so far. The previous ones stay until the next checkpoint.
    pub(crate) fn save_best(&mut self, step: u64, save: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.best_files = write_whole(&self.best(step), |folder| {
            save(folder)?;
            hash_files(folder)
        })?;
        Ok(())
    }

    /// Writes a checkpoint, and then removes what only older ones needed. `save` is handed the folder for the
    /// model and the file for the optimiser.
    pub(crate) fn save_checkpoint(
        &mut self,
        step: u64,
        best: Option<&Best>,
        save: impl FnOnce(&Path, &Path) -> Result<()>,
    ) -> Result<()> {
        if self.last == Some(step) {
            return Ok(());
        }
        let log = self.log.mark()?;
        let (settings_hash, best_files) = (self.settings_hash.clone(), self.best_files.clone());
        write_whole(&self.root.join(name(CHECKPOINT, step)), |folder| {
            save(folder, &folder.join(OPTIMIZER))?;
            let files = hash_files(folder)?;
            let state = TrainerState {
                settings_hash,
                step,
                best: best.cloned(),
                log,
                files,
                best_files,
            };
            let path = folder.join(STATE);
            let mut text = serde_json::to_string_pretty(&state).map_err(|e| Error::io(&path)(e.into()))?;
            text.push('\n');
            fs::write(&path, text).map_err(Error::io(&path))
        })?;
        self.last = Some(step);
        self.tidy(best.map(|b| b.step))
    }

    /// Removes unfinished folders, checkpoints other than the last, and best weights other than those given.
    fn tidy(&self, best: Option<u64>) -> Result<()> {
        let mut stale = Vec::new();
        for (prefix, kept) in [(CHECKPOINT, self.last), (BEST, best)] {
            let steps = numbered(&self.root, prefix)?
                .into_iter()
                .filter(|&step| Some(step) != kept);
            stale.extend(steps.map(|step| self.root.join(name(prefix, step))));
        }
        for entry in entries(&self.root)? {
            let finished = entry.strip_suffix(PARTIAL);
            let ours = |prefix| finished.and_then(|name| number(name, prefix)).is_some();
            if ours(CHECKPOINT) || ours(BEST) {
                stale.push(self.root.join(entry));
            }
        }
        stale
            .iter()
            .try_for_each(|path| fs::remove_dir_all(path).map_err(Error::io(path)))
    }
}

fn read_checkpoint(root: &Path, step: u64, settings_hash: &str) -> Result<Resumed> {
    let weights = root.join(name(CHECKPOINT, step));
    let path = weights.join(STATE);
    let unreadable = |e: &dyn std::fmt::Display| unusable(&path, &weights, &e.to_string());
    let text = fs::read_to_string(&path).map_err(|e| unreadable(&e))?;
    let state: TrainerState = serde_json::from_str(&text).map_err(|e| unreadable(&e))?;
    if state.settings_hash != settings_hash {
        let problem = format!(
            "belongs to a run with other settings, examples or model (expected {settings_hash}, got {})\nhint: \
             remove `{}` to start this run from the beginning",
            state.settings_hash,
            root.display()
        );
        return Err(Error::checkpoint(&weights, problem));
    }
    if state.step != step {
        return Err(Error::checkpoint(
            &path,
            format!("expected step {step}, got {}", state.step),
        ));
    }
    check_files(&weights, &state.files)?;
    if let Some(best) = &state.best {
        check_files(&root.join(name(BEST, best.step)), &state.best_files)?;
    }
    let optimizer = weights.join(OPTIMIZER);
    Ok(Resumed {
        state,
        weights,
        optimizer,
    })
}

/// A checkpoint that the run cannot go on from, and the way out.
fn unusable(file: &Path, folder: &Path, what: &str) -> Error {
    let run = folder.parent().unwrap_or(folder).display();
    Error::checkpoint(
        file,
        format!("{what}\nhint: remove `{run}` to start this run from the beginning"),
    )
}

/// Every file named in the state is there and unchanged.
fn check_files(folder: &Path, files: &BTreeMap<String, String>) -> Result<()> {
    for (file, expected) in files {
        let path = folder.join(file);
        let found = hash_file(&path).map_err(|e| unusable(&path, folder, &e.to_string()))?;
        if found != *expected {
            let what = format!("damaged (SHA-256 expected {expected}, got {found})");
            return Err(unusable(&path, folder, &what));
        }
    }
    Ok(())
}

/// Fills a folder under a temporary name, syncs every file in it, and renames it.
fn write_whole<T>(path: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(PARTIAL);
    let partial = PathBuf::from(partial);
    let written = fill_and_rename(path, &partial, fill);
    if written.is_err() {
        // The first error is the one to report; what cannot be removed now goes when the folder is next opened.
        let _ = fs::remove_dir_all(&partial);
    }
    written
}

fn fill_and_rename<T>(path: &Path, partial: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if partial.exists() {
        fs::remove_dir_all(partial).map_err(Error::io(partial))?;
    }
    fs::create_dir(partial).map_err(Error::io(partial))?;
    let filled = fill(partial)?;
    for entry in entries(partial)? {
        sync(&partial.join(entry))?;
    }
    sync(partial)?;
    fs::rename(partial, path).map_err(Error::io(path))?;
    sync(path.parent().unwrap_or(Path::new(".")))?;
    Ok(filled)
}

fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(Error::io(path))
}

fn hash_files(folder: &Path) -> Result<BTreeMap<String, String>> {
    let hash = |entry: String| Ok((entry.clone(), hash_file(&folder.join(entry))?));
    entries(folder)?.into_iter().map(hash).collect()
}

fn hash_file(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path).map_err(Error::io(path))?;
    std::io::copy(&mut file, &mut hash).map_err(Error::io(path))?;
    Ok(hex(&hash.finalize()))
}

fn name(prefix: &str, step: u64) -> String {
    format!("{prefix}{step:08}")
}

fn number(entry: &str, prefix: &str) -> Option<u64> {
    let step = entry.strip_prefix(prefix)?.parse().ok()?;
    (name(prefix, step) == entry).then_some(step)
}

fn numbered(root: &Path, prefix: &str) -> Result<Vec<u64>> {
    Ok(entries(root)?
        .iter()
        .filter_map(|entry| number(entry, prefix))
        .collect())
}

fn entries(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(root: &Path) -> Vec<String> {
        entries(root).unwrap()
    }

    fn save(content: &'static str) -> impl FnOnce(&Path) -> Result<()> {
        move |folder| fs::write(folder.join("weights"), content).map_err(Error::io(folder))
    }

    fn save_both(content: &'static str) -> impl FnOnce(&Path, &Path) -> Result<()> {
        move |folder, optimizer| {
            fs::write(optimizer, "state").map_err(Error::io(optimizer))?;
            save(content)(folder)
        }
    }

    #[test]
    fn the_newest_checkpoint_and_its_best_weights_stay() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (mut run, resumed) = RunFolder::open(root, "a").unwrap();
        assert!(resumed.is_none());
        run.save_best(2, save("two")).unwrap();
        let best = Best { step: 2, loss: 0.5 };
        run.save_checkpoint(3, Some(&best), save_both("three")).unwrap();
        run.save_best(4, save("four")).unwrap();
        assert_eq!(
            listing(root),
            ["best-00000002", "best-00000004", "checkpoint-00000003", "steps.jsonl"]
        );
        fs::create_dir(root.join("checkpoint-00000006.partial")).unwrap();
        drop(run);
        let (mut run, resumed) = RunFolder::open(root, "a").unwrap();
        let resumed = resumed.unwrap();
        assert_eq!((resumed.state.step, resumed.state.best), (3, Some(best)));
        assert_eq!(fs::read(resumed.optimizer).unwrap(), b"state");
        assert_eq!(listing(root), ["best-00000002", "checkpoint-00000003", "steps.jsonl"]);
        run.save_best(4, save("four")).unwrap();
        run.save_checkpoint(5, Some(&Best { step: 4, loss: 0.4 }), save_both("five"))
            .unwrap();
        assert_eq!(listing(root), ["best-00000004", "checkpoint-00000005", "steps.jsonl"]);
    }

    #[test]
    fn a_failed_write_leaves_the_previous_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (mut run, _) = RunFolder::open(root, "a").unwrap();
        run.save_checkpoint(1, None, save_both("one")).unwrap();
        let full = |path: &Path, _: &Path| Err(Error::io(path.join("weights"))(std::io::Error::other("disk full")));
        let error = run.save_checkpoint(2, None, full).unwrap_err().to_string();
        assert!(error.contains("disk full") && error.contains("weights"), "{error}");
        assert_eq!(listing(root), ["checkpoint-00000001", "steps.jsonl"]);
    }

    #[test]
    fn damage_and_foreign_checkpoints_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (mut run, _) = RunFolder::open(root, "a").unwrap();
        run.save_best(1, save("one")).unwrap();
        run.save_checkpoint(1, Some(&Best { step: 1, loss: 0.5 }), save_both("one"))
            .unwrap();
        drop(run);
        let refused = |hash: &str| RunFolder::open(root, hash).map(|_| ()).unwrap_err().to_string();
        assert!(refused("b").contains("other settings") && refused("b").contains("hint: remove"));
        for path in [
            "checkpoint-00000001/weights",
            "checkpoint-00000001/optimizer.safetensors",
            "best-00000001/weights",
        ] {
            let path = root.join(path);
            let content = fs::read(&path).unwrap();
            fs::write(&path, "other").unwrap();
            let error = refused("a");
            assert!(error.contains("damaged") && error.contains("hint: remove"), "{error}");
            fs::remove_file(&path).unwrap();
            assert!(refused("a").contains(&path.display().to_string()), "{}", refused("a"));
            fs::write(&path, content).unwrap();
        }
        let path = root.join("checkpoint-00000001").join(STATE);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(refused("a").contains("trainer_state.json"));
        fs::write(&path, &text).unwrap();
        fs::remove_file(root.join(LOG)).unwrap();
        assert!(refused("a").contains(LOG));
    }
}
