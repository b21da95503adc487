//! What figures have in common: page, panel, error bars and legend.

use super::axis::{Axis, drawable};
use super::drawing::{Align, Drawing, Point, Text};
use super::font::{Weight, shorten, text_width, wrap};
use super::theme::{FRAME, GRID, LABEL, NOTE, Rgb, TICK, TITLE};
use crate::stats::Interval;

pub(super) const MARGIN: f64 = 20.0;
/// Share of its room that a long text may fill: a viewer of the SVG without our font may draw it this much wider.
pub(super) const FALLBACK: f64 = 0.86;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rect {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl Rect {
    pub(super) fn width(&self) -> f64 {
        self.right - self.left
    }

    pub(super) fn height(&self) -> f64 {
        self.bottom - self.top
    }
}

/// A page with title and notes, and the rectangle between them.
pub(super) fn page(width: f64, body: f64, title: &str, notes: &[String]) -> (Drawing, Rect) {
    const LINE: f64 = 16.0;
    let room = width - 2.0 * MARGIN;
    let titles = wrap(title, TITLE * 1.04, room);
    let notes: Vec<String> = notes
        .iter()
        .flat_map(|note| wrap(note, NOTE, room * FALLBACK))
        .collect();
    let top = MARGIN + 22.0 * titles.len() as f64 + 6.0;
    let below = top + body;
    let height = below + 12.0 + LINE * notes.len() as f64 + 10.0;
    let mut drawing = Drawing::new(width, height);
    for (i, line) in (0..).zip(&titles) {
        let at = (MARGIN, MARGIN + 14.0 + 22.0 * f64::from(i));
        drawing.text(Text::new(at, line, TITLE).medium());
    }
    for (i, line) in (0..).zip(&notes) {
        drawing.text(Text::new((MARGIN, below + 22.0 + LINE * f64::from(i)), line, NOTE).quiet());
    }
    let body = Rect {
        left: MARGIN,
        top,
        right: width - MARGIN,
        bottom: below,
    };
    (drawing, body)
}

/// A frame with two axes.
pub(super) struct Panel<'a> {
    pub(super) rect: Rect,
    pub(super) x: &'a Axis,
    pub(super) y: &'a Axis,
}

impl Panel<'_> {
    pub(super) fn x(&self, value: f64) -> f64 {
        self.rect.left + self.x.place(value) * self.rect.width()
    }

    pub(super) fn y(&self, value: f64) -> f64 {
        self.rect.bottom - self.y.place(value) * self.rect.height()
    }

    /// Where a pair of values stands; none when one cannot be drawn.
    pub(super) fn at(&self, x: f64, y: f64) -> Option<Point> {
        (drawable(x) && drawable(y)).then(|| (self.x(x), self.y(y)))
    }

    /// Grid, frame and tick marks; numbers only where asked for.
    pub(super) fn draw(&self, drawing: &mut Drawing, x_numbers: bool, y_numbers: bool) {
        let Rect {
            left,
            top,
            right,
            bottom,
        } = self.rect;
        for (value, _) in &self.x.ticks {
            let x = self.x(*value);
            drawing.line(vec![(x, top), (x, bottom)], 0.8, GRID);
            drawing.line(vec![(x, bottom), (x, bottom + 4.0)], 0.9, FRAME);
        }
        if x_numbers {
            self.x_numbers(drawing);
        }
        for (value, label) in &self.y.ticks {
            let y = self.y(*value);
            drawing.line(vec![(left, y), (right, y)], 0.8, GRID);
            drawing.line(vec![(left - 4.0, y), (left, y)], 0.9, FRAME);
            if y_numbers {
                drawing.text(Text::new((left - 7.0, y + 4.3), label, TICK).align(Align::Right));
            }
        }
        self.frame(drawing);
    }

    /// Numbers of the horizontal axis: none reaches far beyond the frame, where the next panel's begin, and one that would
    /// touch its neighbour is left out.
    pub(super) fn x_numbers(&self, drawing: &mut Drawing) {
        const BEYOND: f64 = 5.0;
        let Rect {
            left, right, bottom, ..
        } = self.rect;
        let mut free = f64::NEG_INFINITY;
        for (value, label) in &self.x.ticks {
            let half = text_width(label, TICK, Weight::Regular) / 2.0;
            let (first, last) = (left - BEYOND + half, right + BEYOND - half);
            let x = self.x(*value).clamp(first.min(last), last.max(first));
            if x - half > free {
                drawing.text(Text::new((x, bottom + 17.0), label, TICK).align(Align::Centre));
                free = x + half + 6.0;
            }
        }
    }

    pub(super) fn frame(&self, drawing: &mut Drawing) {
        let Rect {
            left,
            top,
            right,
            bottom,
        } = self.rect;
        let corners = vec![(left, top), (right, top), (right, bottom), (left, bottom), (left, top)];
        drawing.line(corners, 0.9, FRAME);
    }
}

