//! What is timed of this crate by `cargo bench` and guarded by `just bench-gate`: names and set-ups. A work does the same each time.
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first error")]

use std::hint::black_box;

use unsay_data::stream;
use unsay_data::testbed::safety::{Split, World};
use unsay_reward::OracleJudge;
use unsay_rl::{Rollout, label, select};

/// A work that can be done again and again.
pub(crate) type Work = Box<dyn FnMut()>;

/// Makes what a work needs.
pub(crate) type Make = fn() -> Work;

/// Every work, by name.
pub(crate) const WORKLOADS: [(&str, Make); 1] = [("rl/label_and_select/40", label_and_select)];

/// Forty own replies, labelled by the oracle, then filtered and balanced.
fn label_and_select() -> Work {
    let prompts = World::new(0).labelled(Split::Train, 20);
    let rollouts: Vec<Rollout> = (0..40)
        .map(|at| Rollout {
            prompt: at / 2,
            sample: at % 2,
            completion: prompts[(at / 2 + at % 2) % 20].completion.clone(),
            ids: vec![7; 12],
            logps: vec![-1.0; 13],
            finished: true,
        })
        .collect();
    Box::new(move || {
        let candidates = label(&OracleJudge, &prompts, &rollouts, 0.5).unwrap();
        black_box(select(&candidates, 2, &mut stream(0, "select", 0)).unwrap());
    })
}
