//! Model folders that are broken or hostile: each is one clear error with its file, whoever reads the folder.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::common::folder::{chat_model, template};
use super::common::{Desk, files, finished};
use super::stored::{edit, edit_json, parts, write_parts};

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

/// A damage and what is said of it.
struct Case {
    what: &'static str,
    damage: fn(&Path),
    says: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        what: "an empty folder",
        damage: |f| {
            fs::remove_dir_all(f).unwrap();
            fs::create_dir(f).unwrap();
        },
        says: &["base/"],
    },
    Case {
        what: "a folder of something else",
        damage: |f| {
            fs::remove_dir_all(f).unwrap();
            fs::create_dir(f).unwrap();
            fs::write(f.join("README.md"), "nothing to load").unwrap();
        },
        says: &["base/"],
    },
    Case {
        what: "no weights",
        damage: |f| fs::remove_file(f.join(WEIGHTS)).unwrap(),
        says: &[WEIGHTS],
    },
    Case {
        what: "a shard that is not there",
        damage: |f| {
            let (header, _) = parts(&f.join(WEIGHTS));
            let names = header
                .as_object()
                .unwrap()
                .keys()
                .filter(|name| *name != "__metadata__");
            let map: serde_json::Map<_, _> = names
                .map(|n| (n.clone(), json!("model-00001-of-00002.safetensors")))
                .collect();
            fs::remove_file(f.join(WEIGHTS)).unwrap();
            let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
            fs::write(f.join("model.safetensors.index.json"), index.to_string()).unwrap();
        },
        says: &[
            "model.safetensors.index.json",
            "missing shard `model-00001-of-00002.safetensors`",
        ],
    },
    Case {
        what: "a wrong shape",
        damage: |f| {
            let (mut header, data) = parts(&f.join(WEIGHTS));
            header["model.embed_tokens.weight"]["shape"]
                .as_array_mut()
                .unwrap()
                .reverse();
            write_parts(&f.join(WEIGHTS), &header, &data);
        },
        says: &[WEIGHTS, "tensor `model.embed_tokens.weight`: expected shape ["],
    },
    Case {
        what: "a wrong type",
        damage: |f| {
            let (mut header, data) = parts(&f.join(WEIGHTS));
            header["model.norm.weight"]["dtype"] = json!("I32");
            write_parts(&f.join(WEIGHTS), &header, &data);
        },
        says: &[WEIGHTS, "tensor `model.norm.weight`"],
    },
    Case {
        what: "NaN weights",
        damage: |f| {
            edit(&f.join(WEIGHTS), |b| {
                let n = b.len();
                b[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
            });
        },
        says: &[WEIGHTS, "holds NaN or infinity"],
    },
    Case {
        what: "weights that are cut",
        damage: |f| edit(&f.join(WEIGHTS), |b| b.truncate(b.len() / 2)),
        says: &[WEIGHTS, "the file is cut short"],
    },
    Case {
        what: "a header of eight exabytes",
        damage: |f| edit(&f.join(WEIGHTS), |b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes())),
        says: &[WEIGHTS, "not a safetensors file: a header of "],
    },
    Case {
        what: "a header that states more than there is",
        damage: |f| {
            let (mut header, data) = parts(&f.join(WEIGHTS));
            header["model.norm.weight"]["data_offsets"] = json!([0, u64::MAX]);
            write_parts(&f.join(WEIGHTS), &header, &data);
        },
        says: &[WEIGHTS, "not a safetensors file"],
    },
    Case {
        what: "a directory in the place of the weights",
        damage: |f| {
            fs::remove_file(f.join(WEIGHTS)).unwrap();
            fs::create_dir(f.join(WEIGHTS)).unwrap();
        },
        says: &[WEIGHTS],
    },
    Case {
        what: "weights that a link brings from elsewhere",
        damage: |f| {
            let elsewhere = f.with_file_name("elsewhere.safetensors");
            fs::rename(f.join(WEIGHTS), &elsewhere).unwrap();
            std::os::unix::fs::symlink(elsewhere, f.join(WEIGHTS)).unwrap();
        },
        says: &[WEIGHTS, "a link that leads out of its folder"],
    },
    Case {
        what: "sizes that no machine has room for",
        damage: |f| edit_json(&f.join(CONFIG), |c| c["vocab_size"] = json!(4_000_000)),
        says: &[WEIGHTS, "expected shape [4000000, 32]"],
    },
    Case {
        what: "a size that is no size",
        damage: |f| edit_json(&f.join(CONFIG), |c| c["hidden_size"] = json!(1e308)),
        says: &[CONFIG, "hidden_size"],
    },
    Case {
        what: "an architecture that is not known",
        damage: |f| edit_json(&f.join(CONFIG), |c| c["model_type"] = json!("transmogrifier")),
        says: &[CONFIG, "transmogrifier"],
    },
    Case {
        what: "maths that is not computed",
        damage: |f| edit_json(&f.join(CONFIG), |c| c["hidden_act"] = json!("tanh_of_sin")),
        says: &[CONFIG, "hidden_act"],
    },
    Case {
        what: "a description nested without end",
        damage: |f| fs::write(f.join(CONFIG), "[".repeat(100_000)).unwrap(),
        says: &[CONFIG],
    },
    Case {
        what: "no tokenizer",
        damage: |f| fs::remove_file(f.join(TOKENIZER)).unwrap(),
        says: &[TOKENIZER, "no such file"],
    },
    Case {
        what: "a tokenizer that is cut",
        damage: |f| edit(&f.join(TOKENIZER), |b| b.truncate(b.len() / 2)),
        says: &[TOKENIZER, "expected a tokenizer"],
    },
    Case {
        what: "a tokenizer nested without end",
        damage: |f| fs::write(f.join(TOKENIZER), "{\"a\":".repeat(100_000)).unwrap(),
        says: &[TOKENIZER],
    },
    Case {
        what: "a tokenizer larger than the embedding",
        damage: |f| {
            edit_json(&f.join(TOKENIZER), |t| {
                let mut token = t["added_tokens"][0].clone();
                token["id"] = json!(5000);
                token["content"] = json!("<|far|>");
                t["added_tokens"].as_array_mut().unwrap().push(token);
            });
        },
        says: &["embedding"],
    },
    Case {
        what: "special tokens of the wrong type",
        damage: |f| edit_json(&f.join("tokenizer_config.json"), |t| t["eos_token"] = json!(7)),
        says: &["tokenizer_config.json", "eos_token"],
    },
    Case {
        what: "a template that loops",
        damage: |f| {
            template(
                f,
                "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
            )
        },
        says: &["template"],
    },
    Case {
        what: "a template that writes without end",
        damage: |f| template(f, "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}"),
        says: &["template"],
    },
    Case {
        what: "a template that doubles a text",
        damage: |f| {
            template(
                f,
                "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            );
        },
        says: &["template"],
    },
    Case {
        what: "a template that complains",
        damage: |f| template(f, "{{ raise_exception('only cats may speak') }}"),
        says: &["only cats may speak"],
    },
    Case {
        what: "a template that is none",
        damage: |f| template(f, "{% for m in messages %}"),
        says: &["template"],
    },
];

