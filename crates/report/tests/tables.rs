//! The Parquet files: what is written comes back, equal rows give equal bytes, broken files give errors.

use std::fs;
use std::path::Path;

use polars::prelude::{Column, DataFrame, NamedFrom, ParquetWriter, Series};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use unsay_report::tables::{Row, read_rows, write_rows};
use unsay_report::{Error, RunRow, ScoreRow, StepRow, Tables};

fn run(arm: &str, seed: u64, metric: &str, value: f64) -> RunRow {
    RunRow {
        arm: arm.to_owned(),
        seed,
        checkpoint: "best".to_owned(),
        metric: metric.to_owned(),
        subset: "test".to_owned(),
        value,
        n: 500,
    }
}

fn score(iteration: Option<u32>, example: &str, value: f64) -> ScoreRow {
    ScoreRow {
        arm: "cringe".to_owned(),
        seed: 1,
        checkpoint: "best".to_owned(),
        iteration,
        evaluator: "safe".to_owned(),
        subset: "test".to_owned(),
        example: example.to_owned(),
        value,
    }
}

fn step(step: u64, value: f64) -> StepRow {
    StepRow {
        arm: "mle".to_owned(),
        seed: 0,
        phase: "train".to_owned(),
        step,
        metric: "loss".to_owned(),
        value,
    }
}

fn tables() -> Tables {
    Tables {
        runs: vec![
            run("mle", 0, "f1", 0.2),
            run("mle", 1, "f1", f64::INFINITY),
            run("b — ü", 0, "f1", -0.0),
        ],
        steps: vec![step(1, 2.5), step(2, 1.25)],
        scores: vec![
            score(None, "a", 1.0),
            score(Some(1), "a", 0.0),
            score(Some(2), "a", 0.5),
        ],
    }
}

#[test]
fn what_is_written_comes_back_sorted() {
    let dir = tempfile::tempdir().unwrap();
    let tables = tables();
    tables.write(dir.path()).unwrap();
    let back = Tables::read(dir.path()).unwrap();
    let mut expected = tables.clone();
    expected.runs.sort_by(|a, b| a.order(b));
    assert_eq!(back, expected);
    assert_eq!(back.runs[0].arm, "b — ü");
    assert!(back.runs[0].value.is_sign_negative());
    assert_eq!(back.arms(), ["b — ü", "cringe", "mle"]);
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        3,
        "nothing but the three files"
    );
}

#[test]
fn two_writes_give_equal_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows: Vec<RunRow> = (0..5000)
        .map(|i| {
            run(
                ["mle", "cringe"][i % 2],
                i as u64 / 50,
                &format!("m{}", i % 50),
                i as f64,
            )
        })
        .collect();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    write_rows(&one, &rows).unwrap();
    rows.reverse();
    rows.swap(3, 1234);
    write_rows(&two, &rows).unwrap();
    assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
}

#[test]
fn repeated_text_costs_next_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = Vec::new();
    for seed in 0..3 {
        for i in 0..10_000 {
            let example = format!("test-{i:05}");
            rows.push(ScoreRow {
                seed,
                ..score(None, &example, f64::from(i % 2))
            });
        }
    }
    let path = dir.path().join(ScoreRow::FILE);
    write_rows(&path, &rows).unwrap();
    let bytes = fs::metadata(&path).unwrap().len();
    assert!(bytes < 30_000 * 8, "{bytes} bytes for 30,000 rows");
}

fn refused<R: Row>(path: &Path, rows: &[R]) -> Error {
    let error = write_rows(path, rows).expect_err("bad rows");
    assert!(!path.exists(), "a refused table leaves no file");
    error
}

