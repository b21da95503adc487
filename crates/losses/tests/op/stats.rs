//! Values of the stats: by hand, in narrow kinds, at both ends of the scale.

use tch::{Device, Kind, Tensor};
use unsay_losses::{Kl, LossValue, Needs, TokenOp};

use crate::plain::{Numbers, all_finite, difference, numbers};
use crate::{ALL, columns, scalar};

const ALL_OF_THREE: Needs = Needs { top_k: 3, ..ALL };

/// An op with a reference and candidates, in one kind, from numbers that every kind can hold.
fn given(kind: Kind, needs: &Needs) -> (TokenOp, Vec<Tensor>) {
    let mut made = Numbers::new(7);
    // Rounded first, so that all kinds see the same numbers.
    let mut made_of = |size: &[i64]| made.tensor(size, 1.0).to_kind(Kind::BFloat16).to_kind(kind);
    let [hidden, embedding] = [made_of(&[9, 16]), made_of(&[40, 16])].map(|t| t.set_requires_grad(true));
    let (their_hidden, their_embedding) = (made_of(&[9, 8]), made_of(&[40, 8]));
    let [scale, bias] = [1.25, -0.5].map(|x| Tensor::from(x).to_kind(kind).set_requires_grad(true));
    let targets = Tensor::from_slice(&(0..9).map(|_| made.below(40) as i64).collect::<Vec<_>>());
    let candidates = (0..27).map(|_| made.below(41) as i64 - 1).collect::<Vec<_>>();
    let op = TokenOp::new(&hidden, &embedding, &targets, needs)
        .and_then(|op| op.with_affine(&scale, &bias))
        .and_then(|op| op.with_reference(&their_hidden, &their_embedding))
        .and_then(|op| op.with_candidates(&Tensor::from_slice(&candidates).view([9, 3])))
        .unwrap()
        .with_chunk_rows(4);
    (op, vec![hidden, embedding, scale, bias])
}

#[test]
fn narrow_kinds_sum_in_f32() {
    tch::set_num_threads(1);
    let mut compared = 0;
    for kl in [Kl::Forward, Kl::Reverse] {
        let needs = Needs {
            kl: Some(kl),
            candidates: true,
            candidate_log1m_p: true,
            ..ALL
        };
        let mut outcome = Vec::new();
        for kind in [Kind::BFloat16, Kind::Float] {
            let (op, parameters) = given(kind, &needs);
            let stats = op.forward().unwrap();
            let columns = columns(&stats);
            assert!(
                columns
                    .iter()
                    .all(|(_, t)| t.kind() == Kind::Float && t.requires_grad())
            );
            scalar(&stats, 3, 9, 0..9).backward();
            op.surrogate(&stats).unwrap().backward();
            assert!(parameters.iter().all(|t| t.grad().kind() == kind));
            outcome.push((columns, parameters));
        }
        let [(narrow, narrow_parameters), (wide, wide_parameters)] = [&outcome[0], &outcome[1]];
        for ((name, a), (_, b)) in narrow.iter().zip(wide) {
            let known = |t: &Tensor| t.masked_fill(&t.isinf(), -7.0);
            assert!(difference(&known(a), &known(b)) < 0.01, "{name}");
            compared += 1;
        }
        for (a, b) in narrow_parameters.iter().zip(wide_parameters) {
            let found = difference(&a.grad(), &b.grad());
            assert!(found < 0.02, "{:?}: {found}", a.size());
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * (10 + 4));
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

/// A sure token is no end of the scale: with `1 − p = 2e-13`, far below what a double beside 1 can hold next to the
/// rest of `p`, value and gradient of `log(1 − p)` are those of the formula.
#[test]
fn a_candidate_of_nearly_all_the_row_is_exact() {
    let lead = 2f64.ln() - 2e-13f64.ln();
    let ids = Tensor::from_slice(&[0i64, 2, -1, 0]).view([1, 4]);
    let needs = Needs {
        candidate_log1m_p: true,
        ..Needs::default()
    };
    for chunk_of_two in [false, true] {
        // The second row has the same logits, and no candidate.
        let rows = if chunk_of_two { 2 } else { 1 };
        let logits = Tensor::from_slice(&[lead, 0.0, 0.0]).view([1, 3]).repeat([rows, 1]);
        let logits = logits.set_requires_grad(true);
        let all_ids = Tensor::cat(&[&ids, &ids.full_like(-1)], 0).narrow(0, 0, rows);
        let identity = Tensor::eye(3, (Kind::Double, Device::Cpu));
        let targets = Tensor::zeros([rows], (Kind::Int64, Device::Cpu));
        let op = TokenOp::new(&logits, &identity, &targets, &needs).unwrap();
        let stats = op.with_candidates(&all_ids).and_then(|op| {
            op.with_all_stats().fused(|stats, _| {
                let log1m_p = stats.candidate_log1m_p.as_ref().unwrap();
                // Weights 1, 10, (none) and 100; the one that is not there is NaN in the loss.
                let weights = Tensor::from_slice(&[1.0, 10.0, f64::NAN, 100.0]);
                let total = (log1m_p * weights).sum(Kind::Double);
                Ok(LossValue {
                    per_example: total.detach().view([1]),
                    total,
                    terms: Vec::new(),
                })
            })
        });
        let fused = stats.unwrap();
        fused.backward().unwrap();
        let found = numbers(&fused.stats.candidate_log1m_p.as_ref().unwrap().narrow(0, 0, 1));
        let rest = 2.0 / (lead.exp() + 2.0);
        let small = 1.0 / (lead.exp() + 2.0);
        let expected = [rest.ln(), -small, 0.0, rest.ln()];
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-12 * b.abs(), "{a} is not {b}");
        }
        let gradient = numbers(&logits.grad());
        // 101 of the first token, 10 of the third: d/dz_c = −p_c, d/dz_v = p_c p_v/(1 − p_c).
        let p = 1.0 - rest;
        let expected = [
            -101.0 * p + 10.0 * small * p,
            101.0 * p / 2.0 + 10.0 * small * small,
            101.0 * p / 2.0 - 10.0 * small,
        ];
        for (a, b) in gradient.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-13 * b.abs(), "{a} is not {b}");
        }
        assert!(gradient[3..].iter().all(|g| g.abs() == 0.0));
    }
}