/// A folder with a sound model in `base`.
fn sound() -> Desk {
    let desk = Desk::empty();
    chat_model(&desk.path("base"));
    desk
}

#[test]
fn a_broken_folder_is_one_error_that_names_the_file() {
    let whole = sound();
    for case in CASES {
        let desk = Desk::empty();
        super::common::copy(&whole.path("base"), &desk.path("base"));
        (case.damage)(&desk.path("base"));
        let before = files(&desk.path("base"));
        for command in ["generate", "chat"] {
            desk.write("said", "hello\n");
            let mut command = desk.command(&[command, "base", "--greedy", "--max-new-tokens", "4"]);
            let ran = super::common::Ran::of(command.stdin(fs::File::open(desk.path("said")).unwrap()));
            let err = ran.fails(1);
            for says in case.says {
                assert!(err.contains(says), "{}: `{says}` is not in\n{err}", case.what);
            }
            assert_eq!(
                err.lines().filter(|l| l.starts_with("error: ")).count(),
                1,
                "{}\n{err}",
                case.what
            );
            assert!(err.len() < 1500, "{}: {} bytes of error\n{err}", case.what, err.len());
        }
        assert!(
            files(&desk.path("base")) == before,
            "{}: a folder is only read",
            case.what
        );
    }
    assert_eq!(CASES.len(), 27);
}

