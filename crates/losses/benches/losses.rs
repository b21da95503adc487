//! Speed of every registered loss through the op, and through plain full logits, value and gradient: 512 rows, width
//! 256, 8192 tokens, half of the rows negative.

#[path = "../tests/plain/mod.rs"]
mod plain;

use criterion::{Criterion, criterion_group, criterion_main};
use plain::Made;
use tch::Kind;
use unsay_losses::token::Loss;

/// `--test` runs everything once: a small batch is enough to see that it works.
fn batch() -> Made {
    let quick = std::env::args().any(|argument| argument == "--test") || !std::env::args().any(|a| a == "--bench");
    let (length, d, v) = if quick { (8, 16, 256) } else { (128, 256, 8192) };
    let mut made = Made::new(0, &[length; 4], &[1, 0, -1, 0], d, v);
    made.hidden = made.hidden.to_kind(Kind::Float) * 0.1;
    made.embedding = made.embedding.to_kind(Kind::Float);
    made
}

fn losses(criterion: &mut Criterion) {
    tch::set_num_threads(1);
    let made = batch();
    let counts = made.counts();
    let mut group = criterion.benchmark_group("value_and_gradient");
    group.sample_size(10);
    for name in Loss::NAMES {
        let loss = Loss::samples().into_iter().find(|loss| loss.name() == *name);
        let Some(loss) = loss else { continue };
        group.bench_function(format!("{name}/op_kept"), |b| {
            b.iter(|| made.through_op(&loss, &counts, None))
        });
        group.bench_function(format!("{name}/op_chunked"), |b| {
            b.iter(|| made.through_op(&loss, &counts, Some(128)))
        });
        group.bench_function(format!("{name}/full_logits"), |b| {
            b.iter(|| made.through_logits(&loss, &counts))
        });
    }
    group.finish();
}

criterion_group!(benches, losses);
criterion_main!(benches);
