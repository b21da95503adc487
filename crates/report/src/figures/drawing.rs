//! A figure as a list of shapes, before it is SVG or PNG.
//!
//! Figures are laid out once, in CSS pixels, into this list; `paint` then draws the list on any plotters backend. So both
//! files show the same, and tests can ask whether labels overlap.

use super::font::{Weight, text_width};
use super::theme::{Marker, QUIET, Rgb, WHITE};

/// A point in CSS pixels from the top left.
pub(super) type Point = (f64, f64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Centre,
    Right,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Text {
    /// Where the baseline begins, has its middle or ends.
    pub(super) at: Point,
    pub(super) text: String,
    /// Font size in CSS pixels per em.
    pub(super) size: f64,
    pub(super) weight: Weight,
    pub(super) color: Rgb,
    pub(super) align: Align,
    /// Turned to read from bottom to top.
    pub(super) upright: bool,
}

impl Text {
    pub(super) fn new(at: Point, text: impl Into<String>, size: f64) -> Self {
        let text: String = text.into();
        Self {
            at,
            // Control characters are not allowed in SVG.
            text: text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
            size,
            weight: Weight::Regular,
            color: super::theme::INK,
            align: Align::Left,
            upright: false,
        }
    }

    pub(super) fn quiet(self) -> Self {
        Self { color: QUIET, ..self }
    }

    pub(super) fn color(self, color: Rgb) -> Self {
        Self { color, ..self }
    }

    pub(super) fn medium(self) -> Self {
        Self {
            weight: Weight::Medium,
            ..self
        }
    }

    pub(super) fn align(self, align: Align) -> Self {
        Self { align, ..self }
    }

    pub(super) fn upright(self) -> Self {
        Self { upright: true, ..self }
    }

    pub(super) fn width(&self) -> f64 {
        text_width(&self.text, self.size, self.weight)
    }

    /// Left, top, right and bottom.
    #[cfg(test)]
    pub(super) fn bounds(&self) -> [f64; 4] {
        let width = self.width();
        let before = match self.align {
            Align::Left => 0.0,
            Align::Centre => width / 2.0,
            Align::Right => width,
        };
        let (up, down) = (0.72 * self.size, 0.2 * self.size);
        let (x, y) = self.at;
        if self.upright {
            return [x - up, y + before - width, x + down, y + before];
        }
        [x - before, y - up, x - before + width, y + down]
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    /// Points joined by straight lines.
    Line {
        points: Vec<Point>,
        width: f64,
        color: Rgb,
    },
    /// A filled convex polygon.
    Polygon {
        points: Vec<Point>,
        color: Rgb,
    },
    /// A filled circle.
    Circle {
        centre: Point,
        radius: f64,
        color: Rgb,
    },
    Text(Text),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Drawing {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) shapes: Vec<Shape>,
}

impl Drawing {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self {
            width,
            height,
            shapes: Vec::new(),
        }
    }

    pub(super) fn text(&mut self, text: Text) {
        if !text.text.trim().is_empty() {
            self.shapes.push(Shape::Text(text));
        }
    }

    pub(super) fn line(&mut self, points: Vec<Point>, width: f64, color: Rgb) {
        if points.len() > 1 {
            self.shapes.push(Shape::Line { points, width, color });
        }
    }

    /// A dashed line between two points.
    pub(super) fn dashed(&mut self, from: Point, to: Point, width: f64, color: Rgb, (on, off): (f64, f64)) {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length = dx.hypot(dy);
        let at = |d: f64| (from.0 + dx * d / length, from.1 + dy * d / length);
        let mut start = 0.0;
        while start < length {
            self.line(vec![at(start), at((start + on).min(length))], width, color);
            start += on + off;
        }
    }

    pub(super) fn circle(&mut self, centre: Point, radius: f64, color: Rgb) {
        self.shapes.push(Shape::Circle { centre, radius, color });
    }

    pub(super) fn polygon(&mut self, points: Vec<Point>, color: Rgb) {
        self.shapes.push(Shape::Polygon { points, color });
    }

    /// A filled marker inside a white rim, so that it stands out from lines and other markers.
    pub(super) fn marker(&mut self, marker: Marker, at: Point, radius: f64, color: Rgb) {
        self.shape(marker, at, radius + 1.4, WHITE);
        self.shape(marker, at, radius, color);
    }

    /// The marker of a single seed, with a thin rim so that neighbours stay apart.
    pub(super) fn small(&mut self, marker: Marker, at: Point, color: Rgb) {
        self.shape(marker, at, 3.6, WHITE);
        self.shape(marker, at, 2.9, color);
    }

    /// A marker with a white middle.
    pub(super) fn hollow(&mut self, marker: Marker, at: Point, radius: f64, color: Rgb) {
        self.shape(marker, at, radius, color);
        self.shape(marker, at, radius - 1.8, WHITE);
    }

    fn shape(&mut self, marker: Marker, (x, y): Point, radius: f64, color: Rgb) {
        // Radii that make the areas alike.
        let regular = |n: u32, radius: f64, turn: f64| {
            (0..n)
                .map(|i| {
                    let angle = std::f64::consts::TAU * (f64::from(i) / f64::from(n) + turn);
                    (x + radius * angle.sin(), y - radius * angle.cos())
                })
                .collect::<Vec<_>>()
        };
        match marker {
            Marker::Circle => self.circle((x, y), radius, color),
            Marker::Square => self.polygon(regular(4, radius * 1.25, 0.125), color),
            Marker::Diamond => self.polygon(regular(4, radius * 1.28, 0.0), color),
            Marker::Triangle => self.polygon(regular(3, radius * 1.4, 0.0), color),
            Marker::Down => self.polygon(regular(3, radius * 1.4, 0.5), color),
            Marker::Hexagon => self.polygon(regular(6, radius * 1.12, 0.0), color),
        }
    }

    /// A line that ends in an arrow head; only the head when there is no room for the line.
    pub(super) fn arrow(&mut self, from: Point, to: Point, width: f64, color: Rgb) {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length = dx.hypot(dy);
        if length < 1e-6 {
            return;
        }
        let (ux, uy) = (dx / length, dy / length);
        let head = (4.0 + 2.0 * width).min(length);
        let base = (to.0 - ux * head, to.1 - uy * head);
        self.line(vec![from, base], width, color);
        let side = head * 0.45;
        let corners = vec![
            to,
            (base.0 - uy * side, base.1 + ux * side),
            (base.0 + uy * side, base.1 - ux * side),
        ];
        self.polygon(corners, color);
    }
}
