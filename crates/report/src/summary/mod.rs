//! The results of an experiment as Markdown tables.

mod differences;

use std::fmt::Write;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::digits::{decimals, number};
use crate::error::{Error, Result};
use crate::select::{Metric, SeedValue, arms, judge, missing, run_values};
use crate::stats::{Estimate, Interval, LEVEL, mean_t};
use crate::tables::Tables;

/// What the summary shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SummarySpec {
    /// The columns.
    pub metrics: Vec<Metric>,
    /// The checkpoints, each with tables of its own.
    pub checkpoints: Vec<String>,
    /// The arm that others are compared with; without one there are no differences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// Level of all intervals, in (0, 1).
    #[serde(default = "level")]
    pub level: f64,
    /// Bootstrap resamples, at least 100.
    #[serde(default = "resamples")]
    pub resamples: u32,
}

fn level() -> f64 {
    LEVEL
}

fn resamples() -> u32 {
    10_000
}

const WANTED_BY: &str = "the summary";

/// The Markdown tables: for each checkpoint means with Student-t intervals over seeds, then the differences from the
/// baseline, paired by seed and example.
///
/// `order` lists the arms; empty means all, sorted. `streams` hands out a random stream by name: every difference has its
/// own, so that a new column changes no other number.
///
/// A metric that no arm has at any of the checkpoints is an error that lists the metrics there are; a value that is not
/// finite is shown as such and has no mean.
pub fn summary(
    tables: &Tables,
    spec: &SummarySpec,
    order: &[String],
    streams: &dyn Fn(&str) -> ChaCha8Rng,
) -> Result<String> {
    let arms = arms(tables, order, WANTED_BY)?;
    spec.check(tables, &arms)?;
    let mut out = String::new();
    let mut notes = Notes::default();
    for (i, checkpoint) in spec.checkpoints.iter().enumerate() {
        let columns: Vec<Column<'_>> = (spec.metrics.iter())
            .filter(|metric| metric.checkpoint.as_ref().is_none_or(|fixed| fixed == checkpoint))
            .map(|metric| Column::new(tables, &arms, metric, checkpoint, spec.level))
            .filter(|column| column.values.iter().any(|values| !values.is_empty()))
            .collect();
        if i > 0 {
            out.push('\n');
        }
        line(&mut out, &format!("### Checkpoint `{checkpoint}`\n"));
        if columns.is_empty() {
            line(&mut out, "Nothing was measured at this checkpoint.");
            continue;
        }
        notes.any_equal |= (columns.iter()).any(|column| column.values.iter().any(|values| all_equal(values)));
        notes.any_cut |= means(&mut out, tables, spec, &arms, &columns)?;
        if let Some(baseline) = &spec.baseline {
            notes.any_difference = true;
            notes.n_unpaired += differences::table(&mut out, tables, spec, &arms, &columns, baseline, streams)?;
        }
    }
    notes.write(&mut out, spec);
    Ok(out)
}

/// What the tables need said about them.
#[derive(Default)]
struct Notes {
    any_cut: bool,
    any_equal: bool,
    any_difference: bool,
    n_unpaired: usize,
}

impl Notes {
    fn write(&self, out: &mut String, spec: &SummarySpec) {
        let level = percent(spec.level);
        line(
            out,
            &format!(
                "\nMeans: mean [{level} Student-t interval over seeds] (seeds × examples). One seed has no interval."
            ),
        );
        if self.any_cut {
            line(out, "‡ The interval was cut off at the metric's bound.");
        }
        if self.any_equal {
            line(
                out,
                "No interval either where values are equal over seeds: they come from one model, such as a base model that \
                 the seeds share, or from a metric that does not tell the seeds apart.",
            );
        }
        if self.any_difference {
            line(
                out,
                &format!(
                    "\nDifferences: arm minus baseline [{level} interval]. With pairs given: percentile bootstrap, seeds and, once \
                     for all seeds, examples resampled {} times, paired by seed and example; such intervals are too narrow when \
                     seeds are few. With seeds only, where no scores per example average to the metric: Student-t interval over \
                     the differences of equal seeds. **Bold**: that Student-t interval and, with pairs given, the bootstrap \
                     interval too exclude 0, without correction for the number of comparisons.",
                    spec.resamples
                ),
            );
        }
        if self.n_unpaired > 0 {
            line(
                out,
                &format!(
                    "Left out: {} scores without a partner in the other arm.",
                    self.n_unpaired
                ),
            );
        }
    }
}

