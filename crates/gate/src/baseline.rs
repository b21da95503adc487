//! The committed figures that new ones are compared with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// A tenth is what has to be caught.
const MOST_TOLERANCE: f64 = 0.1;

/// Figures by kind.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Baseline {
    /// Instructions of one call: they belong to a compiler, a valgrind and an instruction set.
    pub(crate) counts: Counts,
    /// Time over that of the reference, by processor.
    pub(crate) times: BTreeMap<String, BTreeMap<String, Figure>>,
}

/// Instruction counts and what they were made with.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Counts {
    /// Counts of other tools are other counts.
    pub(crate) tools: Tools,
    /// By path.
    pub(crate) figures: BTreeMap<String, Figure>,
}

/// What instruction counts depend on beside the code.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tools {
    /// What `rustc --version` says.
    pub(crate) rustc: String,
    /// What `valgrind --version` says.
    pub(crate) valgrind: String,
    /// The family of processors.
    pub(crate) architecture: String,
}

/// One figure.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) value: f64,
    /// The share of it that a new measurement may differ by, above 0 and below a tenth.
    pub(crate) tolerance: f64,
}

/// Where the baseline lies.
pub(crate) fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("baseline.json")
}

impl Baseline {
    /// Reads the committed one; an empty one where there is none.
    ///
    /// # Errors
    /// A file that is not one.
    pub(crate) fn read() -> Result<Self> {
        let path = file();
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        Self::parse(&text).with_context(|| format!("`{}` is no baseline", path.display()))
    }

    /// A baseline that guards: what was changed by hand may not let a tenth pass.
    fn parse(text: &str) -> Result<Self> {
        let read: Self = serde_json::from_str(text)?;
        for (name, figure) in read.times.values().chain([&read.counts.figures]).flatten() {
            let Figure { value, tolerance } = *figure;
            if !(value > 0.0 && value.is_finite()) {
                bail!("`value` of `{name}`: expected a number above 0, got {value}");
            }
            if !(tolerance > 0.0 && tolerance < MOST_TOLERANCE) {
                bail!("`tolerance` of `{name}`: expected above 0, below {MOST_TOLERANCE}, got {tolerance}");
            }
        }
        Ok(read)
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn write(&self) -> Result<()> {
        let path = file();
        let partial = path.with_extension("json.partial");
        std::fs::write(&partial, serde_json::to_string_pretty(self)? + "\n")?;
        std::fs::rename(&partial, &path).with_context(|| format!("cannot write `{}`", path.display()))
    }
}

/// The tools of this machine.
///
/// # Errors
/// Without rustc.
pub(crate) fn tools(valgrind: String) -> Result<Tools> {
    let said = Command::new("rustc")
        .arg("--version")
        .output()
        .context("no rustc found")?;
    let text = String::from_utf8_lossy(&said.stdout);
    // Without the date and the commit.
    let rustc: Vec<&str> = text.split_whitespace().take(2).collect();
    Ok(Tools {
        rustc: rustc.join(" "),
        valgrind,
        architecture: std::env::consts::ARCH.to_owned(),
    })
}

/// The processor as the system describes it: name, family and model.
pub(crate) fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |wanted: &str| {
        let mut fields = text.lines().filter_map(|line| line.split_once(':'));
        fields
            .find(|(name, _)| name.trim() == wanted)
            .map(|(_, value)| value.trim().to_owned())
    };
    let [name, family, model] = ["model name", "cpu family", "model"].map(field);
    let name = name.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    match (family, model) {
        (Some(family), Some(model)) => format!("{name}, family {family}, model {model}"),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::{self, Figures};

    fn names(figures: &BTreeMap<String, Figure>) -> Vec<&str> {
        figures.keys().map(String::as_str).collect()
    }

    #[test]
    fn the_baseline_has_every_path() {
        let baseline = Baseline::read().unwrap();
        let sorted = |has: fn(Figures) -> bool| {
            let paths = paths::all();
            let mut names: Vec<&str> = paths.iter().filter(|p| has(p.figures)).map(|p| p.name).collect();
            names.sort_unstable();
            names
        };
        let counted = sorted(Figures::counted);
        assert!(counted.len() > 20, "only {} paths", counted.len());
        assert_eq!(names(&baseline.counts.figures), counted);
        assert!(!baseline.times.is_empty());
        for figures in baseline.times.values() {
            assert_eq!(names(figures), sorted(Figures::timed));
        }
    }

    #[test]
    fn a_figure_that_is_not_known_is_refused() {
        let text = r#"{ "value": 1.0, "tolerance": 0.05, "unit": "ms" }"#;
        let error = serde_json::from_str::<Figure>(text).unwrap_err().to_string();
        assert!(error.starts_with("unknown field `unit`"), "{error}");
    }

    #[test]
    fn what_was_changed_by_hand_lets_no_tenth_pass() {
        let of = |value: &str, tolerance: &str| {
            let figure = format!(r#"{{ "value": {value}, "tolerance": {tolerance} }}"#);
            let tools = r#"{ "rustc": "", "valgrind": "", "architecture": "" }"#;
            let counts = format!(r#"{{ "tools": {tools}, "figures": {{}} }}"#);
            let times = format!(r#"{{ "p": {{ "a/b": {figure} }} }}"#);
            Baseline::parse(&format!(r#"{{ "counts": {counts}, "times": {times} }}"#))
                .map_err(|error| error.to_string())
        };
        assert!(of("2.0", "0.05").is_ok());
        assert_eq!(
            of("2.0", "0.1").unwrap_err(),
            "`tolerance` of `a/b`: expected above 0, below 0.1, got 0.1"
        );
        assert!(of("2.0", "-1.0").unwrap_err().starts_with("`tolerance` of `a/b`"));
        assert_eq!(
            of("0.0", "0.05").unwrap_err(),
            "`value` of `a/b`: expected a number above 0, got 0"
        );
        assert!(
            Baseline::parse("{}")
                .unwrap_err()
                .to_string()
                .starts_with("missing field `counts`")
        );
    }
}
