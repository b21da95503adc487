//! The chunked op against plain full logits and autograd: same values, same gradients, whatever the chunk.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod plain;

use plain::{Numbers, all_finite, difference, numbers};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use unsay_losses::{Error, Needs, TokenOp, TokenStats};

const ALL: Needs = Needs {
    top_k: 4,
    log1m_p: true,
    target_logit: true,
    log_sum_exp: false,
    entropy: false,
    collision: false,
    kl: None,
    candidates: false,
    candidate_log1m_p: false,
    off_target: false,
};

const ALL_OF_THREE: Needs = Needs { top_k: 3, ..ALL };

/// Some scalar that uses every stat of every row, with other weights everywhere.
fn scalar(stats: &TokenStats, seed: u64) -> Tensor {
    let mut weights = Numbers::new(seed);
    let mut total = Tensor::from(0f64);
    let columns = [
        Some(&stats.logp),
        stats.target_logit.as_ref(),
        stats.log1m_p.as_ref(),
        stats.top_logits.as_ref(),
    ];
    for column in columns.into_iter().flatten() {
        total += (column * weights.tensor(&column.size(), 1.0)).sum(Kind::Double);
    }
    total
}

/// Gradients of two parameters, with the states made from both or only from one.
fn gradients(seed: u64, n: i64, v: i64, tied: bool, chunk: Option<usize>, through_op: bool) -> (f64, Tensor, Tensor) {
    let mut made = Numbers::new(seed);
    let trunk = made.tensor(&[n, 6], 1.2).set_requires_grad(true);
    let embedding = made.tensor(&[v, 6], 1.2).set_requires_grad(true);
    let targets = Tensor::from_slice(&(0..n).map(|_| made.below(v as usize) as i64).collect::<Vec<_>>());
    // Tied: the embedding is at the entry of the network, too.
    let entry = targets.fmod(v / 2);
    let hidden = if tied {
        &trunk * embedding.index_select(0, &entry)
    } else {
        trunk.sin()
    };
    let value = if through_op {
        let op = TokenOp::new(&hidden, &embedding, &targets, &ALL).unwrap();
        let op = match chunk {
            Some(rows) => op.with_chunk_rows(rows),
            None => op,
        };
        let stats = op.forward().unwrap();
        let value = scalar(&stats, seed);
        value.backward();
        op.surrogate(&stats).unwrap().backward();
        value
    } else {
        let value = scalar(&plain::stats(&hidden.matmul(&embedding.tr()), &targets, &ALL), seed);
        value.backward();
        value
    };
    (value.double_value(&[]), trunk.grad(), embedding.grad())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn equals_full_logits_in_value_and_gradient(seed: u64, n in 1i64..12, v in 5i64..30, tied: bool, chunk in 0usize..14) {
        tch::set_num_threads(1);
        // Zero: the default, one chunk whose logits are kept instead of computed again.
        let (value, trunk, embedding) = gradients(seed, n, v, tied, (chunk > 0).then_some(chunk), true);
        let (plain_value, plain_trunk, plain_embedding) = gradients(seed, n, v, tied, None, false);
        prop_assert!((value - plain_value).abs() <= 1e-12 * plain_value.abs().max(1.0));
        prop_assert!(difference(&trunk, &plain_trunk) <= 1e-12);
        prop_assert!(difference(&embedding, &plain_embedding) <= 1e-12);
    }
}

#[test]
fn narrow_kinds_sum_in_f32() {
    tch::set_num_threads(1);
    let mut made = Numbers::new(7);
    let (hidden, embedding) = (made.tensor(&[9, 16], 1.0), made.tensor(&[40, 16], 1.0));
    let targets = Tensor::from_slice(&(0..9).map(|_| made.below(40) as i64).collect::<Vec<_>>());
    let mut outcome = Vec::new();
    for kind in [Kind::BFloat16, Kind::Float] {
        // Rounded first, so that both kinds see the same numbers.
        let rounded = |t: &Tensor| t.to_kind(Kind::BFloat16).to_kind(kind).set_requires_grad(true);
        let (hidden, embedding) = (rounded(&hidden), rounded(&embedding));
        let op = TokenOp::new(
            &hidden,
            &embedding,
            &targets,
            &Needs {
                log1m_p: true,
                ..Needs::default()
            },
        )
        .unwrap();
        let op = op.with_chunk_rows(4);
        let stats = op.forward().unwrap();
        assert_eq!(stats.logp.kind(), Kind::Float);
        (stats.logp.sum(Kind::Float) - stats.log1m_p.as_ref().unwrap().sum(Kind::Float)).backward();
        op.surrogate(&stats).unwrap().backward();
        assert_eq!((hidden.grad().kind(), embedding.grad().kind()), (kind, kind));
        outcome.push((stats.logp, hidden.grad(), embedding.grad()));
    }
    assert!(difference(&outcome[0].0, &outcome[1].0) < 0.01);
    assert!(difference(&outcome[0].1, &outcome[1].1) < 0.02);
    assert!(difference(&outcome[0].2, &outcome[1].2) < 0.02);
}

