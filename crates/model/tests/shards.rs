//! Weights in several files, and what else a folder's weights may hold.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{config, decoder};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unsay_model::{Config, Decoder, weights};

const INDEX: &str = "model.safetensors.index.json";

type Tensors = Vec<(String, Tensor)>;

/// A folder of a small model in three shards, tensors dealt in turn.
fn sharded() -> (tempfile::TempDir, Decoder) {
    let folder = tempfile::tempdir().unwrap();
    let model = decoder(&config(4, 2, 4, 2), 1, Kind::Float);
    model.save(folder.path()).unwrap();
    let single = folder.path().join("model.safetensors");
    let tensors = weights::read(&single).unwrap();
    fs::remove_file(&single).unwrap();
    let mut map = BTreeMap::new();
    for shard in 0..3 {
        let name = format!("model-0000{}-of-00003.safetensors", shard + 1);
        let own: Tensors = tensors
            .iter()
            .skip(shard)
            .step_by(3)
            .map(|(n, t)| (n.clone(), t.shallow_clone()))
            .collect();
        map.extend(own.iter().map(|(n, _)| (n.clone(), name.clone())));
        write(&folder.path().join(name), &own);
    }
    assert_eq!(map.len(), tensors.len());
    fs::write(
        folder.path().join(INDEX),
        json!({"metadata": {}, "weight_map": map}).to_string(),
    )
    .unwrap();
    (folder, model)
}

