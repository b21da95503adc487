//! Quantities before and after training.

use serde::{Deserialize, Serialize};

use super::axis::{Axis, drawable};
use super::drawing::Drawing;
use super::legend::{Key, legend_row};
use super::notes::{examples, gaps_note, seeds};
use super::page::Panel;
use super::rows::{Column, arm_rows, row, rows_axis};
use super::theme::{Marker, QUIET, arm_style};
use crate::error::Result;
use crate::select::{Group, Metric, groups};
use crate::tables::Tables;

/// One panel per group of replies; in each a row per arm with an arrow from the mean before training to the mean after, and
/// the same for single seeds. All panels share their scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shift {
    /// Name of the files.
    pub name: String,
    /// Title; a plain one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The panels, such as negative and positive replies.
    pub groups: Vec<BeforeAfter>,
}

/// A quantity at two times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeforeAfter {
    /// Heading of the panel, with the unit.
    pub label: String,
    /// The quantity before training, such as at checkpoint `base`.
    pub before: Metric,
    /// The quantity after training.
    pub after: Metric,
}

type Arms = Vec<Option<Group>>;

impl Shift {
    pub(super) fn draw(&self, tables: &Tables, arms: &[String], wanted_by: &str) -> Result<(Drawing, String)> {
        let title = self
            .title
            .clone()
            .unwrap_or_else(|| "Before and after training".to_owned());
        let mut all: Vec<(Arms, Arms)> = Vec::new();
        for group in &self.groups {
            let before = groups(tables, arms, &group.before, wanted_by)?;
            all.push((before, groups(tables, arms, &group.after, wanted_by)?));
        }
        let flat = || {
            all.iter()
                .flat_map(|(before, after)| before.iter().chain(after))
                .flatten()
        };
        let bounds = self.groups[0].before.bounds;
        let axis = Axis::new(flat().flat_map(Group::values), bounds, 5);
        let columns: Vec<Column> = (self.groups.iter())
            .map(|group| Column {
                label: group.label.clone(),
                remark: None,
                axis: axis.clone(),
            })
            .collect();
        let mut notes = vec![format!(
            "Arrows run from before to after: thick for the mean of {}, thin for single seeds; {} each.",
            seeds(flat()),
            examples(flat())
        )];
        notes.extend(gaps_note(
            arms,
            all.iter()
                .flat_map(|(before, after)| [before.as_slice(), after.as_slice()]),
        ));
        let (mut drawing, rects, top) = arm_rows(&title, &notes, arms, &columns, 26.0);
        let keys = [
            (Key::Hollow(Marker::Circle, QUIET), "before".to_owned()),
            (Key::Marker(Marker::Circle, QUIET), "after".to_owned()),
            (Key::Line(QUIET.tint(0.45), 1.0), "single seed".to_owned()),
        ];
        legend_row(&mut drawing, (super::page::MARGIN, top + 8.0), &keys);
        if let Some(x) = &axis {
            for ((before, after), rect) in all.iter().zip(rects) {
                let Some(rect) = rect else { continue };
                let y = rows_axis(arms.len());
                let panel = Panel { rect, x, y: &y };
                for i in 0..arms.len() {
                    if let (Some(before), Some(after)) = (&before[i], &after[i]) {
                        arrows(&mut drawing, &panel, i, before, after);
                    }
                }
            }
        }
        Ok((drawing, title))
    }
}

fn arrows(drawing: &mut Drawing, panel: &Panel<'_>, i: usize, before: &Group, after: &Group) {
    let (color, marker) = arm_style(i);
    let y = row(panel.rect.top, i);
    let pairs: Vec<(f64, f64)> = (before.seeds.iter())
        .filter_map(|b| {
            after
                .seeds
                .iter()
                .find(|a| a.seed == b.seed)
                .map(|a| (b.value, a.value))
        })
        .filter(|(b, a)| drawable(*b) && drawable(*a))
        .collect();
    // Single seeds above the mean, as far apart as the row allows.
    let step = (9.0 / pairs.len().max(1) as f64).min(3.5);
    for (k, (b, a)) in (0..).zip(&pairs) {
        let y = y - 9.0 - step * f64::from(k);
        let (from, to) = (panel.x(*b), panel.x(*a));
        drawing.line(vec![(from, y), (to, y)], 1.0, color.tint(0.45));
        drawing.circle((to, y), 1.7, color.tint(0.6));
    }
    let means = (before.estimate.map(|e| e.mean), after.estimate.map(|e| e.mean));
    if let (Some(b), Some(a)) = means {
        if !(drawable(b) && drawable(a)) {
            return;
        }
        let (from, to) = (panel.x(b), panel.x(a));
        let y = y + 5.0;
        let reach = if to > from { -7.0 } else { 7.0 };
        if (to - from).abs() > 16.0 {
            drawing.arrow((from, y), (to + reach, y), 2.2, color);
        }
        drawing.hollow(marker, (from, y), 5.0, color);
        drawing.marker(marker, (to, y), 6.0, color);
    }
}
