//! From the folders of finished steps to the three result tables.

use anyhow::{Context, Result};
use serde_json::Value;
use unsay_report::{RunRow, ScoreRow, StepRow, Tables};
use unsay_train::{StepRecord, read_steps};

use crate::commands::Prepared;
use crate::manifest::question::{Arm, EvalSplit};
use crate::plan::{Curve, Point, Which};
use crate::steps::{ACCURACY, EvaluationFile, LOG, SelectionFile, unreadable};
use crate::store::Store;

/// The arm of curves that all arms share.
pub const SHARED: &str = "shared";
/// The checkpoint of values from before an arm's training.
const BASE: &str = "base";

/// All results of a finished run.
pub(super) fn tables(p: &Prepared, store: &Store) -> Result<Tables> {
    let mut tables = Tables::default();
    for point in &p.plan.points {
        evaluation(p, store, point, &mut tables)?;
    }
    before(p, &mut tables);
    classifiers(p, store, &mut tables)?;
    rollouts(p, store, &mut tables)?;
    for curve in &p.plan.curves {
        steps(p, store, curve, &mut tables)?;
    }
    Ok(tables)
}

fn evaluation(p: &Prepared, store: &Store, point: &Point, tables: &mut Tables) -> Result<()> {
    let file = EvaluationFile::read(&store.dir(&p.plan.steps[point.evaluate]))?;
    let checkpoint = point.checkpoint.name();
    if point.last_iteration {
        tables
            .runs
            .extend(file.values.iter().map(|(metric, subset, value, n)| RunRow {
                arm: point.arm.clone(),
                seed: point.seed,
                checkpoint: checkpoint.to_owned(),
                metric: metric.clone(),
                subset: subset.clone(),
                value: *value,
                n: *n,
            }));
    }
    let iterative = matches!(p.question.arms.get(&point.arm), Some(Arm::Iterate { .. }));
    tables.scores.extend(
        file.scores
            .into_iter()
            .map(|(evaluator, subset, example, value)| ScoreRow {
                arm: point.arm.clone(),
                seed: point.seed,
                checkpoint: checkpoint.to_owned(),
                iteration: iterative.then_some(point.iteration),
                evaluator,
                subset,
                example,
                value,
            }),
    );
    Ok(())
}

/// Every trained arm gets the values of the model it started from, at the checkpoint `base`.
fn before(p: &Prepared, tables: &mut Tables) {
    let Some(base) = p
        .question
        .arms
        .iter()
        .find(|(_, a)| matches!(a, Arm::Pretrained {}))
        .map(|(name, _)| name.as_str())
    else {
        return;
    };
    let of_base: Vec<RunRow> = tables
        .runs
        .iter()
        .filter(|r| r.arm == base && r.checkpoint == "last")
        .cloned()
        .collect();
    for (arm, _) in p.question.arms.iter().filter(|(name, _)| name.as_str() != base) {
        tables.runs.extend(of_base.iter().map(|r| RunRow {
            arm: arm.clone(),
            checkpoint: BASE.to_owned(),
            ..r.clone()
        }));
    }
}

/// Accuracy of each classifier on held-out data, beside every arm that it judges.
fn classifiers(p: &Prepared, store: &Store, tables: &mut Tables) -> Result<()> {
    let split = match p.question.evaluate.split {
        EvalSplit::Valid => "valid",
        EvalSplit::Test => "test",
    };
    let mut points: Vec<&Point> = p.plan.points.iter().filter(|x| x.last_iteration).collect();
    points.sort_by_key(|x| x.seed);
    for point in points {
        for which in [Which::A, Which::B] {
            let evaluate = &p.plan.steps[point.evaluate];
            let step = &p.plan.steps[evaluate
                .input(which.name())
                .context("an evaluation without classifiers")?];
            let path = store.dir(step).join(ACCURACY);
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            let file: Value = serde_json::from_str(&text)
                .with_context(|| format!("`{}` is not as written", path.display()))
                .with_context(|| unreadable(&store.dir(step)))?;
            let number = |key: &str| {
                file[split][key]
                    .as_f64()
                    .with_context(|| format!("`{}` lacks `{key}`", path.display()))
                    .with_context(|| unreadable(&store.dir(step)))
            };
            let n = number("n_positive")? + number("n_negative")?;
            for key in ["accuracy", "balanced_accuracy", "auc"] {
                tables.runs.push(RunRow {
                    arm: point.arm.clone(),
                    seed: point.seed,
                    checkpoint: point.checkpoint.name().to_owned(),
                    metric: format!("classifier_{}_{key}", which.name()),
                    subset: "held_out".to_owned(),
                    value: number(key)?,
                    n: n as u64,
                });
            }
        }
    }
    Ok(())
}

/// What the self-labelled rounds generated and kept.
fn rollouts(p: &Prepared, store: &Store, tables: &mut Tables) -> Result<()> {
    for (arm, seed, iteration, step) in &p.plan.rollouts {
        let file = SelectionFile::read(&store.dir(&p.plan.steps[*step]))?;
        let c = &file.counts;
        let rows = [
            ("generated", c.generated),
            ("labelled_negative", c.negatives),
            ("labelled_positive", c.positives),
            ("copies_dropped", c.copies),
            ("kept", c.kept),
        ];
        for (metric, value) in rows {
            tables.runs.push(RunRow {
                arm: arm.clone(),
                seed: *seed,
                checkpoint: "best".to_owned(),
                metric: format!("own_replies_{metric}"),
                subset: format!("iteration-{iteration}"),
                value: value as f64,
                n: c.generated as u64,
            });
        }
    }
    Ok(())
}

fn steps(p: &Prepared, store: &Store, curve: &Curve, tables: &mut Tables) -> Result<()> {
    let arm = if curve.arm.is_empty() { SHARED } else { &curve.arm };
    let dir = store.dir(&p.plan.steps[curve.step]);
    for StepRecord { step, metrics, valid } in read_steps(&dir.join(LOG)).with_context(|| unreadable(&dir))? {
        let row = |metric: String, value: f64| StepRow {
            arm: arm.to_owned(),
            seed: curve.seed,
            phase: curve.phase.clone(),
            step,
            metric,
            value,
        };
        tables
            .steps
            .extend(metrics.into_iter().map(|(name, value)| row(name, value)));
        tables.steps.extend(
            valid
                .into_iter()
                .flatten()
                .map(|(name, value)| row(format!("valid_{name}"), value)),
        );
    }
    Ok(())
}
