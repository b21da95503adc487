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
    /// What is known of it.
    pub(crate) figures: Figures,
}

/// Which figures a path has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figures {
    /// Instructions alone, of what is plain Rust.
    Counts,
    /// Time too, where libtorch works.
    Both,
    /// Time alone, where valgrind's processor lacks what the work is for.
    Times,
}

impl Figures {
    /// Whether instructions are counted.
    pub(crate) fn counted(self) -> bool {
        self != Self::Times
    }

    /// Whether time is taken.
    pub(crate) fn timed(self) -> bool {
        self != Self::Counts
    }
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
    let lists = [
        (&rust[..], Figures::Counts),
        (&libtorch[..], Figures::Both),
        (&[&model::TIMED[..], &train::TIMED[..]], Figures::Times),
    ];
    let path = |figures| move |&(name, make): &(&'static str, Make)| GuardedPath { name, make, figures };
    lists
        .into_iter()
        .flat_map(|(lists, figures)| lists.iter().copied().flatten().map(path(figures)))
        .collect()
}

/// The path of this name.
pub(crate) fn named(name: &str) -> Option<GuardedPath> {
    all().into_iter().find(|path| path.name == name)
}
