//! From a question to its graph of steps.

use anyhow::{Context, Result, bail};
use unsay_losses::paired;
use unsay_losses::token::Loss;

use super::outside::Outside;
use super::{Checkpoint, Curve, Frozen, Kind, Place, Plan, Point, StatesOf, Which};
use crate::manifest::base::TrainedBase;
use crate::manifest::question::{Arm, Iterate, Question, Source};
use crate::steps::{no_pairs, reference, states};

/// Steps that all seeds share.
struct Common<'a> {
    feedback: usize,
    dialogue: usize,
    start: Start<'a>,
}

/// Where the base model comes from.
enum Start<'a> {
    /// Trained here.
    Made {
        made: &'a TrainedBase,
        pretraining: usize,
        tokenizer: usize,
    },
    /// From outside, model and tokenizer in one.
    Outside(usize),
}

/// Steps that every arm of a seed starts from.
struct Shared {
    feedback: usize,
    dialogue: usize,
    tokenizer: usize,
    base: usize,
    a: usize,
    b: usize,
}

/// The graph of `q` for a kind of device. Reads own files and model folders, to know their content; downloads nothing.
pub fn build(q: &Question, device: Place) -> Result<Plan> {
    let mut plan = Plan {
        device,
        ..Plan::default()
    };
    let common = match q.base.trained() {
        Some(made) => {
            let pretraining = records(&mut plan, "pretraining", &made.data)?;
            let feedback = records(&mut plan, "feedback", &q.data.feedback)?;
            let dialogue = records(&mut plan, "dialogue", &q.data.dialogue)?;
            let inputs = [
                ("pretraining", pretraining),
                ("feedback", feedback),
                ("dialogue", dialogue),
            ];
            let kind = Kind::Tokenizer {
                vocab_size: made.vocab_size,
            };
            let tokenizer = plan.add(kind, 0, &inputs, "tokenizer".to_owned(), 1);
            Common {
                feedback,
                dialogue,
                start: Start::Made {
                    made,
                    pretraining,
                    tokenizer,
                },
            }
        }
        None => {
            // First, so that a folder that is no model ends the run before anything else is begun.
            let outside = Outside::of(&q.base)?;
            let title = format!("base model {}", outside.name());
            let base = plan.add(Kind::Base(outside), 0, &[], title, 1);
            Common {
                feedback: records(&mut plan, "feedback", &q.data.feedback)?,
                dialogue: records(&mut plan, "dialogue", &q.data.dialogue)?,
                start: Start::Outside(base),
            }
        }
    };
    if let (Source::Files(files), true) = (
        &q.data.feedback,
        q.arms.values().any(|arm| matches!(arm, Arm::Pairs(_))),
    ) {
        let splits = files.read()?;
        for (split, examples) in [("train", &splits.train), ("valid", &splits.valid)] {
            if unsay_data::pair_up(examples).is_empty() {
                bail!("{}", no_pairs(split));
            }
        }
    }
    for &seed in &q.seeds {
        let shared = shared(&mut plan, q, &common, seed);
        for (name, arm) in &q.arms {
            self::arm(&mut plan, q, &shared, name, arm, seed)?;
        }
    }
    Ok(plan)
}

fn records(plan: &mut Plan, role: &str, source: &Source) -> Result<usize> {
    let kind = Kind::Records {
        role: role.to_owned(),
        source: source.clone(),
        fingerprint: fingerprint(source)?,
    };
    Ok(plan.add(kind, 0, &[], format!("records: {role}"), 1))
}

/// The base model of a seed with its tokenizer; one that is trained here has a curve.
fn base(plan: &mut Plan, q: &Question, start: &Start<'_>, seed: u64) -> (usize, usize) {
    let (made, pretraining, tokenizer) = match *start {
        Start::Outside(both) => return (both, both),
        Start::Made {
            made,
            pretraining,
            tokenizer,
        } => (made, pretraining, tokenizer),
    };
    let seed = if made.per_seed { seed } else { 0 };
    let kind = Kind::Pretrain {
        model: made.model.clone(),
        limits: q.limits,
        train: made.train.clone(),
    };
    let inputs = [("pretraining", pretraining), ("tokenizer", tokenizer)];
    let title = format!("base model, seed {seed}");
    let step = plan.add(kind, seed, &inputs, title, made.threads);
    plan.curve("pretrain", seed, step);
    (step, tokenizer)
}

