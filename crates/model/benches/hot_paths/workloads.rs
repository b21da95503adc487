//! What is timed of this crate by `cargo bench` and guarded by `just bench-gate`: names and set-ups. A work does the same each time.
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first error")]

use std::hint::black_box;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, no_grad};
use unsay_model::{
    Beam, Config, Decoder, DirectorForm, DirectorHead, EarlyStopping, Engine, Generation, Precision, Sampling, Size,
    logps,
};

/// A work that can be done again and again.
pub(crate) type Work = Box<dyn FnMut()>;

/// Makes what a work needs.
pub(crate) type Make = fn() -> Work;

/// Every work, by name: examples and tokens of each; of beams, prompts, beams and tokens of each. Beside them [`TIMED`].
pub(crate) const WORKLOADS: [(&str, Make); 9] = [
    ("model/forward/8x32", forward),
    ("model/forward_backward/8x32", forward_backward),
    ("model/logps/8x32", log_probs),
    ("model/generate/1x8", || generation(1, 8)),
    ("model/generate/8x8", || generation(8, 8)),
    // Of short completions most is laying the model out; here most is tokens.
    ("model/generate/8x48", || generation(8, 48)),
    // A single row has weights of its own in an engine that is kept.
    ("model/generate_kept/1x48", || kept(Precision::default())),
    ("model/generate_guided/8x8", guided),
    ("model/beam/2x4x16", beams),
];

/// Works whose instructions say nothing: valgrind shows no processor with bf16, where libtorch takes other kernels.
pub(crate) const TIMED: [(&str, Make); 1] = [("model/generate_kept_bf16/1x48", || {
    kept(Precision::Bf16 { even_if_slower: true })
})];

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

/// Prompts of 4 to 11 tokens.
fn prompts(n: usize) -> Vec<Vec<u32>> {
    let one = |i: u32| (0..4 + i % 8).map(|at| 4 + (i * 37 + at * 11) % 500).collect();
    (0..n as u32).map(one).collect()
}

/// So many new tokens, drawn from the 50 most probable.
fn drawn(new_tokens: usize) -> Sampling {
    Sampling {
        top_k: Some(50),
        min_new_tokens: new_tokens,
        ..Sampling::new(new_tokens)
    }
}

/// Completions of `n` prompts.
fn generation(n: usize, new_tokens: usize) -> Work {
    let (model, prompts, sampling) = (model(), prompts(n), drawn(new_tokens));
    Box::new(move || {
        let mut draw = |prompt: usize, step: usize| ((prompt * 31 + step * 17) % 97) as f32 / 97.0;
        let generation = Generation::new(&model, &sampling, &[3]).batch(n).draws(&mut draw);
        black_box(generation.run(&prompts).unwrap());
    })
}

/// Completions of one prompt, request after request, by an engine that is laid out beforehand.
fn kept(precision: Precision) -> Work {
    let engine = Engine::taking(model().with_precision(precision).unwrap()).unwrap();
    let (prompts, sampling) = (prompts(1), drawn(48));
    Box::new(move || {
        let mut draw = |_, step: usize| (step * 17 % 97) as f32 / 97.0;
        let generation = Generation::on(&engine, &sampling, &[3]).draws(&mut draw);
        black_box(generation.run(&prompts).unwrap());
    })
}

/// Completions where DIRECTOR's second head has its say at every token.
fn guided() -> Work {
    let (model, prompts, sampling) = (model(), prompts(8), drawn(8));
    let head = DirectorHead::init(DirectorForm::Own {}, &model, &mut ChaCha8Rng::seed_from_u64(2)).unwrap();
    Box::new(move || {
        let guide = |states: &Tensor, logits: &Tensor| {
            let judged = head.logits(&model, states)?.log_sigmoid();
            Ok(logits.log_softmax(-1, Kind::Float) + judged)
        };
        let mut draw = |prompt: usize, step: usize| ((prompt * 31 + step * 17) % 97) as f32 / 97.0;
        let generation = Generation::new(&model, &sampling, &[3]).guide(&guide).draws(&mut draw);
        black_box(generation.run(&prompts).unwrap());
    })
}

/// The best of 4 beams for each of 2 prompts.
fn beams() -> Work {
    let (model, prompts) = (model(), prompts(2));
    let search = Sampling {
        beam: Some(Beam {
            size: 4,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
        }),
        min_new_tokens: 16,
        ..Sampling::new(16)
    };
    Box::new(move || {
        black_box(Generation::new(&model, &search, &[3]).run(&prompts).unwrap());
    })
}
