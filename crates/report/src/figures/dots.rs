//! Quantities per arm.

use serde::{Deserialize, Serialize};

use super::axis::{Axis, drawable};
use super::drawing::Drawing;
use super::notes::{examples, gaps_note, interval_note, seeds};
use super::page::{Panel, error_bar};
use super::rows::{Column, arm_rows, row, rows_axis};
use super::theme::arm_style;
use super::tradeoff::{axis, cut, cuts};
use crate::digits::share;
use crate::error::Result;
use crate::select::{Group, Metric, groups, judge};
use crate::tables::Tables;

/// One panel per quantity, side by side; in each a row per arm with the mean, its interval and the single seeds. Quantities
/// with the same `bounds` share their scale. A quantity with a `judge` shows the judge's accuracy under its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dots {
    /// Name of the files.
    pub name: String,
    /// Title; a plain one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The quantities, one panel each.
    pub metrics: Vec<Metric>,
}

impl Dots {
    pub(super) fn draw(&self, tables: &Tables, arms: &[String], wanted_by: &str) -> Result<(Drawing, String)> {
        let title = self.title.clone().unwrap_or_else(|| "Results per arm".to_owned());
        let mut all = Vec::new();
        for metric in &self.metrics {
            all.push(groups(tables, arms, metric, wanted_by)?);
        }
        let mut columns = Vec::new();
        for (i, metric) in self.metrics.iter().enumerate() {
            let remark = match &metric.judge {
                Some(judged_by) => Some(accuracy(tables, judged_by, wanted_by)?),
                None => None,
            };
            columns.push(Column {
                label: metric.label(),
                remark,
                axis: self.axis(&all, i),
            });
        }
        let flat = || all.iter().flatten().flatten();
        let any_cut = self
            .metrics
            .iter()
            .zip(&all)
            .any(|(m, g)| cuts(g, m.bounds).any(|cut| cut.any()));
        let mut notes = vec![format!(
            "Large markers: means of {} on {} each; small markers: single seeds. {}",
            seeds(flat()),
            examples(flat()),
            interval_note(flat(), any_cut)
        )];
        notes.extend(gaps_note(arms, all.iter().map(Vec::as_slice)));
        let (mut drawing, rects, _) = arm_rows(&title, &notes, arms, &columns, 0.0);
        for (((metric, groups), column), rect) in self.metrics.iter().zip(&all).zip(&columns).zip(rects) {
            if let (Some(rect), Some(x)) = (rect, &column.axis) {
                let y = rows_axis(arms.len());
                points(&mut drawing, &Panel { rect, x, y: &y }, metric, groups);
            }
        }
        Ok((drawing, title))
    }

    /// The axis of a panel, over all panels that share its bounds.
    fn axis(&self, all: &[Vec<Option<Group>>], i: usize) -> Option<Axis> {
        let metric = &self.metrics[i];
        if metric.bounds.is_none() {
            return axis(&all[i], metric, 5);
        }
        let alike = (self.metrics.iter().zip(all)).filter(|(other, _)| other.bounds == metric.bounds);
        let together: Vec<Option<Group>> = alike.flat_map(|(_, groups)| groups.iter().cloned()).collect();
        axis(&together, metric, 5)
    }
}

fn points(drawing: &mut Drawing, panel: &Panel<'_>, metric: &Metric, groups: &[Option<Group>]) {
    for (i, group) in groups.iter().enumerate() {
        let Some(found) = group else { continue };
        let (color, marker) = arm_style(i);
        let y = row(panel.rect.top, i);
        if let Some(cut) = cut(group, metric.bounds) {
            error_bar(drawing, (panel.x(cut.low), y), (panel.x(cut.high), y), cut, color);
        }
        if let Some(estimate) = found.estimate.filter(|estimate| drawable(estimate.mean)) {
            drawing.marker(marker, (panel.x(estimate.mean), y), 4.6, color);
        }
        for value in found.values().filter(|value| drawable(*value)) {
            drawing.small(marker, (panel.x(value), y - 11.5), color.tint(0.55));
        }
    }
}

/// The judge's accuracy in words.
pub(super) fn accuracy(tables: &Tables, metric: &str, wanted_by: &str) -> Result<String> {
    let subsets = judge(tables, metric, wanted_by)?;
    let one = subsets.len() == 1;
    let parts: Vec<String> = (subsets.iter())
        .map(|(subset, group)| {
            let mean = group
                .estimate
                .map_or("not finite".to_owned(), |estimate| share(estimate.mean));
            if one { mean } else { format!("{mean} ({subset})") }
        })
        .collect();
    Ok(format!("judge's accuracy {}", parts.join(", ")))
}
