//! What holds for every architecture: new models, their folders and classifiers, cached generation, and the fields
//! that each one refuses by name.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::Path;

use common::{architectures as all, config, decoder, random, random_ids};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor, no_grad};
use unsay_model::{
    Architecture, Config, Decoder, Generation, LoraConfig, Mistral, Precision, RopeScaling, Sampling,
    SequenceClassifier, TargetModules, Trained,
};

fn logits(decoder: &Decoder, ids: &Tensor) -> Tensor {
    no_grad(|| {
        let hidden = decoder.hidden(ids).unwrap();
        hidden.linear(&decoder.output_embedding(), None::<&Tensor>)
    })
}

#[test]
fn new_models_survive_their_folders_and_keep_their_description() {
    tch::set_num_threads(1);
    let mut seen = 0;
    for (i, config) in all().into_iter().enumerate() {
        let model = decoder(&config, i as u64, Kind::Double);
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path()).unwrap();
        let back = Decoder::load(folder.path(), Device::Cpu).unwrap();
        assert_eq!(back.config(), &config);
        let ids = Tensor::from_slice(&random_ids(18, config.vocab_size, i as u64)).view([2, 9]);
        let found = logits(&model, &ids);
        assert!(found.equal(&logits(&back, &ids)), "{config:?}");
        assert!(found.std(false).double_value(&[]) > 0.1, "{config:?}");
        for (name, tensor) in model.params().iter().filter(|(name, _)| name.ends_with("bias")) {
            assert!(tensor.abs().max().double_value(&[]) == 0.0, "{name}");
        }
        seen += 1;
    }
    assert_eq!(seen, 9);
}

#[test]
fn every_linear_map_takes_an_adapter() {
    tch::set_num_threads(1);
    let settings = LoraConfig {
        r: 2,
        alpha: 3.0,
        target_modules: TargetModules::AllLinear,
        layers: None,
        use_rslora: false,
    };
    let mut seen = 0;
    for config in all() {
        let mut model = decoder(&config, 1, Kind::Double);
        let ids = Tensor::from_slice(&random_ids(18, config.vocab_size, 2)).view([2, 9]);
        let base = logits(&model, &ids);
        model.add_lora(&settings, &mut ChaCha8Rng::seed_from_u64(3)).unwrap();
        assert!(logits(&model, &ids).equal(&base), "{config:?}");
        for (seed, param) in (30..).zip(model.params().trainable()) {
            let values = random(&param.value().size(), seed) * 0.5;
            no_grad(|| param.value().shallow_clone().copy_(&values));
        }
        let on = logits(&model, &ids);
        model.hidden(&ids).unwrap().square().sum(Kind::Double).backward();
        assert!(
            model.params().trainable().all(|p| p.value().grad().defined()),
            "{config:?}"
        );
        assert_eq!(model.params().trainable().count(), 2 * model.linear_modules().len());
        let folder = tempfile::tempdir().unwrap();
        model.save_adapter(folder.path(), "base").unwrap();
        let mut back = decoder(&config, 1, Kind::Double);
        assert!(back.load_adapter(folder.path()).unwrap().is_empty());
        assert_eq!(back.adapter(), Some(&settings));
        assert!(logits(&back, &ids).equal(&on), "{config:?}");
        model.merge_adapter().unwrap();
        let difference = (logits(&model, &ids) - &on).abs().max() / on.abs().max();
        assert!(difference.double_value(&[]) < 1e-11, "{config:?}");
        assert!((&on - &base).abs().max().double_value(&[]) > 0.1);
        seen += 1;
    }
    assert_eq!(seen, 9);
}

#[test]
fn every_linear_map_is_listed_and_nothing_else() {
    let mut seen = 0;
    for config in all() {
        let model = decoder(&config, 1, Kind::Float);
        let modules = model.linear_modules();
        let in_blocks = |name: &str| name.contains(".layers.") || name.contains(".h.");
        let matrices: Vec<String> = model
            .params()
            .iter()
            .filter(|(name, tensor)| tensor.dim() == 2 && in_blocks(name))
            .map(|(name, _)| name.strip_suffix(".weight").unwrap().to_owned())
            .collect();
        assert_eq!(modules, matrices);
        seen += modules.len();
    }
    assert_eq!(seen, 3 * (7 * 7 + 4 + 4));
}

