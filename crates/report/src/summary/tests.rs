//! Tables of made-up numbers.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::{SummarySpec, summary};
use crate::error::Error;
use crate::select::Metric;
use crate::tables::{RunRow, ScoreRow, Tables};

fn streams(_: &str) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(1)
}

fn run(arm: &str, seed: u64, checkpoint: &str, (metric, subset): (&str, &str), value: f64) -> RunRow {
    RunRow {
        arm: arm.to_owned(),
        seed,
        checkpoint: checkpoint.to_owned(),
        metric: metric.to_owned(),
        subset: subset.to_owned(),
        value,
        n: 4,
    }
}

/// Two arms, `seeds` seeds, four examples; `safe` is the mean of its scores, `perplexity` of none.
fn tables(seeds: u64) -> Tables {
    let mut tables = Tables::default();
    for (arm, safe) in [("mle", [1.0, 0.0, 0.0, 1.0]), ("cringe", [1.0, 1.0, 1.0, 1.0])] {
        for seed in 0..seeds {
            let safe: Vec<f64> = safe
                .iter()
                .enumerate()
                .map(|(i, v)| if i as u64 == seed { 1.0 } else { *v })
                .collect();
            let mean = safe.iter().sum::<f64>() / 4.0;
            let perplexity = 20.0 + seed as f64 + if arm == "cringe" { 0.5 * seed as f64 } else { 0.0 };
            tables.runs.extend([
                run(arm, seed, "best", ("safe", "test"), mean),
                run(arm, seed, "last", ("safe", "test"), mean),
                run(arm, seed, "best", ("perplexity", "benign"), perplexity),
                run(
                    arm,
                    seed,
                    "best",
                    ("classifier_b_accuracy", "held out"),
                    0.91 + 0.01 * seed as f64,
                ),
            ]);
            tables.scores.extend(safe.iter().enumerate().map(|(i, value)| ScoreRow {
                arm: arm.to_owned(),
                seed,
                checkpoint: "best".to_owned(),
                iteration: None,
                evaluator: "safe".to_owned(),
                subset: "test".to_owned(),
                example: format!("e{i}"),
                value: *value,
            }));
        }
    }
    tables
}

fn spec() -> SummarySpec {
    let safe = Metric {
        label: Some("Safe | by B".to_owned()),
        bounds: Some((0.0, 1.0)),
        judge: Some("classifier_b_accuracy".to_owned()),
        ..Metric::new("safe", "test")
    };
    let perplexity = Metric {
        lower_is_better: true,
        ..Metric::new("perplexity", "benign")
    };
    SummarySpec {
        metrics: vec![safe, perplexity],
        checkpoints: vec!["best".to_owned(), "last".to_owned()],
        baseline: Some("mle".to_owned()),
        level: 0.95,
        resamples: 1000,
    }
}

fn order() -> Vec<String> {
    vec!["mle".to_owned(), "cringe".to_owned()]
}

#[test]
fn three_seeds() {
    insta::assert_snapshot!(summary(&tables(3), &spec(), &order(), &streams).unwrap());
}

#[test]
fn one_seed_has_no_intervals() {
    insta::assert_snapshot!(summary(&tables(1), &spec(), &order(), &streams).unwrap());
}

#[test]
fn absent_and_infinite_values_are_said_to_be_so() {
    let mut tables = tables(2);
    tables.runs.retain(|row| !(row.arm == "cringe" && row.metric == "safe"));
    for row in tables
        .runs
        .iter_mut()
        .filter(|row| row.metric == "perplexity" && row.seed == 1)
    {
        row.value = f64::INFINITY;
    }
    insta::assert_snapshot!(summary(&tables, &spec(), &order(), &streams).unwrap());
}

/// Runs and scores of one metric: of `mle` all 0, of `cringe` these, by seed and example.
fn scored(cringe: &[[f64; 4]]) -> String {
    let mut tables = Tables::default();
    for (seed, values) in (0..).zip(cringe) {
        for (arm, values) in [("mle", [0.0; 4]), ("cringe", *values)] {
            let mean = values.iter().sum::<f64>() / 4.0;
            tables.runs.push(run(arm, seed, "best", ("safe", "test"), mean));
            tables
                .scores
                .extend(values.iter().enumerate().map(|(i, value)| ScoreRow {
                    arm: arm.to_owned(),
                    seed,
                    checkpoint: "best".to_owned(),
                    iteration: None,
                    evaluator: "safe".to_owned(),
                    subset: "test".to_owned(),
                    example: format!("e{i}"),
                    value: *value,
                }));
        }
    }
    let spec = SummarySpec {
        metrics: vec![Metric::new("safe", "test")],
        checkpoints: vec!["best".to_owned()],
        ..spec()
    };
    summary(&tables, &spec, &order(), &streams).unwrap()
}

