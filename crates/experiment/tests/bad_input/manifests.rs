//! Broken manifests: each is the tiny one with one place spoilt.

use serde_yaml::Value as Yaml;
use unsay_experiment::manifest::Manifest;

use super::common::{Desk, TINY};

/// A way to spoil the manifest and what must be said of it.
struct Case {
    what: &'static str,
    /// Replacements, each of the first place where the old text stands.
    edits: &'static [(&'static str, &'static str)],
    /// Text that each mistake must point to, in the order of the mistakes.
    at: &'static [&'static str],
    /// What is said, beside the place.
    says: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        what: "the same thing twice",
        edits: &[
            ("judges: [oracle, a, b]", "judges: [oracle, a, a]"),
            ("measures: [safe, f1,", "measures: [safe, f1, f1,"),
        ],
        at: &[],
        says: &["`a` is given twice", "`f1` is given twice"],
    },
    Case {
        what: "lists with nothing in them",
        edits: &[("checkpoints: [best, last]", "checkpoints: []")],
        at: &["[]"],
        says: &["at least one is needed"],
    },
    Case {
        what: "numbers that no machine has room for",
        edits: &[
            ("batch: 16, lr: 1.0e-2", "batch: 9223372036854775807, lr: 1.0e-2"),
            ("max_copies: 2", "max_copies: 99999999999"),
        ],
        at: &["9223372036854775807", "99999999999"],
        says: &[
            "expected 1 to 1048576, got 9223372036854775807",
            "wanted 1 to 10000000, got 99999999999",
        ],
    },
    Case {
        what: "unknown key",
        edits: &[("weight_decay: 0.01", "wieght_decay: 0.01")],
        at: &["wieght_decay"],
        says: &["unknown key `wieght_decay`", "hint: did you mean `weight_decay`?"],
    },
    Case {
        what: "unknown block",
        edits: &[("\narms:", "\nsedes: [3]\narms:")],
        at: &["sedes"],
        says: &["unknown key `sedes`", "did you mean `seeds`?"],
    },
    Case {
        what: "parameter of another loss",
        edits: &[(
            "unlikelihood: { alpha: 0.5 }",
            "unlikelihood: { alpha: 0.5, temperature: 2 }",
        )],
        at: &["temperature"],
        says: &["unknown key `temperature`", "known here: alpha"],
    },
    Case {
        what: "misspelt loss",
        edits: &[("loss: { nll: {} }", "loss: { nil: {} }")],
        at: &["nil"],
        says: &["unknown choice `nil`", "did you mean `nll`?"],
    },
    Case {
        what: "misspelt kind of arm",
        edits: &[("base: { pretrained: {} }", "base: { pretraind: {} }")],
        at: &["pretraind"],
        says: &["unknown choice `pretraind`", "did you mean `pretrained`?"],
    },
    Case {
        what: "misspelt schedule",
        edits: &[("schedule: constant", "schedule: konstant")],
        at: &["schedule: konstant"],
        says: &["unknown choice `konstant`", "did you mean `constant`?"],
    },
    Case {
        what: "unknown judge",
        edits: &[("[oracle, a, b]", "[oracle, a, b, c]")],
        at: &["c]"],
        says: &["unknown choice `c`", "known here: oracle, a, b"],
    },
    Case {
        what: "misspelt measure",
        edits: &[("seq_rep_4, eos", "seq_rap_4, eos")],
        at: &["seq_rap_4"],
        says: &["no measure `seq_rap_4`", "did you mean `seq_rep_4`?"],
    },
    Case {
        what: "metric that nothing measures",
        edits: &[(
            "{ metric: f1, subset: all, label: F1",
            "{ metric: f2, subset: all, label: F1",
        )],
        at: &["f2"],
        says: &["no metric `f2` comes from `evaluate`", "did you mean `f1`?"],
    },
    Case {
        what: "figure of a judge that is not asked",
        edits: &[("[oracle, a, b]", "[a, b]")],
        at: &[
            "safe_oracle, subset: all, label: safe (oracle)",
            "safe_oracle, subset: all, label: share of safe replies, bounds: [0, 1] }\n      - per",
        ],
        says: &["no metric `safe_oracle` comes from `evaluate`", "4 mistakes"],
    },
    Case {
        what: "a model that is not in the catalog",
        edits: &[(
            "    base:\n      train:\n",
            "    base: { catalog: { name: smollm2-135m-instrukt } }\n    rest:\n      train:\n",
        )],
        at: &["smollm2-135m-instrukt"],
        says: &[
            "no model `smollm2-135m-instrukt` in the catalog",
            "did you mean `smollm2-135m-instruct`?",
        ],
    },
    Case {
        what: "a model folder that is not there",
        edits: &[(
            "    base:\n      train:\n",
            "    base: { folder: { path: nowhere } }\n    rest:\n      train:\n",
        )],
        at: &["nowhere"],
        says: &["no folder `nowhere`"],
    },
    Case {
        what: "text for a base model that is not trained here",
        edits: &[
            (
                "    base:\n      train:\n",
                "    base: { catalog: { name: smollm2-135m-instruct } }\n    rest:\n      train:\n",
            ),
            (
                "    data:\n",
                "    data:\n      pretraining: { catalog: { name: chitchat } }\n",
            ),
        ],
        at: &["pretraining: { catalog"],
        says: &["unknown key `pretraining`"],
    },
    Case {
        what: "more blocks than there are",
        edits: &[(
            "      train: { steps: 20",
            "      trained: { top: { layers: 2 } }\n      train: { steps: 20",
        )],
        at: &["2 } }"],
        says: &["expected at most 1, the blocks of the model, got 2"],
    },
    Case {
        what: "adapters on what is not there",
        edits: &[
            (
                "      train: { steps: 20",
                "      trained: { lora: { r: 2, alpha: 4, target_modules: [q_prog] } }\n      train: { steps: 20",
            ),
            (
                "      train: { steps: 100",
                "      trained: { lora: { r: 0, alpha: 4, target_modules: all-linear } }\n      train: { steps: 100",
            ),
        ],
        at: &["{ r: 2", "{ r: 0"],
        says: &["`q_proj`", "got `q_prog`", "`r`", "2 mistakes"],
    },
    Case {
        what: "split to train on",
        edits: &[("split: test", "split: train")],
        at: &["split: train"],
        says: &["unknown choice `train`", "known here: valid, test"],
    },
    Case {
        what: "text for a number",
        edits: &[("steps: 60", "steps: many")],
        at: &["many"],
        says: &["string \"many\", expected a whole number from 0"],
    },
    Case {
        what: "fraction for a count",
        edits: &[("batch: 16", "batch: 2.5")],
        at: &["2.5"],
        says: &["the number `2.5`, expected a whole number from 0"],
    },
    Case {
        what: "nothing for a number",
        edits: &[("vocab_size: 500", "vocab_size: null")],
        at: &["null"],
        says: &["null, expected a whole number from 0"],
    },
    Case {
        what: "one seed without a list",
        edits: &[("seeds: [0, 1]", "seeds: 3")],
        at: &["3"],
        says: &["expected a sequence"],
    },
    Case {
        what: "several wrong items of one list",
        edits: &[("seeds: [0, 1]", "seeds: [0, x, 2, y]")],
        at: &["x", "y"],
        says: &["string \"x\"", "string \"y\"", "2 mistakes"],
    },
    Case {
        what: "negative seed",
        edits: &[("seeds: [0, 1]", "seeds: [-1]")],
        at: &["-1"],
        says: &["the number `-1`, expected a whole number from 0", "1 mistake;"],
    },
    Case {
        what: "seed given twice",
        edits: &[("seeds: [0, 1]", "seeds: [4, 4]")],
        at: &["4]"],
        says: &["seed 4 is given twice"],
    },
    Case {
        what: "no seeds",
        edits: &[("seeds: [0, 1]", "seeds: []")],
        at: &["[]"],
        says: &["at least one seed is needed"],
    },
    Case {
        what: "number too large for any type",
        edits: &[("steps: 60", "steps: 99999999999999999999999")],
        at: &["99999999999999999999999"],
        says: &["`99999999999999999999999` is too large a number"],
    },
    Case {
        what: "not a number",
        edits: &[("lr: 5.0e-3", "lr: .nan")],
        at: &[".nan"],
        says: &["`.nan` is not a finite number"],
    },
    Case {
        what: "infinity",
        edits: &[("alpha: 0.5", "alpha: -.inf")],
        at: &["-.inf"],
        says: &["`-.inf` is not a finite number"],
    },
    Case {
        what: "ranges of every block at once",
        edits: &[
            ("name: tiny", "name: ti/ny"),
            ("sizes: { train: 300", "sizes: { train: 0"),
            ("part: dialogue", "part: feedback"),
            ("num_attention_heads: 2", "num_attention_heads: 3"),
            ("vocab_size: 500", "vocab_size: 10"),
            ("max_prompt: 64", "max_prompt: 1"),
            ("max_cut_share: 0.5", "max_cut_share: 1.5"),
            ("lr: 1.0e-2", "lr: -1"),
            ("warmup: 2", "warmup: 2000"),
            ("threads: 1", "threads: 0"),
            ("own: 1", "own: 0"),
            ("alpha: 0.5", "alpha: -0.5"),
            ("k: 5", "k: 0"),
            ("iterations: 2", "iterations: 1"),
            ("max_copies: 2", "max_copies: 0"),
            ("top_p: 0.9", "top_p: 1.9"),
            ("replies: 20", "replies: 0"),
            ("resamples: 200", "resamples: 3"),
            ("name: judges", "name: f1_against_safety"),
        ],
        at: &[],
        says: &[
            "`ti/ny` is not a folder name",
            "wanted 1 to 10000000 examples, got 0",
            "the part for `dialogue` is `dialogue`",
            "3 heads do not divide a width of 32",
            "wanted 260 (256 bytes, 4 specials) to 1048576, got 10",
            "wanted 2 to 65536 tokens, got 1",
            "wanted a share from 0 to 1, got 1.5",
            "expected a number above 0, got -1",
            "expected fewer than `steps` (60), got 2000",
            "wanted 1 to 1024 threads, got 0",
            "wanted a weight above 0, got 0",
            "wanted 2 to 20 iterations, got 1",
            "wanted 1 to 10000000, got 0",
            "top_p",
            "wanted 100 to 1000000 resamples, got 3",
            "two figures are named `f1_against_safety`",
            "19 mistakes; nothing was run",
        ],
    },
    Case {
        what: "replies longer than any seen in training",
        edits: &[("max_new_tokens: 24", "max_new_tokens: 480")],
        at: &["480"],
        says: &[
            "longer than any completion the model is trained on (48 tokens)",
            "hint: raise limits.max_completion",
        ],
    },
    Case {
        what: "key given twice",
        edits: &[("\narms:", "\nseeds: [2]\narms:")],
        at: &["seeds: [2]"],
        says: &["key `seeds` is given twice, first on line "],
    },
    Case {
        what: "key given twice in a line",
        edits: &[("{ max_prompt: 64,", "{ max_prompt: 64, max_prompt: 60,")],
        at: &["max_prompt: 60"],
        says: &["key `max_prompt` is given twice"],
    },
    Case {
        what: "several keys missing",
        edits: &[
            ("        vocab_size: 500\n", ""),
            ("      split: test\n", ""),
            ("question: Does", "# Does"),
        ],
        at: &[],
        says: &[
            "missing key `split` in `evaluate`",
            "missing key `question`",
            "missing key `vocab_size` in `train`",
            "3 mistakes",
        ],
    },
    Case {
        what: "iterative arm without its block",
        edits: &[(
            "    iterate:\n      prompts: 48\n      per_prompt: 1\n      max_copies: 2\n      sampling: { top_p: 0.9, max_new_tokens: 24 }\n",
            "",
        )],
        at: &["iterate: { loss"],
        says: &["an iterative arm needs the block `iterate`"],
    },
    Case {
        what: "a wrong type hides nothing after it",
        edits: &[
            ("steps: 60", "steps: many"),
            ("      split: test\n", ""),
            ("baseline: mle", "baseline: mel"),
        ],
        at: &["many", "mel"],
        says: &[
            "string \"many\"",
            "missing key `split` in `evaluate`",
            "no arm `mel`",
            "3 mistakes",
        ],
    },
    Case {
        what: "missing blocks hide nothing",
        edits: &[
            ("    data:\n", "    dota:\n"),
            ("    table:\n", "    tible:\n"),
            ("max_copies: 2", "max_copies: 0"),
        ],
        at: &["dota:", "tible:", "0\n"],
        says: &[
            "did you mean `data`?",
            "did you mean `table`?",
            "wanted 1 to 10000000, got 0",
            "3 mistakes",
        ],
    },
    Case {
        what: "an arm with two kinds",
        edits: &[(
            "base: { pretrained: {} }",
            "base: { pretrained: {}, train: { loss: { nll: {} } } }",
        )],
        at: &["{ pretrained"],
        says: &["expected a choice, a map with one key"],
    },
    Case {
        what: "an arm that is no name",
        edits: &[("  mle: {", "  'a|b': {"), ("baseline: mle", "baseline: cringe")],
        at: &["'a|b'"],
        says: &["`a|b` cannot name an arm"],
    },
    Case {
        what: "baseline that is no arm",
        edits: &[("baseline: mle", "baseline: mel")],
        at: &["mel"],
        says: &["no arm `mel`", "did you mean `mle`?"],
    },
    Case {
        what: "empty prompt to show",
        edits: &[(
            "- my brother is allergic to nuts and wants to try the almond cake .",
            "- ' '",
        )],
        at: &["' '"],
        says: &["the prompt is empty"],
    },
    Case {
        what: "figure without rows",
        edits: &[("phases: [train, iteration-2]", "phases: []")],
        at: &["curves:"],
        says: &["figure `training_curves`", "a list is empty"],
    },
    Case {
        what: "tag",
        edits: &[(
            "loss: { cringe: { alpha: 1.0, k: 5 } }",
            "loss: !cringe { alpha: 1.0, k: 5 }",
        )],
        at: &["!cringe"],
        says: &["tags such as `!cringe` are not used", "hint: a choice is a one-key map"],
    },
    Case {
        what: "tab",
        edits: &[("    limits: {", "\tlimits: {")],
        at: &["limits"],
        says: &["tabs disallowed"],
    },
    Case {
        what: "list without its end",
        edits: &[("seeds: [0, 1]", "seeds: [0, 1")],
        at: &[],
        says: &["m.yaml:8:", "':'"],
    },
    Case {
        what: "text without its end",
        edits: &[("question: Does", "question: \"Does")],
        at: &["\"Does"],
        says: &["quoted scalar"],
    },
    Case {
        what: "two colons",
        edits: &[("name: tiny", "name: tiny: small")],
        at: &[": small"],
        says: &["mapping values are not allowed"],
    },
    Case {
        what: "two documents",
        edits: &[("\narms:", "\n---\narms:")],
        at: &["---"],
        says: &["a manifest is one document"],
    },
    Case {
        what: "unprintable character",
        edits: &[("name: tiny", "name: ti\0ny")],
        at: &["\0"],
        says: &["unprintable character"],
    },
    Case {
        what: "dataset that is not in the catalog",
        edits: &[
            (
                "feedback: { testbed: { world: safety, part: feedback, seed: 1, sizes: { train: 400, valid: 40, test: 40 } } }",
                "feedback: { catalog: { name: diasafty } }",
            ),
            ("[oracle, a, b]", "[a, b]"),
        ],
        at: &["diasafty"],
        says: &["no dataset `diasafty` in the catalog", "did you mean `diasafety`?"],
    },
    Case {
        what: "oracle for own files",
        edits: &[(
            "feedback: { testbed: { world: safety, part: feedback, seed: 1, sizes: { train: 400, valid: 40, test: 40 } } }",
            "feedback: { files: { train: nowhere.jsonl, valid: m.yaml, test: . } }",
        )],
        at: &["nowhere.jsonl", "m.yaml", ". } }", "oracle, a, b"],
        says: &[
            "no file `nowhere.jsonl`",
            "`m.yaml`: expected a file name that ends in .jsonl",
            "no file `.`",
            "only the testbed has an oracle",
            "4 mistakes",
        ],
    },
];

