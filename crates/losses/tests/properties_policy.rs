//! What policy losses promise before the first update, when the policy is still the one that sampled and its own
//! reference: through the op, in passes of other chunk sizes and at one temperature, as a rollout and a training step
//! would be.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod plain;

use plain::{Made, difference, numbers};
use tch::{Device, Kind, Tensor};
use unsay_losses::policy::{Aggregate, Batch, KlPenalty, Loss, Objective, PolicyCounts};
use unsay_losses::{CompletionRows, Kl, LossValue, Needs, TokenOp, TokenStats};

const LENGTHS: [usize; 3] = [3, 1, 4];
const TEMPERATURE: f64 = 0.7;

fn made() -> Made {
    tch::set_num_threads(1);
    Made::new(5, &LENGTHS, &[1, 0, 1], 6, 17)
}

/// Log-probabilities of a pass without gradients, as a rollout keeps them.
fn rollout(made: &Made, chunk_rows: usize) -> Tensor {
    let targets = Tensor::from_slice(&made.targets);
    let op = TokenOp::new(&made.hidden, &made.embedding, &targets, &Needs::default()).unwrap();
    let op = op.with_temperature(TEMPERATURE).unwrap().with_chunk_rows(chunk_rows);
    op.forward().unwrap().logp.detach()
}

/// The first training step: the value, its gradient to the log-probabilities and to the hidden states.
fn first_step(made: &Made, objective: &Objective, advantage: &Tensor) -> (LossValue, TokenStats, Tensor) {
    let hidden = made.hidden.detach().set_requires_grad(true);
    let targets = Tensor::from_slice(&made.targets);
    let op = TokenOp::new(&hidden, &made.embedding, &targets, &objective.needs()).unwrap();
    let op = op.with_temperature(TEMPERATURE).unwrap().with_chunk_rows(2);
    let op = op.with_reference(&made.hidden, &made.embedding).unwrap();
    let stats = op.forward().unwrap();
    let old = rollout(made, 5);
    let rows = CompletionRows::new(&LENGTHS, Device::Cpu).unwrap();
    let batch = Batch {
        stats: &stats,
        old: &old,
        advantage,
        reference: objective.uses_reference().then_some(&old),
        rows: &rows,
    };
    let value = objective.evaluate(&batch, &PolicyCounts::of(&rows)).unwrap();
    value.total.backward();
    op.surrogate(&stats).unwrap().backward();
    (value, stats, hidden.grad())
}

/// Advantages that are one number per completion, as every loss takes them.
fn advantages() -> Tensor {
    Tensor::from_slice(&[0.5f64, 0.5, 0.5, -2.0, 1.25, 1.25, 1.25, 1.25])
}

#[test]
fn the_ratio_is_one_before_the_first_update() {
    let (made, advantage) = (made(), advantages());
    let mut walked = 0;
    for loss in Loss::samples() {
        let aggregate = if loss.per_completion() {
            Aggregate::SequenceMean
        } else {
            Aggregate::TokenMean
        };
        let objective = Objective::new(loss.clone(), aggregate);
        let (value, stats, _) = first_step(&made, &objective, &advantage);
        let term = |name: &str| {
            let found = value.terms.iter().find(|(own, _)| *own == name);
            found.map(|(_, value)| value.double_value(&[]))
        };
        for (name, expected) in [
            ("ratio", 1.0),
            ("log_ratio", 0.0),
            ("approx_kl", 0.0),
            ("clip_fraction", 0.0),
        ] {
            if let Some(term) = term(name) {
                assert!((term - expected).abs() < 1e-12, "{loss:?} {name}: {term}");
                walked += 1;
            }
        }
        // Whatever the clipping: one plain step of policy gradient, −A over what the aggregate divides by.
        let n = advantage.size()[0] as f64;
        let share = match aggregate {
            Aggregate::SequenceMean => 1.0 / LENGTHS.len() as f64,
            _ => 1.0 / n,
        };
        let expected = &advantage * -share;
        assert!(difference(&stats.logp.grad(), &expected) < 1e-12, "{loss:?}");
    }
    assert!(walked >= 3 * Loss::NAMES.len(), "{walked}");
}

#[test]
fn the_kl_is_zero_at_step_zero_and_pulls_nowhere() {
    let (made, none) = (made(), Tensor::zeros([8], (Kind::Double, Device::Cpu)));
    for estimator in [
        "k1",
        "k2",
        "k3",
        "abs",
        "k1_with_k2_gradient",
        "k3_with_k2_gradient",
        "full",
    ] {
        let mut objective = Objective::new(Loss::samples().remove(0), Aggregate::TokenMean);
        let kl = serde_json::json!({ "estimator": estimator, "coefficient": 0.3 });
        objective.kl = Some(serde_json::from_value::<KlPenalty>(kl).unwrap());
        let (value, _, hidden) = first_step(&made, &objective, &none);
        assert!(value.total.double_value(&[]).abs() < 1e-12, "{estimator}");
        // The gradient of k1 is that of the log-probability; it is zero on average only. That of |d| has no one value at 0.
        if !["k1", "abs"].contains(&estimator) {
            assert!(numbers(&hidden).iter().all(|slope| slope.abs() < 1e-12), "{estimator}");
        }
    }
    for kl in [Kl::Forward, Kl::Reverse] {
        let hidden = made.hidden.detach().set_requires_grad(true);
        let targets = Tensor::from_slice(&made.targets);
        let needs = Needs {
            kl: Some(kl),
            ..Needs::default()
        };
        let op = TokenOp::new(&hidden, &made.embedding, &targets, &needs).unwrap();
        let op = op
            .with_reference(&made.hidden, &made.embedding)
            .unwrap()
            .with_chunk_rows(3);
        let stats = op.forward().unwrap();
        let column = stats.kl.as_ref().unwrap();
        assert!(numbers(column).iter().all(|kl| kl.abs() < 1e-12), "{kl:?}");
        column.sum(Kind::Double).backward();
        op.surrogate(&stats).unwrap().backward();
        assert!(
            numbers(&hidden.grad()).iter().all(|slope| slope.abs() < 1e-12),
            "{kl:?}"
        );
    }
}
