//! Step metrics against steps.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::axis::{Axis, drawable};
use super::drawing::{Align, Drawing, Point, Text};
use super::font::{Weight, shorten};
use super::legend::{Key, legend_row};
use super::page::{Panel, Rect, nothing, numbers_width, page, x_label, y_label};
use super::theme::{FRAME, LABEL, QUIET, WIDTH, series_color};
use crate::error::Result;
use crate::select::missing;
use crate::tables::{StepRow, Tables};

/// Lines longer than this are averaged in windows, so that files stay small and trends readable.
const MOST_POINTS: u64 = 300;

/// Small multiples: a row per kind of metric, a column per arm, one thin line per seed and a thick mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curves {
    /// Name of the files.
    pub name: String,
    /// Title; a plain one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Phases drawn one after the other, such as `[train, iteration-2]`; an arm may lack some.
    pub phases: Vec<String>,
    /// The rows.
    pub rows: Vec<CurveRow>,
}

/// A row of panels with one vertical scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CurveRow {
    /// Label of the vertical axis, with its unit.
    pub label: String,
    /// Least and greatest possible value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<(f64, f64)>,
    /// The metrics in its panels.
    pub series: Vec<Series>,
}

/// A step metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    /// Its name in `steps`.
    pub metric: String,
    /// Its name in the legend; the same name gets the same colour in every row.
    pub label: String,
}

/// A phase and a window of steps within the whole training.
type Window = (usize, u64);
/// Values by seed: for each window of steps the mean step and the mean value.
type Lines = BTreeMap<u64, BTreeMap<Window, Point>>;

/// Phase, step over all phases, and value.
type Recorded = Vec<(usize, u64, f64)>;

/// What one arm has to show.
struct Arm<'a> {
    /// By metric, then seed.
    values: BTreeMap<&'a str, BTreeMap<u64, Recorded>>,
    /// Where a phase after the first begins.
    starts: Vec<u64>,
    last: u64,
}