/// Line and column of a text, both from 1.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at];
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (before.matches('\n').count() + 1, column)
}

/// Runs a broken manifest: exit code 2, nothing but the manifest is there afterwards.
fn refused(manifest: impl AsRef<[u8]>) -> String {
    let desk = Desk::empty();
    desk.write("m.yaml", manifest);
    let err = desk.unsay(&["run", "m.yaml"]).fails(2);
    assert_eq!(desk.names(), ["m.yaml"], "{err}");
    assert_eq!(
        desk.unsay(&["check", "m.yaml"]).fails(2),
        err,
        "check says what run says"
    );
    assert!(err.trim_end().ends_with("nothing was run"), "{err}");
    err
}

#[test]
fn every_mistake_is_shown_with_its_place() {
    for case in CASES {
        let mut text = TINY.to_owned();
        let mut from = usize::MAX;
        for (old, new) in case.edits {
            let at = text
                .find(old)
                .unwrap_or_else(|| panic!("{}: `{old}` is not in the manifest", case.what));
            from = from.min(at);
            text.replace_range(at..at + old.len(), new);
        }
        let err = refused(&text);
        for says in case.says {
            assert!(err.contains(says), "{}: `{says}` is not in\n{err}", case.what);
        }
        for at in case.at {
            let found = text[from..].find(at).map(|i| from + i).or_else(|| text.find(at));
            let (line, column) = place(&text, found.unwrap_or_else(|| panic!("{}: `{at}`", case.what)));
            let wanted = format!("--> m.yaml:{line}:{column}\n");
            assert!(err.contains(&wanted), "{}: `{wanted}` is not in\n{err}", case.what);
        }
        assert!(
            err.lines().all(|l| l.chars().count() < 180),
            "{}: a long line\n{err}",
            case.what
        );
    }
    assert_eq!(CASES.len(), 52);
}

