//! From a question to its graph of steps.

use anyhow::{Context, Result};
use unsay_losses::token::Loss;

use super::{Checkpoint, Curve, Kind, Plan, Point, Which};
use crate::manifest::question::{Arm, Iterate, Question, Source};

/// Steps that every arm of a seed starts from.
struct Shared {
    records: [usize; 3],
    tokenizer: usize,
    base: usize,
    a: usize,
    b: usize,
}

const ROLES: [&str; 3] = ["pretraining", "feedback", "dialogue"];

/// The graph of `q`. Reads own files, to know their content; downloads nothing.
pub fn build(q: &Question) -> Result<Plan> {
    let mut plan = Plan::default();
    let sources = [&q.data.pretraining, &q.data.feedback, &q.data.dialogue];
    let mut records = [0; 3];
    for (i, (role, source)) in ROLES.into_iter().zip(sources).enumerate() {
        let kind = Kind::Records {
            role: role.to_owned(),
            source: source.clone(),
            fingerprint: fingerprint(source)?,
        };
        records[i] = plan.add(kind, 0, &[], format!("records: {role}"), 1);
    }
    let inputs: Vec<_> = ROLES.into_iter().zip(records).collect();
    let kind = Kind::Tokenizer {
        vocab_size: q.tokenizer.vocab_size,
    };
    let tokenizer = plan.add(kind, 0, &inputs, "tokenizer".to_owned(), 1);
    for &seed in &q.seeds {
        let shared = shared(&mut plan, q, records, tokenizer, seed);
        for (name, arm) in &q.arms {
            self::arm(&mut plan, q, &shared, name, arm, seed)?;
        }
    }
    Ok(plan)
}

fn shared(plan: &mut Plan, q: &Question, records: [usize; 3], tokenizer: usize, seed: u64) -> Shared {
    let base_seed = if q.pretrain.per_seed { seed } else { 0 };
    let kind = Kind::Pretrain {
        model: q.model.clone(),
        limits: q.limits,
        train: q.pretrain.train.clone(),
    };
    let inputs = [("pretraining", records[0]), ("tokenizer", tokenizer)];
    let base = plan.add(
        kind,
        base_seed,
        &inputs,
        format!("base model, seed {base_seed}"),
        q.pretrain.threads,
    );
    let mut classifier = |which: Which| {
        let kind = Kind::Classifier {
            which,
            limits: q.limits,
            train: q.classifiers.train.clone(),
        };
        let inputs = [("feedback", records[1]), ("tokenizer", tokenizer), ("base", base)];
        plan.add(
            kind,
            seed,
            &inputs,
            format!("classifier {}, seed {seed}", which.name().to_uppercase()),
            1,
        )
    };
    let (a, b) = (classifier(Which::A), classifier(Which::B));
    let curves = [
        ("pretrain", base_seed, base),
        ("classifier-a", seed, a),
        ("classifier-b", seed, b),
    ];
    for (phase, seed, step) in curves {
        if !plan.curves.iter().any(|c| c.step == step) {
            plan.curves.push(Curve {
                arm: String::new(),
                seed,
                phase: phase.to_owned(),
                step,
            });
        }
    }
    Shared {
        records,
        tokenizer,
        base,
        a,
        b,
    }
}

fn arm(plan: &mut Plan, q: &Question, s: &Shared, name: &str, arm: &Arm, seed: u64) -> Result<()> {
    match arm {
        Arm::Pretrained {} => {
            let evaluate = evaluate(
                plan,
                q,
                s,
                s.base,
                Checkpoint::Best,
                &format!("{name}, seed {seed}"),
                seed,
            );
            let point = |checkpoint| Point {
                arm: name.to_owned(),
                seed,
                checkpoint,
                iteration: 0,
                last_iteration: true,
                evaluate,
            };
            // Every arm starts from the best weights of the base model, so it is these that are measured, and they stand
            // for the base in tables of either checkpoint.
            plan.points.extend([point(Checkpoint::Best), point(Checkpoint::Last)]);
        }
        Arm::Train { loss } => {
            train_and_measure(
                plan,
                q,
                s,
                Run {
                    name,
                    seed,
                    iteration: 1,
                    last: true,
                },
                loss,
                s.base,
                &[],
            );
        }
        Arm::Iterate { loss, iterations } => {
            let iterate = q
                .iterate
                .as_ref()
                .context("an iterative arm needs the block `iterate`")?;
            let mut own = Vec::new();
            let mut model = s.base;
            for iteration in 1..=*iterations {
                let run = Run {
                    name,
                    seed,
                    iteration,
                    last: iteration == *iterations,
                };
                model = train_and_measure(plan, q, s, run, loss, model, &own);
                if iteration < *iterations {
                    own.push(rollout(plan, q, s, iterate, name, seed, iteration, model));
                }
            }
        }
    }
    Ok(())
}

