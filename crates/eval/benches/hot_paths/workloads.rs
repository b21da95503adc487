//! What is timed of this crate by `cargo bench` and guarded by `just bench-gate`: names and set-ups. A work does the same each time.
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first error")]

use std::hint::black_box;

use unsay_eval::Generation;
use unsay_eval::evaluators::{distinct_n, f1, seq_rep_4};

/// A work that can be done again and again.
pub(crate) type Work = Box<dyn FnMut()>;

/// Makes what a work needs.
pub(crate) type Make = fn() -> Work;

/// Every work, by name.
pub(crate) const WORKLOADS: [(&str, Make); 3] = [
    ("eval/f1/200", || over(|replies| drop(black_box(f1::scores(replies))))),
    ("eval/distinct_2/200", || {
        over(|replies| drop(black_box(distinct_n::scores(replies, 2).unwrap())))
    }),
    ("eval/seq_rep_4/200", || {
        over(|replies| drop(black_box(seq_rep_4::scores(replies).unwrap())))
    }),
];

const WORDS: [&str; 12] = [
    "the", "i", "really", "like", "to", "play", "tennis,", "don't", "you", "think", "so?", "Sunday",
];

/// Two hundred replies of 15 words.
fn over(work: fn(&[Generation])) -> Work {
    let text = |seed: usize| {
        (0..15)
            .map(|i| WORDS[(seed * 7 + i * (seed % 5 + 1)) % WORDS.len()])
            .collect::<Vec<_>>()
    };
    let replies: Vec<Generation> = (0..200)
        .map(|i| Generation {
            example: i.to_string(),
            prompt: String::new(),
            completion: text(i).join(" "),
            tokens: (0..20).map(|at| ((i + at * at) % 9) as u32).collect(),
            finished: true,
            gold: Some(text(i + 1).join(" ")),
        })
        .collect();
    Box::new(move || work(&replies))
}