/// Widest number of an axis.
pub(super) fn numbers_width(axis: &Axis) -> f64 {
    (axis.ticks.iter())
        .map(|(_, label)| text_width(label, TICK, Weight::Regular))
        .fold(0.0, f64::max)
}

pub(super) fn x_label(drawing: &mut Drawing, rect: Rect, label: &str) {
    let label = shorten(label, LABEL, Weight::Regular, rect.width().max(160.0));
    let at = ((rect.left + rect.right) / 2.0, rect.bottom + 38.0);
    drawing.text(Text::new(at, label, LABEL).align(Align::Centre));
}

pub(super) fn y_label(drawing: &mut Drawing, x: f64, rect: Rect, label: &str) {
    let label = shorten(label, LABEL, Weight::Regular, rect.height());
    let at = (x, (rect.top + rect.bottom) / 2.0);
    drawing.text(Text::new(at, label, LABEL).align(Align::Centre).upright());
}

/// An interval cut at the bounds of its metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cut {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) low_cut: bool,
    pub(super) high_cut: bool,
}

impl Cut {
    pub(super) fn new(interval: Interval, bounds: Option<(f64, f64)>) -> Self {
        let (least, greatest) = bounds.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
        Self {
            low: interval.low.max(least),
            high: interval.high.min(greatest),
            low_cut: interval.low < least,
            high_cut: interval.high > greatest,
        }
    }

    pub(super) fn any(&self) -> bool {
        self.low_cut || self.high_cut
    }
}

/// An error bar from `low` to `high`; an end that was cut has an arrow head in place of a cap.
pub(super) fn error_bar(drawing: &mut Drawing, low: Point, high: Point, cut: Cut, color: Rgb) {
    drawing.line(vec![low, high], 1.6, color);
    let (dx, dy) = (high.0 - low.0, high.1 - low.1);
    let length = dx.hypot(dy);
    if length < 1e-9 {
        return;
    }
    let (ux, uy) = (dx / length, dy / length);
    for (end, is_cut, sign) in [(low, cut.low_cut, -1.0), (high, cut.high_cut, 1.0)] {
        if is_cut {
            let tip = (end.0 + sign * ux * 7.0, end.1 + sign * uy * 7.0);
            let side = |s: f64| (end.0 - uy * s, end.1 + ux * s);
            drawing.polygon(vec![tip, side(5.0), side(-5.0)], color);
        } else {
            let side = |s: f64| (end.0 - uy * s, end.1 + ux * s);
            drawing.line(vec![side(5.0), side(-5.0)], 1.6, color);
        }
    }
}

/// A line of text in the middle of a panel that has nothing to show.
pub(super) fn nothing(drawing: &mut Drawing, rect: Rect, why: &str) {
    let why = shorten(why, TICK, Weight::Regular, rect.width() - 8.0);
    let at = ((rect.left + rect.right) / 2.0, (rect.top + rect.bottom) / 2.0 + 4.0);
    drawing.text(Text::new(at, why, TICK).quiet().align(Align::Centre));
}