/// Which training of which arm.
struct Run<'a> {
    name: &'a str,
    seed: u64,
    iteration: u32,
    last: bool,
}

fn train_and_measure(
    plan: &mut Plan,
    q: &Question,
    s: &Shared,
    run: Run<'_>,
    loss: &Loss,
    init: usize,
    own: &[usize],
) -> usize {
    let Run {
        name,
        seed,
        iteration,
        last,
    } = run;
    let kind = Kind::Train {
        loss: loss.clone(),
        iteration,
        limits: q.limits,
        mixture: q.finetune.mixture,
        train: q.finetune.train.clone(),
    };
    let own_roles: Vec<String> = (1..=own.len()).map(|i| format!("own-{i}")).collect();
    let mut inputs = vec![
        ("init", init),
        ("tokenizer", s.tokenizer),
        ("feedback", s.records[1]),
        ("dialogue", s.records[2]),
    ];
    inputs.extend(own_roles.iter().map(String::as_str).zip(own.iter().copied()));
    let title = if iteration == 1 {
        format!("{name}, seed {seed}")
    } else {
        format!("{name}, iteration {iteration}, seed {seed}")
    };
    let step = plan.add(kind, seed, &inputs, format!("train {title}"), 1);
    let phase = if iteration == 1 {
        "train".to_owned()
    } else {
        format!("iteration-{iteration}")
    };
    plan.curves.push(Curve {
        arm: name.to_owned(),
        seed,
        phase,
        step,
    });
    for checkpoint in [Checkpoint::Best, Checkpoint::Last] {
        let evaluate = evaluate(plan, q, s, step, checkpoint, &title, seed);
        plan.points.push(Point {
            arm: name.to_owned(),
            seed,
            checkpoint,
            iteration,
            last_iteration: last,
            evaluate,
        });
    }
    step
}

#[allow(clippy::too_many_arguments, reason = "the parts of one step, named at the only call")]
fn rollout(
    plan: &mut Plan,
    q: &Question,
    s: &Shared,
    iterate: &Iterate,
    name: &str,
    seed: u64,
    iteration: u32,
    model: usize,
) -> usize {
    let kind = Kind::Rollout {
        iteration,
        iterate: iterate.clone(),
        limits: q.limits.limits(),
    };
    let inputs = [
        ("model", model),
        ("tokenizer", s.tokenizer),
        ("feedback", s.records[1]),
        ("a", s.a),
    ];
    let step = plan.add(
        kind,
        seed,
        &inputs,
        format!("own replies of {name}, iteration {iteration}, seed {seed}"),
        1,
    );
    plan.rollouts.push((name.to_owned(), seed, iteration, step));
    step
}

fn evaluate(
    plan: &mut Plan,
    q: &Question,
    s: &Shared,
    model: usize,
    checkpoint: Checkpoint,
    title: &str,
    seed: u64,
) -> usize {
    let kind = Kind::Evaluate {
        checkpoint,
        evaluate: q.evaluate.clone(),
        limits: q.limits.limits(),
        samples: q.samples.clone(),
    };
    let inputs = [
        ("model", model),
        ("tokenizer", s.tokenizer),
        ("feedback", s.records[1]),
        ("dialogue", s.records[2]),
        ("a", s.a),
        ("b", s.b),
    ];
    plan.add(
        kind,
        seed,
        &inputs,
        format!("evaluate {title}, {}", checkpoint.name()),
        1,
    )
}

/// What identifies the content of a source without reading more than needed.
fn fingerprint(source: &Source) -> Result<String> {
    Ok(match source {
        Source::Testbed { .. } => format!("testbed-{}", unsay_data::testbed::VERSION),
        Source::Catalog { name, .. } => unsay_data::catalog::fingerprint(name)?,
        Source::Files(files) => files.fingerprint()?,
    })
}