impl Curves {
    pub(super) fn draw(&self, tables: &Tables, arms: &[String], wanted_by: &str) -> Result<(Drawing, String)> {
        let title = self.title.clone().unwrap_or_else(|| "Training".to_owned());
        let found: Vec<Arm<'_>> = arms.iter().map(|arm| self.collect(tables, arm)).collect();
        for series in self.rows.iter().flat_map(|row| &row.series) {
            if !found.iter().any(|arm| arm.values.contains_key(series.metric.as_str())) {
                let present: BTreeSet<String> = tables
                    .steps
                    .iter()
                    .map(|row| format!("{} in {}", row.metric, row.phase))
                    .collect();
                let wanted = format!("{} in {}", series.metric, self.phases.join(" or "));
                return Err(missing(wanted_by, wanted, "steps", present));
            }
        }
        let last = found.iter().map(|arm| arm.last).max().unwrap_or(0);
        let longest = found
            .iter()
            .flat_map(|arm| arm.values.values())
            .flat_map(BTreeMap::values)
            .map(Vec::len)
            .max();
        let window = if longest.unwrap_or(0) as u64 > MOST_POINTS {
            last.div_ceil(MOST_POINTS).max(1)
        } else {
            1
        };
        let x = Axis::whole(0, last.max(1), 3);
        let lines: Vec<Vec<Vec<Lines>>> = (self.rows.iter())
            .map(|row| {
                found
                    .iter()
                    .map(|arm| row.series.iter().map(|s| arm.lines(&s.metric, window)).collect())
                    .collect()
            })
            .collect();
        let axes: Vec<Option<Axis>> = (self.rows.iter().zip(&lines))
            .map(|(row, lines)| {
                let points = lines
                    .iter()
                    .flatten()
                    .flat_map(BTreeMap::values)
                    .flat_map(BTreeMap::values);
                Axis::new(points.map(|point| point.1), row.bounds, 5)
            })
            .collect();

        let n = arms.len() as f64;
        let numbers = axes.iter().flatten().map(numbers_width).fold(0.0, f64::max);
        let left = 34.0 + numbers;
        let gap = 18.0;
        let width = WIDTH.max(40.0 + left + n * 165.0);
        let each = (width - 40.0 - left - gap * (n - 1.0)) / n;
        const HEIGHT: f64 = 150.0;
        let body = 28.0 + 22.0 + (HEIGHT + 18.0) * self.rows.len() as f64 - 18.0 + 48.0;
        let (mut drawing, area) = page(width, body, &title, &self.notes(&found, &lines, window));
        legend_row(&mut drawing, (area.left + left, area.top + 10.0), &self.keys());
        for (r, (row, axis)) in self.rows.iter().zip(&axes).enumerate() {
            let top = area.top + 50.0 + (HEIGHT + 18.0) * r as f64;
            for (a, arm) in arms.iter().enumerate() {
                let start = area.left + left + (each + gap) * a as f64;
                let rect = Rect {
                    left: start,
                    top,
                    right: start + each,
                    bottom: top + HEIGHT,
                };
                if r == 0 {
                    let name = shorten(arm, LABEL, Weight::Medium, each);
                    let at = ((rect.left + rect.right) / 2.0, top - 8.0);
                    drawing.text(Text::new(at, name, LABEL).medium().align(Align::Centre));
                }
                if a == 0 {
                    y_label(&mut drawing, area.left + 10.0, rect, &row.label);
                }
                let Some(y) = axis else {
                    nothing(&mut drawing, rect, "no finite values");
                    continue;
                };
                let panel = Panel { rect, x: &x, y };
                panel.draw(&mut drawing, r + 1 == self.rows.len(), a == 0);
                for start in &found[a].starts {
                    let x = panel.x(*start as f64);
                    drawing.dashed((x, top), (x, rect.bottom), 1.0, FRAME, (3.0, 3.0));
                }
                self.panel(&mut drawing, &panel, row, &lines[r][a]);
            }
        }
        let bottom = area.top + 50.0 + (HEIGHT + 18.0) * self.rows.len() as f64 - 18.0;
        let all = Rect {
            left: area.left + left,
            top: area.top,
            right: area.right,
            bottom,
        };
        x_label(&mut drawing, all, "training step");
        Ok((drawing, title))
    }

    fn panel(&self, drawing: &mut Drawing, panel: &Panel<'_>, row: &CurveRow, lines: &[Lines]) {
        if lines.iter().all(BTreeMap::is_empty) {
            nothing(drawing, panel.rect, "not recorded");
            return;
        }
        for (series, seeds) in row.series.iter().zip(lines) {
            for points in seeds.values() {
                polyline(drawing, panel, points, 0.9, self.color(series).tint(0.4));
            }
        }
        for (series, seeds) in row.series.iter().zip(lines) {
            polyline(drawing, panel, &mean(seeds), 2.0, self.color(series));
        }
    }

    fn labels(&self) -> Vec<&str> {
        let mut labels: Vec<&str> = Vec::new();
        for series in self.rows.iter().flat_map(|row| &row.series) {
            if !labels.contains(&series.label.as_str()) {
                labels.push(&series.label);
            }
        }
        labels
    }

    fn color(&self, series: &Series) -> super::theme::Rgb {
        series_color(
            self.labels()
                .iter()
                .position(|label| *label == series.label)
                .unwrap_or(0),
        )
    }

    fn keys(&self) -> Vec<(Key, String)> {
        let mut keys: Vec<(Key, String)> = (self.labels().iter().enumerate())
            .map(|(i, label)| (Key::Line(series_color(i), 2.6), (*label).to_owned()))
            .collect();
        keys.push((Key::Line(QUIET.tint(0.45), 1.0), "single seed".to_owned()));
        keys
    }

