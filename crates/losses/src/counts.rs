//! Sizes of whole batches, and of the parts that add up to them.

use std::fmt::Debug;

use crate::{Error, Result};

/// Something that a whole batch has at least as much of as each of its parts.
pub(crate) trait Counts: Debug {
    /// Whether these can be sizes of a batch that has this part: finite, and nowhere below the part's.
    fn covers(&self, part: &Self) -> bool;

    /// That they can be sizes of a batch that has this part.
    ///
    /// **Errors**: [`Error::Input`] where not.
    fn check_covers(&self, part: &Self) -> Result<()> {
        if self.covers(part) {
            return Ok(());
        }
        let expected = format!("sizes of the whole batch, at least this part's {part:?}");
        Err(Error::input("counts", expected, format!("{self:?}")))
    }
}

impl Counts for f64 {
    fn covers(&self, part: &f64) -> bool {
        // Not `!(part > …)`: a NaN must not pass. Sums of weights may differ by rounding; counts are far enough apart.
        self.is_finite() && *part <= self * (1.0 + 1e-9)
    }
}

/// Makes a struct of sizes one that parts add up to: `counts!(PairCounts { pairs, chosen_tokens });` with all its fields.
macro_rules! counts {
    ($counts:ident { $($field:ident),+ $(,)? }) => {
        impl crate::counts::Counts for $counts {
            fn covers(&self, part: &Self) -> bool {
                $(crate::counts::Counts::covers(&self.$field, &part.$field))&&+
            }
        }

        impl std::ops::Add for $counts {
            type Output = $counts;

            fn add(self, other: Self) -> Self {
                $counts { $($field: self.$field + other.$field),+ }
            }
        }

        impl std::ops::AddAssign for $counts {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }

        impl std::iter::Sum for $counts {
            fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
                iter.fold($counts::default(), std::ops::Add::add)
            }
        }
    };
}

pub(crate) use counts;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, Default, PartialEq)]
    struct Both {
        first: f64,
        second: f64,
    }

    counts!(Both { first, second });

    #[test]
    fn parts_add_up_field_by_field() {
        let (a, b) = (
            Both {
                first: 1.0,
                second: 4.0,
            },
            Both {
                first: 2.0,
                second: 8.0,
            },
        );
        let sum = Both {
            first: 3.0,
            second: 12.0,
        };
        assert_eq!(a + b, sum);
        assert_eq!([a, b].into_iter().sum::<Both>(), sum);
        let mut both = a;
        both += b;
        assert_eq!(both, sum);
        assert_eq!(std::iter::empty::<Both>().sum::<Both>(), Both::default());
    }

    #[test]
    fn a_whole_is_finite_and_nowhere_below_its_part() {
        let part = Both {
            first: 2.0,
            second: 3.0,
        };
        let both = |first, second| Both { first, second };
        for whole in [part, both(3.0, 3.0), both(2.0, 4.0), both(2.0 - 1e-10, 3.0)] {
            assert!(whole.covers(&part) && whole.check_covers(&part).is_ok(), "{whole:?}");
        }
        for bad in [1.0, 2.0 - 1e-7, -2.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for whole in [both(bad, 9.0), both(9.0, bad)] {
                assert!(!whole.covers(&part), "{whole:?}");
            }
        }
        assert_eq!(
            both(1.0, f64::INFINITY).check_covers(&part).unwrap_err().to_string(),
            "counts: expected sizes of the whole batch, at least this part's Both { first: 2.0, second: 3.0 }, \
             got Both { first: 1.0, second: inf }"
        );
    }
}
