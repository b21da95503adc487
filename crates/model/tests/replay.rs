//! The trunk in parts: passes that keep little, and states between blocks.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;

use common::random_ids;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};
use unsay_model::{Config, Decoder, LoraConfig, Precision, Replayed, TargetModules, Trained};

/// Four heads in two groups, three blocks.
fn config() -> Config {
    common::config(4, 2, 6, 3)
}

fn ids(rows: i64, width: i64) -> Tensor {
    Tensor::from_slice(&random_ids((rows * width) as usize, 31, 3)).view([rows, width])
}

/// Something of the states and of the output embedding, as losses are.
fn backward(decoder: &Decoder, states: &Tensor) {
    let logits = states.matmul(&decoder.output_embedding().tr());
    logits
        .log_softmax(-1, Kind::Float)
        .select(-1, 3)
        .sum(None::<Kind>)
        .backward();
}

/// All gradients by name, and sets them to zero.
fn gradients(decoder: &Decoder) -> Vec<(String, Tensor)> {
    let found = decoder.params().trainable().map(|param| {
        let gradient = param.gradient().unwrap().unwrap();
        (param.name().to_owned(), gradient.copy())
    });
    let found = found.collect();
    decoder.params().zero_grad().unwrap();
    found
}

fn bits(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.detach().contiguous();
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

fn top(layers: usize) -> Trained {
    Trained::Top { layers }
}

#[test]
fn replayed_gradients_are_those_of_the_plain_pass_bit_for_bit() {
    let bf16 = Precision::Bf16 { even_if_slower: true };
    let mut compared = 0;
    for tied in [true, false] {
        for (kind, precision) in [
            (Kind::Double, Precision::default()),
            (Kind::Float, Precision::default()),
            (Kind::Float, bf16),
        ] {
            for trained in [Trained::All {}, top(1), top(3)] {
                let mut config = config();
                config.tie_word_embeddings = tied;
                let decoder = common::decoder(&config, 4, kind)
                    .with_trained(&trained, &mut ChaCha8Rng::seed_from_u64(1))
                    .unwrap();
                let decoder = decoder.with_precision(precision).unwrap();
                let ids = ids(3, 7);
                backward(&decoder, &decoder.trunk().hidden(&ids).unwrap());
                let plain = gradients(&decoder);
                let n_frozen = decoder.params().n_frozen();
                let replayed = decoder.trunk().hidden_replayed(&ids, n_frozen).unwrap();
                backward(&decoder, replayed.states());
                replayed.backward().unwrap();
                let replayed = gradients(&decoder);
                assert_eq!(plain.len(), replayed.len());
                for ((name, plain), (_, replayed)) in plain.iter().zip(&replayed) {
                    assert!(plain.abs().sum(Kind::Double).double_value(&[]) > 0.0, "{name}");
                    assert!(bits(plain) == bits(replayed), "{name} {tied} {precision:?} {trained:?}");
                    compared += 1;
                }
            }
        }
    }
    // 9 tensors a block; embedding, norm and head beside.
    let tensors = |head: usize| (27 + 2 + head) + (9 + 1 + head) + (27 + 1 + head);
    assert_eq!(compared, 3 * (tensors(0) + tensors(1)));
}

/// Windows, learned positions, biases and adapters take the same way back.
#[test]
fn replayed_gradients_are_the_plain_ones_in_every_architecture() {
    let bf16 = Precision::Bf16 { even_if_slower: true };
    let lora = LoraConfig {
        r: 2,
        alpha: 6.0,
        target_modules: TargetModules::AllLinear,
        layers: None,
        use_rslora: false,
    };
    let mut compared = 0;
    for case in [
        "gpt2_f32",
        "llama_yarn_f32",
        "mistral_window_f32",
        "phi3_f32",
        "qwen2_sliding_f32",
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/parity/cases")
            .join(case);
        for (precision, trained) in [Precision::default(), bf16]
            .into_iter()
            .flat_map(|precision| [Trained::All {}, top(1), Trained::Lora(lora.clone())].map(|part| (precision, part)))
        {
            let decoder = Decoder::load(&folder, Device::Cpu).unwrap();
            let decoder = decoder
                .with_trained(&trained, &mut ChaCha8Rng::seed_from_u64(1))
                .unwrap();
            let decoder = decoder.with_precision(precision).unwrap();
            for param in decoder.params().trainable().filter(|p| p.name().contains("lora_B")) {
                let _ = tch::no_grad(|| param.full().shallow_clone().fill_(0.3));
                param.round().unwrap();
            }
            let trunk = decoder.trunk();
            let n_frozen = decoder.params().n_frozen();
            let ids = ids(3, 9);
            let after = |pass: &dyn Fn(&Tensor)| {
                pass(&ids);
                gradients(&decoder)
            };
            let plain = after(&|ids| backward(&decoder, &trunk.hidden(ids).unwrap()));
            let way_back = |replayed: Replayed<'_>| {
                backward(&decoder, replayed.states());
                replayed.backward().unwrap();
            };
            let replayed = after(&|ids| way_back(trunk.hidden_replayed(ids, n_frozen).unwrap()));
            let above = (n_frozen > 0).then(|| {
                after(&|ids| {
                    let below = trunk.states_below(ids, n_frozen).unwrap();
                    way_back(trunk.hidden_above_replayed(&below, n_frozen).unwrap());
                })
            });
            for found in [Some(replayed), above].into_iter().flatten() {
                for ((name, plain), (_, found)) in plain.iter().zip(&found) {
                    assert!(bits(plain) == bits(found), "{case} {name} {precision:?} {trained:?}");
                    compared += i32::from(plain.abs().sum(Kind::Double).double_value(&[]) > 0.0);
                }
            }
        }
    }
    assert_eq!(compared, 688);
}