/// Files that are no manifests at all: name, content, what is said, where.
#[test]
fn what_is_no_manifest_is_refused() {
    let mut bad_utf8 = TINY.as_bytes().to_vec();
    let at = TINY.find("whole pipeline run").unwrap();
    bad_utf8[at] = 0xff;
    let (line, column) = place(TINY, at);
    let bomb: String = (1..9).fold("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, i| {
        let items = vec![format!("*a{}", i - 1); 9].join(", ");
        format!("{text}a{i}: &a{i} [{items}]\n")
    });
    let cases: Vec<(&str, Vec<u8>, String, &str)> = vec![
        ("empty", b"".to_vec(), "m.yaml\n".into(), "the manifest is empty"),
        (
            "only comments",
            b"# nothing yet\n".to_vec(),
            "m.yaml\n".into(),
            "a manifest is a mapping of keys",
        ),
        (
            "a list",
            b"- a\n- b\n".to_vec(),
            "m.yaml\n".into(),
            "a manifest is a mapping of keys",
        ),
        (
            "a word",
            b"hello".to_vec(),
            "m.yaml\n".into(),
            "a manifest is a mapping of keys",
        ),
        (
            "no profiles",
            b"name: x\n".to_vec(),
            "m.yaml\n".into(),
            "missing key `profiles`",
        ),
        (
            "a list of profiles",
            b"name: x\nprofiles: [a]\n".to_vec(),
            "m.yaml:2:11\n".into(),
            "`profiles` maps names",
        ),
        (
            "profiles without one",
            b"name: x\nprofiles: {}\n".to_vec(),
            "m.yaml:2:11\n".into(),
            "`profiles` maps names",
        ),
        (
            "bad UTF-8",
            bad_utf8,
            format!("m.yaml:{line}:{column}\n"),
            "not UTF-8 text",
        ),
        (
            "alias bomb",
            bomb.into_bytes(),
            "m.yaml:2:10\n".into(),
            "aliases are not used",
        ),
        (
            "deep lists",
            ["a: ", &"[".repeat(5000)].concat().into_bytes(),
            "m.yaml:1:".into(),
            "error: ",
        ),
        (
            "deep maps",
            (0..200)
                .map(|i| format!("{}k:\n", " ".repeat(i)))
                .collect::<String>()
                .into_bytes(),
            "m.yaml:6".into(),
            "nested deeper than 64 levels",
        ),
        (
            "too large",
            [TINY, &"# comment\n".repeat(120_000)].concat().into_bytes(),
            "m.yaml\n".into(),
            "at most 1048576 bytes",
        ),
        ("binary", (0..=255).collect(), "m.yaml:".into(), "not UTF-8 text"),
    ];
    assert_eq!(cases.len(), 13);
    for (what, content, at, says) in cases {
        let err = refused(content);
        assert!(
            err.contains(&format!("--> {at}")) && err.contains(says),
            "{what}\n{err}"
        );
        assert!(err.len() < 1000, "{what}: {} bytes of error", err.len());
    }
}

