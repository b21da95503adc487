//! Differences between the baseline and every other arm.

use std::fmt::Write;

use rand_chacha::ChaCha8Rng;

use super::{Column, SummarySpec, all_equal, cell, digits, line};
use crate::digits::{number, signed};
use crate::error::Result;
use crate::select::{SeedValue, final_scores};
use crate::stats::{Bootstrap, Interval, Scored, mean_t, paired_difference};
use crate::tables::{ScoreRow, Tables};

/// A difference and its interval.
struct Found {
    mean: f64,
    interval: Option<Interval>,
    /// Whether every interval there is for it, and that over seeds among them, excludes zero.
    bold: bool,
    n: String,
    n_unpaired: usize,
}

/// Writes the differences; how many scores had no partner.
pub(super) fn table(
    out: &mut String,
    tables: &Tables,
    spec: &SummarySpec,
    arms: &[String],
    columns: &[Column<'_>],
    baseline: &str,
    streams: &dyn Fn(&str) -> ChaCha8Rng,
) -> Result<usize> {
    let Some(base) = arms.iter().position(|arm| arm == baseline) else {
        return Ok(0);
    };
    let others: Vec<usize> = (0..arms.len()).filter(|i| *i != base).collect();
    if others.is_empty() {
        return Ok(0);
    }
    let mut found: Vec<Vec<Option<Found>>> = Vec::new();
    for column in columns {
        let mut cells = Vec::new();
        for &other in &others {
            cells.push(difference(tables, spec, arms, column, (other, base), streams)?);
        }
        found.push(cells);
    }

    line(
        out,
        &format!(
            "\nDifferences from `{}` at checkpoint `{}`:\n",
            cell(baseline),
            columns[0].checkpoint
        ),
    );
    let names: Vec<String> = columns.iter().map(|column| cell(&column.metric.label())).collect();
    line(out, &format!("| arm | {} |", names.join(" | ")));
    line(out, &format!("|---|{}", "---|".repeat(columns.len())));
    for (row, &other) in others.iter().enumerate() {
        let mut text = format!("| {} |", cell(&arms[other]));
        for cells in &found {
            let digits = digits(cells.iter().flatten().map(|found| found.interval));
            let _ = write!(
                text,
                " {} |",
                cells[row].as_ref().map_or("—".to_owned(), |found| found.text(digits))
            );
        }
        line(out, &text);
    }
    Ok(found.iter().flatten().flatten().map(|found| found.n_unpaired).sum())
}

impl Found {
    fn text(&self, digits: usize) -> String {
        let mean = signed(self.mean, digits);
        match self.interval {
            None => format!("{mean} ({})", self.n),
            Some(interval) => {
                let mark = if self.bold { "**" } else { "" };
                let ends = [number(interval.low, digits), number(interval.high, digits)];
                format!("{mark}{mean}{mark} [{}] ({})", ends.join(", "), self.n)
            }
        }
    }
}

fn difference(
    tables: &Tables,
    spec: &SummarySpec,
    arms: &[String],
    column: &Column<'_>,
    (other, base): (usize, usize),
    streams: &dyn Fn(&str) -> ChaCha8Rng,
) -> Result<Option<Found>> {
    let scores = |arm: usize| final_scores(tables, &arms[arm], column.metric, column.checkpoint);
    let (a, b) = (scores(other), scores(base));
    let values = |arm: usize| column.values[arm].as_slice();
    let per_seed: Vec<f64> = (values(other).iter())
        .filter_map(|a| {
            values(base)
                .iter()
                .find(|b| b.seed == a.seed)
                .map(|b| a.value - b.value)
        })
        .collect();
    let mut over_seeds = mean_t(&per_seed, spec.level).ok();
    // Seeds of two models show nothing of how much seeds vary.
    if let Some(estimate) = &mut over_seeds
        && all_equal(values(other))
        && all_equal(values(base))
    {
        estimate.interval = None;
    }
    let excludes_zero = |interval: Option<Interval>| interval.is_some_and(|interval| interval.excludes_zero());
    let bold = excludes_zero(over_seeds.and_then(|estimate| estimate.interval));
    if is_mean_of(&a, values(other)) && is_mean_of(&b, values(base)) {
        let purpose = format!(
            "bootstrap {} {} {} {} {}",
            column.metric.metric, column.metric.subset, column.checkpoint, arms[other], arms[base]
        );
        let options = Bootstrap {
            resamples: spec.resamples,
            level: spec.level,
        };
        let found = paired_difference(&scored(&a), &scored(&b), options, &mut streams(&purpose))?;
        return Ok(Some(Found {
            mean: found.mean,
            interval: found.interval,
            bold: bold && excludes_zero(found.interval),
            n: format!("{}, {} pairs", seeds(found.n_seeds), found.n_pairs),
            n_unpaired: found.n_unpaired,
        }));
    }
    Ok(over_seeds.map(|estimate| Found {
        mean: estimate.mean,
        interval: estimate.interval,
        bold,
        n: seeds(estimate.n),
        n_unpaired: 0,
    }))
}

fn seeds(n: usize) -> String {
    if n == 1 {
        "1 seed, no interval".to_owned()
    } else {
        format!("{n} seeds")
    }
}

fn scored<'a>(rows: &[&'a ScoreRow]) -> Vec<Scored<'a>> {
    let scored = rows.iter().map(|row| Scored {
        seed: row.seed,
        example: &row.example,
        value: row.value,
    });
    scored.collect()
}

/// Whether the numbers of the runs are the means of these scores, seed by seed. A metric such as a perplexity, which is no
/// mean, must not get the interval of one.
fn is_mean_of(rows: &[&ScoreRow], values: &[SeedValue]) -> bool {
    !rows.is_empty()
        && values.iter().all(|seed| {
            let (sum, n) = (rows.iter().filter(|row| row.seed == seed.seed))
                .fold((0.0, 0.0), |(sum, n), row| (sum + row.value, n + 1.0));
            n > 0.0 && (sum / n - seed.value).abs() <= 1e-6 * seed.value.abs().max(1e-6)
        })
        && rows.iter().all(|row| values.iter().any(|seed| seed.seed == row.seed))
}
