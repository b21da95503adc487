//! Ranges, ticks and their numbers.

/// Values beyond this are not drawn: their differences would overflow.
const GREATEST: f64 = 1e300;

/// Whether a value can stand on an axis.
pub(super) fn drawable(value: f64) -> bool {
    value.abs() <= GREATEST
}

/// An axis: what it spans and where its ticks are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis over the drawable ones of `values` with some room around them, and about `n_ticks` ticks. `bounds` are the
    /// least and greatest possible value: the axis passes them only by the room that a marker needs. None without values.
    pub(super) fn new(
        values: impl IntoIterator<Item = f64>,
        bounds: Option<(f64, f64)>,
        n_ticks: usize,
    ) -> Option<Self> {
        let (low, high) = values
            .into_iter()
            .filter(|&value| drawable(value))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
                (low.min(x), high.max(x))
            });
        if low > high {
            return None;
        }
        let (mut low, mut high) = widened(low, high);
        let room = 0.05 * (high - low);
        (low, high) = (low - room, high + room);
        if let Some((least, greatest)) = bounds {
            // A value outside of its bounds is still shown where it is; only empty room is taken away.
            let slack = 0.04 * (high - low);
            if low < least && least <= low + 3.0 * room {
                low = least - slack;
            }
            if high > greatest && greatest >= high - 3.0 * room {
                high = greatest + slack;
            }
        }
        let allowed = |tick: f64| bounds.is_none_or(|(a, b)| (a..=b).contains(&tick));
        let ticks = ticks(low, high, n_ticks, 0.0)
            .into_iter()
            .filter(|(tick, _)| allowed(*tick))
            .collect();
        Some(Self { low, high, ticks })
    }

    /// An axis from 0 to `last` with ticks at whole numbers.
    pub(super) fn whole(first: u64, last: u64, n_ticks: usize) -> Self {
        let (low, high) = (first as f64, last as f64);
        let (low, high) = if first == last {
            (low - 0.5, high + 0.5)
        } else {
            (low, high)
        };
        let ticks = ticks(low, high, n_ticks, 1.0);
        let ticks = ticks
            .into_iter()
            .filter(|(tick, _)| tick.fract().abs() < 1e-9)
            .collect();
        Self { low, high, ticks }
    }

    /// Place of a value between 0 (low) and 1 (high).
    pub(super) fn place(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

/// A range that has a width: equal ends are moved apart.
fn widened(low: f64, high: f64) -> (f64, f64) {
    let size = low.abs().max(high.abs());
    if high - low > size * 1e-9 {
        return (low, high);
    }
    let half = if size > 0.0 { 0.1 * size } else { 0.5 };
    (low - half, high + half)
}

/// Ticks at multiples of 1, 2 or 5 times a power of ten, `least` or more apart, their number as near to `n` as that allows.
fn ticks(low: f64, high: f64, n: usize, least: f64) -> Vec<(f64, String)> {
    let span = high - low;
    let n = n.max(1) as f64;
    let power = 10f64.powf((span / n).log10().floor());
    let distance = |step: &f64| (span / step - n).abs();
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| (m * power).max(least))
        .into_iter()
        .min_by(|a, b| distance(a).total_cmp(&distance(b)))
        .unwrap_or(power);
    if !(step.is_normal() && span / step < 1000.0) {
        return Vec::new();
    }
    let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
    (0..)
        .map(|i| first + f64::from(i))
        .take_while(|multiple| *multiple <= last)
        .map(|multiple| (multiple * step, tick_label(multiple * step, step)))
        .collect()
}

/// A tick's number with as many decimals as its step needs.
fn tick_label(value: f64, step: f64) -> String {
    let value = if value.abs() < step * 1e-6 { 0.0 } else { value };
    let text = if !(1e-5..1e6).contains(&step) || value.abs() >= 1e9 {
        let text = format!("{value:.2e}");
        match text.split_once('e') {
            Some((digits, power)) if digits.contains('.') => {
                format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
            }
            _ => text,
        }
    } else if step >= 1000.0 {
        match value {
            0.0 => "0".to_owned(),
            _ => format!("{}k", value / 1000.0),
        }
    } else {
        let decimals = (-(step.log10() + 1e-9).floor()).max(0.0) as usize;
        format!("{value:.decimals$}")
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        let axis = Axis::new([0.55, 0.98], Some((0.0, 1.0)), 6).unwrap();
        assert_eq!(labels(&axis), ["0.6", "0.7", "0.8", "0.9", "1.0"]);
        let axis = Axis::new([-3.2, -0.4], None, 4).unwrap();
        assert_eq!(labels(&axis), ["−3", "−2", "−1"]);
        let axis = Axis::whole(0, 4000, 4);
        assert_eq!(labels(&axis), ["0", "1k", "2k", "3k", "4k"]);
        assert_eq!(labels(&Axis::whole(1, 3, 8)), ["1", "2", "3"]);
        assert_eq!(labels(&Axis::whole(7, 7, 3)), ["7"]);
        assert_eq!(tick_label(2.5e-7, 1e-7), "2.5e−7");
    }

    #[test]
    fn equal_values_get_room() {
        for value in [0.0, 1.0, -4e-30, 1e250, 0.5] {
            let axis = Axis::new([value; 3], None, 5).unwrap();
            assert!(axis.low < value && value < axis.high, "{axis:?}");
        }
    }

    #[test]
    fn nothing_drawable_has_no_axis() {
        assert_eq!(Axis::new([f64::NAN, f64::INFINITY, 1e305], None, 5), None);
        assert_eq!(Axis::new([], None, 5), None);
    }

    proptest! {
        #[test]
        fn every_drawable_value_lies_within(values in prop::collection::vec(prop::num::f64::ANY, 1..6), n in 1..12usize) {
            if let Some(axis) = Axis::new(values.iter().copied(), None, n) {
                for &value in values.iter().filter(|v| drawable(**v)) {
                    let place = axis.place(value);
                    prop_assert!((0.0..=1.0).contains(&place), "{value} at {place} of {axis:?}");
                }
                prop_assert!(axis.ticks.len() <= 2 * n + 2);
            } else {
                prop_assert!(values.iter().all(|v| !drawable(*v)));
            }
        }
    }
}
