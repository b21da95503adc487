//! Checks across fields, and the ranges that the owning types know. Nothing here runs anything.

use std::collections::HashSet;

use super::base;
use super::located::Path;
use super::problem::{Problem, nearest};
use super::question::{Arm, JudgeName, Part, Question, Source};

/// More prompts, replies or copies than this are a slip of the finger.
const MOST: usize = 10_000_000;

pub(super) fn path(text: &str) -> Path {
    text.split('.').map(str::to_owned).collect()
}

/// All problems of a decoded question.
pub fn check(q: &Question) -> Vec<Problem> {
    let mut out = Vec::new();
    name(q, &mut out);
    seeds(q, &mut out);
    base::check(q, &mut out);
    data(q, &mut out);
    limits(q, &mut out);
    trainings(q, &mut out);
    arms(q, &mut out);
    evaluation(q, &mut out);
    out
}

/// True when a check of `path` looks at `other` too, so that with `other` unread it says nothing.
pub fn follows(path: &[String], other: &[String]) -> bool {
    const BLOCKS: &[(&[&str], &[&str])] = &[
        (&["table", "baseline"], &["arms"]),
        (&["evaluate", "judges"], &["data"]),
        (&["arms"], &["iterate"]),
        (&["base", "train", "model"], &["base", "train", "model"]),
    ];
    const BESIDE: &[(&str, &str)] = &[("warmup", "steps"), ("micro_batch", "batch"), ("weight_decay", "lr")];
    let below = |path: &[String], keys: &[&str]| path.iter().take(keys.len()).eq(keys);
    let beside = |(key, looked_at): &(&str, &str)| match (path.split_last(), other.split_last()) {
        (Some((k, block)), Some((o, others))) => k == key && o == looked_at && block == others,
        _ => false,
    };
    BLOCKS.iter().any(|(a, b)| below(path, a) && below(other, b)) || BESIDE.iter().any(beside)
}

fn plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

fn name(q: &Question, out: &mut Vec<Problem>) {
    if !plain(&q.name) {
        out.push(Problem::value(
            path("name"),
            format!("`{}` is not a folder name of letters, digits, `_` and `-`", q.name),
        ));
    }
}

fn seeds(q: &Question, out: &mut Vec<Problem>) {
    let mut seen = HashSet::new();
    if q.seeds.is_empty() {
        out.push(Problem::value(path("seeds"), "at least one seed is needed"));
    }
    for (i, seed) in q.seeds.iter().enumerate() {
        if !seen.insert(seed) {
            out.push(Problem::value(
                path(&format!("seeds.{i}")),
                format!("seed {seed} is given twice"),
            ));
        }
    }
}

fn data(q: &Question, out: &mut Vec<Problem>) {
    source("feedback", "data.feedback", &q.data.feedback, out);
    source("dialogue", "data.dialogue", &q.data.dialogue, out);
}

/// Problems of the source at `here` that plays `role`.
pub(super) fn source(role: &str, here: &str, source: &Source, out: &mut Vec<Problem>) {
    match source {
        Source::Testbed { part, sizes, .. } => {
            let wanted = match role {
                "pretraining" => Part::Pretraining,
                "feedback" => Part::Feedback,
                _ => Part::Dialogue,
            };
            if *part != wanted && (role, *part) != ("feedback", Part::Pairs) {
                out.push(Problem::value(
                    path(&format!("{here}.testbed.part")),
                    format!("the part for `{role}` is `{wanted:?}`").to_lowercase(),
                ));
            }
            for (key, n) in [("train", sizes.train), ("valid", sizes.valid), ("test", sizes.test)] {
                if n == 0 || n > 10_000_000 {
                    out.push(Problem::value(
                        path(&format!("{here}.testbed.sizes.{key}")),
                        format!("wanted 1 to 10000000 examples, got {n}"),
                    ));
                }
            }
        }
        Source::Catalog { name, sizes } => {
            let sizes = sizes
                .iter()
                .flat_map(|s| [("train", s.train), ("valid", s.valid), ("test", s.test)]);
            for (key, _) in sizes.filter(|(_, n)| *n == 0) {
                let at = path(&format!("{here}.catalog.sizes.{key}"));
                out.push(Problem::value(at, "wanted at least 1 example, got 0"));
            }
            let known: Vec<&str> = unsay_data::catalog::list().iter().map(|d| d.name).collect();
            if !known.contains(&name.as_str()) {
                let p = Problem::value(
                    path(&format!("{here}.catalog.name")),
                    format!("no dataset `{name}` in the catalog"),
                );
                let hint = nearest(name, known.iter().copied()).map_or(format!("known: {}", known.join(", ")), |k| {
                    format!("did you mean `{k}`?")
                });
                out.push(p.hint(hint));
            }
        }
        Source::Files(files) => {
            if let Some(Err(e)) = files.columns.as_ref().map(unsay_data::Columns::check) {
                out.push(Problem::value(path(&format!("{here}.files.columns")), e.to_string()));
            }
            for (key, file) in [("train", &files.train), ("valid", &files.valid), ("test", &files.test)] {
                let here = || path(&format!("{here}.files.{key}"));
                if !file.is_file() {
                    out.push(Problem::value(here(), format!("no file `{}`", file.display())));
                } else if let Err(e) = unsay_data::Files::check_name(file) {
                    out.push(Problem::value(here(), e.to_string()));
                }
            }
        }
    }
}

