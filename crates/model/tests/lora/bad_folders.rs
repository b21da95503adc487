//! Broken adapter folders, and adapters that mean other maths, are errors that name their place.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tch::{Kind, Tensor};
use unsay_model::{Decoder, weights};

use crate::cases::{Model, bits, case};

const CASE: &str = "llama_layers";

/// A copy of the adapter that may be broken.
fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(case(CASE).adapter().join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn base() -> Decoder {
    match case(CASE).model() {
        Model::Decoder(model) => model,
        Model::Classifier(_) => unreachable!("the case is a language model"),
    }
}

/// The error, after a look that nothing of the adapter was taken over.
fn refused(model: &mut Decoder, dir: &Path) -> String {
    let before = bits(model.params());
    let error = model.load_adapter(dir).unwrap_err().to_string();
    assert!(model.adapter().is_none());
    assert_eq!(bits(model.params()), before);
    assert_eq!(model.params().trainable().count(), before.len());
    error
}

#[test]
fn other_maths_is_refused_by_name() {
    let cases = [
        ("peft_type", json!("IA3")),
        ("peft_type", Value::Null),
        ("task_type", json!("SEQ_CLS")),
        ("bias", json!("lora_only")),
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        ("rank_pattern", json!({"q_proj": 4})),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("modules_to_save", json!(["lm_head"])),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("lora_ga")),
        ("megatron_config", json!({"tp": 2})),
        ("trainable_token_indices", json!([1, 2])),
        ("layer_replication", json!([[0, 1], [0, 1]])),
        ("target_parameters", json!(["mlp.experts"])),
        ("exclude_modules", json!(["k_proj"])),
        ("alora_invocation_tokens", json!([5])),
        ("ensure_weight_tying", json!(true)),
        ("velora_config", json!({"rank": 1})),
        ("something_new", json!(1)),
        ("target_modules", json!(".*q_proj")),
        ("target_modules", json!(["lm_head", "embed_tokens"])),
        ("target_modules", json!([3])),
        ("target_modules", json!([])),
        ("target_modules", Value::Null),
        ("layers_to_transform", json!("1")),
        ("layers_to_transform", json!([-1])),
        ("layers", json!([0])),
        ("layers_pattern", json!("blocks")),
        ("lora_dropout", json!(1.5)),
        ("lora_dropout", json!("no")),
        ("r", json!(0)),
        ("r", json!(2.5)),
        ("r", json!(1_u64 << 60)),
        ("alpha", json!(true)),
        ("lora_alpha", json!(-1)),
        ("lora_alpha", json!(1e300)),
        ("lora_alpha", json!("1")),
        ("use_rslora", json!("yes")),
    ];
    let folder = copy();
    let path = folder.path().join("adapter_config.json");
    let good: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut model = base();
    for (name, value) in cases {
        let mut broken = good.clone();
        broken[name] = value.clone();
        fs::write(&path, broken.to_string()).unwrap();
        let error = refused(&mut model, folder.path());
        let said = name.trim_start_matches("lora_");
        assert!(
            error.contains("adapter_config.json`: ") && error.contains(said),
            "{name} {value}: {error}"
        );
    }
    let mut beyond = good.clone();
    beyond["layers_to_transform"] = json!([2]);
    fs::write(&path, beyond.to_string()).unwrap();
    let error = refused(&mut model, folder.path());
    assert!(error.contains("block numbers below 2, got 2"), "{error}");
    let mut whole = good.clone();
    whole["target_modules"] = json!(["model.layers.0.self_attn.q_proj", "v_proj"]);
    fs::write(&path, whole.to_string()).unwrap();
    let error = refused(&mut model, folder.path());
    assert!(error.contains("PEFT does not apply it to"), "{error}");
    for text in ["", "{", "[]", "null", "\u{fffd}"] {
        fs::write(&path, text).unwrap();
        assert!(
            refused(&mut model, folder.path()).contains("adapter_config.json`: "),
            "{text}"
        );
    }
    fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(refused(&mut model, folder.path()).contains("larger than"));
    fs::remove_file(&path).unwrap();
    assert!(refused(&mut model, folder.path()).starts_with("cannot open"));
    model.load_adapter(&case(CASE).adapter()).unwrap();
}