#[test]
fn padding_changes_nothing_and_a_cache_sees_what_the_whole_sequence_sees() {
    tch::set_num_threads(1);
    let mut seen = 0;
    for (i, config) in all().into_iter().enumerate() {
        let model = decoder(&config, 50 + i as u64, Kind::Double);
        let prompts: Vec<Vec<u32>> = [5, 2, 9]
            .iter()
            .map(|&n| {
                random_ids(n, config.vocab_size, n as u64)
                    .into_iter()
                    .map(|id| id as u32)
                    .collect()
            })
            .collect();
        let sampling = Sampling {
            min_new_tokens: 8,
            ..Sampling::greedy(8)
        };
        let found = Generation::new(&model, &sampling, &[3]).run(&prompts).unwrap();
        for (prompt, found) in prompts.iter().zip(&found) {
            let mut tokens: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
            for &id in &found.ids {
                let next = logits(&model, &Tensor::from_slice(&tokens).view([1, -1]));
                let next = next.get(0).get(tokens.len() as i64 - 1);
                let _ = next.get(3).fill_(f64::NEG_INFINITY);
                assert_eq!(next.argmax(-1, false).int64_value(&[]), i64::from(id), "{config:?}");
                tokens.push(i64::from(id));
                seen += 1;
            }
        }
        // Rows padded on either side give the states of a row alone.
        let ids = random_ids(6, config.vocab_size, 3);
        let alone = no_grad(|| model.hidden(&Tensor::from_slice(&ids).view([1, 6])).unwrap());
        for left in [0, 2, 4] {
            let real: Vec<bool> = (0..10).map(|at| (left..left + 6).contains(&at)).collect();
            let mut padded = vec![7_i64; 10];
            padded[left..left + 6].copy_from_slice(&ids);
            let (padded, real) = (
                Tensor::from_slice(&padded).view([1, 10]),
                Tensor::from_slice(&real).view([1, 10]),
            );
            let states = no_grad(|| model.hidden_with_mask(&padded, &real).unwrap());
            let difference = (states.narrow(1, left as i64, 6) - &alone)
                .abs()
                .max()
                .double_value(&[]);
            assert!(difference < 1e-12, "{config:?}: {difference:e}");
        }
    }
    assert_eq!(seen, 9 * 3 * 8);
}

#[test]
fn a_window_hides_what_lies_before_it() {
    tch::set_num_threads(1);
    let architecture = Architecture::Mistral(Mistral {
        sliding_window: Some(3),
    });
    let config = Config {
        architecture,
        ..config(4, 2, 6, 1)
    };
    let model = decoder(&config, 1, Kind::Double);
    let ids = random_ids(8, config.vocab_size, 1);
    let before = logits(&model, &Tensor::from_slice(&ids).view([1, 8]));
    let mut other = ids.clone();
    other[2] = (other[2] + 1) % 31;
    let after = logits(&model, &Tensor::from_slice(&other).view([1, 8]));
    let moved: Vec<bool> = (0..8)
        .map(|at| {
            (before.get(0).get(at) - after.get(0).get(at))
                .abs()
                .max()
                .double_value(&[])
                > 0.0
        })
        .collect();
    assert_eq!(moved, [false, false, true, true, true, false, false, false]);
}

