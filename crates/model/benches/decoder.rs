//! Forward, forward and backward, and generation of a one-million-parameter decoder on one thread.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, no_grad};
use unsay_model::{Config, Decoder, Generation, Sampling, Size};

const VOCAB: usize = 800;
const ROWS: i64 = 32;
const WIDTH: i64 = 32;
const NEW: usize = 16;

fn model() -> Decoder {
    tch::set_num_threads(1);
    let size = Size {
        hidden_size: 128,
        intermediate_size: 352,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 2,
    };
    let config = Config::new(&size, VOCAB, 64);
    match Decoder::init(&config, &mut ChaCha8Rng::seed_from_u64(1), Device::Cpu) {
        Ok(model) => model,
        Err(error) => panic!("{error}"),
    }
}

fn passes(c: &mut Criterion) {
    let model = model();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let ids: Vec<i64> = (0..ROWS * WIDTH).map(|_| rng.random_range(0..VOCAB as i64)).collect();
    let ids = Tensor::from_slice(&ids).view([ROWS, WIDTH]);
    let mut group = c.benchmark_group("decoder_32x32");
    group.throughput(Throughput::Elements((ROWS * WIDTH) as u64));
    group.bench_function("forward", |b| {
        b.iter(|| black_box(no_grad(|| model.hidden(&ids)).is_ok()))
    });
    group.bench_function("forward_backward", |b| {
        b.iter(|| model.hidden(&ids).map(|h| h.sum(Kind::Float).backward()).is_ok());
    });
    group.finish();
}

fn generation(c: &mut Criterion) {
    let model = model();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let prompts: Vec<Vec<u32>> = (0..32)
        .map(|i| (0..8 + i % 16).map(|_| rng.random_range(4..VOCAB as u32)).collect())
        .collect();
    let sampling = Sampling {
        top_k: Some(50),
        min_new_tokens: NEW,
        ..Sampling::new(NEW)
    };
    let mut group = c.benchmark_group("generate_16_tokens");
    for n in [1, 32] {
        group.throughput(Throughput::Elements((n * NEW) as u64));
        group.bench_function(format!("batch_{n}"), |b| {
            b.iter(|| {
                let mut draw = |_, _| rng.random::<f32>();
                Generation::new(&model, &sampling, &[3])
                    .batch(n)
                    .draws(&mut draw)
                    .run(&prompts[..n])
                    .is_ok()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, passes, generation);
criterion_main!(benches);
