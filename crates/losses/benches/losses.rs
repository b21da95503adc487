//! Speed of every registered loss, and of the op against plain full logits.
fn main() {}