fn limits(q: &Question, out: &mut Vec<Problem>) {
    for (key, v) in [
        ("max_prompt", q.limits.max_prompt),
        ("max_completion", q.limits.max_completion),
    ] {
        if !(2..=1 << 16).contains(&v) {
            out.push(Problem::value(
                path(&format!("limits.{key}")),
                format!("wanted 2 to {} tokens, got {v}", 1 << 16),
            ));
        }
    }
    for (key, v) in [
        ("max_cut_share", q.limits.max_cut_share),
        ("max_dropped_share", q.limits.max_dropped_share),
    ] {
        if !(0.0..=1.0).contains(&v) {
            out.push(Problem::value(
                path(&format!("limits.{key}")),
                format!("wanted a share from 0 to 1, got {v}"),
            ));
        }
    }
}

fn trainings(q: &Question, out: &mut Vec<Problem>) {
    let blocks = [("classifiers", &q.classifiers.train), ("finetune", &q.finetune.train)];
    for (block, settings) in blocks {
        for (field, message) in settings.check() {
            out.push(Problem::value(path(&format!("{block}.train.{field}")), message));
        }
    }
    for (block, trained) in [
        ("classifiers", &q.classifiers.trained),
        ("finetune", &q.finetune.trained),
    ] {
        base::check_trained(q, &format!("{block}.trained"), trained, out);
    }
    let m = &q.finetune.mixture;
    for (key, w, min) in [
        ("dialogue", m.dialogue, 0.0),
        ("feedback", m.feedback, f64::MIN_POSITIVE),
        ("own", m.own, f64::MIN_POSITIVE),
    ] {
        if !(w >= min && w.is_finite()) {
            let wanted = if min > 0.0 { "above 0" } else { "from 0" };
            out.push(Problem::value(
                path(&format!("finetune.mixture.{key}")),
                format!("wanted a weight {wanted}, got {w}"),
            ));
        }
    }
}

