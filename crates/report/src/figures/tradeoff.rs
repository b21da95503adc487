//! One quantity against another.

use serde::{Deserialize, Serialize};

use super::axis::{Axis, drawable};
use super::drawing::{Drawing, Point};
use super::legend::{Key, legend, legend_width};
use super::notes::{examples, gaps_note, interval_note, seeds};
use super::page::{Cut, Panel, Rect, error_bar, nothing, numbers_width, page, x_label, y_label};
use super::theme::{FRAME, QUIET, WIDTH, arm_style};
use crate::error::Result;
use crate::select::{Group, Metric, groups};
use crate::tables::Tables;

/// Quality against safety: a small dot per seed, a large marker per arm's mean, intervals both ways, and the front of arms
/// that no other arm beats in both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tradeoff {
    /// Name of the files.
    pub name: String,
    /// Title; made from the labels when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Horizontal quantity.
    pub x: Metric,
    /// Vertical quantity.
    pub y: Metric,
}

impl Tradeoff {
    pub(super) fn draw(&self, tables: &Tables, arms: &[String], wanted_by: &str) -> Result<(Drawing, String)> {
        let xs = groups(tables, arms, &self.x, wanted_by)?;
        let ys = groups(tables, arms, &self.y, wanted_by)?;
        let title = self
            .title
            .clone()
            .unwrap_or_else(|| format!("{} against {}", self.y.label(), self.x.label()));
        let axes = (axis(&xs, &self.x, 7), axis(&ys, &self.y, 7));

        let all = || xs.iter().chain(&ys).flatten();
        let any_cut = cuts(&xs, self.x.bounds)
            .chain(cuts(&ys, self.y.bounds))
            .any(|cut| cut.any());
        let mut notes = vec![format!(
            "Large markers: means of {} on {} each; small dots: single seeds. {}",
            seeds(all()),
            examples(all()),
            interval_note(all(), any_cut)
        )];
        notes.extend(gaps_note(arms, [xs.as_slice(), ys.as_slice()]));
        let (mut drawing, body) = page(WIDTH, 420.0, &title, &notes);

        let side = legend_width(arms.iter().map(String::as_str).chain(["Pareto front"]), 230.0);
        let numbers = axes.1.as_ref().map_or(0.0, numbers_width);
        let rect = Rect {
            left: body.left + 26.0 + numbers + 8.0,
            top: body.top + 4.0,
            right: body.right - side - 18.0,
            bottom: body.bottom - 48.0,
        };
        x_label(&mut drawing, rect, &self.x.label());
        y_label(&mut drawing, body.left + 12.0, rect, &self.y.label());
        let mut keys: Vec<(Key, String)> = (arms.iter().enumerate())
            .map(|(i, arm)| {
                let (color, marker) = arm_style(i);
                (Key::Marker(marker, color), arm.clone())
            })
            .collect();
        keys.push((Key::Dot(QUIET.tint(0.6)), "single seed".to_owned()));
        match axes {
            (Some(x), Some(y)) => {
                let panel = Panel { rect, x: &x, y: &y };
                panel.draw(&mut drawing, true, true);
                if self.points(&mut drawing, &panel, &xs, &ys) {
                    keys.push((Key::Dashed(QUIET), "Pareto front".to_owned()));
                }
            }
            _ => nothing(&mut drawing, rect, "no finite values"),
        }
        legend(&mut drawing, (rect.right + 18.0, rect.top + 14.0), side, &keys);
        Ok((drawing, title))
    }

