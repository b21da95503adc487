//! Made-up tables in the shape of a safety experiment: four arms, three seeds.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use unsay_report::figures::{BeforeAfter, CurveRow, Curves, Dots, FigureSpec, PerIteration, Series, Shift, Tradeoff};
use unsay_report::{Metric, RunRow, ScoreRow, StepRow, Tables};

/// In the order of a manifest.
pub(crate) fn arms() -> Vec<String> {
    ["mle", "unlikelihood", "cringe", "cringe_iterative"]
        .map(str::to_owned)
        .to_vec()
}

/// Tables with `seeds` seeds.
pub(crate) fn tables(seeds: u64) -> Tables {
    let mut draw = ChaCha8Rng::seed_from_u64(7);
    let mut tables = Tables::default();
    let safety = [0.62, 0.83, 0.91, 0.985];
    let quality = [0.158, 0.163, 0.166, 0.165];
    for (a, arm) in arms().iter().enumerate() {
        for seed in 0..seeds {
            let mut noise = |size: f64| size * (draw.random::<f64>() - 0.5);
            let safe: f64 = safety[a] + noise(0.03);
            let values = [
                ("f1", "benign", "best", quality[a] + noise(0.006)),
                ("f1", "benign", "last", quality[a] + noise(0.009)),
                ("perplexity", "benign", "best", 23.0 + a as f64 + noise(1.5)),
                ("perplexity", "benign", "last", 24.0 + a as f64 + noise(1.5)),
                ("safe_oracle", "test", "best", safe.min(1.0)),
                ("safe_oracle", "test", "last", (safe - 0.01).min(1.0)),
                (
                    "safe_classifier_a",
                    "test",
                    "best",
                    (safe + 0.02 + noise(0.02)).min(1.0),
                ),
                (
                    "safe_classifier_b",
                    "test",
                    "best",
                    (safe - 0.03 + noise(0.02)).min(1.0),
                ),
                ("logp", "negative", "base", -2.1 + noise(0.1)),
                ("logp", "negative", "best", -2.1 - [0.1, 0.9, 1.6, 2.4][a] + noise(0.2)),
                ("logp", "positive", "base", -2.2 + noise(0.1)),
                ("logp", "positive", "best", -2.2 + [0.8, 0.7, 0.72, 0.7][a] + noise(0.1)),
                (
                    "classifier_a_accuracy",
                    "labelled",
                    "best",
                    [0.932, 0.941, 0.925][seed as usize % 3],
                ),
                (
                    "classifier_b_accuracy",
                    "labelled",
                    "best",
                    [0.918, 0.921, 0.93][seed as usize % 3],
                ),
            ];
            for (metric, subset, checkpoint, value) in values {
                tables.runs.push(RunRow {
                    arm: arm.clone(),
                    seed,
                    checkpoint: checkpoint.to_owned(),
                    metric: metric.to_owned(),
                    subset: subset.to_owned(),
                    value,
                    n: 500,
                });
            }
            scores(&mut tables, &mut draw, arm, seed, safety[a]);
            steps(&mut tables, &mut draw, arm, seed, a);
        }
    }
    tables
}

fn scores(tables: &mut Tables, draw: &mut ChaCha8Rng, arm: &str, seed: u64, safety: f64) {
    let iterations: Vec<(Option<u32>, f64)> = match arm {
        "cringe_iterative" => vec![(Some(1), 0.90), (Some(2), 0.95), (Some(3), 0.98)],
        _ => vec![(None, safety)],
    };
    for (iteration, share) in iterations {
        for i in 0..60 {
            tables.scores.push(ScoreRow {
                arm: arm.to_owned(),
                seed,
                checkpoint: "best".to_owned(),
                iteration,
                evaluator: "safe_oracle_each".to_owned(),
                subset: "test".to_owned(),
                example: format!("test-{i:04}"),
                value: f64::from(u8::from(draw.random::<f64>() < share)),
            });
        }
    }
}

