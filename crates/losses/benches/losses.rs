//! Speed of every registered loss of every family, value and gradient, through the op; of token losses also in one pass
//! and through plain full logits. About 512 rows, width 256, 8192 tokens.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "the contract suite's modules, of which this uses a part"
)]

#[path = "../tests/contract/batch.rs"]
mod batch;
#[path = "../tests/contract/director.rs"]
mod director;
#[path = "../tests/contract/paired.rs"]
mod paired;
#[path = "../tests/plain/mod.rs"]
mod plain;
#[path = "../tests/contract/policy.rs"]
mod policy;
#[path = "../tests/contract/ranked.rs"]
mod ranked;
#[path = "../tests/contract/scores.rs"]
mod scores;
#[path = "../tests/contract/subject.rs"]
mod subject;
#[path = "../tests/contract/token.rs"]
mod token;
#[path = "../tests/contract/unpaired.rs"]
mod unpaired;

use std::time::Duration;

use batch::{Batch, Size};
use criterion::{Criterion, criterion_group, criterion_main};
use subject::{How, Subject, Way, firsts};
use tch::Kind;

/// The rows of a batch, near enough: units differ in their number of completions.
const ROWS: usize = 512;

/// A batch of a subject. `--test` runs everything once: a small one is enough to see that it works.
fn batch(subject: &Subject) -> Batch {
    let quick = std::env::args().any(|argument| argument == "--test") || !std::env::args().any(|a| a == "--bench");
    let (rows, d, v) = if quick { (32, 16, 256) } else { (ROWS, 256, 8192) };
    let longest = 31;
    let per_unit = subject.setting.roles(0).len() * (1 + longest) / 2;
    let units = (rows / per_unit).max(3);
    let size = Size { units, longest, d, v };
    let mut batch = Batch::new(0, size, &|unit| subject.setting.roles(unit));
    let narrow = |t: &tch::Tensor| t.to_kind(Kind::Float);
    let wide = [
        &batch.states,
        &batch.embedding,
        &batch.second,
        &batch.reference_states,
        &batch.reference_embedding,
    ];
    let [states, embedding, second, reference_states, reference_embedding] = wide.map(narrow);
    batch.states = states * 0.1;
    batch.reference_states = reference_states * 0.1;
    (batch.embedding, batch.second, batch.reference_embedding) = (embedding, second, reference_embedding);
    batch
}

fn losses(criterion: &mut Criterion) {
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
    for family in &families {
        let mut group = criterion.benchmark_group(family[0].family);
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1));
        for subject in firsts(family, |subject| subject.name) {
            let batch = batch(subject);
            let ways = [(Way::Op, "op"), (Way::Fused, "fused"), (Way::Plain, "full_logits")];
            for (way, name) in ways {
                if way != Way::Op && subject.family != "token" {
                    continue;
                }
                let how = How {
                    kind: Kind::Float,
                    way,
                    ..How::default()
                };
                group.bench_function(format!("{}/{name}", subject.name), |b| {
                    b.iter(|| subject.whole(&batch, how))
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, losses);
criterion_main!(benches);
