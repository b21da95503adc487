//! Time of a bootstrap and of writing a table.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use unsay_report::ScoreRow;
use unsay_report::stats::{Bootstrap, Scored, paired_difference};
use unsay_report::tables::{read_rows, write_rows};

fn bootstrap(bench: &mut Criterion) {
    let names: Vec<String> = (0..500).map(|i| format!("test-{i:04}")).collect();
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
    let (a, b) = (arm(5), arm(0));
    let options = Bootstrap {
        resamples: 10_000,
        level: 0.95,
    };
    bench.bench_function("paired bootstrap, 10k resamples of 3 × 500 pairs", |bench| {
        bench.iter(|| {
            let mut draw = ChaCha8Rng::seed_from_u64(1);
            black_box(paired_difference(&a, &b, options, &mut draw))
        });
    });
}

fn tables(bench: &mut Criterion) {
    let rows: Vec<ScoreRow> = (0..100_000)
        .map(|i| ScoreRow {
            arm: ["mle", "unlikelihood", "cringe", "cringe_iterative"][i / 25_000].to_owned(),
            seed: (i / 5000 % 5) as u64,
            checkpoint: "best".to_owned(),
            iteration: None,
            evaluator: ["safe_oracle", "f1"][i / 2500 % 2].to_owned(),
            subset: "test".to_owned(),
            example: format!("test-{:04}", i % 2500),
            value: (i % 97) as f64 / 97.0,
        })
        .collect();
    let path = std::env::temp_dir().join(format!("unsay-report-bench-{}.parquet", std::process::id()));
    bench.bench_function("write 100k score rows", |bench| {
        bench.iter(|| write_rows(&path, black_box(&rows)))
    });
    bench.bench_function("read 100k score rows", |bench| {
        bench.iter(|| read_rows::<ScoreRow>(black_box(&path)))
    });
    let _ = std::fs::remove_file(&path);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = bootstrap, tables
}
criterion_main!(benches);
