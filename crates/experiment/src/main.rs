//! The `unsay` binary.
fn main() {}
