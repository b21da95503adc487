//! What every loss of every family says about itself.

use crate::error::first;
use crate::{Error, Result};

/// One line of the table of losses (`unsay list losses`, `docs/losses.md`).
///
/// Kept beside the maths, so that the table cannot speak of another formula than the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// The one name in file, manifest and results.
    pub name: &'static str,
    /// One line for lists.
    pub summary: &'static str,
    /// The value for one token, completion, pair or prompt, as in the type's documentation.
    pub formula: &'static str,
    /// Which way a rejected completion is pushed, and whether the push is bounded.
    pub on_negatives: &'static str,
    /// Authors, year and equation.
    pub source: &'static str,
}

/// A loss that can be listed and checked.
pub trait Described {
    /// Its line in the table.
    fn card(&self) -> Card;

    /// Every parameter outside its range.
    fn problems(&self) -> Vec<Error>;

    /// The one name in file, manifest and results.
    fn name(&self) -> &'static str {
        self.card().name
    }

    /// Checks every parameter; the first outside its range is the error.
    ///
    /// **Errors**: [`Error::Range`] with name, value and range.
    fn check(&self) -> Result<()> {
        first(self.problems())
    }
}
