//! What a new figure means beside an old one.

use std::fmt;

use crate::baseline::Figure;

/// One path beside what is expected of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    /// The path.
    pub(crate) name: String,
    /// The new figure over the old one: above 1 is slower.
    pub(crate) change: f64,
    /// What that means.
    pub(crate) meaning: Meaning,
}

/// What a change means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Within the tolerance.
    Same,
    /// Slower by more than the tolerance.
    Slower,
    /// Faster by more than the tolerance: the baseline no longer guards it.
    Faster,
}

impl Meaning {
    /// Of a change, under a tolerance.
    pub(crate) fn of(change: f64, tolerance: f64) -> Self {
        match change {
            _ if change > 1.0 + tolerance => Meaning::Slower,
            _ if change < 1.0 - tolerance => Meaning::Faster,
            _ => Meaning::Same,
        }
    }
}

impl Verdict {
    /// Of a path whose figure was `expected` and is now `value`.
    pub(crate) fn of(name: &str, value: f64, expected: Figure) -> Self {
        let change = value / expected.value;
        Verdict {
            name: name.to_owned(),
            change,
            meaning: Meaning::of(change, expected.tolerance),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * (self.change - 1.0);
        let meaning = match self.meaning {
            Meaning::Same => "",
            Meaning::Slower => "  SLOWER",
            Meaning::Faster => "  faster",
        };
        write!(f, "{:<34} {percent:>+7.2} %{meaning}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_percent_more_is_slower_and_what_lies_within_the_tolerance_is_not() {
        let expected = Figure {
            value: 200.0,
            tolerance: 0.05,
        };
        let meaning = |value| Verdict::of("a", value, expected).meaning;
        assert_eq!(meaning(220.0), Meaning::Slower);
        assert_eq!(meaning(209.0), Meaning::Same);
        assert_eq!(meaning(191.0), Meaning::Same);
        assert_eq!(meaning(180.0), Meaning::Faster);
        assert_eq!(
            Verdict::of("a", 220.0, expected).to_string().trim_end(),
            format!("{:<34}  +10.00 %  SLOWER", "a")
        );
    }
}
