//! What every registered loss of every family promises.
//!
//! A [`Subject`](subject::Subject) is one setting of one loss, from the samples of its file and with what can be put around it;
//! each family has one adapter, and each promise is written once, over all subjects. Every test says how many
//! subjects it ran, so that none can pass on an empty list.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test: a panic is the report, and nothing is public"
)]

mod batch;
mod batching;
mod direction;
mod director;
mod extremes;
mod gradients;
mod labels;
mod manifest;
mod paired;
#[path = "../plain/mod.rs"]
mod plain;
mod policy;
mod precision;
mod ranked;
mod refusals;
mod rewards;
mod scores;
mod subject;
mod token;
mod unpaired;

use std::panic::AssertUnwindSafe;

use subject::Subject;

/// Family by family, the losses and the subjects: raise these when you add a loss. All other counts here are made from the registries.
const COUNTED: [(&str, usize, usize); 8] = [
    ("token", 8, 19),
    ("paired", 20, 160),
    ("director", 1, 4),
    ("unpaired", 6, 29),
    ("ranked", 1, 6),
    ("scores", 3, 6),
    ("policy", 6, 77),
    ("critic", 1, 8),
];

/// All subjects there are.
fn subjects() -> Vec<Subject> {
    tch::set_num_threads(1);
    let families = [
        token::subjects(),
        paired::subjects(),
        director::subjects(),
        unpaired::subjects(),
        ranked::subjects(),
        scores::subjects(),
        policy::subjects(),
        policy::critics(),
    ];
    families.into_iter().flatten().collect()
}

/// Runs a promise over every subject, so that all that break it are named, and not only the first; says how many there are.
fn every(check: impl Fn(&Subject)) -> usize {
    let all = subjects();
    assert_listed(&all);
    let holds = |subject: &&Subject| std::panic::catch_unwind(AssertUnwindSafe(|| check(subject))).is_ok();
    let broken: Vec<&str> = all
        .iter()
        .filter(|subject| !holds(subject))
        .map(|s| s.text.as_str())
        .collect();
    assert!(broken.is_empty(), "{} of {}: {broken:#?}", broken.len(), all.len());
    all.len()
}

/// Every name and every sample of the registries is among these, and so are the two forms of the critic.
fn assert_listed(subjects: &[Subject]) {
    let mut registries = manifest::registries();
    registries.push(("critic", &["value"], 2));
    for (family, names, samples) in registries {
        let of_family = || subjects.iter().filter(|subject| subject.family == family);
        for name in names {
            assert!(of_family().any(|s| s.name == *name), "{family}: no subject of `{name}`");
        }
        let n = of_family().count();
        assert!(n >= samples && samples >= names.len(), "{family}: {n}, {samples}");
    }
}

/// Family by family, how many losses and subjects are among these.
fn counted(subjects: &[Subject]) -> Vec<(&'static str, usize, usize)> {
    let mut counted: Vec<(&'static str, Vec<&str>, usize)> = Vec::new();
    for subject in subjects {
        let at = counted
            .iter()
            .position(|(family, ..)| *family == subject.family)
            .unwrap_or_else(|| {
                counted.push((subject.family, Vec::new(), 0));
                counted.len() - 1
            });
        if !counted[at].1.contains(&subject.name) {
            counted[at].1.push(subject.name);
        }
        counted[at].2 += 1;
    }
    counted
        .into_iter()
        .map(|(family, names, n)| (family, names.len(), n))
        .collect()
}

#[test]
fn every_registered_loss_of_every_family_is_a_subject() {
    let all = subjects();
    assert_listed(&all);
    assert_eq!(counted(&all), COUNTED, "raise these when you add a loss");
}
