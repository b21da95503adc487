//! Losses over one score per example.

mod pointwise;

pub use pointwise::pointwise;
