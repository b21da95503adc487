//! The training loop as its users see it.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop at the first error")]

mod accumulation;
mod conversations;
mod guard;
mod learns;
mod resume;
mod support;
