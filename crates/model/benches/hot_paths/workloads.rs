//! What is timed of this crate by `cargo bench` and guarded by `just bench-gate`: names and set-ups. A work does the same each time.
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first error")]

use std::hint::black_box;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, no_grad};
use unsay_model::{Config, Decoder, Generation, Sampling, Size, logps};

/// A work that can be done again and again.
pub(crate) type Work = Box<dyn FnMut()>;

/// Makes what a work needs.
pub(crate) type Make = fn() -> Work;

/// Every work, by name: examples and tokens of each.
pub(crate) const WORKLOADS: [(&str, Make); 6] = [
    ("model/forward/8x32", forward),
    ("model/forward_backward/8x32", forward_backward),
    ("model/logps/8x32", log_probs),
    ("model/generate/1x8", || generation(1, 8)),
    ("model/generate/8x8", || generation(8, 8)),
    // Of short completions most is laying the model out; here most is tokens.
    ("model/generate/8x48", || generation(8, 48)),
];

const VOCAB: usize = 512;

/// Two blocks of width 64.
fn model() -> Decoder {
    let size = Size {
        hidden_size: 64,
        intermediate_size: 176,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
    };
    let config = Config::new(&size, VOCAB, 64);
    Decoder::init(&config, &mut ChaCha8Rng::seed_from_u64(1), Device::Cpu).unwrap()
}

fn ids() -> Tensor {
    (Tensor::arange(8 * 32, (Kind::Int64, Device::Cpu)) * 31)
        .remainder(VOCAB as i64)
        .view([8, 32])
}

fn forward() -> Work {
    let (model, ids) = (model(), ids());
    Box::new(move || drop(black_box(no_grad(|| model.hidden(&ids)).unwrap())))
}

fn forward_backward() -> Work {
    let (model, ids) = (model(), ids());
    Box::new(move || model.hidden(&ids).unwrap().sum(Kind::Float).backward())
}

fn log_probs() -> Work {
    let (model, ids) = (model(), ids());
    Box::new(move || {
        no_grad(|| {
            let states = model.hidden(&ids).unwrap().view([8 * 32, -1]);
            let _ = black_box(logps(&model, &states, &ids.view([8 * 32])).unwrap());
        });
    })
}

/// So many new tokens after each of `n` prompts of 4 to 11, drawn from the 50 most probable.
fn generation(n: usize, new_tokens: usize) -> Work {
    let model = model();
    let prompts: Vec<Vec<u32>> = (0..n)
        .map(|i| {
            (0..4 + i as u32 % 8)
                .map(|at| 4 + (i as u32 * 37 + at * 11) % 500)
                .collect()
        })
        .collect();
    let sampling = Sampling {
        top_k: Some(50),
        min_new_tokens: new_tokens,
        ..Sampling::new(new_tokens)
    };
    Box::new(move || {
        let mut draw = |prompt: usize, step: usize| ((prompt * 31 + step * 17) % 97) as f32 / 97.0;
        let generation = Generation::new(&model, &sampling, &[3]).batch(n).draws(&mut draw);
        black_box(generation.run(&prompts).unwrap());
    })
}
