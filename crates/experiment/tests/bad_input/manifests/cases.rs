//! One place of the tiny manifest spoilt after the other, and what is said of it.

/// A way to spoil the manifest and what must be said of it.
pub(crate) struct Case {
    pub(crate) what: &'static str,
    /// Replacements, each of the first place where the old text stands.
    pub(crate) edits: &'static [(&'static str, &'static str)],
    /// Text that each mistake must point to, in the order of the mistakes.
    pub(crate) at: &'static [&'static str],
    /// What is said, beside the place.
    pub(crate) says: &'static [&'static str],
}

pub(crate) const CASES: &[Case] = &[
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
