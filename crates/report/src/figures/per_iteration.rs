//! A quantity after each iteration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::axis::{Axis, drawable};
use super::drawing::{Drawing, Point};
use super::legend::{Key, legend_row, legend_width, side_labels};
use super::notes::{examples, gaps_note, seeds};
use super::page::{Panel, Rect, nothing, numbers_width, page, x_label, y_label};
use super::theme::{QUIET, Rgb, WIDTH, arm_style};
use crate::error::Result;
use crate::select::{Group, Metric, evaluators, iterations, missing};
use crate::tables::Tables;

/// Iterations of the iterative arms, with single seeds, beside the means of the arms that do not iterate.
///
/// The values are means over the examples of `scores`, where the metric is an evaluator. Iteration 1 is the model after its
/// first training. An arm with a score of any iteration is iterative; of the others the rows without iteration are taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerIteration {
    /// Name of the files.
    pub name: String,
    /// Title; made from the label when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The quantity, an evaluator of `scores`.
    pub metric: Metric,
}

struct Arm {
    place: usize,
    name: String,
    /// By iteration; a single entry without iteration for an arm that does not iterate.
    groups: BTreeMap<Option<u32>, Group>,
    iterative: bool,
}

impl PerIteration {
    pub(super) fn draw(&self, tables: &Tables, arms: &[String], wanted_by: &str) -> Result<(Drawing, String)> {
        let title = self
            .title
            .clone()
            .unwrap_or_else(|| format!("{} per iteration", self.metric.label()));
        let found: Vec<Arm> = (arms.iter().enumerate())
            .map(|(place, arm)| {
                let mut groups = iterations(tables, arm, &self.metric);
                let iterative = groups.keys().any(Option::is_some);
                if iterative {
                    groups.remove(&None);
                }
                Arm {
                    place,
                    name: arm.clone(),
                    groups,
                    iterative,
                }
            })
            .collect();
        if found.iter().all(|arm| arm.groups.is_empty()) {
            return Err(missing(wanted_by, self.metric.describe(), "scores", evaluators(tables)));
        }
        let all = || found.iter().flat_map(|arm| arm.groups.values());
        let last = found
            .iter()
            .flat_map(|arm| arm.groups.keys())
            .filter_map(|i| *i)
            .max()
            .unwrap_or(1);
        let x = Axis::whole(1, u64::from(last), 10);
        // A little room, so that the first and last markers stand inside of the frame.
        let x = Axis {
            low: x.low - 0.06 * (x.high - x.low),
            high: x.high + 0.06 * (x.high - x.low),
            ..x
        };
        let y = Axis::new(found.iter().flat_map(Arm::drawn), self.metric.bounds, 7);

        let mut notes = vec![format!(
            "Iteration 1 is the model after its first training. {} on {} each.",
            seeds(all()),
            examples(all())
        )];
        let columns: Vec<Vec<Option<Group>>> =
            vec![found.iter().map(|arm| arm.groups.values().next().cloned()).collect()];
        notes.extend(gaps_note(arms, columns.iter().map(Vec::as_slice)));
        let (mut drawing, body) = page(WIDTH, 400.0, &title, &notes);
        let names: Vec<String> = found
            .iter()
            .filter(|arm| !arm.groups.is_empty())
            .map(|arm| arm.name.clone())
            .collect();
        let side = legend_width(names.iter().map(String::as_str), 220.0);
        let rect = Rect {
            left: body.left + 34.0 + y.as_ref().map_or(0.0, numbers_width),
            top: body.top + 28.0,
            right: body.right - side,
            bottom: body.bottom - 48.0,
        };
        let keys = [
            (Key::Line(QUIET, 3.0), "iterative, mean over seeds".to_owned()),
            (Key::Line(QUIET.tint(0.45), 1.1), "single seed".to_owned()),
            (Key::Dashed(QUIET), "trained once, mean over seeds".to_owned()),
        ];
        legend_row(&mut drawing, (rect.left, body.top + 10.0), &keys);
        x_label(&mut drawing, rect, "iteration");
        y_label(&mut drawing, body.left + 12.0, rect, &self.metric.label());
        match y {
            Some(y) => {
                let panel = Panel { rect, x: &x, y: &y };
                panel.draw(&mut drawing, true, true);
                let mut labels = Vec::new();
                for arm in &found {
                    labels.extend(arm.draw(&mut drawing, &panel));
                }
                side_labels(&mut drawing, rect, side, &labels);
            }
            None => nothing(&mut drawing, rect, "no finite values"),
        }
        Ok((drawing, title))
    }
}

impl Arm {
    /// Every value that is drawn: of an arm trained once only the mean is.
    fn drawn(&self) -> Vec<f64> {
        match self.iterative {
            true => self.groups.values().flat_map(Group::values).collect(),
            false => self
                .groups
                .values()
                .filter_map(|group| group.estimate.map(|estimate| estimate.mean))
                .collect(),
        }
    }

    /// Draws the arm; the label that goes beside it.
    fn draw(&self, drawing: &mut Drawing, panel: &Panel<'_>) -> Option<(f64, String, Rgb)> {
        let (color, marker) = arm_style(self.place);
        if !self.iterative {
            let mean = self.groups.get(&None)?.estimate?.mean;
            let y = drawable(mean).then(|| panel.y(mean))?;
            drawing.dashed((panel.rect.left, y), (panel.rect.right, y), 1.6, color, (6.0, 4.0));
            return Some((y, self.name.clone(), color));
        }
        let mut seeds: BTreeMap<u64, Vec<Point>> = BTreeMap::new();
        let mut means = Vec::new();
        for (iteration, group) in &self.groups {
            let x = f64::from(iteration.unwrap_or(1));
            for seed in &group.seeds {
                seeds.entry(seed.seed).or_default().extend(panel.at(x, seed.value));
            }
            means.extend(group.estimate.and_then(|estimate| panel.at(x, estimate.mean)));
        }
        for points in seeds.into_values() {
            for point in &points {
                drawing.small(marker, *point, color.tint(0.45));
            }
            drawing.line(points, 1.1, color.tint(0.45));
        }
        drawing.line(means.clone(), 3.0, color);
        for point in &means {
            drawing.marker(marker, *point, 6.5, color);
        }
        Some((means.last()?.1, self.name.clone(), color))
    }
}
