//! tmp
pub(crate) const SHAPES: &str = "";
