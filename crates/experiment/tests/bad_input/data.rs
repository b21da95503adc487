//! Broken data files: the first file that is read is spoilt, or what it holds cannot be learnt from.

use std::fs;
use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use super::common::{Desk, FILES, files, finished};

/// Labelled replies that all is well with.
pub(crate) fn rows(n: usize) -> Vec<Value> {
    (0..n)
        .map(|i| json!({ "context": format!("what is {i} ?"), "reply": format!("it is {i} ."), "verdict": if i % 2 == 0 { "good" } else { "bad" } }))
        .collect()
}

pub(crate) fn lines(rows: &[Value]) -> String {
    rows.iter().map(|r| format!("{r}\n")).collect()
}

/// A folder with the manifest and three sound files.
pub(crate) fn desk() -> Desk {
    let desk = Desk::with("m.yaml", FILES);
    desk.write("train.jsonl", lines(&rows(64)));
    desk.write("valid.jsonl", lines(&rows(24)));
    desk.write("test.jsonl", lines(&rows(24)));
    desk
}

fn edited(change: impl Fn(usize, &mut Value)) -> Vec<u8> {
    let mut rows = rows(64);
    for (i, row) in rows.iter_mut().enumerate() {
        change(i, row);
    }
    lines(&rows).into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn sound_files_run_to_their_results() {
    let desk = desk();
    desk.write("train.jsonl.gz", gzip(&fs::read(desk.path("train.jsonl")).unwrap()));
    desk.unsay(&["run", "m.yaml"]).ok();
    let plain = desk.path("results/files/own");
    let set = "data.feedback.files.train=train.jsonl.gz";
    desk.unsay(&["run", "m.yaml", "--set", set, "--results", "gz"]).ok();
    super::common::same_tables(&desk.path("gz"), &plain);
    assert_eq!(finished(&desk.store()).len(), 10);
}

#[test]
fn a_broken_data_file_is_named_with_its_line() {
    let (good, long) = (lines(&rows(64)), "word ".repeat(300));
    let bad_utf8 = [good.as_bytes(), b"{\"context\": \"\xc3\x28\"}\n"].concat();
    let half = gzip(good.as_bytes());
    let csv = |row: &str| format!("context,reply,verdict\na,b,good\n{row}\n").into_bytes();
    let cases: Vec<(&str, &str, Vec<u8>, &[&str])> = vec![
        (
            "empty",
            "x.jsonl",
            vec![],
            &["`x.jsonl`: expected at least one row, got none"],
        ),
        (
            "blank lines",
            "x.jsonl",
            b"\n \n".to_vec(),
            &["`x.jsonl`: expected at least one row"],
        ),
        (
            "bad UTF-8",
            "x.jsonl",
            bad_utf8,
            &["`x.jsonl:65:14`: expected UTF-8 text, got the byte 0xc3"],
        ),
        (
            "malformed JSON",
            "x.jsonl",
            format!("{good}{{\"context\": \n").into_bytes(),
            &["`x.jsonl:65", "expected a JSON object"],
        ),
        (
            "a list",
            "x.jsonl",
            format!("{good}[1, 2]\n").into_bytes(),
            &["`x.jsonl:65", "expected a JSON object"],
        ),
        (
            "a key twice",
            "x.jsonl",
            b"{\"context\": \"a\", \"context\": \"b\"}\n".to_vec(),
            &["`x.jsonl:1", "`context` occurs twice"],
        ),
        (
            "missing column",
            "x.jsonl",
            good.replace("verdict", "verdikt").into_bytes(),
            &[
                "`x.jsonl:1`: expected a column `verdict`",
                "hint: did you mean `verdikt`?",
            ],
        ),
        (
            "column missing once",
            "x.jsonl",
            edited(|i, r| {
                if i == 7 {
                    drop(r.as_object_mut().unwrap().remove("reply"))
                }
            }),
            &["`x.jsonl:8`: expected a column `reply`"],
        ),
        (
            "unmapped label",
            "x.jsonl",
            edited(|i, r| {
                if i == 9 {
                    r["verdict"] = "so so".into()
                }
            }),
            &["`x.jsonl:10`: expected one of the mapped labels `good`, `bad`, got `so so`"],
        ),
        (
            "label without text",
            "x.jsonl",
            edited(|i, r| {
                if i == 9 {
                    r["verdict"] = Value::Null
                }
            }),
            &["`x.jsonl:10`"],
        ),
        (
            "number for text",
            "x.jsonl",
            edited(|i, r| {
                if i == 3 {
                    r["reply"] = 4.into()
                }
            }),
            &["`x.jsonl:4`: expected text in `reply`, got a number"],
        ),
        (
            "one empty completion",
            "x.jsonl",
            edited(|i, r| {
                if i == 5 {
                    r["reply"] = " ".into()
                }
            }),
            &["`x.jsonl:6`: expected a completion, got empty text"],
        ),
        (
            "empty completions",
            "x.jsonl",
            edited(|_, r| r["reply"] = "".into()),
            &["`x.jsonl:1`: expected a completion, got empty text"],
        ),
        (
            "line too long",
            "x.jsonl",
            vec![b'x'; (16 << 20) + 2],
            &["`x.jsonl:1`: expected a line of at most 16 MiB"],
        ),
        (
            "truncated gzip",
            "x.jsonl.gz",
            half[..half.len() / 2].to_vec(),
            &[
                "`x.jsonl.gz:",
                "expected the rest of the gzip data, got the end of the file",
            ],
        ),
        (
            "damaged gzip",
            "x.jsonl.gz",
            [&half[..10], b"\xff\xff\xff\xff", &half[14..]].concat(),
            &["`x.jsonl.gz:", "gzip data"],
        ),
        (
            "no gzip",
            "x.jsonl.gz",
            good.clone().into_bytes(),
            &["`x.jsonl.gz:1`: expected gzip data"],
        ),
        (
            "ragged CSV",
            "x.csv",
            csv("a,b"),
            &["`x.csv:3`: expected 3 cells as in the header, got 2"],
        ),
        (
            "CSV with more cells",
            "x.csv",
            csv("a,b,good,more"),
            &["`x.csv:3`: expected 3 cells as in the header, got 4"],
        ),
        (
            "CSV of a header",
            "x.csv",
            b"context,reply,verdict\n".to_vec(),
            &["`x.csv`: expected at least one row"],
        ),
        (
            "bad UTF-8 in CSV",
            "x.csv",
            csv("a,b,good").into_iter().chain(*b"a,\xff,good\n").collect(),
            &["`x.csv:4`: expected UTF-8 text"],
        ),
        (
            "no Parquet",
            "x.parquet",
            good.clone().into_bytes(),
            &["`x.parquet`: expected a Parquet file"],
        ),
        (
            "all cut",
            "x.jsonl",
            edited(|_, r| r["reply"] = long.clone().into()),
            &[
                "examples of `half ",
                "examples cut to the token limits: expected at most 10.0%, got 100.0%",
                "hint: raise `max_prompt` or `max_completion`",
            ],
        ),
        (
            "all negative",
            "x.jsonl",
            edited(|_, r| r["verdict"] = "bad".into()),
            &["a classifier needs examples of both classes, got none that is positive"],
        ),
        (
            "all positive",
            "x.jsonl",
            edited(|_, r| r["verdict"] = "good".into()),
            &["a classifier needs examples of both classes, got none that is negative"],
        ),
    ];
    assert_eq!(cases.len(), 25);
    let desk = desk();
    for (what, name, content, says) in cases {
        desk.write(name, content);
        let set = format!("data.feedback.files.train={name}");
        let args = ["run", "m.yaml", "--workers", "1", "--results", "out", "--set", &set];
        let err = desk.unsay(&args).fails(1);
        assert!(err.contains("error: step `"), "{what}\n{err}");
        for says in says {
            assert!(err.contains(says), "{what}: `{says}` is not in\n{err}");
        }
        finished(&desk.store());
        assert!(
            files(&desk.path("out")).is_empty(),
            "{what}: results of a run that failed"
        );
    }
}

/// What the training itself finds nothing to learn from: only negatives, and a loss that ignores them.
#[test]
fn negatives_alone_are_nothing_for_nll() {
    let desk = desk();
    // The classifiers are made from mixed data first; then the same records are all called negative.
    desk.unsay(&["run", "m.yaml"]).ok();
    let steps = finished(&desk.store());
    for split in ["train", "valid"] {
        let path = steps["records: feedback"].join(format!("{split}.jsonl"));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"positive\"", "\"negative\"")).unwrap();
    }
    fs::remove_dir_all(&steps["train mle, seed 0"]).unwrap();
    let set = ["--set", "finetune.mixture.dialogue=0", "--results", "out"];
    let err = desk.unsay(&[&["run", "m.yaml"], &set[..]].concat()).fails(1);
    assert!(err.contains("error: step `train mle, seed 0` failed"), "{err}");
    assert!(err.contains("nll"), "{err}");
    assert!(files(&desk.path("out")).is_empty());
}

#[test]
fn data_files_that_are_not_there_are_mistakes_of_the_manifest() {
    let desk = desk();
    fs::create_dir(desk.path("folder.jsonl")).unwrap();
    for (name, says) in [
        ("nowhere.jsonl", "no file `nowhere.jsonl`"),
        ("folder.jsonl", "no file `folder.jsonl`"),
        (
            "m.yaml",
            "`m.yaml`: expected a file name that ends in .jsonl, .jsonl.gz, .csv or .parquet",
        ),
    ] {
        desk.write(
            "broken.yaml",
            FILES.replace("train: train.jsonl", &format!("train: {name}")),
        );
        let err = desk.unsay(&["run", "broken.yaml"]).fails(2);
        let line = FILES.lines().position(|l| l.contains("train: train.jsonl")).unwrap() + 1;
        assert!(
            err.contains(says) && err.contains(&format!("--> broken.yaml:{line}:18\n")),
            "{err}"
        );
    }
    assert!(!desk.path("runs").exists());
}
