//! What is timed of this crate by `cargo bench` and guarded by `just bench-gate`: names and set-ups. A work does the same each time.
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first error")]

use std::hint::black_box;
use std::path::PathBuf;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tempfile::TempDir;
use unsay_report::ScoreRow;
use unsay_report::stats::{Bootstrap, Scored, mean_t, paired_difference, wilson};
use unsay_report::tables::{read_rows, write_rows};

/// A work that can be done again and again.
pub(crate) type Work = Box<dyn FnMut()>;

/// Makes what a work needs.
pub(crate) type Make = fn() -> Work;

/// Every work, by name.
pub(crate) const WORKLOADS: [(&str, Make); 4] = [
    ("report/bootstrap/500x3x100", bootstrap),
    ("report/intervals/1000", intervals),
    ("report/write_table/1000", write_table),
    ("report/read_table/1000", read_table),
];

/// A hundred resamples of the paired difference over three seeds of 500 examples.
fn bootstrap() -> Work {
    let names: Vec<String> = (0..500).map(|i| format!("test-{i:04}")).collect();
    let options = Bootstrap {
        resamples: 100,
        level: 0.95,
    };
    Box::new(move || {
        let arm = |gain: u64| -> Vec<Scored<'_>> {
            (0..3)
                .flat_map(|seed| {
                    (names.iter().zip(0..)).map(move |(example, i): (&String, u64)| Scored {
                        seed,
                        example,
                        value: ((i * 7919 + seed * 31 + gain) % 97) as f64 / 97.0,
                    })
                })
                .collect()
        };
        let mut draw = ChaCha8Rng::seed_from_u64(1);
        black_box(paired_difference(&arm(5), &arm(0), options, &mut draw).unwrap());
    })
}

/// A thousand Student-t and Wilson intervals.
fn intervals() -> Work {
    Box::new(|| {
        for at in 0..1000u32 {
            let values = [0.5, 0.6, f64::from(at) / 1000.0];
            black_box(mean_t(&values, 0.95).unwrap());
            black_box(wilson(at.into(), 1000, 0.95).unwrap());
        }
    })
}

fn rows() -> Vec<ScoreRow> {
    (0..1000)
        .map(|i| ScoreRow {
            arm: ["mle", "unlikelihood", "cringe", "cringe_iterative"][i / 250].to_owned(),
            seed: (i / 50 % 5) as u64,
            checkpoint: "best".to_owned(),
            iteration: None,
            evaluator: ["safe_oracle", "f1"][i / 25 % 2].to_owned(),
            subset: "test".to_owned(),
            example: format!("test-{:04}", i % 25),
            value: (i % 97) as f64 / 97.0,
        })
        .collect()
}

fn file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scores.parquet");
    (folder, path)
}

fn write_table() -> Work {
    let (folder, path) = file();
    let rows = rows();
    Box::new(move || {
        write_rows(&path, &rows).unwrap();
        black_box(&folder);
    })
}

fn read_table() -> Work {
    let (folder, path) = file();
    write_rows(&path, &rows()).unwrap();
    Box::new(move || {
        black_box(read_rows::<ScoreRow>(&path).unwrap());
        black_box(&folder);
    })
}
