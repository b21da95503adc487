//! Folders made to harm: links that lead out, folders in place of files, descriptions and indices that ask for
//! more than there is. Each is a clear error before memory is taken, never a panic.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::Path;

use common::{config, decoder};
use serde_json::{Value, json};
use tch::{Device, Kind};
use unsay_model::Decoder;

fn saved() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    decoder(&config(4, 2, 4, 2), 1, Kind::Float)
        .save(folder.path())
        .unwrap();
    folder
}

fn load_error(dir: &Path) -> String {
    match Decoder::load(dir, Device::Cpu) {
        Ok(_) => panic!("loaded"),
        Err(error) => error.to_string(),
    }
}

fn rewrite(dir: &Path, change: impl Fn(&mut Value)) {
    let path = dir.join("config.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(&path, value.to_string()).unwrap();
}

#[test]
fn absurd_sizes_fail_before_anything_is_allocated() {
    let cases: [(&str, Value, &str); 9] = [
        ("hidden_size", json!(65_536), "expected shape"),
        ("vocab_size", json!(4_194_304), "expected shape"),
        ("intermediate_size", json!(262_144), "expected shape"),
        ("num_hidden_layers", json!(1024), "missing tensors"),
        ("num_hidden_layers", json!(1025), "expected 1 to 1024"),
        ("hidden_size", json!(1e308), "expected a whole number"),
        ("vocab_size", json!(u64::MAX), "expected 1 to"),
        ("rope_theta", json!(1e308), "at most 1e12"),
        ("head_dim", json!(1_u64 << 40), "expected 1 to"),
    ];
    for (name, value, word) in cases {
        let folder = saved();
        rewrite(folder.path(), |c| c[name] = value.clone());
        let error = load_error(folder.path());
        assert!(error.contains(word), "{name} {value}: {error}");
    }
}

#[test]
fn deep_and_odd_descriptions_are_errors() {
    let folder = saved();
    let path = folder.path().join("config.json");
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    for text in [
        deep.clone(),
        format!("{{\"other\": {deep}}}"),
        "{\"a\": 1e999}".to_owned(),
        "{\"a\"".to_owned(),
    ] {
        fs::write(&path, text).unwrap();
        assert!(load_error(folder.path()).contains("config.json`: not JSON"));
    }
}

#[test]
fn a_folder_in_place_of_a_file_is_named() {
    for name in ["config.json", "model.safetensors", "model.safetensors.index.json"] {
        let folder = saved();
        let _ = fs::remove_file(folder.path().join(name));
        fs::create_dir(folder.path().join(name)).unwrap();
        let error = load_error(folder.path());
        assert!(
            error.contains(name) && error.contains("expected a file, found a folder"),
            "{error}"
        );
    }
    let error = load_error(Path::new("/nowhere/at/all"));
    assert!(error.starts_with("cannot open"), "{error}");
}

#[cfg(unix)]
mod links {
    use super::*;
    use std::os::unix::fs::symlink;

    fn in_place_of(folder: &Path, name: &str, target: &Path) {
        fs::remove_file(folder.join(name)).unwrap();
        symlink(target, folder.join(name)).unwrap();
    }

    #[test]
    fn a_link_out_of_the_folder_is_refused_with_what_to_do() {
        let elsewhere = saved();
        let mut refused = 0;
        for name in ["config.json", "model.safetensors"] {
            let folder = saved();
            in_place_of(folder.path(), name, &elsewhere.path().join(name));
            let error = load_error(folder.path());
            assert!(
                error.contains(name) && error.contains("leads out of its folder") && error.contains("cp -rL"),
                "{error}"
            );
            refused += 1;
        }
        assert_eq!(refused, 2);
        let folder = saved();
        in_place_of(folder.path(), "model.safetensors", Path::new("/dev/zero"));
        assert!(load_error(folder.path()).contains("leads out of its folder"));
        in_place_of(folder.path(), "model.safetensors", Path::new("model.safetensors"));
        assert!(load_error(folder.path()).starts_with("cannot follow"));
    }

    #[test]
    fn links_within_the_folder_and_those_of_the_hubs_cache_are_followed() {
        let folder = saved();
        fs::rename(folder.path().join("model.safetensors"), folder.path().join("other")).unwrap();
        symlink("other", folder.path().join("model.safetensors")).unwrap();
        Decoder::load(folder.path(), Device::Cpu).unwrap();

        let repository = tempfile::tempdir().unwrap();
        let (blobs, revision) = (repository.path().join("blobs"), repository.path().join("snapshots/abc"));
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&revision).unwrap();
        for (name, blob) in [("config.json", "1f"), ("model.safetensors", "2e")] {
            fs::copy(saved().path().join(name), blobs.join(blob)).unwrap();
            symlink(Path::new("../../blobs").join(blob), revision.join(name)).unwrap();
        }
        Decoder::load(&revision, Device::Cpu).unwrap();

        // The same form with a way out at its end, and a longer way up.
        fs::remove_file(blobs.join("2e")).unwrap();
        symlink(folder.path().join("other"), blobs.join("2e")).unwrap();
        assert!(load_error(&revision).contains("leads out of its folder"));
        fs::write(repository.path().join("secret"), b"x").unwrap();
        in_place_of(&revision, "model.safetensors", Path::new("../../secret"));
        assert!(load_error(&revision).contains("leads out of its folder"));
    }
}
