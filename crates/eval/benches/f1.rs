//! Unigram F1 of a thousand replies.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use unsay_eval::{Generation, evaluators::f1};

const WORDS: [&str; 12] = [
    "the", "i", "really", "like", "to", "play", "tennis,", "don't", "you", "think", "so?", "Sunday",
];

fn replies() -> Vec<Generation> {
    let text = |seed: usize| {
        (0..15)
            .map(|i| WORDS[(seed * 7 + i * (seed % 5 + 1)) % WORDS.len()])
            .collect::<Vec<_>>()
    };
    (0..1000)
        .map(|i| Generation {
            example: i.to_string(),
            prompt: String::new(),
            completion: text(i).join(" "),
            tokens: Vec::new(),
            finished: true,
            gold: Some(text(i + 1).join(" ")),
        })
        .collect()
}

fn bench(c: &mut Criterion) {
    let replies = replies();
    c.bench_function("f1/1000 replies", |b| b.iter(|| f1::scores(black_box(&replies))));
}

criterion_group!(benches, bench);
criterion_main!(benches);
