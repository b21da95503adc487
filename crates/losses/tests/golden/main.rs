//! The losses against numbers that the reference code produced (`tests/golden`, or the folder in
//! `UNSAY_GOLDEN_DIR`): values and gradients in `f64`, at the tolerance that each file suggests.
//!
//! The files come from running the released code of each method; a case is its inputs, outputs and gradients. Cases
//! that differ on purpose are listed with the reason, and compared with what is right instead. Every test counts
//! what it compared, and its name starts with `golden`, so that `cargo test golden` runs them all.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

#[path = "../plain/mod.rs"]
mod plain;

mod causal;
mod director;
mod files;
mod kl;
mod policy;
mod ranked;
mod repetition;
mod scores;
mod token;
mod unpaired;
mod with_reference;
mod without_reference;
