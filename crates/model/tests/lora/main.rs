//! Low-rank adapters: equal to PEFT in what they compute, learn and store; off, merged and refused as documented.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../common/mod.rs"]
mod common;

mod bad_folders;
mod behaviour;
mod cases;
mod learns;
mod peft;
