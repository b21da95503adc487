//! Small models and inputs that the tests share.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(dead_code, reason = "each test file uses its own part")]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};
use unsay_model::{Activation, Architecture, Config, Decoder, Gpt2, Llama, Mistral, Phi3, Qwen2, RopeScaling, Size};

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

/// A small description of each architecture and of each of its forms.
pub(crate) fn architectures() -> Vec<Config> {
    let small = |architecture, kv_heads| Config {
        architecture,
        pad_token_id: Some(0),
        bos_token_id: Some(1),
        eos_token_ids: vec![3],
        ..config(4, kv_heads, 6, 3)
    };
    let llama = |attention_bias, mlp_bias| {
        Architecture::Llama(Llama {
            attention_bias,
            mlp_bias,
        })
    };
    let qwen2 = Qwen2 {
        use_sliding_window: true,
        sliding_window: Some(3),
        layer_types: Some(vec![true, false, true]),
        ..Qwen2::default()
    };
    let phi3 = Phi3 {
        partial_rotary_factor: 0.5,
        sliding_window: Some(4),
    };
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        attention_factor: None,
        beta_fast: 8.0,
        beta_slow: 1.0,
        mscale: Some(1.0),
        mscale_all_dim: None,
        original_max_position_embeddings: Some(16),
        truncate: true,
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 32,
    };
    vec![
        small(llama(false, false), 2),
        Config {
            tie_word_embeddings: false,
            rope_scaling: llama3,
            eos_token_ids: vec![3, 4],
            ..small(llama(true, true), 2)
        },
        Config {
            rope_scaling: yarn,
            ..small(llama(true, false), 4)
        },
        Config {
            rope_scaling: RopeScaling::Linear { factor: 2.0 },
            ..small(
                Architecture::Mistral(Mistral {
                    sliding_window: Some(3),
                }),
                2,
            )
        },
        small(Architecture::Mistral(Mistral { sliding_window: None }), 2),
        small(Architecture::Qwen2(qwen2), 2),
        small(Architecture::Qwen2(Qwen2::default()), 1),
        small(Architecture::Phi3(phi3), 2),
        Config {
            activation: Activation::GeluNew,
            rope_theta: 10_000.0,
            intermediate_size: 50,
            ..small(Architecture::Gpt2(Gpt2), 4)
        },
    ]
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
