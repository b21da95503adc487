//! Panels side by side whose rows are arms: the layout of `dots` and `shift`.

use super::axis::Axis;
use super::drawing::{Align, Drawing, Text};
use super::font::{Weight, shorten, text_width, wrap};
use super::page::{FALLBACK, Panel, Rect, nothing, page};
use super::theme::{FRAME, GRID, LABEL, NOTE, WIDTH};

const ROW: f64 = 40.0;

/// What one panel is called and spans.
pub(super) struct Column {
    pub(super) label: String,
    /// A quiet line under the label.
    pub(super) remark: Option<String>,
    pub(super) axis: Option<Axis>,
}

/// The page and, for each column that has an axis, its panel.
pub(super) fn arm_rows(
    title: &str,
    notes: &[String],
    arms: &[String],
    columns: &[Column],
    legend: f64,
) -> (Drawing, Vec<Option<Rect>>, f64) {
    let names = arms
        .iter()
        .map(|arm| text_width(arm, LABEL, Weight::Regular))
        .fold(0.0, f64::max)
        .min(170.0);
    let names = names / FALLBACK;
    let left = names + 12.0;
    let width = WIDTH.max(60.0 + left + 190.0 * columns.len() as f64);
    let gap = 22.0;
    let n = columns.len() as f64;
    let each = (width - 40.0 - left - gap * (n - 1.0)) / n;
    let headings: Vec<(Vec<String>, Vec<String>)> = (columns.iter())
        .map(|column| {
            let remark = column.remark.as_deref().unwrap_or_default();
            (
                wrap(&column.label, LABEL * 1.05, each * FALLBACK),
                wrap(remark, NOTE, each * FALLBACK),
            )
        })
        .collect();
    let lines = headings
        .iter()
        .map(|(a, b)| 18.0 * a.len() as f64 + 16.0 * b.len() as f64)
        .fold(0.0, f64::max);
    let height = ROW * arms.len() as f64;
    let (mut drawing, body) = page(width, legend + lines + 8.0 + height + 26.0, title, notes);
    let top = body.top + legend + lines + 8.0;
    for (i, arm) in arms.iter().enumerate() {
        let y = row(top, i);
        let name = shorten(arm, LABEL, Weight::Regular, names);
        drawing.text(Text::new((body.left + names, y + 4.6), name, LABEL).align(Align::Right));
    }
    let mut rects = Vec::new();
    for (i, (column, (label, remark))) in columns.iter().zip(&headings).enumerate() {
        let start = body.left + left + (each + gap) * i as f64;
        let rect = Rect {
            left: start,
            top,
            right: start + each,
            bottom: top + height,
        };
        let mut y = top - lines - 8.0 + 13.0;
        for line in label {
            drawing.text(Text::new((start, y), line, LABEL).medium());
            y += 18.0;
        }
        for line in remark {
            drawing.text(Text::new((start, y - 2.0), line, NOTE).quiet());
            y += 16.0;
        }
        rects.push(
            column
                .axis
                .as_ref()
                .map(|axis| frame(&mut drawing, rect, axis, arms.len())),
        );
        if column.axis.is_none() {
            nothing(&mut drawing, rect, "no finite values");
        }
    }
    (drawing, rects, body.top)
}

/// Frame, vertical grid and numbers; a quiet line for each row.
fn frame(drawing: &mut Drawing, rect: Rect, axis: &Axis, n_rows: usize) -> Rect {
    let y = rows_axis(n_rows);
    let panel = Panel { rect, x: axis, y: &y };
    for i in 0..n_rows {
        let y = row(rect.top, i);
        drawing.line(vec![(rect.left, y), (rect.right, y)], 0.8, GRID);
    }
    for (value, _) in &axis.ticks {
        let x = panel.x(*value);
        drawing.line(vec![(x, rect.top), (x, rect.bottom)], 0.8, GRID);
        drawing.line(vec![(x, rect.bottom), (x, rect.bottom + 4.0)], 0.9, FRAME);
    }
    panel.x_numbers(drawing);
    panel.frame(drawing);
    rect
}

/// Rows need no values: this axis only completes a panel.
pub(super) fn rows_axis(n_rows: usize) -> Axis {
    Axis {
        low: 0.0,
        high: n_rows.max(1) as f64,
        ticks: Vec::new(),
    }
}

/// Middle of a row.
pub(super) fn row(top: f64, i: usize) -> f64 {
    top + ROW * (i as f64 + 0.5)
}
