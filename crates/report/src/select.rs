//! Which numbers of the tables a figure or summary speaks of.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::stats::{Estimate, LEVEL, mean_t};
use crate::tables::{ScoreRow, Tables};

/// The checkpoint of a figure's metric that names none.
pub const DEFAULT_CHECKPOINT: &str = "best";

/// One quantity of the tables: `{ metric: f1, subset: benign }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Name of the metric (in `runs`) or evaluator (in `scores`).
    pub metric: String,
    /// The subset it was measured on.
    pub subset: String,
    /// The checkpoint. In figures `best` when absent; in a summary each of its checkpoints when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// How axes and columns call it, with its unit; made from the name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Least and greatest possible value, such as `[0, 1]`: intervals are clipped there, and the clip is marked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<(f64, f64)>,
    /// Whether lower values are better; higher ones are when absent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lower_is_better: bool,
    /// Name of the metric that holds the accuracy of the classifier behind this quantity, such as
    /// `classifier_b_accuracy`; it is shown beside the numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<String>,
}

impl Metric {
    /// A quantity by metric and subset, everything else left out.
    pub fn new(metric: &str, subset: &str) -> Self {
        Self {
            metric: metric.to_owned(),
            subset: subset.to_owned(),
            checkpoint: None,
            label: None,
            bounds: None,
            lower_is_better: false,
            judge: None,
        }
    }

    /// Checks the ranges; `wanted_by` goes into the message.
    pub(crate) fn check(&self, wanted_by: &str) -> Result<()> {
        match self.bounds {
            Some((low, high)) if !(low.is_finite() && high.is_finite() && low < high) => Err(Error::Spec {
                wanted_by: wanted_by.to_owned(),
                why: format!(
                    "the bounds of `{}` must be two finite numbers in rising order, got [{low}, {high}]",
                    self.metric
                ),
            }),
            _ => Ok(()),
        }
    }

    pub(crate) fn checkpoint(&self) -> &str {
        self.checkpoint.as_deref().unwrap_or(DEFAULT_CHECKPOINT)
    }

    pub(crate) fn label(&self) -> String {
        self.label
            .clone()
            .unwrap_or_else(|| format!("{} ({})", self.metric.replace('_', " "), self.subset))
    }

    pub(crate) fn describe(&self) -> String {
        describe(&self.metric, &self.subset, self.checkpoint())
    }
}

fn describe(metric: &str, subset: &str, checkpoint: &str) -> String {
    format!("{metric} on {subset} at {checkpoint}")
}

/// A value of one seed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SeedValue {
    pub(crate) seed: u64,
    pub(crate) value: f64,
    pub(crate) n: u64,
}

/// The values of an arm with their mean. The mean is absent when a value is not finite: such seeds are not left out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    pub(crate) seeds: Vec<SeedValue>,
    pub(crate) estimate: Option<Estimate>,
}

impl Group {
    fn new(seeds: Vec<SeedValue>) -> Option<Self> {
        if seeds.is_empty() {
            return None;
        }
        let values: Vec<f64> = seeds.iter().map(|seed| seed.value).collect();
        let estimate = mean_t(&values, LEVEL).ok();
        Some(Self { seeds, estimate })
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = f64> + '_ {
        self.seeds.iter().map(|seed| seed.value)
    }
}

/// One group per arm, in the order of the arms; an arm without a value has none. An error when no arm has one.
pub(crate) fn groups(tables: &Tables, arms: &[String], metric: &Metric, wanted_by: &str) -> Result<Vec<Option<Group>>> {
    metric.check(wanted_by)?;
    let groups: Vec<Option<Group>> = (arms.iter())
        .map(|arm| Group::new(run_values(tables, arm, metric, metric.checkpoint())))
        .collect();
    if groups.iter().all(Option::is_none) {
        let present: BTreeSet<String> = (tables.runs.iter())
            .map(|row| describe(&row.metric, &row.subset, &row.checkpoint))
            .collect();
        return Err(missing(wanted_by, metric.describe(), "runs", present));
    }
    Ok(groups)
}

pub(crate) fn missing(wanted_by: &str, metric: String, table: &'static str, present: BTreeSet<String>) -> Error {
    Error::MissingMetric {
        wanted_by: wanted_by.to_owned(),
        metric,
        table,
        present: present.into_iter().collect(),
    }
}

