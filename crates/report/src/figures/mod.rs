//! Figures from the tables alone, each as SVG and PNG.
//!
//! Plotters draws; the layout is ours, because its charts panic on empty ranges and put legends inside of the data.

mod axis;
mod curves;
mod dots;
mod drawing;
mod font;
mod legend;
mod notes;
mod page;
mod paint;
mod per_iteration;
mod rows;
mod shift;
mod theme;
mod tradeoff;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use curves::{CurveRow, Curves, Series};
pub use dots::Dots;
pub use per_iteration::PerIteration;
pub use shift::{BeforeAfter, Shift};
pub use tradeoff::Tradeoff;

use crate::atomic;
use crate::error::{Error, Result};
use crate::select;
use crate::tables::Tables;

/// What to draw. In a manifest: `tradeoff: { name: f1_safety, x: { metric: f1, subset: benign }, y: … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FigureSpec {
    /// One quantity against another, a point per arm.
    Tradeoff(Tradeoff),
    /// A quantity after each iteration of the iterative arms, from `scores`.
    PerIteration(PerIteration),
    /// Step metrics as small multiples, rows of metrics by columns of arms, from `steps`.
    Curves(Curves),
    /// Quantities per arm with intervals and single seeds.
    Dots(Dots),
    /// Quantities per arm before and after training.
    Shift(Shift),
}

impl FigureSpec {
    /// Name of the figure and of its files, without ending.
    pub fn name(&self) -> &str {
        match self {
            Self::Tradeoff(figure) => &figure.name,
            Self::PerIteration(figure) => &figure.name,
            Self::Curves(figure) => &figure.name,
            Self::Dots(figure) => &figure.name,
            Self::Shift(figure) => &figure.name,
        }
    }

    /// Checks what can be checked without tables: the name and the lists.
    pub fn check(&self) -> Result<()> {
        let name = self.name();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(self.wrong("a figure's name names its files: lower-case letters, digits, `_` and `-` only"));
        }
        let empty = match self {
            Self::Curves(figure) => {
                figure.phases.is_empty()
                    || figure.rows.is_empty()
                    || figure.rows.iter().any(|row| row.series.is_empty())
            }
            Self::Dots(figure) => figure.metrics.is_empty(),
            Self::Shift(figure) => figure.groups.is_empty(),
            Self::Tradeoff(_) | Self::PerIteration(_) => false,
        };
        if empty {
            return Err(self.wrong("a list is empty, so there is nothing to draw"));
        }
        self.metrics()
            .into_iter()
            .try_for_each(|metric| metric.check(&self.described()))
    }

    fn metrics(&self) -> Vec<&select::Metric> {
        match self {
            Self::Tradeoff(figure) => vec![&figure.x, &figure.y],
            Self::PerIteration(figure) => vec![&figure.metric],
            Self::Curves(_) => Vec::new(),
            Self::Dots(figure) => figure.metrics.iter().collect(),
            Self::Shift(figure) => figure
                .groups
                .iter()
                .flat_map(|group| [&group.before, &group.after])
                .collect(),
        }
    }

    fn described(&self) -> String {
        format!("figure `{}`", self.name())
    }

    fn wrong(&self, why: &str) -> Error {
        Error::Spec {
            wanted_by: self.described(),
            why: why.to_owned(),
        }
    }

    fn draw(&self, tables: &Tables, arms: &[String]) -> Result<(drawing::Drawing, String)> {
        self.check()?;
        let wanted_by = self.described();
        let arms = select::arms(tables, arms, &wanted_by)?;
        match self {
            Self::Tradeoff(figure) => figure.draw(tables, &arms, &wanted_by),
            Self::PerIteration(figure) => figure.draw(tables, &arms, &wanted_by),
            Self::Curves(figure) => figure.draw(tables, &arms, &wanted_by),
            Self::Dots(figure) => figure.draw(tables, &arms, &wanted_by),
            Self::Shift(figure) => figure.draw(tables, &arms, &wanted_by),
        }
    }
}

/// Draws a figure into `dir` as `<name>.svg` and `<name>.png` and returns the two paths.
///
/// `arms` gives the order and, by it, colours and markers; empty means every arm of the tables, sorted. An arm that has no
/// value of a metric is named under the figure; a metric that no arm has is an error that lists the metrics there are.
/// The same tables give the same bytes.
pub fn render(spec: &FigureSpec, tables: &Tables, arms: &[String], dir: &Path) -> Result<Vec<PathBuf>> {
    let (drawing, title) = spec.draw(tables, arms)?;
    let failed = |why| Error::Draw {
        name: spec.name().to_owned(),
        why,
    };
    let svg = paint::svg(&drawing, &title).map_err(failed)?;
    let png = paint::png(&drawing).map_err(failed)?;
    let mut written = Vec::new();
    for (ending, bytes) in [("svg", svg.as_bytes()), ("png", &png)] {
        let path = dir.join(format!("{}.{ending}", spec.name()));
        atomic::write(&path, bytes)?;
        written.push(path);
    }
    Ok(written)
}

/// Draws all figures; two of the same name are an error before anything is drawn.
pub fn render_all(specs: &[FigureSpec], tables: &Tables, arms: &[String], dir: &Path) -> Result<Vec<PathBuf>> {
    for (i, spec) in specs.iter().enumerate() {
        spec.check()?;
        if specs[..i].iter().any(|other| other.name() == spec.name()) {
            return Err(spec.wrong("two figures have this name"));
        }
    }
    let mut written = Vec::new();
    for spec in specs {
        written.extend(render(spec, tables, arms, dir)?);
    }
    Ok(written)
}

#[cfg(test)]
mod tests;