/// One metric at one checkpoint.
struct Column<'a> {
    metric: &'a Metric,
    checkpoint: &'a str,
    /// By arm.
    values: Vec<Vec<SeedValue>>,
    /// By arm; none without values or with one that is not finite.
    estimates: Vec<Option<Estimate>>,
}

impl<'a> Column<'a> {
    fn new(tables: &Tables, arms: &[String], metric: &'a Metric, checkpoint: &'a str, level: f64) -> Self {
        let values: Vec<Vec<SeedValue>> = arms
            .iter()
            .map(|arm| run_values(tables, arm, metric, checkpoint))
            .collect();
        let estimates = (values.iter())
            .map(|values| {
                let values: Vec<f64> = values.iter().map(|seed| seed.value).collect();
                mean_t(&values, level).ok()
            })
            .zip(&values)
            .map(|(estimate, values)| estimate.map(|estimate| shown(estimate, values)))
            .collect();
        Self {
            metric,
            checkpoint,
            values,
            estimates,
        }
    }
}

impl SummarySpec {
    /// Checks everything that is wrong with the choice itself, against the tables.
    fn check(&self, tables: &Tables, arms: &[String]) -> Result<()> {
        let wrong = |why: &str| Error::Spec {
            wanted_by: WANTED_BY.to_owned(),
            why: why.to_owned(),
        };
        if self.metrics.is_empty() || self.checkpoints.is_empty() {
            return Err(wrong("it needs at least one metric and one checkpoint"));
        }
        // The level is checked by the first mean.
        mean_t(&[0.0], self.level)?;
        if let Some(baseline) = &self.baseline
            && !arms.contains(baseline)
        {
            return Err(Error::MissingArm {
                wanted_by: WANTED_BY.to_owned(),
                arm: baseline.clone(),
                present: arms.to_vec(),
            });
        }
        for metric in &self.metrics {
            metric.check(WANTED_BY)?;
            let at = |checkpoint: &String| {
                arms.iter()
                    .any(|arm| !run_values(tables, arm, metric, checkpoint).is_empty())
            };
            let found = match &metric.checkpoint {
                Some(fixed) if !self.checkpoints.contains(fixed) => {
                    return Err(wrong(&format!(
                        "`{}` is wanted at checkpoint `{fixed}`, which is not among its checkpoints",
                        metric.metric
                    )));
                }
                Some(fixed) => at(fixed),
                None => self.checkpoints.iter().any(at),
            };
            if !found {
                let wanted = format!(
                    "{} on {} at {}",
                    metric.metric,
                    metric.subset,
                    self.checkpoints.join(" or ")
                );
                let present = (tables.runs.iter())
                    .map(|row| format!("{} on {} at {}", row.metric, row.subset, row.checkpoint))
                    .collect();
                return Err(missing(WANTED_BY, wanted, "runs", present));
            }
        }
        Ok(())
    }
}