#[test]
fn many_mistakes_are_counted_and_some_shown() {
    let err = refused(TINY.replacen("seeds: [0, 1]", &format!("seeds: [{}x]", "x, ".repeat(499)), 1));
    assert_eq!(err.matches("error: ").count(), 30);
    assert!(err.ends_with("and 470 more\n500 mistakes; nothing was run\n"), "{err}");
}

#[test]
fn a_manifest_that_is_not_there_is_refused() {
    let desk = Desk::empty();
    let err = desk.unsay(&["run", "none.yaml"]).fails(2);
    assert!(
        err.contains("cannot read the manifest") && err.contains("--> none.yaml\n"),
        "{err}"
    );
    let err = desk.unsay(&["run", "."]).fails(2);
    assert!(
        err.contains("cannot read the manifest") && err.contains("--> .\n"),
        "{err}"
    );
    assert!(desk.names().is_empty());
}

#[test]
fn profiles_and_overrides_are_checked() {
    let desk = Desk::with("m.yaml", TINY);
    let cases: [(&[&str], &[&str]); 13] = [
        (
            &["--profile", "smal"],
            &["no profile `smal`", "--> m.yaml:", "hint: profiles here: small"],
        ),
        (
            &["--set", "evaluat.split=valid"],
            &[
                "no key `evaluat` to override",
                "--> --set evaluat.split=valid",
                "did you mean `evaluate`?",
            ],
        ),
        (
            &["--set", "evaluate.spilt=valid"],
            &[
                "unknown key `spilt`",
                "--> --set evaluate.spilt=valid",
                "did you mean `split`?",
            ],
        ),
        (
            &["--set", "evaluate.split.more=1"],
            &["`evaluate.split` holds no keys", "--> --set"],
        ),
        (
            &["--set", "seeds.5=1"],
            &["no item `5` to override", "--> --set seeds.5=1"],
        ),
        (
            &["--set", "profiles.small.samples=[x]"],
            &["no key `profiles` to override"],
        ),
        (
            &["--set", "finetune.train.steps=many"],
            &["expected a whole number from 0", "--> --set finetune.train.steps=many"],
        ),
        (
            &["--set", "finetune.train.steps=0"],
            &["expected at least 1, got 0", "--> --set finetune.train.steps=0"],
        ),
        (&["--set", "finetune.train.lr=.nan"], &["`.nan` is not a finite number"]),
        (
            &["--set", "evaluate.split"],
            &["`evaluate.split` has no `=`; hint: --set key.key=value"],
        ),
        (
            &["--set", "evaluate..split=test"],
            &["`evaluate..split=test` has an empty key"],
        ),
        (&["--set", "seeds=[1"], &["`[1` is not a value"]),
        (
            &["--set", "seeds=[1]"],
            &["with --set, say where the results go: --results FOLDER"],
        ),
    ];
    for (options, says) in cases {
        let err = desk.unsay(&[&["run", "m.yaml"], options].concat()).fails(2);
        for says in says {
            assert!(err.contains(says), "{options:?}: `{says}` is not in\n{err}");
        }
        assert_eq!(desk.names(), ["m.yaml"]);
    }
    let bomb = format!("seeds=[{}]", "[".repeat(3000));
    desk.unsay(&["check", "m.yaml", "--set", &bomb]).fails(2);
}

