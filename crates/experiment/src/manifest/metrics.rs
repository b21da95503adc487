//! The metrics that tables and figures may name: those that the measures, judges and rounds of the same manifest
//! give. A misspelt one would otherwise be found only when everything else is done.

use std::collections::BTreeSet;

use unsay_eval::Scorer;
use unsay_report::{FigureSpec, Metric};

use super::located::Path;
use super::problem::{Problem, nearest};
use super::question::{JudgeName, Question};

/// Problems with the metrics named by `table` and `figures`.
pub(super) fn check(q: &Question, out: &mut Vec<Problem>) {
    let known = known(q);
    for (path, metric) in named(q) {
        let judge = metric.judge.as_ref().map(|j| ("judge", j));
        for (key, name) in [("metric", &metric.metric)].into_iter().chain(judge) {
            if !known.contains(name) {
                let at = path
                    .iter()
                    .map(String::as_str)
                    .chain([key])
                    .map(str::to_owned)
                    .collect();
                let p = Problem::value(at, format!("no metric `{name}` comes from `evaluate`"));
                out.push(match nearest(name, known.iter().map(String::as_str)) {
                    Some(k) => p.hint(format!("did you mean `{k}`?")),
                    None => p.hint("add its measure or judge to `evaluate`; `unsay list measures` shows them"),
                });
            }
        }
    }
}

/// Everything that a run of `q` writes into `runs` or `scores`.
fn known(q: &Question) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for evaluator in q.evaluate.measures.iter().filter_map(|m| unsay_eval::find(m).ok()) {
        for series in evaluator.series.iter().chain(evaluator.corpus) {
            if matches!(evaluator.scorer, Scorer::JudgedGenerations(_)) {
                out.extend(
                    q.evaluate
                        .judges
                        .iter()
                        .map(|j| format!("{}_{}", series.name, judge(*j))),
                );
            } else {
                out.insert(series.name.to_owned());
            }
        }
    }
    for which in ["a", "b"] {
        out.extend(["accuracy", "balanced_accuracy", "auc"].map(|k| format!("classifier_{which}_{k}")));
    }
    let rounds = [
        "generated",
        "labelled_negative",
        "labelled_positive",
        "copies_dropped",
        "kept",
    ];
    out.extend(rounds.map(|k| format!("own_replies_{k}")));
    out
}

fn judge(name: JudgeName) -> &'static str {
    match name {
        JudgeName::Oracle => "oracle",
        JudgeName::A => "a",
        JudgeName::B => "b",
    }
}

/// Every metric that is asked for, with its path.
fn named(q: &Question) -> Vec<(Path, &Metric)> {
    let at = |text: String| text.split('.').map(str::to_owned).collect::<Path>();
    let mut out: Vec<(Path, &Metric)> = Vec::new();
    for (i, metric) in q.table.metrics.iter().enumerate() {
        out.push((at(format!("table.metrics.{i}")), metric));
    }
    for (i, figure) in q.figures.iter().enumerate() {
        match figure {
            FigureSpec::Tradeoff(f) => {
                out.push((at(format!("figures.{i}.tradeoff.x")), &f.x));
                out.push((at(format!("figures.{i}.tradeoff.y")), &f.y));
            }
            FigureSpec::PerIteration(f) => out.push((at(format!("figures.{i}.per_iteration.metric")), &f.metric)),
            FigureSpec::Dots(f) => {
                for (j, metric) in f.metrics.iter().enumerate() {
                    out.push((at(format!("figures.{i}.dots.metrics.{j}")), metric));
                }
            }
            FigureSpec::Shift(f) => {
                for (j, group) in f.groups.iter().enumerate() {
                    out.push((at(format!("figures.{i}.shift.groups.{j}.before")), &group.before));
                    out.push((at(format!("figures.{i}.shift.groups.{j}.after")), &group.after));
                }
            }
            // The metrics of training steps are known to the losses alone.
            FigureSpec::Curves(_) => {}
        }
    }
    out
}