/// Where `p` is tiny, `1 - p` rounds to 1 and a gradient taken as a difference of two softmaxes is noise.
#[test]
fn the_gradient_of_log1m_p_is_exact_at_both_ends_in_f32() {
    for lead in [-40.0f32, -20.0, -10.0, -0.7, 0.7, 10.0, 20.0, 40.0] {
        let logits = Tensor::from_slice(&[lead, 0.0, 0.0, 0.0])
            .view([1, 4])
            .set_requires_grad(true);
        let identity = Tensor::eye(4, (Kind::Float, Device::Cpu));
        let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[0i64]), &ALL).unwrap();
        let stats = op.forward().unwrap();
        let log1m_p = stats.log1m_p.as_ref().unwrap();
        log1m_p.sum(Kind::Float).backward();
        op.surrogate(&stats).unwrap().backward();
        let (e, others) = (f64::from(lead).exp(), 3.0);
        let (p, value) = (e / (e + others), -(e / others).ln_1p());
        let close = |ours: f64, exact: f64| (ours / exact - 1.0).abs() < 2e-6;
        assert!(
            close(numbers(log1m_p)[0], value),
            "{lead}: {} is not {value}",
            numbers(log1m_p)[0]
        );
        let gradient = numbers(&logits.grad());
        assert!(
            close(gradient[0], -p) && close(gradient[1], p / 3.0),
            "{lead}: {gradient:?} is not {p}"
        );
    }
}

/// Beside logits of thousands a log-probability of a tenth must not drown in their rounding.
#[test]
fn logp_does_not_lose_what_is_small_beside_large_logits() {
    let logits = Tensor::from_slice(&[8192.0f32, 8190.0, 8192.0]).view([1, 3]);
    let identity = Tensor::eye(3, (Kind::Float, Device::Cpu));
    for (target, exact) in [
        (0i64, -(1.0 + (-2f64).exp() + 1.0).ln()),
        (1, -(1.0 + 2.0 * 2f64.exp()).ln()),
    ] {
        let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[target]), &ALL_OF_THREE).unwrap();
        let stats = op.forward().unwrap();
        assert!((numbers(&stats.logp)[0] / exact - 1.0).abs() < 1e-6);
        assert!((numbers(stats.log1m_p.as_ref().unwrap())[0] / (1.0 - exact.exp()).ln() - 1.0).abs() < 1e-6);
    }
}

#[test]
fn margins_of_ten_thousand_stay_finite() {
    for kind in [Kind::Double, Kind::Float] {
        for (at, scale) in [(0i64, 1e4), (1, 1e4), (0, -1e4), (2, 0.0)] {
            let logits = Tensor::from_slice(&[scale, -scale, 0.0, 0.0, scale / 2.0]).view([1, 5]);
            let hidden = logits.to_kind(kind).set_requires_grad(true);
            let identity = Tensor::eye(5, (kind, Device::Cpu)).set_requires_grad(true);
            let op = TokenOp::new(&hidden, &identity, &Tensor::from_slice(&[at]), &ALL).unwrap();
            let stats = op.forward().unwrap();
            let value = scalar(&stats, 3);
            value.backward();
            op.surrogate(&stats).unwrap().backward();
            assert!(all_finite(&value) && all_finite(&hidden.grad()) && all_finite(&identity.grad()));
        }
    }
}

