//! Colours, markers and sizes that all figures share.

/// A colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rgb(pub(super) u8, pub(super) u8, pub(super) u8);

impl Rgb {
    /// Mixed with white, so that overlaps need no transparency: `share` 1 is the colour itself.
    pub(super) fn tint(self, share: f64) -> Self {
        let mix = |channel: u8| (255.0 - (255.0 - f64::from(channel)) * share).round() as u8;
        Self(mix(self.0), mix(self.1), mix(self.2))
    }
}

pub(super) const WHITE: Rgb = Rgb(255, 255, 255);
pub(super) const INK: Rgb = Rgb(34, 34, 34);
pub(super) const QUIET: Rgb = Rgb(102, 102, 102);
pub(super) const FRAME: Rgb = Rgb(150, 150, 150);
pub(super) const GRID: Rgb = Rgb(228, 228, 228);

/// Okabe and Ito's palette ("Color universal design", 2008) without yellow, which is too light for lines on white, and
/// with grey for black, which is the colour of text.
const ARMS: [Rgb; 7] = [
    Rgb(0x60, 0x60, 0x60),
    Rgb(0xE6, 0x9F, 0x00),
    Rgb(0x00, 0x72, 0xB2),
    Rgb(0xD5, 0x5E, 0x00),
    Rgb(0x00, 0x9E, 0x73),
    Rgb(0xCC, 0x79, 0xA7),
    Rgb(0x56, 0xB4, 0xE9),
];

/// Shape of a marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    Down,
    Hexagon,
}

const MARKERS: [Marker; 6] = [
    Marker::Circle,
    Marker::Square,
    Marker::Triangle,
    Marker::Diamond,
    Marker::Down,
    Marker::Hexagon,
];

/// Colour and marker of the arm at a place in the order of arms; 42 arms before a pair repeats.
pub(super) fn arm_style(place: usize) -> (Rgb, Marker) {
    (ARMS[place % ARMS.len()], MARKERS[place % MARKERS.len()])
}

/// Colour of a series that is no arm, such as positives and negatives.
pub(super) fn series_color(place: usize) -> Rgb {
    const SERIES: [usize; 6] = [2, 3, 4, 1, 5, 0];
    ARMS[SERIES[place % SERIES.len()]]
}

/// Width of a figure in CSS pixels, unless its content needs more.
pub(super) const WIDTH: f64 = 800.0;
pub(super) const TITLE: f64 = 17.0;
pub(super) const LABEL: f64 = 13.5;
pub(super) const TICK: f64 = 12.5;
pub(super) const NOTE: f64 = 12.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forty_two_arms_look_different() {
        let styles: Vec<_> = (0..42).map(arm_style).collect();
        for (i, a) in styles.iter().enumerate() {
            assert!(!styles[..i].contains(a), "arm {i} looks like another");
        }
    }

    #[test]
    fn tints_run_from_white_to_the_colour() {
        assert_eq!(Rgb(10, 20, 30).tint(0.0), WHITE);
        assert_eq!(Rgb(10, 20, 30).tint(1.0), Rgb(10, 20, 30));
    }
}
