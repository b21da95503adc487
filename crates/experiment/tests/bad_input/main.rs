//! Broken manifests, data files, weights, folders and disks. Each is a clear error with its place and exit code 1
//! (failed) or 2 (wrong usage or manifest); nothing panics, and nothing half-written is left.
#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

#[path = "../common/mod.rs"]
mod common;

mod data;
mod disk;
mod folders;
mod manifests;
mod stored;
mod usage;