#[test]
fn what_changes_nothing_is_accepted_and_noted() {
    let changes = [
        (json!({"init_lora_weights": "gaussian", "fan_in_fan_out": true}), 0),
        (json!({"layers_pattern": "layers", "layers_to_transform": 1}), 0),
        (json!({"layers_pattern": ["h", "layers"], "something_new": false}), 0),
        (
            json!({"task_type": null, "base_model_name_or_path": "x", "peft_version": "9"}),
            0,
        ),
        (json!({"lora_dropout": 0.1}), 1),
        (
            json!({"target_modules": ["q_proj", "v_proj", "w1", "lm_head"], "lora_dropout": 0.1}),
            3,
        ),
    ];
    for (change, notes) in changes {
        let folder = copy();
        let path = folder.path().join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (name, value) in change.as_object().unwrap() {
            config[name] = value.clone();
        }
        fs::write(&path, config.to_string()).unwrap();
        let mut model = base();
        assert_eq!(model.load_adapter(folder.path()).unwrap().len(), notes, "{change}");
        let model = Model::Decoder(model);
        case(CASE).assert_equal("logits", &model.logits(&case(CASE)));
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let folder = copy();
    let path = folder.path().join("adapter_model.safetensors");
    let name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight";
    type Change = fn(&mut Vec<(String, Tensor)>);
    let cases: [(&str, Change); 7] = [
        ("missing tensor", |l| {
            l.retain(|(n, _)| !n.ends_with("v_proj.lora_B.weight"))
        }),
        ("expected shape [4, 2], got [2, 4]", |l| {
            replace(l, |t| t.transpose(0, 1).contiguous())
        }),
        ("expected F32, F64, F16 or BF16, got I64", |l| {
            replace(l, |t| t.to_kind(Kind::Int64))
        }),
        ("holds NaN or infinity", |l| replace(l, |t| t * f64::NAN)),
        ("holds NaN or infinity", |l| replace(l, |t| t * f64::INFINITY)),
        ("unexpected tensor", |l| {
            l.push((
                "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight_".to_owned(),
                Tensor::from_slice(&[1_f64]),
            ))
        }),
        ("missing", |l| l.clear()),
    ];
    let good = weights::read(&path).unwrap();
    let mut model = base();
    for (word, change) in cases {
        let mut list: Vec<_> = good.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        change(&mut list);
        weights::write(&path, list.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
        let error = refused(&mut model, folder.path());
        assert!(error.contains(word) && error.contains(name), "{word}: {error}");
    }
    fs::remove_file(&path).unwrap();
    assert!(refused(&mut model, folder.path()).starts_with("cannot open"));
}

#[test]
fn a_broken_tensor_file_is_never_a_panic() {
    let folder = copy();
    let path = folder.path().join("adapter_model.safetensors");
    let good = fs::read(&path).unwrap();
    let end = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut model = base();
    let mut tried = 0;
    for at in (0..end).step_by(11) {
        fs::write(&path, &good[..at]).unwrap();
        let error = refused(&mut model, folder.path());
        assert!(error.contains("adapter_model.safetensors`: "), "{error}");
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, &flipped).unwrap();
        match model.load_adapter(folder.path()) {
            Ok(_) => model = base(),
            Err(error) => assert!(error.to_string().contains("adapter_model.safetensors`: "), "{error}"),
        }
        tried += 1;
    }
    assert!(tried > 30);
}

#[test]
fn only_plain_files_of_the_folder_are_opened() {
    let mut model = base();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let folder = copy();
        fs::remove_file(folder.path().join(name)).unwrap();
        fs::create_dir(folder.path().join(name)).unwrap();
        let error = refused(&mut model, folder.path());
        assert!(error.contains(name) && error.contains("found a folder"), "{error}");
        #[cfg(unix)]
        {
            fs::remove_dir(folder.path().join(name)).unwrap();
            std::os::unix::fs::symlink(case(CASE).adapter().join(name), folder.path().join(name)).unwrap();
            let error = refused(&mut model, folder.path());
            assert!(
                error.contains(name) && error.contains("leads out of its folder"),
                "{error}"
            );
        }
    }
    let folder = copy();
    let deep = format!("{{\"r\": {}1{}}}", "[".repeat(5000), "]".repeat(5000));
    fs::write(folder.path().join("adapter_config.json"), deep).unwrap();
    assert!(refused(&mut model, folder.path()).contains("not JSON"));
    assert!(refused(&mut model, &folder.path().join("none")).contains("none"));
}

#[test]
fn numbers_that_the_model_cannot_hold_are_refused() {
    let case = case("llama_all_linear");
    let folder = tempfile::tempdir().unwrap();
    let stored = weights::read(&case.adapter().join("adapter_model.safetensors")).unwrap();
    fs::copy(
        case.adapter().join("adapter_config.json"),
        folder.path().join("adapter_config.json"),
    )
    .unwrap();
    let load = |factor: f64| {
        let wide: Vec<_> = stored
            .iter()
            .map(|(n, t)| (n, t.to_kind(Kind::Double) * factor))
            .collect();
        let path = folder.path().join("adapter_model.safetensors");
        weights::write(&path, wide.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
        let mut model = case.model();
        model.load_adapter(folder.path()).map(|_| model)
    };
    case.assert_equal("logits", &load(1.0).unwrap().logits(&case));
    assert!(load(1e300).unwrap_err().to_string().contains("holds NaN or infinity"));
}

fn replace(list: &mut [(String, Tensor)], change: impl Fn(&Tensor) -> Tensor) {
    for (name, tensor) in list {
        if name.ends_with("v_proj.lora_B.weight") {
            *tensor = change(tensor);
        }
    }
}