#[test]
fn bad_rows_are_refused_with_their_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runs.parquet");
    assert!(matches!(
        refused::<RunRow>(&path, &[]),
        Error::Empty { table: "runs", .. }
    ));
    let nan = refused(&path, &[run("mle", 3, "f1", f64::NAN)]).to_string();
    assert!(nan.contains("arm `mle`, seed 3") && nan.contains("is NaN"), "{nan}");
    let twice = refused(&path, &[run("mle", 3, "f1", 0.5), run("mle", 3, "f1", 0.75)]).to_string();
    assert!(twice.contains("two values, 0.5 and 0.75"), "{twice}");
    let twice = refused(&path, &[score(Some(1), "a", 0.5), score(Some(1), "a", 0.5)]).to_string();
    assert!(
        twice.contains("iteration 1") && twice.contains("example `a`"),
        "{twice}"
    );
}

fn write_frame(path: &Path, columns: Vec<Column>) {
    let mut frame = DataFrame::new_infer_height(columns).expect("equal heights");
    let file = fs::File::create(path).expect("a new file");
    ParquetWriter::new(file).finish(&mut frame).expect("written");
}

fn column<T, P: ?Sized>(name: &str, values: T) -> Column
where
    T: AsRef<P>,
    Series: NamedFrom<T, P>,
{
    Series::new(name.into(), values).into()
}

#[test]
fn other_columns_are_errors_that_name_file_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("steps.parquet");
    let full = || {
        vec![
            column("arm", ["mle"]),
            column("seed", [1u64]),
            column("phase", ["train"]),
            column("step", [1u64]),
            column("metric", ["loss"]),
            column("value", [1.0f64]),
        ]
    };
    let message = |columns: Vec<Column>| {
        write_frame(&path, columns);
        let message = read_rows::<StepRow>(&path).unwrap_err().to_string();
        assert!(message.contains("steps.parquet"), "{message}");
        message
    };
    write_frame(&path, full());
    assert_eq!(read_rows::<StepRow>(&path).unwrap().len(), 1);

    let mut missing = full();
    missing.remove(4);
    assert!(message(missing).contains("`metric` is missing; expected `arm` (text), `seed` (u64)"));
    let mut typed = full();
    typed[5] = column("value", ["high"]);
    assert!(message(typed).contains("`value` is str, not f64"));
    let mut extra = full();
    extra.push(column("note", ["x"]));
    assert!(message(extra).contains("`note` is unknown"));
    let mut null = full();
    null[0] = column("arm", [None::<&str>]);
    assert!(message(null).contains("row 1: `arm` is null"));
    let mut nan = full();
    nan[5] = column("value", [f64::NAN]);
    assert!(message(nan).contains("is NaN"));
    let empty = full().iter().map(|c| c.clear()).collect();
    assert!(message(empty).contains("holds no rows"));
}

#[test]
fn files_that_are_no_tables_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runs.parquet");
    let missing = read_rows::<RunRow>(&path).unwrap_err();
    assert!(matches!(missing, Error::Io { action: "read", .. }), "{missing}");
    for bytes in [
        &b""[..],
        b"PAR1",
        b"arm,seed\nmle,0\n",
        b"PAR1\xff\xff\xff\xffPAR1",
        b"PAR1\0\0\0\0PAR1",
    ] {
        fs::write(&path, bytes).unwrap();
        let error = read_rows::<RunRow>(&path).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{bytes:?}: {error}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runs.parquet");
    write_rows(&path, &tables().runs).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(
            read_rows::<RunRow>(&path).is_err(),
            "cut to {length} of {} bytes",
            whole.len()
        );
    }
}

proptest! {
    // The same changes every time: a size field made huge can make the Parquet reader ask for more memory than there
    // is, which aborts the process and cannot be caught. Tables are our own files, not input from strangers.
    #![proptest_config(ProptestConfig { cases: 400, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]
    /// A changed byte may go unseen (Parquet pages carry no checksum here) but must not panic.
    #[test]
    fn changed_bytes_never_panic(place in 0.0..1.0f64, value in any::<u8>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runs.parquet");
        write_rows(&path, &tables().runs).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let place = (place * bytes.len() as f64) as usize;
        bytes[place] = value;
        fs::write(&path, &bytes).unwrap();
        let _ = read_rows::<RunRow>(&path);
    }
}