#[test]
fn a_classifier_of_every_architecture_survives_its_folder() {
    tch::set_num_threads(1);
    let mut classes = Vec::new();
    for config in all() {
        let model = decoder(&config, 4, Kind::Double);
        let classifier = SequenceClassifier::from_trunk(model, &mut ChaCha8Rng::seed_from_u64(6)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        classifier.save(folder.path()).unwrap();
        let back = SequenceClassifier::load(folder.path(), Device::Cpu).unwrap();
        let ids = Tensor::from_slice(&random_ids(12, config.vocab_size, 5)).view([2, 6]);
        let lengths = Tensor::from_slice(&[6_i64, 2]);
        assert!(
            classifier
                .logits(&ids, &lengths)
                .unwrap()
                .equal(&back.logits(&ids, &lengths).unwrap())
        );
        classes.push(read(folder.path())["architectures"][0].as_str().unwrap().to_owned());
    }
    classes.dedup();
    let names = ["Llama", "Mistral", "Qwen2", "Phi3", "GPT2"].map(|n| format!("{n}ForSequenceClassification"));
    assert_eq!(classes, names);
}

fn read(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

#[test]
fn yarn_with_a_null_truncate_does_not_truncate() {
    let folder = tempfile::tempdir().unwrap();
    decoder(&config(4, 2, 6, 3), 4, Kind::Float)
        .save(folder.path())
        .unwrap();
    let truncate = |stated: Option<Value>| {
        let mut map = read(folder.path());
        map["rope_scaling"] = json!({"rope_type": "yarn", "factor": 2.0});
        if let Some(stated) = stated {
            map["rope_scaling"]["truncate"] = stated;
        }
        fs::write(folder.path().join("config.json"), map.to_string()).unwrap();
        match Decoder::load(folder.path(), Device::Cpu).unwrap().config().rope_scaling {
            RopeScaling::Yarn { truncate, .. } => truncate,
            other => panic!("{other:?}"),
        }
    };
    assert!(truncate(None) && truncate(Some(json!(true))));
    assert!(!truncate(Some(Value::Null)) && !truncate(Some(json!(false))));
}

#[test]
fn each_architecture_refuses_by_name_what_it_does_not_compute() {
    let cases: [(&str, &[(&str, Value)]); 5] = [
        (
            "llama",
            &[
                ("sliding_window", json!(4)),
                ("partial_rotary_factor", json!(0.5)),
                ("layer_types", json!(["sliding_attention"])),
                ("hidden_act", json!("quick_gelu")),
            ],
        ),
        (
            "mistral",
            &[
                ("sliding_window", json!(0)),
                ("attention_bias", json!(true)),
                (
                    "layer_types",
                    json!(["full_attention", "full_attention", "full_attention"]),
                ),
                ("num_key_value_heads", json!(3)),
            ],
        ),
        (
            "qwen2",
            &[
                ("use_mrope", json!(true)),
                ("layer_types", json!(["full_attention"])),
                ("layer_types", json!(["linear_attention"])),
                ("use_sliding_window", json!(false)),
                ("sliding_window", json!("wide")),
                ("attention_bias", json!(false)),
            ],
        ),
        (
            "phi3",
            &[
                (
                    "rope_scaling",
                    json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
                ),
                ("rope_scaling", json!({"type": "yarn", "factor": 2.0})),
                ("partial_rotary_factor", json!(1.5)),
                ("attention_bias", json!(true)),
            ],
        ),
        (
            "gpt2",
            &[
                ("scale_attn_weights", json!(false)),
                ("scale_attn_by_inverse_layer_idx", json!(true)),
                ("reorder_and_upcast_attn", json!(true)),
                ("activation_function", json!("tanh")),
                ("n_embd", json!(23)),
                ("n_head", json!(0)),
                ("hidden_size", json!(12)),
                ("add_cross_attention", json!(true)),
            ],
        ),
    ];
    let configs = all();
    let mut refused = 0;
    for (model_type, fields) in cases {
        let folder = tempfile::tempdir().unwrap();
        let config = configs.iter().find(|config| {
            decoder(config, 1, Kind::Float).save(folder.path()).unwrap();
            read(folder.path())["model_type"] == model_type
        });
        assert!(config.is_some());
        let good = read(folder.path());
        for (name, value) in fields {
            let mut broken = good.clone();
            broken[*name] = value.clone();
            fs::write(folder.path().join("config.json"), broken.to_string()).unwrap();
            let error = Decoder::load(folder.path(), Device::Cpu).unwrap_err().to_string();
            assert!(
                error.contains("config.json`: ") && error.contains(name),
                "{model_type} {name}: {error}"
            );
            refused += 1;
        }
    }
    assert_eq!(refused, 4 + 4 + 6 + 4 + 8);
}

/// All gradients, and sets them to zero.
fn gradients(decoder: &Decoder) -> Vec<(String, Tensor)> {
    let found = decoder.params().trainable().map(|param| {
        let gradient = param.gradient().unwrap().unwrap();
        (param.name().to_owned(), gradient.copy())
    });
    let found = found.collect();
    decoder.params().zero_grad().unwrap();
    found
}

#[test]
fn parts_of_the_trunk_and_passes_in_stages_are_the_whole() {
    let ids = Tensor::from_slice(&random_ids(18, 31, 2)).view([2, 9]);
    let mut compared = 0;
    for config in all() {
        for trained in [Trained::All {}, Trained::Top { layers: 2 }] {
            let decoder = decoder(&config, 3, Kind::Float)
                .with_trained(&trained, &mut ChaCha8Rng::seed_from_u64(1))
                .unwrap();
            let (trunk, n_frozen) = (decoder.trunk(), decoder.params().n_frozen());
            assert_eq!(n_frozen, if trained.is_default() { 0 } else { 1 });
            let whole = trunk.hidden(&ids).unwrap();
            let below = trunk.states_below(&ids, 1).unwrap();
            let above = trunk.hidden_above(&below, 1, None).unwrap();
            assert!((&whole - above).abs().max().double_value(&[]) == 0.0, "{config:?}");
            let loss = |states: &Tensor| states.matmul(&decoder.output_embedding().tr()).tanh().sum(Kind::Float);
            loss(&whole).backward();
            let plain = gradients(&decoder);
            let replayed = trunk.hidden_staged(&ids, n_frozen, None, true).unwrap();
            loss(replayed.states()).backward();
            replayed.backward().unwrap();
            for ((name, plain), (_, replayed)) in plain.iter().zip(gradients(&decoder)) {
                let off =
                    (plain - replayed).abs().max().double_value(&[]) / plain.abs().max().double_value(&[]).max(1e-9);
                assert!(off < 1e-5, "{name} of {config:?}: {off}");
                compared += 1;
            }
        }
    }
    assert!(compared > 400, "{compared}");
}

#[test]
fn bf16_is_near_f32() {
    let ids = Tensor::from_slice(&random_ids(18, 31, 2)).view([2, 9]);
    for config in all() {
        let config = Config {
            initializer_range: 0.1,
            ..config
        };
        let hidden = |precision| {
            let decoder = decoder(&config, 3, Kind::Float).with_precision(precision).unwrap();
            decoder.hidden(&ids).unwrap().to_kind(Kind::Float)
        };
        let (plain, narrow) = (
            hidden(Precision::default()),
            hidden(Precision::Bf16 { even_if_slower: true }),
        );
        let difference = (&plain - narrow).abs().max().double_value(&[]);
        assert!((1e-4..0.2).contains(&difference), "{difference}: {config:?}");
    }
}