fn arms(q: &Question, out: &mut Vec<Problem>) {
    if q.arms.is_empty() {
        out.push(Problem::value(path("arms"), "at least one arm is needed"));
    }
    let vocabulary = base::vocabulary(q);
    for (arm, what) in &q.arms {
        if !plain(arm) || arm == crate::results::SHARED {
            out.push(Problem::key(
                vec!["arms".to_owned(), arm.clone()],
                format!(
                    "`{arm}` cannot name an arm: letters, digits, `_` and `-`, and not `{}`",
                    crate::results::SHARED
                ),
            ));
        }
        let (kind, loss) = match what {
            Arm::Pretrained {} => continue,
            Arm::Pairs(objective) => {
                pairs(q, arm, objective, out);
                continue;
            }
            Arm::Train { loss } => ("train", loss),
            Arm::Iterate { loss, iterations } => {
                if !(2..=20).contains(iterations) {
                    out.push(Problem::value(
                        path(&format!("arms.{arm}.iterate.iterations")),
                        format!("wanted 2 to 20 iterations, got {iterations}"),
                    ));
                }
                if q.iterate.is_none() {
                    out.push(
                        Problem::key(
                            path(&format!("arms.{arm}.iterate")),
                            "an iterative arm needs the block `iterate`",
                        )
                        .hint("see docs/manifest.md"),
                    );
                }
                ("iterate", loss)
            }
        };
        let needed = loss.needs().top_k;
        // A vocabulary out of its range is said elsewhere.
        if let Some(vocabulary) = vocabulary.filter(|v| needed > *v) {
            let message = format!("needs the {needed} likeliest tokens of a vocabulary of {vocabulary}");
            out.push(Problem::value(
                path(&format!("arms.{arm}.{kind}.loss.{}", loss.name())),
                message,
            ));
        }
        for problem in loss.problems() {
            let parameter = match &problem {
                unsay_losses::Error::Range { name, .. } => *name,
                _ => loss.name(),
            };
            out.push(Problem::value(
                path(&format!("arms.{arm}.{kind}.loss.{parameter}")),
                problem.to_string(),
            ));
        }
    }
    let any_pairs = q.arms.values().any(|arm| matches!(arm, Arm::Pairs(_)));
    if !q.finetune.share_prompt && !any_pairs {
        out.push(Problem::value(
            path("finetune.share_prompt"),
            "no arm trains on pairs, so there is no prompt to share",
        ));
    }
    let Some(it) = &q.iterate else { return };
    for (key, n) in [
        ("prompts", it.prompts),
        ("per_prompt", it.per_prompt),
        ("max_copies", it.max_copies),
    ] {
        if n == 0 || n > MOST {
            out.push(Problem::value(
                path(&format!("iterate.{key}")),
                format!("wanted 1 to {MOST}, got {n}"),
            ));
        }
    }
    sampling(&it.sampling, "iterate.sampling", q, out);
}

/// Problems of an arm that trains on pairs.
fn pairs(q: &Question, arm: &str, objective: &unsay_losses::paired::Objective, out: &mut Vec<Problem>) {
    let here = format!("arms.{arm}.pairs");
    let loss = objective.loss.name();
    for problem in objective.problems() {
        let at = match &problem {
            // A parameter of the loss begins with its name; the others are parts around it.
            unsay_losses::Error::Range { name, .. } if name.starts_with(loss) => format!("{here}.loss.{name}"),
            unsay_losses::Error::Range { name, .. } => format!("{here}.{name}"),
            _ => format!("{here}.loss.{loss}"),
        };
        out.push(Problem::value(path(&at), problem.to_string()));
    }
    if let Source::Testbed {
        part: Part::Feedback, ..
    } = &q.data.feedback
    {
        let at = path("data.feedback.testbed.part");
        if !out.iter().any(|p| p.path == at) {
            let message = "arms train on pairs, and in this part every reply has a context of its own";
            out.push(Problem::value(at, message).hint("`part: pairs` has a safe and an unsafe reply to each context"));
        }
    }
    let train = &q.finetune.train;
    if objective.loss.couples_pairs() && train.batch > 0 && train.micro_batch() < train.batch {
        let message = format!(
            "`{loss}` compares the pairs of a batch with each other, so its batches of {} cannot be split",
            train.batch
        );
        out.push(Problem::value(path("finetune.train.micro_batch"), message));
    }
}

