//! Statistics over seeds and examples.
//!
//! Where one seed gives no interval there is none: `None`, never a NaN and never an interval of width zero.

mod bootstrap;
mod mean;
mod wilson;

pub use bootstrap::{Bootstrap, Difference, Scored, paired_difference};
pub use mean::{Estimate, mean_t};
pub use wilson::wilson;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The level of every interval unless another is asked for.
pub const LEVEL: f64 = 0.95;

/// A two-sided interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Nominal coverage, such as 0.95.
    pub level: f64,
}

impl Interval {
    /// Whether the interval leaves out zero.
    pub fn excludes_zero(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

fn check_level(level: f64) -> Result<()> {
    if level > 0.0 && level < 1.0 {
        return Ok(());
    }
    Err(Error::Range {
        name: "level",
        expected: "above 0 and below 1".to_owned(),
        got: level.to_string(),
    })
}

fn check_finite(what: &'static str, values: impl IntoIterator<Item = f64>) -> Result<()> {
    match values.into_iter().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((position, got)) => Err(Error::NotFinite { what, got, position }),
        None => Ok(()),
    }
}
