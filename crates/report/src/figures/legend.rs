//! Legends beside and above the data, and names at the ends of lines.

use super::drawing::{Drawing, Point, Text};
use super::font::{Weight, shorten, text_width};
use super::page::{FALLBACK, Rect};
use super::theme::{INK, LABEL, Marker, Rgb, TICK};

/// What a legend shows beside a name.
pub(super) enum Key {
    Marker(Marker, Rgb),
    Dot(Rgb),
    Hollow(Marker, Rgb),
    Line(Rgb, f64),
    Dashed(Rgb),
}

/// Entries one below the other; names are shortened to `width`.
pub(super) fn legend(drawing: &mut Drawing, (left, top): Point, width: f64, entries: &[(Key, String)]) {
    for (i, (key, name)) in (0..).zip(entries) {
        let y = top + 21.0 * f64::from(i);
        draw_key(drawing, (left, y), key);
        let name = shorten(name, LABEL, Weight::Regular, width - 34.0);
        drawing.text(Text::new((left + 32.0, y + 4.6), name, LABEL));
    }
}

/// Entries side by side.
pub(super) fn legend_row(drawing: &mut Drawing, (left, y): Point, entries: &[(Key, String)]) {
    let mut x = left;
    for (key, name) in entries {
        draw_key(drawing, (x, y), key);
        let text = Text::new((x + 30.0, y + 4.4), name, TICK);
        x += 30.0 + text.width() + 22.0;
        drawing.text(text);
    }
}

fn draw_key(drawing: &mut Drawing, (left, y): Point, key: &Key) {
    let (middle, right) = (left + 12.0, left + 24.0);
    match *key {
        Key::Marker(marker, color) => drawing.marker(marker, (middle, y), 6.0, color),
        Key::Hollow(marker, color) => drawing.hollow(marker, (middle, y), 5.0, color),
        Key::Dot(color) => drawing.circle((middle, y), 3.0, color),
        Key::Line(color, width) => drawing.line(vec![(left, y), (right, y)], width, color),
        Key::Dashed(color) => drawing.dashed((left, y), (right, y), 1.3, color, (5.0, 4.0)),
    }
}

/// Widest of the names as `legend` draws them, with their keys.
pub(super) fn legend_width<'a>(names: impl IntoIterator<Item = &'a str>, most: f64) -> f64 {
    let widest = names
        .into_iter()
        .map(|name| text_width(name, LABEL, Weight::Regular))
        .fold(0.0, f64::max);
    (widest / FALLBACK + 36.0).min(most)
}

/// Names at the right of a panel, each at the height of what it names, moved apart where they would overlap.
pub(super) fn side_labels(drawing: &mut Drawing, rect: Rect, width: f64, labels: &[(f64, String, Rgb)]) {
    let wanted: Vec<f64> = labels.iter().map(|(y, ..)| *y).collect();
    let places = spread(&wanted, 16.0, rect.top + 6.0, rect.bottom - 4.0);
    for ((y, name, color), place) in labels.iter().zip(places) {
        if (place - y).abs() > 2.0 {
            drawing.line(
                vec![(rect.right + 2.0, *y), (rect.right + 11.0, place)],
                0.8,
                color.tint(0.6),
            );
        }
        let name = shorten(name, LABEL, Weight::Regular, width - 14.0);
        drawing.text(Text::new((rect.right + 14.0, place + 4.6), name, LABEL).color(INK));
    }
}

/// Moves places apart to at least `gap`, keeping their order and staying within `low` and `high` where they fit.
pub(super) fn spread(wanted: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));
    let mut places: Vec<f64> = order.iter().map(|&i| wanted[i].clamp(low, high.max(low))).collect();
    for _ in 0..200 {
        let mut moved = false;
        for i in 1..places.len() {
            let missing = gap - (places[i] - places[i - 1]);
            if missing > 1e-3 {
                places[i - 1] = (places[i - 1] - missing / 2.0).max(low);
                places[i] = places[i].max(places[i - 1] + gap * 0.999).min(high.max(low));
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    // Whatever did not fit runs over the lower end rather than lying on top of each other.
    for i in 1..places.len() {
        places[i] = places[i].max(places[i - 1] + gap * 0.99);
    }
    let mut out = vec![0.0; wanted.len()];
    for (place, i) in places.into_iter().zip(order) {
        out[i] = place;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn spread_places_keep_their_distance_and_order(wanted in prop::collection::vec(-50.0..350.0f64, 1..18)) {
            let places = spread(&wanted, 16.0, 0.0, 300.0);
            for i in 0..places.len() {
                for j in 0..i {
                    prop_assert!((places[i] - places[j]).abs() > 15.0, "{wanted:?} to {places:?}");
                    if wanted[i] > wanted[j] {
                        prop_assert!(places[i] > places[j]);
                    }
                }
            }
        }
    }

    #[test]
    fn spread_leaves_what_fits_alone() {
        assert_eq!(spread(&[10.0, 100.0, 50.0], 16.0, 0.0, 300.0), [10.0, 100.0, 50.0]);
    }
}