fn shared(plan: &mut Plan, q: &Question, common: &Common<'_>, seed: u64) -> Shared {
    let Common { feedback, dialogue, .. } = *common;
    let (base, tokenizer) = self::base(plan, q, &common.start, seed);
    let frozen = Frozen::of(&q.classifiers.trained);
    let states = frozen.map(|frozen| {
        let kind = Kind::States {
            of: StatesOf::Classifiers {},
            frozen,
            limits: q.limits,
            precision: q.classifiers.train.precision,
        };
        let inputs = [("base", base), ("tokenizer", tokenizer), ("feedback", feedback)];
        let title = format!("states for classifiers, {}", plan.steps[base].title);
        plan.add(kind, 0, &inputs, title, 1)
    });
    let mut classifier = |which: Which| {
        let kind = Kind::Classifier {
            which,
            limits: q.limits,
            trained: q.classifiers.trained.clone(),
            train: q.classifiers.train.clone(),
        };
        let mut inputs = vec![("feedback", feedback), ("tokenizer", tokenizer), ("base", base)];
        inputs.extend(states.map(|states| (states::ROLE, states)));
        plan.add(
            kind,
            seed,
            &inputs,
            format!("classifier {}, seed {seed}", which.name().to_uppercase()),
            1,
        )
    };
    let (a, b) = (classifier(Which::A), classifier(Which::B));
    plan.curve("classifier-a", seed, a);
    plan.curve("classifier-b", seed, b);
    Shared {
        feedback,
        dialogue,
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
        Arm::Pairs(objective) => pairs(plan, q, s, name, objective, seed),
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
        name, seed, iteration, ..
    } = run;
    let kind = Kind::Train {
        loss: loss.clone(),
        iteration,
        limits: q.limits,
        mixture: q.finetune.mixture,
        trained: q.finetune.trained.clone(),
        train: q.finetune.train.clone(),
    };
    let own_roles: Vec<String> = (1..=own.len()).map(|i| format!("own-{i}")).collect();
    let mut inputs = vec![
        ("init", init),
        ("tokenizer", s.tokenizer),
        ("feedback", s.feedback),
        ("dialogue", s.dialogue),
    ];
    inputs.extend(own_roles.iter().map(String::as_str).zip(own.iter().copied()));
    let below = below(plan, q, s, own);
    inputs.extend(below.iter().map(|(role, step)| (role.as_str(), *step)));
    let title = if iteration == 1 {
        format!("{name}, seed {seed}")
    } else {
        format!("{name}, iteration {iteration}, seed {seed}")
    };
    let step = plan.add(kind, seed, &inputs, format!("train {title}"), 1);
    measure(plan, q, s, &run, step, &title);
    step
}

/// The curve of a training, and the measuring of its best and its last weights.
fn measure(plan: &mut Plan, q: &Question, s: &Shared, run: &Run<'_>, step: usize, title: &str) {
    let Run {
        name,
        seed,
        iteration,
        last,
    } = *run;
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
        let evaluate = evaluate(plan, q, s, step, checkpoint, title, seed);
        plan.points.push(Point {
            arm: name.to_owned(),
            seed,
            checkpoint,
            iteration,
            last_iteration: last,
            evaluate,
        });
    }
}

/// An arm that trains on pairs, and the log-probabilities of its reference where it has one: the base model's, also below
/// an adapter.
fn pairs(plan: &mut Plan, q: &Question, s: &Shared, name: &str, objective: &paired::Objective, seed: u64) {
    let mut inputs = vec![("init", s.base), ("tokenizer", s.tokenizer), ("feedback", s.feedback)];
    if objective.uses_reference() {
        let kind = Kind::Reference {
            limits: q.limits,
            precision: q.finetune.train.precision,
        };
        let of = [("base", s.base), ("tokenizer", s.tokenizer), ("feedback", s.feedback)];
        let title = format!("reference for pairs, {}", plan.steps[s.base].title);
        inputs.push((reference::ROLE, plan.add(kind, 0, &of, title, 1)));
    }
    let kind = Kind::TrainPairs {
        objective: objective.clone(),
        limits: q.limits,
        share_prompt: q.finetune.share_prompt,
        trained: q.finetune.trained.clone(),
        train: q.finetune.train.clone(),
    };
    let title = format!("{name}, seed {seed}");
    let step = plan.add(kind, seed, &inputs, format!("train {title}"), 1);
    let run = Run {
        name,
        seed,
        iteration: 1,
        last: true,
    };
    measure(plan, q, s, &run, step, &title);
}

/// The states of everything that an arm trains on, by role, where its training leaves the lowest blocks as they are.
fn below(plan: &mut Plan, q: &Question, s: &Shared, own: &[usize]) -> Vec<(String, usize)> {
    let Some(frozen) = Frozen::of(&q.finetune.trained) else {
        return Vec::new();
    };
    let mut add = |of: StatesOf, examples: &[(&str, usize)], what: usize| {
        let kind = Kind::States {
            of,
            frozen,
            limits: q.limits,
            precision: q.finetune.train.precision,
        };
        let inputs = [&[("base", s.base), ("tokenizer", s.tokenizer)], examples].concat();
        let title = match of {
            StatesOf::Own {} => format!("states for {}", plan.steps[what].title),
            _ => format!("states for arms, {}", plan.steps[what].title),
        };
        plan.add(kind, 0, &inputs, title, 1)
    };
    let dialogue = q.finetune.mixture.dialogue > 0.0;
    let of = StatesOf::Arms { dialogue };
    let data = [("feedback", s.feedback), ("dialogue", s.dialogue)];
    let mut out = vec![(states::ROLE.to_owned(), add(of, &data, s.base))];
    for (i, own) in own.iter().enumerate() {
        let role = format!("own-{}", i + 1);
        out.push((
            states::role_of_own(&role),
            add(StatesOf::Own {}, &[(&role, *own)], *own),
        ));
    }
    out
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
        ("feedback", s.feedback),
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
        ("feedback", s.feedback),
        ("dialogue", s.dialogue),
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
