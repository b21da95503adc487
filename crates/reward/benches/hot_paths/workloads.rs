//! What is timed of this crate by `cargo bench` and guarded by `just bench-gate`: names and set-ups. A work does the same each time.
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first error")]

use std::hint::black_box;

use unsay_data::testbed::safety::{Split, World};
use unsay_reward::{Item, OracleJudge, judge_all};

/// A work that can be done again and again.
pub(crate) type Work = Box<dyn FnMut()>;

/// Makes what a work needs.
pub(crate) type Make = fn() -> Work;

/// Every work, by name.
pub(crate) const WORKLOADS: [(&str, Make); 1] = [("reward/oracle/40", oracle)];

fn oracle() -> Work {
    let examples = World::new(0).labelled(Split::Test, 40);
    Box::new(move || {
        let items: Vec<Item<'_>> = examples
            .iter()
            .map(|example| Item {
                prompt: &example.prompt,
                completion: &example.completion,
            })
            .collect();
        black_box(judge_all(&OracleJudge, &items).unwrap());
    })
}