/// Writes the means; whether any interval was cut off.
fn means(
    out: &mut String,
    tables: &Tables,
    spec: &SummarySpec,
    arms: &[String],
    columns: &[Column<'_>],
) -> Result<bool> {
    let mut header = String::from("| arm |");
    for column in columns {
        let _ = write!(header, " {} |", heading(tables, column.metric, spec.level)?);
    }
    line(out, &header);
    line(out, &format!("|---|{}", "---|".repeat(columns.len())));
    let mut any_cut = false;
    for (i, arm) in arms.iter().enumerate() {
        let mut row = format!("| {} |", cell(arm));
        for column in columns {
            let digits = digits(column.estimates.iter().flatten().map(|estimate| estimate.interval));
            let (text, cut) = mean_cell(column, i, digits);
            any_cut |= cut;
            let _ = write!(row, " {text} |");
        }
        line(out, &row);
    }
    Ok(any_cut)
}

fn mean_cell(column: &Column<'_>, arm: usize, digits: usize) -> (String, bool) {
    let values = &column.values[arm];
    if values.is_empty() {
        return ("—".to_owned(), false);
    }
    let n = size(values);
    let Some(estimate) = column.estimates[arm] else {
        return (format!("not finite ({n})"), false);
    };
    let mean = number(estimate.mean, digits);
    let Some(interval) = estimate.interval else {
        return (format!("{mean} ({n})"), false);
    };
    let (least, greatest) = column.metric.bounds.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
    let low = end(interval.low.max(least), interval.low < least, digits);
    let high = end(interval.high.min(greatest), interval.high > greatest, digits);
    let cut = interval.low < least || interval.high > greatest;
    (format!("{mean} [{low}, {high}] ({n})"), cut)
}

fn end(value: f64, cut: bool, digits: usize) -> String {
    let mark = if cut { "‡" } else { "" };
    format!("{}{mark}", number(value, digits))
}

/// Name of a column, with its judge's accuracy where it has one.
fn heading(tables: &Tables, metric: &Metric, level: f64) -> Result<String> {
    let mut heading = cell(&metric.label());
    if metric.lower_is_better {
        heading.push_str(", lower is better");
    }
    let Some(judged_by) = &metric.judge else {
        return Ok(heading);
    };
    for (subset, group) in judge(tables, judged_by, WANTED_BY)? {
        let values: Vec<f64> = group.values().collect();
        let accuracy = match mean_t(&values, level).map(|estimate| shown(estimate, &group.seeds)) {
            Ok(Estimate {
                mean,
                interval: Some(Interval { low, high, .. }),
                ..
            }) => {
                format!(
                    "{} [{}, {}]",
                    number(mean, 3),
                    number(low.max(0.0), 3),
                    number(high.min(1.0), 3)
                )
            }
            Ok(Estimate { mean, .. }) => number(mean, 3),
            Err(_) => "not finite".to_owned(),
        };
        let _ = write!(
            heading,
            "<br>judge's accuracy on {}: {accuracy} ({})",
            cell(&subset),
            size(&group.seeds)
        );
    }
    Ok(heading)
}

/// Whether two seeds or more have one finite value: nothing shows how much seeds vary.
fn all_equal(values: &[SeedValue]) -> bool {
    let (least, greatest) = (values.iter()).fold((f64::INFINITY, f64::NEG_INFINITY), |(least, greatest), seed| {
        (least.min(seed.value), greatest.max(seed.value))
    });
    values.len() > 1 && values.iter().all(|seed| seed.value.is_finite()) && least >= greatest
}

/// The estimate without its interval where all seeds have one value.
fn shown(estimate: Estimate, values: &[SeedValue]) -> Estimate {
    match all_equal(values) {
        true => Estimate {
            interval: None,
            ..estimate
        },
        false => estimate,
    }
}

/// `3 × 500`, or `3 × 480–500` where seeds differ.
fn size(values: &[SeedValue]) -> String {
    let (low, high) = values
        .iter()
        .fold((u64::MAX, 0), |(low, high), seed| (low.min(seed.n), high.max(seed.n)));
    match low == high {
        true => format!("{} × {high}", values.len()),
        false => format!("{} × {low}–{high}", values.len()),
    }
}

/// Decimals for a column: two significant digits of its middle interval.
fn digits(intervals: impl Iterator<Item = Option<Interval>>) -> usize {
    let mut halves: Vec<f64> = (intervals.flatten())
        .map(|interval| (interval.high - interval.low) / 2.0)
        .filter(|half| *half > 0.0)
        .collect();
    halves.sort_by(f64::total_cmp);
    decimals(halves.get(halves.len() / 2).copied().unwrap_or(0.0))
}

fn percent(level: f64) -> String {
    let percent = format!("{:.1}", 100.0 * level);
    format!("{} %", percent.trim_end_matches(".0"))
}

/// Text that cannot end a table cell.
fn cell(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.replace('|', "\\|")
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

#[cfg(test)]
mod tests;
