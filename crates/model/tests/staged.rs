//! The trunk in parts: passes in stages, with what they keep or replay, and states between blocks.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::HashMap;
use std::path::Path;

use common::random_ids;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};
use unsay_model::{Config, Decoder, LoraConfig, Precision, Products, Staged, TargetModules, Trained};

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

/// How far a gradient may be from autograd's, of its largest number: in f32 and bf16 sums are rounded elsewhere.
fn tolerance(kind: Kind, precision: Precision) -> f64 {
    match (kind, precision.kind()) {
        (Kind::Double, _) => 1e-12,
        (_, Kind::BFloat16) => 0.04,
        _ => 2e-6,
    }
}

/// The largest difference, of the largest number of the first.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let largest = a.abs().max().double_value(&[]).max(1e-9);
    (a - b).abs().max().double_value(&[]) / largest
}

#[test]
fn gradients_in_stages_are_those_of_autograd_and_replayed_the_same_bit_for_bit() {
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
                let [staged, replayed] = [false, true].map(|replay| {
                    let staged = decoder.trunk().hidden_staged(&ids, n_frozen, None, replay).unwrap();
                    backward(&decoder, staged.states());
                    staged.backward().unwrap();
                    gradients(&decoder)
                });
                assert_eq!((plain.len(), plain.len()), (staged.len(), replayed.len()));
                for (((name, plain), (_, staged)), (_, replayed)) in plain.iter().zip(&staged).zip(&replayed) {
                    let what = format!("{name} {tied} {precision:?} {trained:?}");
                    assert!(plain.abs().sum(Kind::Double).double_value(&[]) > 0.0, "{name}");
                    assert!(bits(staged) == bits(replayed), "{what}");
                    let off = distance(plain, staged);
                    assert!(off < tolerance(kind, precision), "{what}: {off}");
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
fn gradients_in_stages_are_those_of_autograd_in_every_architecture() {
    let bf16 = Precision::Bf16 { even_if_slower: true };
    let lora = LoraConfig {
        r: 2,
        alpha: 6.0,
        target_modules: TargetModules::AllLinear,
        layers: None,
        use_rslora: false,
    };
    let (mut compared, mut exact) = (0, HashMap::new());
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
                // Not all alike: what a layer norm hands back adds up to nothing.
                let full = param.full();
                let varied = Tensor::arange(full.numel() as i64, (full.kind(), Device::Cpu)).sin() * 0.5;
                tch::no_grad(|| full.shallow_clone().copy_(&varied.view_as(full)));
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
            let way_back = |staged: Staged<'_>| {
                backward(&decoder, staged.states());
                staged.backward().unwrap();
            };
            let staged = after(&|ids| way_back(trunk.hidden_staged(ids, n_frozen, None, false).unwrap()));
            let replayed = after(&|ids| way_back(trunk.hidden_staged(ids, n_frozen, None, true).unwrap()));
            let above = (n_frozen > 0).then(|| {
                after(&|ids| {
                    let below = trunk.states_below(ids, n_frozen).unwrap();
                    way_back(trunk.hidden_above_staged(&below, n_frozen, None, false).unwrap());
                })
            });
            for ((name, plain), (_, found)) in plain.iter().zip(&staged) {
                let off = distance(plain, found);
                // In bf16 small differences of large numbers are mostly rounding, autograd's own too.
                let f32s = exact
                    .entry(format!("{case} {name} {trained:?}"))
                    .or_insert_with(|| plain.copy());
                let most = tolerance(Kind::Float, precision).max(distance(f32s, plain));
                assert!(off < most, "{case} {name} {precision:?} {trained:?}: {off}");
            }
            for found in [Some(replayed), above].into_iter().flatten() {
                for ((name, plain), (_, found)) in staged.iter().zip(&found) {
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
            let above = trunk.hidden_above(&below, n_frozen, None).unwrap();
            assert!(bits(&whole) == bits(&above), "{n_frozen}");
        }
        // Padding on the right, of whatever kind, changes a row by rounding at most.
        let below = trunk.states_below(&ids.narrow(1, 0, 5), 2).unwrap();
        let padded = below.constant_pad_nd([0, 0, 0, 4]);
        let above = trunk.hidden_above(&padded, 2, None).unwrap().narrow(1, 0, 5);
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
        let error = trunk.hidden_above(&wrong, 1, None).unwrap_err().to_string();
        assert!(error.starts_with("states between blocks: expected [B, T, "), "{error}");
    }
    let error = trunk.states_below(&ids(1, 3), 9).unwrap_err().to_string();
    assert!(error.contains("frozen blocks: expected at most"), "{error}");
    assert!(trunk.hidden_staged(&ids(1, 3), 9, None, true).is_err());
    assert!(
        trunk
            .hidden_above_staged(&states(&[1, 3, width], Kind::Float), 9, None, false)
            .is_err()
    );
    // A pass of which nobody wants the gradient does nothing on its way back.
    for replay in [false, true] {
        let staged = trunk.hidden_staged(&ids(1, 3), 0, None, replay).unwrap();
        staged.backward().unwrap();
    }
}

/// As [`backward`], without its rounding to f32.
fn in_double(decoder: &Decoder, states: &Tensor) {
    let logits = states.matmul(&decoder.output_embedding().tr());
    logits.tanh().sum(Kind::Double).backward();
}

/// States at some positions, and the gradients that come with them, are those of all positions where the loss reads
/// these alone, whatever part is trained and wherever the pass begins.
#[test]
fn states_at_rows_are_rows_of_the_states() {
    let rows = Tensor::from_slice(&[2_i64, 3, 8, 13, 20]);
    let mut compared = 0;
    for trained in [Trained::All {}, top(1), top(2)] {
        let decoder = common::decoder(&config(), 4, Kind::Double)
            .with_trained(&trained, &mut ChaCha8Rng::seed_from_u64(1))
            .unwrap();
        let (trunk, ids, n_frozen) = (decoder.trunk(), ids(3, 7), decoder.params().n_frozen());
        let below = trunk.states_below(&ids, n_frozen).unwrap();
        let whole = trunk.hidden(&ids).unwrap().reshape([21, -1]).index_select(0, &rows);
        in_double(&decoder, &whole);
        let expected = gradients(&decoder);
        let mut check = |states: &Tensor, way_back: &dyn Fn()| {
            assert!(distance(&whole, states) < 1e-12);
            in_double(&decoder, states);
            way_back();
            for ((name, expected), (_, found)) in expected.iter().zip(gradients(&decoder)) {
                assert!(distance(expected, &found) < 1e-12, "{name} {trained:?}");
                compared += 1;
            }
        };
        check(&trunk.hidden_at(&ids, &rows).unwrap(), &|| ());
        if n_frozen > 0 {
            check(&trunk.hidden_above(&below, n_frozen, Some(&rows)).unwrap(), &|| ());
        }
        for replay in [false, true] {
            let mut staged = vec![trunk.hidden_staged(&ids, n_frozen, Some(&rows), replay).unwrap()];
            if n_frozen > 0 {
                staged.push(
                    trunk
                        .hidden_above_staged(&below, n_frozen, Some(&rows), replay)
                        .unwrap(),
                );
            }
            for staged in staged {
                let states = staged.states().shallow_clone();
                let staged = std::cell::Cell::new(Some(staged));
                check(&states, &|| staged.take().unwrap().backward().unwrap());
            }
        }
    }
    assert!(compared > 100, "{compared}");
    let decoder = common::decoder(&config(), 4, Kind::Double);
    // Above all blocks there is only the norm.
    let all = decoder.trunk().states_below(&ids(3, 7), 3).unwrap();
    let last = decoder.trunk().hidden_above(&all, 3, Some(&rows)).unwrap();
    assert!(distance(&decoder.trunk().hidden_at(&ids(3, 7), &rows).unwrap(), &last) < 1e-12);
    // Where they are all frozen, the last one makes the wanted rows, and they are picked once: 2 and 3 are rows of these
    // few, too.
    for rows in [
        Tensor::from_slice(&[2_i64, 3, 8, 13, 20]),
        Tensor::from_slice(&[1_i64, 0]),
    ] {
        let whole = decoder.trunk().hidden_at(&ids(3, 7), &rows).unwrap();
        for replay in [false, true] {
            let staged = decoder
                .trunk()
                .hidden_staged(&ids(3, 7), 3, Some(&rows), replay)
                .unwrap();
            assert!(distance(&whole, staged.states()) < 1e-12);
        }
    }
    for wrong in [
        Tensor::from_slice(&[21_i64]),
        Tensor::from_slice(&[-1_i64]),
        Tensor::from_slice(&[1_i32]),
        Tensor::from_slice::<i64>(&[]),
        Tensor::from_slice(&[1_i64]).view([1, 1]),
    ] {
        let error = decoder.trunk().hidden_at(&ids(3, 7), &wrong).unwrap_err().to_string();
        assert!(
            error.starts_with("rows: expected a non-empty [N] of Int64, below 21, got "),
            "{error}"
        );
    }
}

/// Where oneDNN multiplies, only rounding differs: one big enough batch, both ways, in value and gradient.
#[test]
fn products_by_onednn_are_those_of_blas() {
    let decoder = |products| common::decoder(&config(), 4, Kind::Float).multiplying_by(products);
    let (plain, other) = (decoder(Products::Blas), decoder(Products::OneDnn));
    let ids = ids(16, 9);
    let after = |decoder: &Decoder| {
        let staged = decoder.trunk().hidden_staged(&ids, 0, None, false).unwrap();
        backward(decoder, staged.states());
        let states = staged.states().detach();
        staged.backward().unwrap();
        (states, gradients(decoder))
    };
    let ((a, plain_gradients), (b, gradients)) = (after(&plain), after(&other));
    assert!(distance(&a, &b) < 2e-6 && bits(&a) != bits(&b));
    for ((name, plain), (_, found)) in plain_gradients.iter().zip(&gradients) {
        let off = distance(plain, found);
        assert!(off < 5e-6, "{name}: {off}");
    }
    assert_eq!(gradients.len(), 29);
    // Nothing of it where it does not apply.
    let wide = common::decoder(&config(), 4, Kind::Double).multiplying_by(Products::OneDnn);
    assert_eq!(wide.products(), Products::Blas);
}

/// Rows of zeros below a batch that oneDNN multiplies, in f32 and in bf16, add nothing: its gradients are those of two parts
/// that are too small for it.
#[test]
fn a_batch_that_is_filled_up_has_the_gradients_of_its_parts() {
    let bf16 = Precision::Bf16 { even_if_slower: true };
    for precision in [Precision::default(), bf16] {
        let decoder = common::decoder(&config(), 4, Kind::Float).multiplying_by(Products::OneDnn);
        let decoder = decoder.with_precision(precision).unwrap();
        let ids = ids(19, 9);
        let way_back = |ids: &Tensor| {
            let staged = decoder.trunk().hidden_staged(ids, 0, None, false).unwrap();
            backward(&decoder, staged.states());
            let states = staged.states().detach();
            staged.backward().unwrap();
            states
        };
        let whole = way_back(&ids);
        let of_whole = gradients(&decoder);
        let parts = [ids.narrow(0, 0, 10), ids.narrow(0, 10, 9)].map(|part| way_back(&part));
        // From the same in f64, these states of MKL and of oneDNN are 2.6e-6 and 5.4e-6 away.
        let most = if precision == bf16 { 0.1 } else { 1e-5 };
        assert_eq!(whole.size()[..2], [19, 9]);
        assert!(distance(&Tensor::cat(&parts, 0), &whole) < most);
        for ((name, whole), (_, parts)) in of_whole.iter().zip(gradients(&decoder)) {
            let off = distance(whole, &parts);
            assert!(off < most, "{name} {precision:?}: {off}");
        }
        assert_eq!(of_whole.len(), 29);
    }
}

/// The first way back after zeros writes its gradients, later ones add theirs, and so does the first one where autograd has
/// been there before it.
#[test]
fn gradients_are_added_to_what_is_there() {
    let bf16 = Precision::Bf16 { even_if_slower: true };
    let ways = [
        (Kind::Double, Precision::default(), Products::Blas),
        (Kind::Float, Precision::default(), Products::OneDnn),
        (Kind::Float, bf16, Products::Blas),
    ];
    let mut compared = 0;
    for (kind, precision, products) in ways {
        let decoder = common::decoder(&config(), 4, kind).multiplying_by(products);
        let decoder = decoder.with_precision(precision).unwrap();
        let ids = ids(16, 9);
        let way_back = || {
            let staged = decoder.trunk().hidden_staged(&ids, 0, None, false).unwrap();
            backward(&decoder, staged.states());
            staged.backward().unwrap();
        };
        let autograd = || {
            for param in decoder.params().trainable() {
                (param.value() * 2.0).sum(None::<Kind>).backward();
            }
        };
        way_back();
        let first = gradients(&decoder);
        way_back();
        let again = gradients(&decoder);
        autograd();
        way_back();
        way_back();
        let all = gradients(&decoder);
        // Twice zero is zero, too.
        decoder.params().zero_grad().unwrap();
        autograd();
        let by_autograd = gradients(&decoder);
        for ((((name, first), (_, again)), (_, all)), (_, other)) in
            first.iter().zip(&again).zip(&all).zip(&by_autograd)
        {
            assert!(bits(first) == bits(again), "{name} {precision:?}");
            let off = distance(&(first * 2.0 + 2.0), all);
            assert!(off < tolerance(kind, precision), "{name} {precision:?}: {off}");
            assert!(distance(&other.ones_like(), &(other / 2.0)) < 1e-12, "{name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 3 * 29);
}