/// Paths of all values that hold no others.
fn leaves(value: &Yaml, path: &str, out: &mut Vec<String>) {
    let below = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match value {
        Yaml::Mapping(map) if !map.is_empty() => {
            map.iter()
                .for_each(|(k, v)| leaves(v, &below(k.as_str().unwrap()), out));
        }
        Yaml::Sequence(items) if !items.is_empty() => {
            items
                .iter()
                .enumerate()
                .for_each(|(i, v)| leaves(v, &below(&i.to_string()), out));
        }
        _ => out.push(path.to_owned()),
    }
}

#[test]
fn every_value_made_nonsense_is_one_mistake_and_two_are_two() {
    let mut question: Yaml = serde_yaml::from_str(TINY).unwrap();
    let profile = question.as_mapping_mut().unwrap().remove("profiles").unwrap()["small"].clone();
    question
        .as_mapping_mut()
        .unwrap()
        .extend(profile.as_mapping().unwrap().clone());
    let mut paths = Vec::new();
    leaves(&question, "", &mut paths);
    assert!(paths.len() > 150, "{}", paths.len());
    let manifest = Manifest::parse("m.yaml".into(), TINY.into()).unwrap();
    let nonsense = |path: &String| format!("{path}={{ wrong: [x] }}").parse().unwrap();
    let mut last: Option<&String> = None;
    for path in &paths {
        let one = manifest.resolve(None, &[nonsense(path)]).unwrap_err().shown;
        assert_eq!(one.len(), 1, "{one:#?}");
        assert!(one[0].contains(&format!("--> --set {path}=")), "{one:#?}");
        if let Some(last) = last {
            let two = manifest
                .resolve(None, &[nonsense(last), nonsense(path)])
                .unwrap_err()
                .shown;
            assert_eq!(two.len(), 2, "{two:#?}");
        }
        last = Some(path);
    }
}