#[test]
fn bold_needs_both_intervals() {
    let row = |values: &[[f64; 4]]| {
        let text = scored(values);
        let row = text.lines().rfind(|line| line.starts_with("| cringe |"));
        row.unwrap().to_owned()
    };
    // Both exclude 0.
    let both = row(&[[1.0, 0.9, 1.0, 1.0], [0.9, 0.9, 1.0, 0.9], [1.0, 1.0, 1.0, 0.8]]);
    assert!(both.starts_with("| cringe | **+0.9"), "{both}");
    // Seeds differ: the Student-t interval holds 0, the bootstrap's does not.
    let seeds = row(&[[0.1; 4], [0.2; 4], [0.9; 4]]);
    assert!(seeds.starts_with("| cringe | +0.40 [0.10, "), "{seeds}");
    // Examples differ: the bootstrap's interval holds 0, the Student-t interval [0.22, 0.28] does not.
    let examples = row(&[[3.0, -2.0, 1.0, -1.0], [3.0, -2.04, 1.0, -1.0], [3.0, -1.96, 1.0, -1.0]]);
    assert!(
        examples.starts_with("| cringe | +") && examples.contains("[−"),
        "{examples}"
    );
    // Seeds that are equal say nothing of seeds.
    let equal = row(&[[1.0, 0.9, 1.0, 1.0]; 3]);
    assert!(equal.starts_with("| cringe | +0.9"), "{equal}");
}

#[test]
fn equal_values_over_seeds_have_no_interval() {
    const NOTE: &str = "they come from one model";
    let text = scored(&[[0.1, 0.0, 0.0, 0.0]; 3]);
    assert!(text.contains("| mle | 0.000 (3 × 4) |"), "{text}");
    assert!(text.contains("| cringe | 0.025 (3 × 4) |"), "{text}");
    assert!(text.contains(NOTE), "{text}");
    assert!(!summary(&tables(1), &spec(), &order(), &streams).unwrap().contains(NOTE));
}

#[test]
fn without_a_baseline_there_are_no_differences() {
    let spec = SummarySpec {
        baseline: None,
        ..spec()
    };
    let text = summary(&tables(2), &spec, &[], &streams).unwrap();
    assert!(!text.contains("Differences") && text.contains("| cringe |"), "{text}");
}

#[test]
fn the_last_iteration_stands_for_an_iterative_arm() {
    let mut tables = tables(2);
    let mut earlier: Vec<ScoreRow> = Vec::new();
    for row in tables.scores.iter_mut().filter(|row| row.arm == "cringe") {
        row.iteration = Some(2);
        earlier.push(ScoreRow {
            iteration: Some(1),
            value: 0.0,
            ..row.clone()
        });
    }
    let plain = summary(&self::tables(2), &spec(), &order(), &streams).unwrap();
    tables.scores.extend(earlier);
    assert_eq!(summary(&tables, &spec(), &order(), &streams).unwrap(), plain);
}

#[test]
fn what_is_missing_is_an_error() {
    let error = |edit: fn(&mut SummarySpec)| {
        let mut spec = spec();
        edit(&mut spec);
        summary(&tables(2), &spec, &order(), &streams).unwrap_err()
    };
    let metric = error(|spec| spec.metrics[0].metric = "safety".to_owned());
    assert!(metric.to_string().contains("`safe on test at best`"), "{metric}");
    let checkpoint = error(|spec| spec.metrics[0].checkpoint = Some("first".to_owned()));
    assert!(
        checkpoint.to_string().contains("not among its checkpoints"),
        "{checkpoint}"
    );
    assert!(matches!(
        error(|spec| spec.baseline = Some("dpo".to_owned())),
        Error::MissingArm { .. }
    ));
    assert!(matches!(
        error(|spec| spec.level = 95.0),
        Error::Range { name: "level", .. }
    ));
    assert!(matches!(
        error(|spec| spec.resamples = 1),
        Error::Range { name: "resamples", .. }
    ));
    assert!(matches!(error(|spec| spec.metrics.clear()), Error::Spec { .. }));

    let mut two = tables(2);
    two.runs
        .push(run("dpo", 0, "best", ("classifier_b_accuracy", "held out"), 0.5));
    assert!(matches!(
        summary(&two, &spec(), &order(), &streams),
        Err(Error::TwoAccuracies { .. })
    ));
}