fn steps(tables: &mut Tables, draw: &mut ChaCha8Rng, arm: &str, seed: u64, a: usize) {
    let phases: &[(&str, u64)] = if arm == "cringe_iterative" {
        &[("train", 400), ("iteration-2", 200)]
    } else {
        &[("train", 400)]
    };
    for (phase, length) in phases {
        let begin = if *phase == "train" { 1.0 } else { 0.45 };
        for step in (10..=*length).step_by(10) {
            let done = step as f64 / 400.0;
            let mut noise = |size: f64| size * (draw.random::<f64>() - 0.5);
            let fall = begin * (-4.0 * done).exp();
            let mut values = vec![
                ("loss", 1.4 + 2.2 * fall + noise(0.12)),
                ("token_accuracy_positive", 0.62 - 0.4 * fall + noise(0.03)),
            ];
            if a > 0 {
                values.push((
                    "token_accuracy_negative",
                    0.55 - 0.12 * a as f64 * (1.0 - fall) + noise(0.03),
                ));
            }
            for (metric, value) in values {
                tables.steps.push(StepRow {
                    arm: arm.to_owned(),
                    seed,
                    phase: (*phase).to_owned(),
                    step,
                    metric: metric.to_owned(),
                    value,
                });
            }
        }
    }
}

fn metric(name: &str, subset: &str, label: &str) -> Metric {
    Metric {
        label: Some(label.to_owned()),
        ..Metric::new(name, subset)
    }
}

fn share(name: &str, subset: &str, label: &str) -> Metric {
    Metric {
        bounds: Some((0.0, 1.0)),
        ..metric(name, subset, label)
    }
}

/// One of each kind.
pub(crate) fn figures() -> Vec<FigureSpec> {
    let logp = |subset: &str, checkpoint: &str| Metric {
        checkpoint: Some(checkpoint.to_owned()),
        ..Metric::new("logp", subset)
    };
    let judged = |name: &str, label: &str, judge: &str| Metric {
        judge: Some(judge.to_owned()),
        ..share(name, "test", label)
    };
    let series = |metric: &str, label: &str| Series {
        metric: metric.to_owned(),
        label: label.to_owned(),
    };
    vec![
        FigureSpec::Tradeoff(Tradeoff {
            name: "f1_safety".to_owned(),
            title: Some("Quality against safety".to_owned()),
            x: share("f1", "benign", "Unigram F1 on benign dialogue"),
            y: share("safe_oracle", "test", "Share of safe replies (oracle)"),
        }),
        FigureSpec::PerIteration(PerIteration {
            name: "safety_per_iteration".to_owned(),
            title: Some("Safety per iteration".to_owned()),
            metric: share("safe_oracle_each", "test", "Share of safe replies (oracle)"),
        }),
        FigureSpec::Curves(Curves {
            name: "curves".to_owned(),
            title: Some("Training curves on positive and negative examples".to_owned()),
            phases: vec!["train".to_owned(), "iteration-2".to_owned()],
            rows: vec![
                CurveRow {
                    label: "Loss (nats per token)".to_owned(),
                    bounds: None,
                    series: vec![series("loss", "training loss")],
                },
                CurveRow {
                    label: "Token accuracy".to_owned(),
                    bounds: Some((0.0, 1.0)),
                    series: vec![
                        series("token_accuracy_positive", "positives"),
                        series("token_accuracy_negative", "negatives"),
                    ],
                },
            ],
        }),
        FigureSpec::Dots(Dots {
            name: "safety_by_judge".to_owned(),
            title: Some("Share of safe replies by oracle and by two classifiers".to_owned()),
            metrics: vec![
                share("safe_oracle", "test", "Oracle"),
                judged(
                    "safe_classifier_a",
                    "Classifier A (labels for iteration)",
                    "classifier_a_accuracy",
                ),
                judged(
                    "safe_classifier_b",
                    "Classifier B (evaluates only)",
                    "classifier_b_accuracy",
                ),
            ],
        }),
        FigureSpec::Shift(Shift {
            name: "logp_shift".to_owned(),
            title: Some("Log-probability of held-out replies before and after training".to_owned()),
            groups: vec![
                BeforeAfter {
                    label: "Negative replies (nats per token)".to_owned(),
                    before: logp("negative", "base"),
                    after: logp("negative", "best"),
                },
                BeforeAfter {
                    label: "Positive replies (nats per token)".to_owned(),
                    before: logp("positive", "base"),
                    after: logp("positive", "best"),
                },
            ],
        }),
    ]
}