#[test]
fn stats_without_a_gradient_give_none_and_a_frozen_side_is_left_out() {
    let mut made = Numbers::new(1);
    let hidden = made.tensor(&[3, 2], 1.0).set_requires_grad(true);
    let embedding = made.tensor(&[5, 2], 1.0);
    let targets = Tensor::from_slice(&[0i64, 1, 2]);
    let op = TokenOp::new(&hidden, &embedding, &targets, &ALL).unwrap();
    let stats = op.forward().unwrap();
    op.surrogate(&stats).unwrap().backward();
    assert!(numbers(&hidden.grad()).iter().all(|g| g.abs() == 0.0));
    stats.logp.sum(Kind::Double).backward();
    op.surrogate(&stats).unwrap().backward();
    assert!(numbers(&hidden.grad()).iter().any(|g| g.abs() > 0.0));
    assert!(!embedding.grad().defined());
    let frozen = TokenOp::new(&hidden.detach(), &embedding, &targets, &ALL).unwrap();
    let text = frozen.surrogate(&frozen.forward().unwrap()).unwrap_err().to_string();
    assert_eq!(
        text,
        "hidden and embedding: expected at least one that requires a gradient, got none"
    );
}

#[test]
fn inputs_that_do_not_fit_are_errors_with_both_sides() {
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let ids = |ids: &[i64]| Tensor::from_slice(ids);
    let none = Needs::default();
    let cases: Vec<(&str, Result<TokenOp, Error>)> = vec![
        (
            "hidden: expected two dimensions, got [2, 3, 4]",
            TokenOp::new(&zeros(&[2, 3, 4]), &zeros(&[5, 4]), &ids(&[0]), &none),
        ),
        (
            "embedding: expected [V, 4] as `hidden` is [2, 4], got [5, 3]",
            TokenOp::new(&zeros(&[2, 4]), &zeros(&[5, 3]), &ids(&[0, 0]), &none),
        ),
        (
            "the batch of hidden states is empty",
            TokenOp::new(&zeros(&[0, 4]), &zeros(&[5, 4]), &ids(&[]), &none),
        ),
        (
            "the output embedding is empty",
            TokenOp::new(&zeros(&[2, 4]), &zeros(&[0, 4]), &ids(&[0, 0]), &none),
        ),
        (
            "embedding: expected Float, as `hidden` is, got Double",
            TokenOp::new(
                &zeros(&[2, 4]),
                &zeros(&[5, 4]).to_kind(Kind::Double),
                &ids(&[0, 0]),
                &none,
            ),
        ),
        (
            "hidden: expected f64, f32, bf16 or f16, got Int64",
            TokenOp::new(
                &zeros(&[2, 4]).to_kind(Kind::Int64),
                &zeros(&[5, 4]),
                &ids(&[0, 0]),
                &none,
            ),
        ),
        (
            "targets: expected [2] of Int64, got [1] of Int64",
            TokenOp::new(&zeros(&[2, 4]), &zeros(&[5, 4]), &ids(&[0]), &none),
        ),
        (
            "targets: expected [2] of Int64, got [2] of Float",
            TokenOp::new(&zeros(&[2, 4]), &zeros(&[5, 4]), &zeros(&[2]), &none),
        ),
        (
            "targets: expected ids in 0..5, got 5",
            TokenOp::new(&zeros(&[2, 4]), &zeros(&[5, 4]), &ids(&[0, 5]), &none),
        ),
        (
            "targets: expected ids in 0..5, got -100",
            TokenOp::new(&zeros(&[2, 4]), &zeros(&[5, 4]), &ids(&[-100, 1]), &none),
        ),
        (
            "embedding: expected at least 6 tokens, to take the 6 largest logits, got 5 tokens",
            TokenOp::new(
                &zeros(&[2, 4]),
                &zeros(&[5, 4]),
                &ids(&[0, 1]),
                &Needs { top_k: 6, ..none },
            ),
        ),
        (
            "embedding: expected at least 2 tokens, as `log(1 - p)` is asked for, got 1",
            TokenOp::new(
                &zeros(&[2, 4]),
                &zeros(&[1, 4]),
                &ids(&[0, 0]),
                &Needs { log1m_p: true, ..none },
            ),
        ),
    ];
    assert_eq!(cases.len(), 12);
    for (expected, result) in cases {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }
}