#[test]
fn parts_of_the_trunk_make_the_whole() {
    for kind in [Kind::Double, Kind::Float] {
        let config = config();
        let decoder = common::decoder(&config, 4, kind);
        let (trunk, ids) = (decoder.trunk(), ids(4, 9));
        let whole = trunk.hidden(&ids).unwrap();
        for n_frozen in 0..=3 {
            let below = trunk.states_below(&ids, n_frozen).unwrap();
            assert!(!below.requires_grad());
            assert_eq!(below.size(), [4, 9, config.hidden_size as i64]);
            let above = trunk.hidden_above(&below, n_frozen).unwrap();
            assert!(bits(&whole) == bits(&above), "{n_frozen}");
        }
        // Padding on the right, of whatever kind, changes a row by rounding at most.
        let below = trunk.states_below(&ids.narrow(1, 0, 5), 2).unwrap();
        let padded = below.constant_pad_nd([0, 0, 0, 4]);
        let above = trunk.hidden_above(&padded, 2).unwrap().narrow(1, 0, 5);
        let largest = (above - whole.narrow(1, 0, 5)).abs().max() / whole.abs().max();
        let difference = largest.double_value(&[]);
        assert!(
            difference < if kind == Kind::Double { 1e-12 } else { 1e-6 },
            "{difference}"
        );
    }
}

#[test]
fn what_is_trained_says_what_is_frozen_below() {
    let config = config();
    let frozen = |trained: &Trained, tied: bool| {
        let mut config = config.clone();
        config.tie_word_embeddings = tied;
        let decoder = common::decoder(&config, 1, Kind::Float)
            .with_trained(trained, &mut ChaCha8Rng::seed_from_u64(1))
            .unwrap();
        let names: Vec<String> = decoder.params().trainable().map(|p| p.name().to_owned()).collect();
        (decoder.params().n_frozen(), names)
    };
    assert_eq!(frozen(&Trained::All {}, true).0, 0);
    assert_eq!(frozen(&top(3), true).0, 0);
    assert_eq!(frozen(&top(2), true).0, 1);
    let (n_frozen, names) = frozen(&top(1), true);
    assert_eq!((n_frozen, names.len()), (2, 10));
    assert!(names[..9].iter().all(|name| name.starts_with("model.layers.2.")));
    assert_eq!(names[9], "model.norm.weight");
    // An output embedding of its own stands above.
    assert_eq!(frozen(&top(1), false).1[10..], ["lm_head.weight"]);
    let mut decoder = common::decoder(&config, 1, Kind::Float);
    decoder = decoder
        .with_trained(&top(1), &mut ChaCha8Rng::seed_from_u64(1))
        .unwrap();
    let below: Vec<&str> = decoder.params().below(1).map(|p| p.name()).collect();
    assert_eq!(below.len(), 10);
    assert_eq!(below[0], "model.embed_tokens.weight");
    let error = decoder
        .with_trained(&top(4), &mut ChaCha8Rng::seed_from_u64(1))
        .unwrap_err()
        .to_string();
    assert!(error.contains("`layers`: expected at most 3"), "{error}");
}

#[test]
fn states_that_do_not_fit_are_errors() {
    let decoder = common::decoder(&config(), 1, Kind::Float);
    let trunk = decoder.trunk();
    let width = config().hidden_size as i64;
    let states = |size: &[i64], kind| Tensor::zeros(size, (kind, tch::Device::Cpu));
    for wrong in [
        states(&[1, 3, width + 1], Kind::Float),
        states(&[1, 3, width], Kind::Double),
        states(&[3, width], Kind::Float),
        states(&[1, 0, width], Kind::Float),
        states(&[0, 3, width], Kind::Float),
        states(&[1, config().max_position_embeddings as i64 + 1, width], Kind::Float),
    ] {
        let error = trunk.hidden_above(&wrong, 1).unwrap_err().to_string();
        assert!(error.starts_with("states between blocks: expected [B, T, "), "{error}");
    }
    let error = trunk.states_below(&ids(1, 3), 9).unwrap_err().to_string();
    assert!(error.contains("frozen blocks: expected at most"), "{error}");
    assert!(trunk.hidden_replayed(&ids(1, 3), 9).is_err());
    assert!(
        trunk
            .hidden_above_replayed(&states(&[1, 3, width], Kind::Float), 9)
            .is_err()
    );
    // A pass of which nobody wants the gradient does nothing on its way back.
    trunk.hidden_replayed(&ids(1, 3), 0).unwrap().backward().unwrap();
}