/// The values of one arm by seed, from the `runs` table.
pub(crate) fn run_values(tables: &Tables, arm: &str, metric: &Metric, checkpoint: &str) -> Vec<SeedValue> {
    let mut seeds: Vec<SeedValue> = (tables.runs.iter())
        .filter(|row| {
            row.arm == arm && row.metric == metric.metric && row.subset == metric.subset && row.checkpoint == checkpoint
        })
        .map(|row| SeedValue {
            seed: row.seed,
            value: row.value,
            n: row.n,
        })
        .collect();
    seeds.sort_by_key(|seed| seed.seed);
    seeds
}

/// The arms asked for, or every arm of the tables when none is. An arm that no table knows is an error.
pub(crate) fn arms(tables: &Tables, wanted: &[String], wanted_by: &str) -> Result<Vec<String>> {
    let present = tables.arms();
    if wanted.is_empty() {
        return Ok(present);
    }
    match wanted.iter().find(|arm| !present.contains(arm)) {
        Some(arm) => Err(Error::MissingArm {
            wanted_by: wanted_by.to_owned(),
            arm: arm.clone(),
            present,
        }),
        None => Ok(wanted.to_vec()),
    }
}

/// The scores of an arm's final model: those without an iteration, or else those of its last iteration.
pub(crate) fn final_scores<'a>(tables: &'a Tables, arm: &str, metric: &Metric, checkpoint: &str) -> Vec<&'a ScoreRow> {
    let rows: Vec<&ScoreRow> = scores(tables, arm, metric, checkpoint).collect();
    // `None` sorts below every iteration, so it is looked for first.
    let last = if rows.iter().any(|row| row.iteration.is_none()) {
        None
    } else {
        rows.iter().map(|row| row.iteration).max().flatten()
    };
    rows.into_iter().filter(|row| row.iteration == last).collect()
}

fn scores<'a>(tables: &'a Tables, arm: &str, metric: &Metric, checkpoint: &str) -> impl Iterator<Item = &'a ScoreRow> {
    tables.scores.iter().filter(move |row| {
        row.arm == arm && row.evaluator == metric.metric && row.subset == metric.subset && row.checkpoint == checkpoint
    })
}

/// Means over examples from the `scores` table: per iteration (none for a final model), the values by seed.
pub(crate) fn iterations(tables: &Tables, arm: &str, metric: &Metric) -> BTreeMap<Option<u32>, Group> {
    let mut sums: BTreeMap<(Option<u32>, u64), (f64, u64)> = BTreeMap::new();
    for row in scores(tables, arm, metric, metric.checkpoint()) {
        let (sum, n) = sums.entry((row.iteration, row.seed)).or_default();
        *sum += row.value;
        *n += 1;
    }
    let mut seeds: BTreeMap<Option<u32>, Vec<SeedValue>> = BTreeMap::new();
    for ((iteration, seed), (sum, n)) in sums {
        let value = sum / n as f64;
        seeds.entry(iteration).or_default().push(SeedValue { seed, value, n });
    }
    seeds
        .into_iter()
        .filter_map(|(iteration, seeds)| Some((iteration, Group::new(seeds)?)))
        .collect()
}

/// Every evaluator of the `scores` table, for messages.
pub(crate) fn evaluators(tables: &Tables) -> BTreeSet<String> {
    (tables.scores.iter())
        .map(|row| describe(&row.evaluator, &row.subset, &row.checkpoint))
        .collect()
}

/// The accuracy of a judge, one value per seed, for each subset it was measured on. Rows of all arms are looked at,
/// because arms of one seed share their judges; two different values for one seed are an error.
pub(crate) fn judge(tables: &Tables, metric: &str, wanted_by: &str) -> Result<BTreeMap<String, Group>> {
    let mut found: BTreeMap<&str, BTreeMap<u64, SeedValue>> = BTreeMap::new();
    for row in tables.runs.iter().filter(|row| row.metric == metric) {
        let value = SeedValue {
            seed: row.seed,
            value: row.value,
            n: row.n,
        };
        let first = *found.entry(&row.subset).or_default().entry(row.seed).or_insert(value);
        if first.value.to_bits() != row.value.to_bits() {
            return Err(Error::TwoAccuracies {
                metric: metric.to_owned(),
                subset: row.subset.clone(),
                seed: row.seed,
                first: first.value,
                second: row.value,
            });
        }
    }
    if found.is_empty() {
        let present = tables.runs.iter().map(|row| row.metric.clone()).collect();
        return Err(missing(wanted_by, format!("the accuracy `{metric}`"), "runs", present));
    }
    Ok((found.into_iter())
        .filter_map(|(subset, seeds)| Some((subset.to_owned(), Group::new(seeds.into_values().collect())?)))
        .collect())
}