fn write(path: &Path, tensors: &Tensors) {
    weights::write(path, tensors.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
}

fn change(path: &Path, change: impl Fn(&mut Tensors)) {
    let mut tensors = weights::read(path).unwrap();
    change(&mut tensors);
    write(path, &tensors);
}

fn load_error(dir: &Path) -> String {
    match Decoder::load(dir, Device::Cpu) {
        Ok(_) => panic!("loaded"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn shards_are_read_as_one() {
    let (folder, model) = sharded();
    let back = Decoder::load(folder.path(), Device::Cpu).unwrap();
    assert_eq!(back.params().len(), 20);
    for ((a, x), (b, y)) in model.params().iter().zip(back.params().iter()) {
        assert!(a == b && x.equal(y), "{a}");
    }
    // Written over the shards, one file would be read beside them.
    let error = model.save(folder.path()).unwrap_err().to_string();
    assert!(error.contains(INDEX) && error.contains("empty folder"), "{error}");
    fs::copy(
        folder.path().join("model-00001-of-00003.safetensors"),
        folder.path().join("model.safetensors"),
    )
    .unwrap();
    assert!(load_error(folder.path()).contains("left over"));
}

#[test]
fn an_index_and_its_shards_must_agree() {
    let first = "model-00001-of-00003.safetensors";
    type Break = fn(&Path, &mut Value);
    let cases: [(&str, Break); 11] = [
        ("missing shard `model-00002-of-00003.safetensors`", |dir, _| {
            fs::remove_file(dir.join("model-00002-of-00003.safetensors")).unwrap();
        }),
        ("which the index does not list", |_, index| {
            index["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
        }),
        ("lists tensor `more`, which", |_, index| {
            index["weight_map"]["more"] = json!("model-00001-of-00003.safetensors");
        }),
        ("which the index puts into `model-00001", |_, index| {
            for (_, shard) in index["weight_map"].as_object_mut().unwrap() {
                *shard = json!("model-00001-of-00003.safetensors");
            }
            index["weight_map"]["model.norm.weight"] = json!("model-00002-of-00003.safetensors");
        }),
        ("got `../secret.safetensors`", |_, index| {
            index["weight_map"]["model.norm.weight"] = json!("../secret.safetensors");
        }),
        ("got `/etc/passwd`", |_, index| {
            index["weight_map"]["model.norm.weight"] = json!("/etc/passwd");
        }),
        ("got ``", |_, index| {
            index["weight_map"]["model.norm.weight"] = json!("")
        }),
        ("got `..`", |_, index| {
            index["weight_map"]["model.norm.weight"] = json!("..")
        }),
        ("not an index of shards", |_, index| {
            *index = json!({"weight_map": [1, 2]})
        }),
        ("`weight_map` is empty", |_, index| *index = json!({"weight_map": {}})),
        ("not a safetensors file", |_, index| {
            index["weight_map"]["model.norm.weight"] = json!("config.json");
        }),
    ];
    for (word, break_it) in cases {
        let (folder, _) = sharded();
        let path = folder.path().join(INDEX);
        let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        break_it(folder.path(), &mut index);
        fs::write(&path, index.to_string()).unwrap();
        let error = load_error(folder.path());
        assert!(error.contains(word), "{word}: {error}");
    }
    let (folder, _) = sharded();
    fs::write(folder.path().join(INDEX), vec![b' '; (16 << 20) + 1]).unwrap();
    assert!(load_error(folder.path()).contains("larger than"));
    let (folder, _) = sharded();
    let path = folder.path().join(first);
    fs::write(&path, &fs::read(&path).unwrap()[..1000]).unwrap();
    assert!(load_error(folder.path()).contains(first));
    let (folder, _) = sharded();
    change(&folder.path().join(first), |list| list[0].1 = &list[0].1 * f64::NAN);
    assert!(load_error(folder.path()).contains("holds NaN or infinity"));
}

fn tied() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    decoder(&config(4, 2, 4, 2), 1, Kind::Float)
        .save(folder.path())
        .unwrap();
    let path = folder.path().join("model.safetensors");
    (folder, path)
}

#[test]
fn a_tied_head_may_be_stored_when_it_is_the_embedding() {
    let (folder, path) = tied();
    let copy = |list: &mut Tensors| {
        let embedding = list.iter().find(|(n, _)| n.contains("embed_tokens")).unwrap().1.copy();
        list.push(("lm_head.weight".to_owned(), embedding));
    };
    change(&path, copy);
    let back = Decoder::load(folder.path(), Device::Cpu).unwrap();
    assert!(back.params().get("lm_head.weight").is_none());
    change(&path, |list| {
        let _ = list.last_mut().unwrap().1.get(0).get(0).fill_(9.0);
    });
    let error = load_error(folder.path());
    assert!(
        error.contains("differs from `model.embed_tokens.weight`") && error.contains("hint:"),
        "{error}"
    );
    change(&path, |list| {
        list.last_mut().unwrap().1 = Tensor::zeros([3, 3], (Kind::Float, Device::Cpu))
    });
    assert!(load_error(folder.path()).contains("tensor `lm_head.weight`: expected shape [31, 16]"));
}

#[test]
fn computed_tensors_are_left_unread_and_a_bare_trunk_is_found() {
    let (folder, path) = tied();
    change(&path, |list| {
        list.push((
            "model.layers.1.self_attn.rotary_emb.inv_freq".to_owned(),
            Tensor::from_slice(&[f32::NAN]),
        ));
    });
    Decoder::load(folder.path(), Device::Cpu).unwrap();
    change(&path, |list| {
        list.last_mut().unwrap().0 = "model.layers.2.self_attn.rotary_emb.inv_freq".to_owned()
    });
    assert!(load_error(folder.path()).contains("unexpected tensor `model.layers.2.self_attn"));

    let (folder, path) = tied();
    let before = Decoder::load(folder.path(), Device::Cpu).unwrap();
    change(&path, |list| {
        list.iter_mut()
            .for_each(|(n, _)| *n = n.strip_prefix("model.").unwrap().to_owned())
    });
    let bare = Decoder::load(folder.path(), Device::Cpu).unwrap();
    for ((a, x), (b, y)) in before.params().iter().zip(bare.params().iter()) {
        assert!(a == b && x.equal(y), "{a}");
    }
}

#[test]
fn weights_are_stored_and_read_in_other_kinds() {
    let (folder, _) = tied();
    let model = Decoder::load(folder.path(), Device::Cpu).unwrap();
    for kind in [Kind::BFloat16, Kind::Half, Kind::Float] {
        model.save_as(folder.path(), kind).unwrap();
        let stored = weights::read(&folder.path().join("model.safetensors")).unwrap();
        assert!(stored.len() == 20 && stored.iter().all(|(_, t)| t.kind() == kind));
    }
    let wide = Decoder::load_kind(folder.path(), Device::Cpu, Kind::Double).unwrap();
    for ((name, x), (_, y)) in model.params().iter().zip(wide.params().iter()) {
        assert!(y.kind() == Kind::Double && x.to_kind(Kind::Double).equal(y), "{name}");
    }
    for kind in [Kind::Int64, Kind::Double, Kind::Bool] {
        assert!(model.save_as(folder.path(), kind).is_err());
    }
    assert!(Decoder::load_kind(folder.path(), Device::Cpu, Kind::Half).is_err());
    let large = Config {
        initializer_range: 9.0,
        ..config(4, 2, 4, 2)
    };
    let large = decoder(&large, 1, Kind::Float);
    tch::no_grad(|| {
        large
            .params()
            .iter()
            .for_each(|(_, t)| drop(t.shallow_clone().g_mul_scalar_(1e5)))
    });
    let error = large.save_as(folder.path(), Kind::Half).unwrap_err().to_string();
    assert!(error.contains("too large for Half"), "{error}");
    assert_eq!(
        weights::read(&folder.path().join("model.safetensors")).unwrap().len(),
        20
    );
}
