//! Model folders: what is written is read back bit for bit; what is broken is refused with its place.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::Path;

use common::{config, decoder, random_ids};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor, no_grad};
use unsay_model::{Config, Decoder, Params, SequenceClassifier, weights};

fn bits(params: &Params) -> Vec<(String, Vec<u8>)> {
    let bytes = |t: &Tensor| {
        let mut bytes = vec![0; t.numel() * t.kind().elt_size_in_bytes()];
        t.detach().copy_data_u8(&mut bytes, t.numel());
        bytes
    };
    params.iter().map(|(n, t)| (n.to_owned(), bytes(t))).collect()
}

fn small(tied: bool) -> Config {
    let mut config = config(4, 2, 4, 2);
    config.tie_word_embeddings = tied;
    config.pad_token_id = Some(0);
    config.eos_token_ids = vec![3];
    config.other.insert("use_cache".to_owned(), json!(true));
    config
}

fn saved(tied: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    decoder(&small(tied), 1, Kind::Float).save(folder.path()).unwrap();
    folder
}

#[test]
fn a_saved_model_is_read_back_bit_for_bit() {
    for (tied, kind, tensors) in [
        (true, Kind::Float, 20),
        (false, Kind::Float, 21),
        (true, Kind::Double, 20),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new").join("folder");
        let model = decoder(&small(tied), 2, kind);
        model.save(&dir).unwrap();
        model.save(&dir).unwrap();
        let back = Decoder::load(&dir, Device::Cpu).unwrap();
        assert_eq!(bits(model.params()), bits(back.params()));
        assert_eq!(model.config(), back.config());
        assert_eq!(back.params().len(), tensors);
        assert!(back.params().iter().all(|(_, t)| t.requires_grad() && t.is_leaf()));
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["config.json", "model.safetensors"]);
    }
}

#[test]
fn the_files_are_what_hugging_face_reads() {
    let folder = saved(true);
    let bytes = fs::read(folder.path().join("model.safetensors")).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert!(metadata.info("lm_head.weight").is_none());
    assert_eq!(
        metadata.info("model.layers.1.self_attn.k_proj.weight").unwrap().shape,
        [8, 16]
    );
    let config: Value = serde_json::from_slice(&fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"], json!(["LlamaForCausalLM"]));
    assert_eq!(config["model_type"], "llama");
    assert_eq!(config["torch_dtype"], "float32");
    assert_eq!(config["use_cache"], true);
}

#[test]
fn half_precision_is_widened() {
    let folder = saved(true);
    let path = folder.path().join("model.safetensors");
    let halves: Vec<_> = weights::read(&path)
        .unwrap()
        .into_iter()
        .map(|(n, t)| (n, t.to_kind(Kind::BFloat16)))
        .collect();
    weights::write(&path, halves.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
    let back = Decoder::load(folder.path(), Device::Cpu).unwrap();
    for (name, half) in halves {
        let found = back.params().get(&name).unwrap().detach();
        assert_eq!(found.kind(), Kind::Float);
        assert_eq!(found, half.to_kind(Kind::Float));
    }
}

fn load_error(dir: &Path) -> String {
    Decoder::load(dir, Device::Cpu).unwrap_err().to_string()
}

#[test]
fn a_description_with_other_maths_is_refused_by_name() {
    let cases = [
        ("model_type", json!("gemma3")),
        ("model_type", Value::Null),
        ("hidden_act", json!("quick_gelu")),
        ("rope_scaling", json!({"factor": 8.0, "rope_type": "llama3"})),
        ("rope_scaling", json!({"factor": 8.0, "type": "dynamic"})),
        (
            "rope_scaling",
            json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}),
        ),
        ("rope_scaling", json!({"factor": 0.0, "rope_type": "linear"})),
        (
            "rope_scaling",
            json!({"factor": 2.0, "rope_type": "linear", "type": "yarn"}),
        ),
        (
            "rope_scaling",
            json!({"factor": 2.0, "rope_type": "linear", "mscale": 1.0}),
        ),
        ("rope_scaling", json!("linear")),
        ("rope_parameters", json!({"rope_type": "yarn", "rope_theta": 10000.0})),
        ("rope_parameters", json!({"rope_theta": 7.0})),
        ("partial_rotary_factor", json!(0.5)),
        ("sliding_window", json!(128)),
        ("quantization_config", json!({"bits": 4})),
        ("architectures", json!(["LlamaForSequenceClassification"])),
        ("vocab_size", json!(0)),
        ("vocab_size", json!(1_u64 << 40)),
        ("hidden_size", json!("16")),
        ("hidden_size", json!(-16)),
        ("num_hidden_layers", json!(2.5)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(5)),
        ("num_key_value_heads", json!(3)),
        ("rms_norm_eps", json!("small")),
        ("rope_theta", json!(-1)),
        ("tie_word_embeddings", json!("yes")),
        ("eos_token_id", json!([1, "2"])),
        ("pad_token_id", json!(31)),
        ("max_position_embeddings", json!(0)),
    ];
    let folder = saved(true);
    let path = folder.path().join("config.json");
    let good: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (name, value) in cases {
        let mut broken = good.clone();
        broken[name] = value;
        fs::write(&path, broken.to_string()).unwrap();
        let error = load_error(folder.path());
        assert!(
            error.contains("config.json`: ") && error.contains(name.trim_end_matches("_parameters")),
            "{name}: {error}"
        );
    }
    for text in ["", "{", "[]", "null", "{\"model_type\": \"llama\"}", "\u{fffd}"] {
        fs::write(&path, text).unwrap();
        assert!(load_error(folder.path()).contains("config.json`: "), "{text}");
    }
    fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(load_error(folder.path()).contains("larger than"));
    fs::remove_file(&path).unwrap();
    assert!(load_error(folder.path()).starts_with("cannot open"));
}