#[test]
fn margins_of_ten_thousand_stay_finite() {
    let mut tried = 0;
    for kind in [Kind::Double, Kind::Float] {
        for (at, scale) in [(0i64, 1e4), (1, 1e4), (0, -1e4), (2, 0.0)] {
            for kl in [Kl::Forward, Kl::Reverse] {
                let needs = Needs {
                    kl: Some(kl),
                    candidates: true,
                    candidate_log1m_p: true,
                    ..ALL
                };
                let logits = Tensor::from_slice(&[scale, -scale, 0.0, 0.0, scale / 2.0]).view([1, 5]);
                let hidden = logits.to_kind(kind).set_requires_grad(true);
                let identity = Tensor::eye(5, (kind, Device::Cpu)).set_requires_grad(true);
                // The reference is as sure of another token.
                let op = TokenOp::new(&hidden, &identity, &Tensor::from_slice(&[at]), &needs)
                    .and_then(|op| op.with_reference(&hidden.neg(), &identity))
                    .and_then(|op| op.with_candidates(&Tensor::from_slice(&[0i64, 1, 4, 1, -1]).view([1, 5])))
                    .unwrap();
                let stats = op.forward().unwrap();
                let value = scalar(&stats, 3, 1, 0..1) + stats.kl.as_ref().unwrap().sum(Kind::Double);
                value.backward();
                op.surrogate(&stats).unwrap().backward();
                assert!(all_finite(&value) && all_finite(&hidden.grad()) && all_finite(&identity.grad()));
                assert!(all_finite(stats.collision.as_ref().unwrap()));
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 16);
}

/// Everything by hand at `z = [2, 1, 0, −1]`, target 1, `p = [0.643914, 0.236883, 0.087144, 0.032059]`.
#[test]
fn every_stat_by_hand() {
    let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0]).view([1, 4]);
    let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
    let flat = Tensor::zeros([1, 4], (Kind::Double, Device::Cpu));
    let stats = |needs: Needs| {
        TokenOp::new(&logits, &identity, &Tensor::from_slice(&[1i64]), &needs)
            .and_then(|op| op.with_reference(&flat, &identity))
            .and_then(|op| op.with_candidates(&Tensor::from_slice(&[0i64, -1]).view([1, 2])))
            .and_then(|op| op.forward())
            .unwrap()
    };
    let all = stats(Needs {
        candidates: true,
        candidate_log1m_p: true,
        kl: Some(Kl::Reverse),
        ..ALL
    });
    let forward = stats(Needs {
        kl: Some(Kl::Forward),
        ..Needs::default()
    });
    let one = |t: &Option<Tensor>| numbers(t.as_ref().unwrap())[0];
    let [e2, e3] = [(-2f64).exp(), (-3f64).exp()];
    let sum = 1.0 + (-1f64).exp() + e2 + e3;
    let p = [1.0, (-1f64).exp(), e2, e3].map(|share| share / sum);
    let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
    let squash = |u: f64| (1.0 / (1.0 + (-u).exp()) - 0.5).powi(2);
    let expected = [
        (one(&all.log_sum_exp), 2.0 + sum.ln()),
        (one(&all.entropy), entropy),
        (one(&all.collision), p.iter().map(|p| p * p).sum::<f64>().ln()),
        // Against four equal tokens: ln 4 − H one way, −ln 4 − mean log p the other.
        (one(&all.kl), 4f64.ln() - entropy),
        (
            one(&forward.kl),
            -(4f64.ln()) - p.iter().map(|p| p.ln()).sum::<f64>() / 4.0,
        ),
        (one(&all.candidate_logits), 2.0),
        (one(&all.candidate_log1m_p), (1.0 - p[0]).ln()),
        (one(&all.off_target), (squash(2.0) + squash(0.0) + squash(-1.0)) / 3.0),
    ];
    for (at, (ours, exact)) in expected.into_iter().enumerate() {
        assert!((ours - exact).abs() < 1e-14, "{at}: {ours} is not {exact}");
    }
    let second = |t: &Option<Tensor>| numbers(t.as_ref().unwrap())[1];
    assert!(second(&all.candidate_logits) == f64::NEG_INFINITY && second(&all.candidate_log1m_p).abs() == 0.0);
    assert_eq!(numbers(all.candidate_ids.as_ref().unwrap()), [0.0, -1.0]);
    assert!(forward.candidate_ids.is_none(), "not asked about");
    assert!(!all.collision.as_ref().unwrap().requires_grad());
}