    /// Draws the data; whether there is a front.
    fn points(&self, drawing: &mut Drawing, panel: &Panel<'_>, xs: &[Option<Group>], ys: &[Option<Group>]) -> bool {
        let mut means: Vec<(usize, Point)> = Vec::new();
        for (i, (x, y)) in xs.iter().zip(ys).enumerate() {
            let estimates = (x.as_ref().and_then(|g| g.estimate), y.as_ref().and_then(|g| g.estimate));
            if let (Some(x), Some(y)) = estimates
                && drawable(x.mean)
                && drawable(y.mean)
            {
                means.push((i, (x.mean, y.mean)));
            }
        }
        let points: Vec<Point> = means.iter().map(|(_, point)| *point).collect();
        let front = front(&points, self.x.lower_is_better, self.y.lower_is_better);
        self.stairs(drawing, panel, &front);
        for (i, (x, y)) in xs.iter().zip(ys).enumerate() {
            let (color, marker) = arm_style(i);
            let (Some(x), Some(y)) = (x, y) else { continue };
            for a in &x.seeds {
                let partner = y.seeds.iter().find(|b| b.seed == a.seed);
                if let Some(at) = partner.and_then(|b| panel.at(a.value, b.value)) {
                    drawing.small(marker, at, color.tint(0.55));
                }
            }
        }
        for &(i, (x, y)) in &means {
            let (color, _) = arm_style(i);
            if let Some(cut) = cut(&xs[i], self.x.bounds) {
                let y = panel.y(y);
                error_bar(drawing, (panel.x(cut.low), y), (panel.x(cut.high), y), cut, color);
            }
            if let Some(cut) = cut(&ys[i], self.y.bounds) {
                let x = panel.x(x);
                error_bar(drawing, (x, panel.y(cut.low)), (x, panel.y(cut.high)), cut, color);
            }
        }
        for &(i, (x, y)) in &means {
            let (color, marker) = arm_style(i);
            drawing.marker(marker, (panel.x(x), panel.y(y)), 7.0, color);
        }
        !front.is_empty()
    }

    /// The border of what the front beats, as stairs out to the frame.
    fn stairs(&self, drawing: &mut Drawing, panel: &Panel<'_>, front: &[Point]) {
        let Rect {
            left,
            right,
            top,
            bottom,
        } = panel.rect;
        let worst_x = if self.x.lower_is_better { right } else { left };
        let worst_y = if self.y.lower_is_better { top } else { bottom };
        let places: Vec<Point> = front.iter().map(|(x, y)| (panel.x(*x), panel.y(*y))).collect();
        let (Some(first), Some(last)) = (places.first(), places.last()) else {
            return;
        };
        let mut corners = vec![(worst_x, first.1)];
        for pair in places.windows(2) {
            corners.extend([pair[0], (pair[0].0, pair[1].1)]);
        }
        corners.extend([*last, (last.0, worst_y)]);
        for pair in corners.windows(2) {
            drawing.dashed(pair[0], pair[1], 1.2, FRAME, (5.0, 4.0));
        }
    }
}

/// The points that no other point beats in one quantity while matching it in the other, from the worst to the best `x`.
fn front(points: &[Point], x_lower: bool, y_lower: bool) -> Vec<Point> {
    let signed = |(x, y): Point| (if x_lower { -x } else { x }, if y_lower { -y } else { y });
    let beaten = |a: Point, b: Point| b.0 >= a.0 && b.1 >= a.1 && (b.0 > a.0 || b.1 > a.1);
    let mut front: Vec<Point> = (points.iter().copied())
        .filter(|a| !points.iter().any(|b| beaten(signed(*a), signed(*b))))
        .collect();
    front.sort_by(|a, b| signed(*a).0.total_cmp(&signed(*b).0));
    front.dedup();
    front
}

/// The axis over seeds, means and cut intervals.
pub(super) fn axis(groups: &[Option<Group>], metric: &Metric, n_ticks: usize) -> Option<Axis> {
    let seeds = groups.iter().flatten().flat_map(Group::values);
    let ends = cuts(groups, metric.bounds).flat_map(|cut| [cut.low, cut.high]);
    Axis::new(seeds.chain(ends), metric.bounds, n_ticks)
}

pub(super) fn cut(group: &Option<Group>, bounds: Option<(f64, f64)>) -> Option<Cut> {
    let interval = group.as_ref()?.estimate?.interval?;
    let cut = Cut::new(interval, bounds);
    (drawable(cut.low) && drawable(cut.high) && cut.low <= cut.high).then_some(cut)
}

pub(super) fn cuts(groups: &[Option<Group>], bounds: Option<(f64, f64)>) -> impl Iterator<Item = Cut> + '_ {
    groups.iter().filter_map(move |group| cut(group, bounds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_holds_what_nothing_beats() {
        let points = [(0.1, 0.9), (0.2, 0.8), (0.15, 0.7), (0.2, 0.5), (0.3, 0.1), (0.1, 0.9)];
        assert_eq!(front(&points, false, false), [(0.1, 0.9), (0.2, 0.8), (0.3, 0.1)]);
        assert_eq!(front(&points, true, false), [(0.1, 0.9)]);
        assert_eq!(
            front(&points, true, true),
            [(0.3, 0.1), (0.2, 0.5), (0.15, 0.7), (0.1, 0.9)]
        );
        assert_eq!(front(&[], false, false), []);
    }
}
