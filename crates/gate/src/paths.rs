//! The guarded paths: those that `cargo bench --bench hot_paths` times, from the same files.

/// A work that can be done again and again.
pub(crate) type Work = Box<dyn FnMut()>;

/// Makes what a work needs.
pub(crate) type Make = fn() -> Work;

#[path = "../../data/benches/hot_paths/workloads.rs"]
mod data;
#[path = "../../eval/benches/hot_paths/workloads.rs"]
mod eval;
#[path = "../../losses/benches/hot_paths/workloads.rs"]
mod losses;
#[path = "../../model/benches/hot_paths/workloads.rs"]
mod model;
#[path = "../../report/benches/hot_paths/workloads.rs"]
mod report;
#[path = "../../reward/benches/hot_paths/workloads.rs"]
mod reward;
#[path = "../../rl/benches/hot_paths/workloads.rs"]
mod rl;
#[path = "../../train/benches/hot_paths/workloads.rs"]
mod train;

/// One guarded path.
#[derive(Clone, Copy)]
pub(crate) struct GuardedPath {
    /// `crate/what/size`.
    pub(crate) name: &'static str,
    /// Makes what it works on.
    pub(crate) make: Make,
    /// Whether libtorch does the work: its instructions are counted like all others, and its time is taken too.
    pub(crate) libtorch: bool,
}

/// Every guarded path: those in plain Rust first.
pub(crate) fn all() -> Vec<GuardedPath> {
    let rust: [&[(&'static str, Make)]; 5] = [
        &data::WORKLOADS,
        &reward::WORKLOADS,
        &rl::WORKLOADS,
        &eval::WORKLOADS,
        &report::WORKLOADS,
    ];
    let libtorch: [&[(&'static str, Make)]; 3] = [&losses::WORKLOADS, &model::WORKLOADS, &train::WORKLOADS];
    let both = [(&rust[..], false), (&libtorch[..], true)];
    let path = |libtorch| move |&(name, make): &(&'static str, Make)| GuardedPath { name, make, libtorch };
    both.into_iter()
        .flat_map(|(lists, libtorch)| lists.iter().copied().flatten().map(path(libtorch)))
        .collect()
}

/// The path of this name.
pub(crate) fn named(name: &str) -> Option<GuardedPath> {
    all().into_iter().find(|path| path.name == name)
}
