//! Manifests, plans, composition: everything that the `unsay` binary does.
//!
//! This is the one crate that knows YAML, the command line and the layout of `runs/` and `results/`.

pub mod cli;
pub mod commands;
pub mod manifest;
pub mod output;
pub mod plan;
pub mod results;
pub mod run;
pub mod steps;
pub mod store;
