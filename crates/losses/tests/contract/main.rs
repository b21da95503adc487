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

/// Family by family, the registered losses and the subjects: the counts guard every loop against an empty list.
const REGISTERED: [(&str, usize, usize); 8] = [
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

/// Runs a promise over every subject, so that all that break it are named, and not only the first.
fn every(check: impl Fn(&Subject)) {
    let all = subjects();
    let holds = |subject: &&Subject| std::panic::catch_unwind(AssertUnwindSafe(|| check(subject))).is_ok();
    let broken: Vec<&str> = all
        .iter()
        .filter(|subject| !holds(subject))
        .map(|s| s.text.as_str())
        .collect();
    assert!(broken.is_empty(), "{} of {}: {broken:#?}", broken.len(), all.len());
    assert_eq!(counted(&all), REGISTERED);
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
    assert_eq!(counted(&subjects()), REGISTERED);
}
