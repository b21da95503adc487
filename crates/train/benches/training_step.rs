//! One training step of a small decoder: batch 16 of at most 32 tokens, width 128, 4 layers, vocabulary 2048.

#![allow(missing_docs, reason = "criterion's macro makes public items without docs")]
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first error")]

use criterion::{Criterion, criterion_group, criterion_main};
use tch::Device;
use unsay_data::{Encoded, Label, Span, stream};
use unsay_losses::token::{Cringe, Loss};
use unsay_model::{Config, Decoder, Size};
use unsay_train::{Examples, Fit, LanguageObjective, Settings, Source};

fn examples() -> Examples {
    let one = |example: usize| Encoded {
        ids: (0..20 + (example % 13) as u32)
            .map(|at| 4 + (example as u32 * 31 + at * 17) % 2044)
            .collect(),
        spans: vec![Span {
            start: 8,
            end: 20 + example % 13,
            ended: false,
        }],
        label: if example.is_multiple_of(2) {
            Label::Positive
        } else {
            Label::Negative
        },
        example,
    };
    let source = |n| Source {
        encoded: (0..n).map(one).collect(),
        ids: Vec::new(),
        weight: 1.0,
    };
    Examples::new(vec![source(256)], source(8)).unwrap()
}

fn training_step(criterion: &mut Criterion) {
    tch::set_num_threads(1);
    let size = Size {
        hidden_size: 128,
        intermediate_size: 384,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 4,
    };
    let losses = [
        ("nll", Loss::Nll(Default::default())),
        ("cringe", Loss::Cringe(Cringe::new(1.0, 5))),
    ];
    for (name, loss) in losses {
        let config = Config::new(&size, 2048, 64);
        let decoder = Decoder::init(&config, &mut stream(0, "init", 0), Device::Cpu).unwrap();
        let objective = LanguageObjective::new(decoder, loss, examples()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut fit = Fit::open(objective, &Settings::new(1 << 40, 16, 1e-4), 0, folder.path()).unwrap();
        criterion.bench_function(&format!("training_step/{name}"), |bencher| {
            bencher.iter(|| fit.next().unwrap().unwrap());
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = training_step
}
criterion_main!(benches);
