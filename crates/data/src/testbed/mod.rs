//! Dialogue worlds made by the project, each with an exact oracle.

pub mod safety;

/// Raised when any world changes what it generates: results made with another version are not comparable.
pub const VERSION: u32 = 2;
