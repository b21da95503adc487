//! The training loop as its users see it.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop at the first error")]

mod accumulation;
mod conversations;
mod frozen;
mod guard;
mod learns;
mod pairs;
mod precision;
mod resume;
mod rewards;
mod support;