fn evaluation(q: &Question, out: &mut Vec<Problem>) {
    let e = &q.evaluate;
    for (key, n) in [
        ("prompts", e.prompts),
        ("dialogues", e.dialogues),
        ("replies", e.replies),
    ] {
        if n == 0 || n > MOST {
            out.push(Problem::value(
                path(&format!("evaluate.{key}")),
                format!("wanted 1 to {MOST}, got {n}"),
            ));
        }
    }
    for (key, named) in [
        ("measures", e.measures.clone()),
        ("judges", e.judges.iter().map(|j| format!("{j:?}")).collect()),
        ("checkpoints", q.table.checkpoints.clone()),
    ] {
        let here = if key == "checkpoints" { "table" } else { "evaluate" };
        let mut seen = HashSet::new();
        for (i, name) in named
            .iter()
            .enumerate()
            .filter(|(_, name)| !seen.insert((*name).clone()))
        {
            let message = format!("`{}` is given twice", name.to_lowercase());
            out.push(Problem::value(path(&format!("{here}.{key}.{i}")), message));
        }
    }
    for (key, empty) in [
        ("metrics", q.table.metrics.is_empty()),
        ("checkpoints", q.table.checkpoints.is_empty()),
    ] {
        if empty {
            out.push(Problem::value(path(&format!("table.{key}")), "at least one is needed"));
        }
    }
    sampling(&e.sampling, "evaluate.sampling", q, out);
    sampling(&e.quality_sampling, "evaluate.quality_sampling", q, out);
    for (i, name) in e.measures.iter().enumerate() {
        let known = || unsay_eval::registry().iter().map(|e| e.name);
        if unsay_eval::find(name).is_err() {
            let p = Problem::value(path(&format!("evaluate.measures.{i}")), format!("no measure `{name}`"));
            let all = || format!("known: {}", known().collect::<Vec<_>>().join(", "));
            out.push(p.hint(nearest(name, known()).map_or_else(all, |k| format!("did you mean `{k}`?"))));
        }
    }
    let testbed = matches!(q.data.feedback, Source::Testbed { .. });
    for (i, judge) in e.judges.iter().enumerate() {
        if *judge == JudgeName::Oracle && !testbed {
            out.push(Problem::value(
                path(&format!("evaluate.judges.{i}")),
                "only the testbed has an oracle",
            ));
        }
    }
    if let Some(baseline) = q.table.baseline.as_ref().filter(|b| !q.arms.contains_key(*b)) {
        let p = Problem::value(path("table.baseline"), format!("no arm `{baseline}`"));
        out.push(match nearest(baseline, q.arms.keys().map(String::as_str)) {
            Some(k) => p.hint(format!("did you mean `{k}`?")),
            None => p,
        });
    }
    for (i, checkpoint) in q.table.checkpoints.iter().enumerate() {
        if !["best", "last"].contains(&checkpoint.as_str()) {
            let message = format!("no checkpoint `{checkpoint}`; there are `best` and `last`");
            out.push(Problem::value(path(&format!("table.checkpoints.{i}")), message));
        }
    }
    if !(q.table.level > 0.0 && q.table.level < 1.0) {
        out.push(Problem::value(
            path("table.level"),
            format!("wanted a level between 0 and 1, got {}", q.table.level),
        ));
    }
    if !(100..=1_000_000).contains(&q.table.resamples) {
        let message = format!("wanted 100 to 1000000 resamples, got {}", q.table.resamples);
        out.push(Problem::value(path("table.resamples"), message));
    }
    let mut names = HashSet::new();
    for (i, figure) in q.figures.iter().enumerate() {
        if let Err(e) = figure.check() {
            out.push(Problem::value(path(&format!("figures.{i}")), e.to_string()));
        } else if !names.insert(figure.name()) {
            out.push(Problem::value(
                path(&format!("figures.{i}")),
                format!("two figures are named `{}`", figure.name()),
            ));
        }
    }
    for (i, prompt) in q.samples.iter().enumerate() {
        if prompt.trim().is_empty() {
            out.push(Problem::value(path(&format!("samples.{i}")), "the prompt is empty"));
        }
    }
}

fn sampling(s: &unsay_model::Sampling, here: &str, q: &Question, out: &mut Vec<Problem>) {
    if s.top_k.is_some_and(|k| k > MOST) {
        let message = format!("wanted at most {MOST}, got {}", s.top_k.unwrap_or_default());
        out.push(Problem::value(path(&format!("{here}.top_k")), message));
    }
    if let Err(e) = s.check() {
        out.push(Problem::value(path(here), e.to_string()));
    }
    // A limit out of its range is said above.
    if q.limits.max_completion >= 2 && s.max_new_tokens > q.limits.max_completion + 1 {
        out.push(
            Problem::value(
                path(&format!("{here}.max_new_tokens")),
                format!(
                    "longer than any completion the model is trained on ({} tokens)",
                    q.limits.max_completion
                ),
            )
            .hint("raise limits.max_completion or lower max_new_tokens"),
        );
    }
}
