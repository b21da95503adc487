//! What a step reports, and the log that keeps it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::examples::hex;

/// Named numbers in a fixed order, a JSON object in files.
pub type Metrics = Vec<(String, f64)>;

/// One step of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRecord {
    /// Updates made so far, this one included.
    pub step: u64,
    /// Loss, its terms and the other measures on this step's batch, before the update.
    #[serde(with = "as_map")]
    pub metrics: Metrics,
    /// The same on the validation set after the update, where it was due.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "as_optional_map")]
    pub valid: Option<Metrics>,
}

impl StepRecord {
    /// The measure of this name on the step's batch.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics
            .iter()
            .find(|(known, _)| known == name)
            .map(|&(_, value)| value)
    }
}

mod as_map {
    use serde::de::{MapAccess, Visitor};
    use serde::{Deserializer, Serializer};

    use super::Metrics;

    pub(super) fn serialize<S: Serializer>(metrics: &Metrics, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(metrics.iter().map(|(name, value)| (name, value)))
    }

    struct InOrder;

    impl<'de> Visitor<'de> for InOrder {
        type Value = Metrics;

        fn expecting(&self, to: &mut std::fmt::Formatter) -> std::fmt::Result {
            to.write_str("an object of numbers")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metrics, A::Error> {
            let mut metrics = Vec::new();
            while let Some(entry) = map.next_entry()? {
                metrics.push(entry);
            }
            Ok(metrics)
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Metrics, D::Error> {
        from.deserialize_map(InOrder)
    }
}

mod as_optional_map {
    use serde::{Deserializer, Serializer};

    use super::Metrics;

    pub(super) fn serialize<S: Serializer>(metrics: &Option<Metrics>, to: S) -> Result<S::Ok, S::Error> {
        match metrics {
            Some(metrics) => super::as_map::serialize(metrics, to),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Metrics>, D::Error> {
        super::as_map::deserialize(from).map(Some)
    }
}

/// The log of a run: one record a line, appended as steps are made.
#[derive(Debug)]
pub(crate) struct StepLog {
    path: PathBuf,
    file: File,
    bytes: u64,
    hash: Sha256,
}

/// Where the log stood, for a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogMark {
    bytes: u64,
    sha256: String,
}

impl StepLog {
    /// Opens the log and cuts it back to a mark, or to nothing.
    pub(crate) fn open(path: &Path, mark: Option<&LogMark>) -> Result<Self> {
        let mut text = Vec::new();
        if let Some(mark) = mark {
            text = std::fs::read(path).map_err(Error::io(path))?;
            let kept = usize::try_from(mark.bytes).ok().filter(|&n| n <= text.len());
            let Some(kept) = kept else {
                let problem = format!("expected at least {} bytes, got {}", mark.bytes, text.len());
                return Err(Error::checkpoint(path, problem));
            };
            text.truncate(kept);
        }
        let mut hash = Sha256::new();
        hash.update(&text);
        if let Some(mark) = mark
            && hex(&hash.clone().finalize()) != mark.sha256
        {
            return Err(Error::checkpoint(path, "changed since its checkpoint was written"));
        }
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(path).map_err(Error::io(path))?;
        if file.metadata().map_err(Error::io(path))?.len() != text.len() as u64 {
            file.set_len(text.len() as u64).map_err(Error::io(path))?;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes: text.len() as u64,
            hash,
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one record.
    pub(crate) fn append(&mut self, record: &StepRecord) -> Result<()> {
        let mut line = serde_json::to_string(record).map_err(|e| Error::io(&self.path)(e.into()))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(Error::io(&self.path))?;
        self.bytes += line.len() as u64;
        self.hash.update(line.as_bytes());
        Ok(())
    }

    /// Makes what was appended last through a power failure, and says where the log stands.
    pub(crate) fn mark(&self) -> Result<LogMark> {
        self.file.sync_all().map_err(Error::io(&self.path))?;
        Ok(LogMark {
            bytes: self.bytes,
            sha256: hex(&self.hash.clone().finalize()),
        })
    }
}

/// Reads a log.
pub fn read_steps(path: &Path) -> Result<Vec<StepRecord>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let parse = |(idx, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| Error::checkpoint(path, format!("line {}: {e}", idx + 1)))
    };
    text.lines().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, valid: bool) -> StepRecord {
        let metrics = vec![
            ("loss".to_owned(), 0.1 + step as f64),
            ("ce_loss".to_owned(), 1.0 / 3.0),
        ];
        StepRecord {
            step,
            valid: valid.then(|| metrics.clone()),
            metrics,
        }
    }

    #[test]
    fn records_keep_order_and_every_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("steps.jsonl");
        let mut log = StepLog::open(&path, None).unwrap();
        let records = [record(1, false), record(2, true)];
        records.iter().for_each(|r| log.append(r).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        let first = text.lines().next().unwrap();
        assert_eq!(
            first,
            r#"{"step":1,"metrics":{"loss":1.1,"ce_loss":0.3333333333333333}}"#
        );
        assert_eq!(read_steps(&path).unwrap(), records);
        assert_eq!(records[1].metric("loss"), Some(2.1));
        assert_eq!(records[1].metric("none"), None);
    }

    #[test]
    fn a_log_is_cut_back_to_its_mark_and_refused_when_changed_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("steps.jsonl");
        let mut log = StepLog::open(&path, None).unwrap();
        log.append(&record(1, false)).unwrap();
        let mark = log.mark().unwrap();
        log.append(&record(2, false)).unwrap();
        drop(log);
        let mut log = StepLog::open(&path, Some(&mark)).unwrap();
        log.append(&record(3, false)).unwrap();
        assert_eq!(read_steps(&path).unwrap(), [record(1, false), record(3, false)]);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("1.1", "1.2", 1)).unwrap();
        assert!(
            StepLog::open(&path, Some(&mark))
                .unwrap_err()
                .to_string()
                .contains("changed")
        );
        std::fs::write(&path, "{}").unwrap();
        assert!(
            StepLog::open(&path, Some(&mark))
                .unwrap_err()
                .to_string()
                .contains("got 2")
        );
    }
}
