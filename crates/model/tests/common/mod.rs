//! Small models and inputs that the tests share.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(dead_code, reason = "each test file uses its own part")]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};
use unsay_model::{Config, Decoder, Size};

/// (heads, key/value heads, head width, layers, tied)
pub(crate) fn shapes() -> [(usize, usize, usize, usize, bool); 6] {
    [
        (1, 1, 2, 1, true),
        (4, 4, 4, 2, true),
        (4, 1, 6, 2, false),
        (3, 3, 8, 1, false),
        (6, 3, 2, 3, true),
        (9, 3, 4, 2, false),
    ]
}

/// A small description with a large spread, so that logits and attention are far from flat.
pub(crate) fn config(heads: usize, kv_heads: usize, head_dim: usize, layers: usize) -> Config {
    let size = Size {
        hidden_size: heads * head_dim,
        intermediate_size: 3 * heads * head_dim + 1,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
    };
    Config {
        initializer_range: 0.5,
        rope_theta: 100.0,
        ..Config::new(&size, 31, 64)
    }
}

pub(crate) fn decoder(config: &Config, seed: u64, kind: Kind) -> Decoder {
    Decoder::init_kind(config, &mut ChaCha8Rng::seed_from_u64(seed), Device::Cpu, kind).unwrap()
}

pub(crate) fn random_ids(n: usize, vocab: usize, seed: u64) -> Vec<i64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(0..vocab as i64)).collect()
}

/// Numbers between -1 and 1, in f64.
pub(crate) fn random(shape: &[i64], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    Tensor::from_slice(&values).view(shape)
}
