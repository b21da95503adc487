//! Which token CRINGE contrasts a negative with: never the negative itself, and the others as often as the softmax
//! over the candidates says.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod plain;

use plain::{Numbers, numbers};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use unsay_losses::token::{Cringe, TokenLoss};
use unsay_losses::{TokenCounts, TokenOp, TokenRows};

/// The token contrasted with `target` for each draw, read off the gradient: the only one pushed up.
fn sampled(row: &[f64], target: i64, k: usize, draws: &[f64]) -> Vec<usize> {
    tch::set_num_threads(1);
    let (n, v) = (draws.len() as i64, row.len() as i64);
    let loss = Cringe::new(1.0, k);
    let logits = Tensor::from_slice(row)
        .view([1, v])
        .repeat([n, 1])
        .set_requires_grad(true);
    let identity = Tensor::eye(v, (Kind::Double, Device::Cpu));
    let op = TokenOp::new(
        &logits,
        &identity,
        &Tensor::full([n], target, (Kind::Int64, Device::Cpu)),
        &loss.needs(),
    )
    .unwrap();
    let stats = op.forward().unwrap();
    let rows = TokenRows::new(&vec![0; draws.len()], &vec![false; draws.len()], &[0], Device::Cpu).unwrap();
    // With counts of one the push per row is σ(z_y − z_s), not a share of it.
    let value = loss.evaluate(
        &stats,
        &rows,
        &TokenCounts::of(&rows).unwrap(),
        Some(&Tensor::from_slice(draws).view([n, 1])),
    );
    value.unwrap().total.backward();
    let target_push = numbers(&stats.target_logit.as_ref().unwrap().grad());
    let pushes = numbers(&stats.top_logits.as_ref().unwrap().grad());
    let ids = numbers(stats.top_ids.as_ref().unwrap());
    let mut all = Vec::new();
    for (row, pushes) in pushes.chunks(k + 1).enumerate() {
        let up: Vec<usize> = (0..=k).filter(|&i| pushes[i] < 0.0).collect();
        assert!(up.len() <= 1 && pushes.iter().all(|p| *p <= 0.0));
        // A push that underflows to zero names no token; the choice then cannot matter either.
        let Some(&up) = up.first() else {
            assert!(target_push[row].abs() == 0.0);
            continue;
        };
        assert!((pushes[up] + target_push[row]).abs() < 1e-15);
        all.push(ids[row * (k + 1) + up] as usize);
    }
    all
}

#[test]
fn draws_follow_the_softmax_of_the_candidates_and_never_pick_the_target() {
    let row = [2.0f64, 0.5, 1.0, -0.3, 1.7, -2.0, 0.9, 0.0];
    let mut numbers = Numbers::new(42);
    let draws: Vec<f64> = (0..40_000).map(|_| numbers.next()).collect();
    let mut tried = 0;
    for target in 0..row.len() {
        for k in [1, 3, 5, 7] {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            order.truncate(k + 1);
            order.retain(|&id| id != target);
            order.truncate(k);
            let sum: f64 = order.iter().map(|&id| f64::exp(row[id])).sum();
            let picks = sampled(&row, target as i64, k, &draws);
            assert_eq!(picks.len(), draws.len());
            for (id, logit) in row.into_iter().enumerate() {
                let share = picks.iter().filter(|&&pick| pick == id).count() as f64 / draws.len() as f64;
                let expected = if order.contains(&id) { logit.exp() / sum } else { 0.0 };
                let bound = 5.0 * (expected * (1.0 - expected) / draws.len() as f64).sqrt();
                assert!(
                    (share - expected).abs() <= bound,
                    "target {target}, k {k}, token {id}: {share}, not {expected}"
                );
            }
            tried += 1;
        }
    }
    assert_eq!(tried, 32);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Ties, gaps that underflow, draws on the edges of the intervals.
    #[test]
    fn no_logits_and_no_draw_pick_the_target(
        row in prop::collection::vec(prop_oneof![-3.0..3.0f64, Just(0.0), Just(1.0), Just(1e4), Just(-1e4), Just(745.0)], 2..9),
        target: prop::sample::Index,
        k: prop::sample::Index,
        draws in prop::collection::vec(prop_oneof![0.0..1.0f64, Just(0.0), Just(0.5), Just(1.0 - f64::EPSILON / 2.0), Just(f64::MIN_POSITIVE)], 1..20),
    ) {
        let target = target.index(row.len());
        let k = 1 + k.index(row.len() - 1);
        let picks = sampled(&row, target as i64, k, &draws);
        prop_assert!(picks.iter().all(|&pick| pick != target));
    }
}

#[test]
fn a_draw_on_the_edge_of_two_intervals_picks_the_upper_one() {
    let picks = sampled(&[1.0, 1.0, 3.0], 2, 2, &[0.0, 0.4999, 0.5, 0.9999]);
    assert!(
        picks[0] == picks[1] && picks[2] == picks[3] && picks[1] != picks[2],
        "{picks:?}"
    );
}

#[test]
fn a_vocabulary_without_k_other_tokens_is_an_error() {
    let logits = Tensor::zeros([1, 5], (Kind::Double, Device::Cpu));
    let identity = Tensor::eye(5, (Kind::Double, Device::Cpu));
    let op = TokenOp::new(
        &logits,
        &identity,
        &Tensor::from_slice(&[0i64]),
        &Cringe::new(1.0, 5).needs(),
    );
    assert_eq!(
        op.unwrap_err().to_string(),
        "embedding: expected at least 6 tokens, to take the 6 largest logits, got 5 tokens"
    );
}