/// Removes the `n`th key of all, counted from the root; the path of what was removed.
fn without(value: &mut Yaml, n: &mut usize) -> Option<String> {
    let keyed: Vec<(String, &mut Yaml)> = match value {
        Yaml::Mapping(map) => {
            let keys: Vec<Yaml> = map.keys().cloned().collect();
            if *n < keys.len() {
                map.remove(&keys[*n]);
                return keys[*n].as_str().map(str::to_owned);
            }
            *n -= keys.len();
            map.iter_mut()
                .map(|(k, v)| (k.as_str().unwrap().to_owned(), v))
                .collect()
        }
        Yaml::Sequence(items) => items.iter_mut().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        _ => return None,
    };
    let mut keyed = keyed.into_iter();
    keyed.find_map(|(key, below)| without(below, n).map(|path| format!("{key}.{path}")))
}

#[test]
fn every_key_left_out_is_one_mistake_unless_it_has_a_default() {
    let (mut refused, mut accepted) = (Vec::new(), Vec::new());
    for n in 0.. {
        let mut value: Yaml = serde_yaml::from_str(TINY).unwrap();
        let Some(path) = without(&mut value, &mut n.clone()) else {
            break;
        };
        let found = Manifest::parse("m.yaml".into(), serde_yaml::to_string(&value).unwrap())
            .and_then(|manifest| manifest.resolve(None, &[]).map(|_| ()));
        match found {
            Ok(()) => accepted.push(path),
            Err(mistakes) => {
                assert_eq!(mistakes.shown.len(), 1, "{path}\n{mistakes}");
                refused.push(path);
            }
        }
    }
    for needed in [
        "name",
        "seeds",
        "profiles",
        "profiles.small.data",
        "profiles.small.base.train.train.lr",
    ] {
        assert!(refused.contains(&needed.to_owned()), "{needed}: {accepted:#?}");
    }
    for free in [
        "content_warning",
        "arms.base",
        "profiles.small.base.train.train.warmup",
        "profiles.small.table.baseline",
    ] {
        assert!(accepted.contains(&free.to_owned()), "{free}: {refused:#?}");
    }
    assert!(
        refused.len() > 60 && accepted.len() > 20,
        "{} {}",
        refused.len(),
        accepted.len()
    );
}