#[test]
fn defaults_and_newer_forms_are_read() {
    let folder = saved(true);
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let map = config.as_object_mut().unwrap();
    for name in [
        "head_dim",
        "rope_theta",
        "attention_bias",
        "hidden_act",
        "architectures",
        "torch_dtype",
        "rms_norm_eps",
    ] {
        map.shift_remove(name);
    }
    map.insert(
        "rope_parameters".to_owned(),
        json!({"rope_type": "default", "rope_theta": 500.0}),
    );
    map.insert("rope_scaling".to_owned(), Value::Null);
    fs::write(&path, config.to_string()).unwrap();
    let back = Decoder::load(folder.path(), Device::Cpu).unwrap();
    let config = back.config();
    assert_eq!((config.head_dim, config.rope_theta.to_bits()), (4, 500.0_f64.to_bits()));
    assert_eq!(config.norm_eps.to_bits(), 1e-6_f64.to_bits());
}

#[test]
fn a_broken_weight_file_is_refused_with_its_place() {
    let folder = saved(true);
    let path = folder.path().join("model.safetensors");
    let good = fs::read(&path).unwrap();
    let huge = [&u64::MAX.to_le_bytes()[..], &good[8..]].concat();
    let long = [&(good.len() as u64).to_le_bytes()[..], &good[8..]].concat();
    let header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let cases: [(Vec<u8>, &str); 11] = [
        (Vec::new(), "0 bytes long"),
        (vec![1; 7], "7 bytes long"),
        (huge, "a header of 18446744073709551615 bytes"),
        (long, "a header of"),
        (good[..good.len() - 1].to_vec(), "cut short"),
        ([&good[..], &[0]].concat(), "follow"),
        (vec![0xff; 4096], "a header of"),
        (header("{\"a\": 3}"), "header: "),
        (header("not json"), "header: "),
        (
            header("{\"a\":{\"dtype\":\"F32\",\"shape\":[1099511627776,1099511627776],\"data_offsets\":[0,4]}}"),
            "header: ",
        ),
        (
            header("{\"a\":{\"dtype\":\"F32\",\"shape\":[1099511627776],\"data_offsets\":[0,4398046511104]}}"),
            "cut short",
        ),
    ];
    for (bytes, word) in cases {
        fs::write(&path, bytes).unwrap();
        let error = load_error(folder.path());
        assert!(
            error.contains("model.safetensors`: not a safetensors file: ") && error.contains(word),
            "{word}: {error}"
        );
    }
    // Every cut and every flipped bit of the header is an error or harmless, never a panic.
    let end = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for at in (0..end).step_by(7) {
        fs::write(&path, &good[..at]).unwrap();
        assert!(load_error(folder.path()).contains("model.safetensors`: "));
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, &flipped).unwrap();
        if let Err(error) = Decoder::load(folder.path(), Device::Cpu) {
            assert!(error.to_string().contains("model.safetensors`: "), "{error}");
        }
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let folder = saved(true);
    let path = folder.path().join("model.safetensors");
    let name = "model.layers.1.mlp.up_proj.weight";
    type Change = fn(&mut Vec<(String, Tensor)>);
    let cases: [(&str, Change); 7] = [
        ("missing tensor", |l| {
            l.retain(|(n, _)| !n.starts_with("model.layers.1.mlp.up"))
        }),
        ("expected shape [49, 16], got [16, 49]", |l| {
            replace(l, |t| t.transpose(0, 1).contiguous())
        }),
        ("expected F32, F64, F16 or BF16, got I64", |l| {
            replace(l, |t| t.to_kind(Kind::Int64))
        }),
        ("F64 mixed", |l| replace(l, |t| t.to_kind(Kind::Double))),
        ("holds NaN or infinity", |l| replace(l, |t| t * f64::NAN)),
        ("holds NaN or infinity", |l| replace(l, |t| t * f64::INFINITY)),
        ("unexpected tensor", |l| {
            l.push((
                "model.layers.1.mlp.up_proj.weight.bias".to_owned(),
                Tensor::from_slice(&[1_f32]),
            ))
        }),
    ];
    let good = weights::read(&path).unwrap();
    for (word, change) in cases {
        let mut list: Vec<_> = good.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        change(&mut list);
        weights::write(&path, list.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
        let error = load_error(folder.path());
        assert!(error.contains(word) && error.contains(name), "{word}: {error}");
    }
    fs::remove_file(&path).unwrap();
    assert!(load_error(folder.path()).starts_with("cannot open"));
    fs::write(folder.path().join("pytorch_model.bin"), b"x").unwrap();
    assert!(load_error(folder.path()).contains("pickle is never read"));
}

fn replace(list: &mut [(String, Tensor)], change: impl Fn(&Tensor) -> Tensor) {
    for (name, tensor) in list {
        if name == "model.layers.1.mlp.up_proj.weight" {
            *tensor = change(tensor);
        }
    }
}

#[test]
fn a_classifier_reads_the_last_real_token_and_survives_its_folder() {
    tch::set_num_threads(1);
    for tied in [true, false] {
        let config = small(tied);
        let trunk = decoder(&config, 4, Kind::Double);
        let ids = Tensor::from_slice(&random_ids(12, config.vocab_size, 5)).view([2, 6]);
        let lengths = Tensor::from_slice(&[6_i64, 2]);
        let hidden = no_grad(|| trunk.hidden(&ids).unwrap());
        let classifier = SequenceClassifier::from_trunk(trunk, &mut ChaCha8Rng::seed_from_u64(6)).unwrap();
        let score = classifier.params().get("score.weight").unwrap().detach().view([-1]);
        let logits = classifier.logits(&ids, &lengths).unwrap();
        for (row, last) in [(0, 5), (1, 1)] {
            let expected = hidden.get(row).get(last).dot(&score).double_value(&[]);
            assert!((logits.double_value(&[row]) - expected).abs() < 1e-12);
        }
        // Whatever the padding holds.
        let other = ids.copy();
        let _ = other.get(1).narrow(0, 2, 4).fill_(0);
        assert!(
            (classifier.logits(&other, &lengths).unwrap() - &logits)
                .abs()
                .max()
                .double_value(&[])
                < 1e-12
        );
        logits.sum(Kind::Double).backward();
        assert!(classifier.params().iter().all(|(_, t)| t.grad().defined()));

        let folder = tempfile::tempdir().unwrap();
        classifier.save(folder.path()).unwrap();
        let back = SequenceClassifier::load(folder.path(), Device::Cpu).unwrap();
        assert_eq!(bits(classifier.params()), bits(back.params()));
        assert!(back.params().get("lm_head.weight").is_none());
        let error = load_error(folder.path());
        assert!(
            error.contains("`architectures`: expected `LlamaForCausalLM`"),
            "{error}"
        );

        for lengths in [vec![0, 2], vec![7, 2], vec![2]] {
            assert!(
                back.logits(&ids, &Tensor::from_slice::<i64>(&lengths))
                    .unwrap_err()
                    .to_string()
                    .contains("length")
            );
        }
    }
}

#[test]
fn initial_weights_have_the_documented_spread() {
    let size = unsay_model::Size {
        hidden_size: 64,
        intermediate_size: 160,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
    };
    let model = decoder(&Config::new(&size, 500, 32), 9, Kind::Float);
    let mut checked = 0;
    for (name, tensor) in model.params().iter() {
        let expected = match name {
            _ if tensor.dim() == 1 => 0.0,
            _ if name.contains("o_proj") || name.contains("down_proj") => 0.01,
            _ => 0.02,
        };
        let spread = tensor.std(false).double_value(&[]);
        assert!((spread - expected).abs() < 0.05 * expected + 1e-9, "{name}: {spread}");
        checked += 1;
    }
    assert_eq!(checked, 20);
    let again = decoder(&Config::new(&size, 500, 32), 9, Kind::Float);
    assert_eq!(bits(model.params()), bits(again.params()));
    assert_eq!(
        model.params().numel(),
        500 * 64 + 64 + 2 * (128 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64)
    );
}