    fn notes(&self, found: &[Arm<'_>], lines: &[Vec<Vec<Lines>>], window: u64) -> Vec<String> {
        let seeds = found
            .iter()
            .flat_map(|arm| arm.values.values())
            .map(BTreeMap::len)
            .max()
            .unwrap_or(0);
        let mut note = match seeds {
            1 => "One seed.".to_owned(),
            n => format!("Thick lines: mean over {n} seeds."),
        };
        if window > 1 {
            note.push_str(&format!(" Each point is the mean over {window} steps."));
        }
        if found.iter().any(|arm| !arm.starts.is_empty()) {
            note.push_str(&format!(
                " Dashed lines: beginning of the next phase ({}).",
                self.phases.join(", ")
            ));
        }
        let points = lines
            .iter()
            .flatten()
            .flatten()
            .flat_map(BTreeMap::values)
            .flat_map(BTreeMap::values);
        let lost = points.filter(|point| !drawable(point.1)).count();
        if lost > 0 {
            note.push_str(&format!(" {lost} points are not finite and leave gaps."));
        }
        vec![note]
    }

    fn collect<'a>(&self, tables: &'a Tables, arm: &str) -> Arm<'a> {
        let wanted: BTreeSet<&str> = self
            .rows
            .iter()
            .flat_map(|row| &row.series)
            .map(|s| s.metric.as_str())
            .collect();
        let rows: Vec<&StepRow> = tables
            .steps
            .iter()
            .filter(|row| row.arm == arm && wanted.contains(row.metric.as_str()))
            .collect();
        let mut out = Arm {
            values: BTreeMap::new(),
            starts: Vec::new(),
            last: 0,
        };
        for (place, phase) in self.phases.iter().enumerate() {
            let Some(longest) = rows.iter().filter(|row| &row.phase == phase).map(|row| row.step).max() else {
                continue;
            };
            if out.last > 0 {
                out.starts.push(out.last);
            }
            for row in rows.iter().filter(|row| &row.phase == phase) {
                let line = out.values.entry(&row.metric).or_default().entry(row.seed).or_default();
                line.push((place, out.last.saturating_add(row.step), row.value));
            }
            out.last = out.last.saturating_add(longest);
        }
        out
    }
}

impl Arm<'_> {
    fn lines(&self, metric: &str, window: u64) -> Lines {
        let mut lines = Lines::new();
        for (seed, values) in self.values.get(metric).into_iter().flatten() {
            let mut sums: BTreeMap<Window, (f64, f64, f64)> = BTreeMap::new();
            for (phase, step, value) in values {
                let (x, y, n) = sums.entry((*phase, step / window)).or_default();
                (*x, *y, *n) = (*x + *step as f64, *y + value, *n + 1.0);
            }
            let means = sums.into_iter().map(|(window, (x, y, n))| (window, (x / n, y / n)));
            lines.insert(*seed, means.collect());
        }
        lines
    }
}

/// Mean over seeds, at the windows that every seed has.
fn mean(seeds: &Lines) -> BTreeMap<Window, Point> {
    let Some(first) = seeds.values().next() else {
        return BTreeMap::new();
    };
    let n = seeds.len() as f64;
    let common = first
        .keys()
        .filter(|window| seeds.values().all(|points| points.contains_key(window)));
    common
        .map(|window| {
            let points = seeds.values().map(|points| points[window]);
            (
                *window,
                points.fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / n, sum.1 + point.1 / n)),
            )
        })
        .collect()
}

/// A line with gaps between phases and where a point cannot be drawn; a lone point is a dot.
fn polyline(
    drawing: &mut Drawing,
    panel: &Panel<'_>,
    points: &BTreeMap<Window, Point>,
    width: f64,
    color: super::theme::Rgb,
) {
    let mut piece: Vec<Point> = Vec::new();
    let flush = |drawing: &mut Drawing, piece: &mut Vec<Point>| match piece.as_slice() {
        [alone] => {
            drawing.circle(*alone, 1.0 + width, color);
            piece.clear();
        }
        _ => drawing.line(std::mem::take(piece), width, color),
    };
    let mut before = 0;
    for ((phase, _), point) in points {
        let at = panel.at(point.0, point.1);
        if *phase != before || at.is_none() {
            flush(drawing, &mut piece);
        }
        before = *phase;
        piece.extend(at);
    }
    flush(drawing, &mut piece);
}