/// The texts as a user sees them, of a small manifest so that they stay when the tiny one grows.
#[test]
fn error_texts_are_as_they_were() {
    let small = "\
name: small
question: What is said of mistakes?
seeds: [0, one]
arms:
  mle: { train: { loss: { nll: {} } } }
  cringe: { train: { loss: { crinje: { alpha: 1.0, k: 5 } } } }
profiles:
  only:
    base: { train: { vocab_sise: 500 } }
    limits: { max_prompt: many, max_completion: 48, max_cut_share: 0.5, max_dropped_share: 0.0 }
";
    insta::assert_snapshot!("several_mistakes", refused(small));
    insta::assert_snapshot!("duplicate_key", refused(format!("{small}name: again\n")));
    insta::assert_snapshot!("syntax", refused(small.replace("[0, one]", "[0, one")));
    insta::assert_snapshot!("tab", refused(small.replace("    limits", "\tlimits")));
    insta::assert_snapshot!("tag", refused(small.replace("{ crinje: {", "!crinje { x: {")));
    insta::assert_snapshot!("alias", refused(small.replace("[0, one]", "*all")));
    insta::assert_snapshot!("empty", refused(""));
    insta::assert_snapshot!("no_profiles", refused(small.split("profiles:").next().unwrap()));
    let desk = Desk::with("m.yaml", TINY);
    let run = |options: &[&str]| desk.unsay(&[&["run", "m.yaml"], options].concat()).fails(2);
    insta::assert_snapshot!(
        "override",
        run(&["--set", "arms.cringe.train.loss.cringe.alhpa=2", "--set", "sedes=[1]"])
    );
    insta::assert_snapshot!("override_without_results", run(&["--set", "seeds=[1]"]));
}