/// What the plan can see is a mistake of the manifest; all else ends the run before anything is made of it.
#[test]
fn a_broken_base_model_ends_the_run_first() {
    let manifest = include_str!("../fixtures/pretrained.yaml");
    let whole = sound();
    for case in CASES {
        let desk = Desk::with("m.yaml", manifest);
        super::common::copy(&whole.path("base"), &desk.path("base"));
        (case.damage)(&desk.path("base"));
        let ran = desk.unsay(&["run", "m.yaml", "--workers", "1", "--profile", "all"]);
        if ran.code == Some(2) {
            let err = ran.fails(2);
            assert!(
                err.contains("--> m.yaml:") && err.contains("nothing was run"),
                "{}\n{err}",
                case.what
            );
            continue;
        }
        let err = ran.fails(1);
        assert!(
            err.contains("error: step `base model base` failed"),
            "{}\n{err}",
            case.what
        );
        assert!(finished(&desk.store()).is_empty(), "{}", case.what);
    }
}

#[test]
fn words_that_name_no_model_are_wrong_usage() {
    let desk = sound();
    desk.write("m.yaml", super::common::TINY);
    let cases: [(&[&str], &[&str]); 14] = [
        (
            &["generate", "nothing", "--prompt", "x"],
            &[
                "`nothing` is no manifest, no folder and no model of the catalog",
                "smollm2-135m-instruct",
            ],
        ),
        (
            &["chat", "nothing"],
            &["no manifest, no folder and no model of the catalog"],
        ),
        (&["chat", "m.yaml"], &["`m.yaml` is a file", "hint: unsay generate"]),
        (&["generate", "base", "--arms", "a"], &["`--arms` is not for a model"]),
        (
            &["generate", "m.yaml", "--arms", "mle", "--raw", "--temperature", "2"],
            &["`--temperature`, `--raw` are not for a manifest"],
        ),
        (
            &["generate", "base", "--raw", "--system", "x"],
            &["`--system` is not for `--raw`"],
        ),
        (&["generate", "base", "--greedy", "--temperature", "0.5"], &["`greedy`"]),
        (&["generate", "base", "--top-p", "2"], &["`top_p`", "got 2"]),
        (
            &["generate", "base", "--device", "tpu"],
            &["device `tpu`: expected `cpu`"],
        ),
        (&["export", "m.yaml", "--to", "x"], &["a manifest needs `--arm`"]),
        (
            &["export", "m.yaml", "--arm", "mle", "--adapter", "base", "--to", "x"],
            &["`--adapter` is not for a manifest"],
        ),
        (
            &["export", "base", "--arm", "mle", "--to", "x"],
            &["`--arm` is not for a model"],
        ),
        (
            &["export", "base", "--merge", "--to", "x"],
            &["`--merge` wants an `--adapter`"],
        ),
        (&["export", "base"], &["--to"]),
    ];
    for (args, says) in cases {
        let err = desk.unsay(args).fails(2);
        for says in says {
            assert!(err.contains(says), "{args:?}: `{says}` is not in\n{err}");
        }
    }
    assert_eq!(desk.names(), ["base", "m.yaml"]);
}
