//! The chunked op against plain full logits and autograd: same values, same gradients, whatever the chunk.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod plain;

use std::ops::Range;

use plain::{Given, Made, Numbers, all_finite, difference, numbers};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use unsay_losses::token::Loss;
use unsay_losses::{Error, Kl, LossValue, Needs, TokenOp, TokenStats};

/// All that needs nothing but logits and targets.
const ALL: Needs = Needs {
    top_k: 4,
    log1m_p: true,
    target_logit: true,
    log_sum_exp: true,
    entropy: true,
    collision: true,
    kl: None,
    candidates: false,
    candidate_log1m_p: false,
    off_target: true,
};

const ALL_OF_THREE: Needs = Needs { top_k: 3, ..ALL };

/// The stats that collect gradients, in one order.
fn columns(stats: &TokenStats) -> Vec<(&'static str, Tensor)> {
    let rest = [
        ("target_logit", &stats.target_logit),
        ("log1m_p", &stats.log1m_p),
        ("top_logits", &stats.top_logits),
        ("log_sum_exp", &stats.log_sum_exp),
        ("entropy", &stats.entropy),
        ("kl", &stats.kl),
        ("candidate_logits", &stats.candidate_logits),
        ("candidate_log1m_p", &stats.candidate_log1m_p),
        ("off_target", &stats.off_target),
    ];
    let rest = rest.into_iter().filter_map(|(name, t)| Some((name, t.as_ref()?)));
    [("logp", &stats.logp)]
        .into_iter()
        .chain(rest)
        .map(|(name, t)| (name, t.shallow_clone()))
        .collect()
}

/// Some scalar that uses every stat of every third row or so, with other weights everywhere; `rows` of `n` rows.
fn scalar(stats: &TokenStats, seed: u64, n: i64, rows: Range<i64>) -> Tensor {
    let mut weights = Numbers::new(seed);
    let mut total = Tensor::from(0f64);
    for (at, (_, column)) in columns(stats).iter().enumerate() {
        let size = [&[n], &column.size()[1..]].concat();
        let mut weights = weights.tensor(&size, 1.0);
        for row in (0..n).filter(|row| (row + at as i64) % 3 == 0) {
            let _ = weights.get(row).fill_(0.0);
        }
        weights = weights.narrow(0, rows.start, rows.end - rows.start);
        let known = column.masked_fill(&column.isinf(), 0.0);
        total += (known * weights).sum(Kind::Double);
    }
    total
}

#[derive(Debug, Clone, Copy)]
struct Case {
    seed: u64,
    n: i64,
    v: i64,
    tied: bool,
    /// Zero: the default, one chunk.
    chunk: usize,
    affine: bool,
    temperature: Option<f64>,
    in_place: bool,
    needs: Needs,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Plain,
    TwoPasses,
    /// The kept logits are gone: all are computed again.
    Recomputed,
    Fused,
}

/// Value, stats, and gradients of trunk, embedding, scale and bias.
struct Outcome {
    value: f64,
    stats: TokenStats,
    gradients: Vec<Tensor>,
}

fn run(case: Case, way: Way) -> Outcome {
    let Case { seed, n, v, .. } = case;
    let mut made = Numbers::new(seed);
    let parameter = |t: Tensor| t.set_requires_grad(true);
    let trunk = parameter(made.tensor(&[n, 6], 1.6));
    let embedding = parameter(made.tensor(&[v, 6], 1.6));
    let mut ids = |low: i64, size: &[i64]| {
        let all: i64 = size.iter().product();
        let ids = (0..all).map(|_| low + made.below((v - low) as usize) as i64);
        Tensor::from_slice(&ids.collect::<Vec<_>>()).view(size)
    };
    let targets = ids(0, &[n]);
    // Half of them from the first three, so that some are there twice, or are the target.
    let candidates = Tensor::cat(&[ids(-1, &[n, 2]), ids(-1, &[n, 2]).clamp_max(2)], 1);
    let (their_hidden, their_embedding) = (made.tensor(&[n, 3], 1.6), made.tensor(&[v, 3], 1.6));
    let [scale, bias] = [1.3, -0.4].map(|x| parameter(Tensor::from(x + 0.1 * made.next())));
    // Tied: the embedding is at the entry of the network, too.
    let hidden = if case.tied {
        &trunk * embedding.index_select(0, &targets.fmod(v / 2))
    } else {
        trunk.sin()
    };
    let (value, stats) = if way == Way::Plain {
        let mut logits = hidden.matmul(&embedding.tr());
        let mut theirs = their_hidden.matmul(&their_embedding.tr());
        if case.affine {
            logits = logits * &scale + &bias;
        }
        if let Some(t) = case.temperature {
            (logits, theirs) = (logits / t, theirs / t);
        }
        let given = Given {
            candidates: Some(&candidates),
            reference: Some(&theirs),
        };
        let stats = plain::stats_of(&logits, &targets, &case.needs, &given);
        let value = scalar(&stats, seed, n, 0..n);
        value.backward();
        (value, stats)
    } else {
        let mut op = TokenOp::new(&hidden, &embedding, &targets, &case.needs)
            .and_then(|op| op.with_candidates(&candidates))
            .and_then(|op| op.with_reference(&their_hidden, &their_embedding))
            .unwrap();
        if case.chunk > 0 {
            op = op.with_chunk_rows(case.chunk);
        }
        if case.affine {
            op = op.with_affine(&scale, &bias).unwrap();
        }
        if let Some(t) = case.temperature {
            op = op.with_temperature(t).unwrap();
        }
        if case.in_place {
            op = op.with_gradient_in_place();
        }
        if way == Way::Fused {
            let fused = op.fused(|stats, rows| {
                let total = scalar(stats, seed, n, rows);
                let per_example = total.detach().view([1]);
                Ok(LossValue {
                    total,
                    per_example,
                    terms: Vec::new(),
                })
            });
            let fused = fused.unwrap();
            fused.backward().unwrap();
            (fused.value.total, fused.stats)
        } else {
            let stats = op.forward().unwrap();
            let value = scalar(&stats, seed, n, 0..n);
            value.backward();
            if way == Way::Recomputed {
                drop(op.surrogate(&stats).unwrap());
                op.surrogate(&stats).unwrap().backward();
            } else {
                op.backward(&stats).unwrap();
            }
            (value, stats)
        }
    };
    let of = |t: &Tensor| if t.grad().defined() { t.grad() } else { t.zeros_like() };
    Outcome {
        value: value.double_value(&[]),
        stats,
        gradients: [&trunk, &embedding, &scale, &bias].map(of).into(),
    }
}

/// The largest difference between two ways, and where it is.
fn compare(case: Case, way: Way) -> (f64, String) {
    let (ours, plain) = (run(case, way), run(case, Way::Plain));
    let mut worst = (
        (ours.value - plain.value).abs() / plain.value.abs().max(1.0),
        "value".to_owned(),
    );
    let mut note = |name: &str, a: &Tensor, b: &Tensor| {
        let known = |t: &Tensor| t.masked_fill(&t.isinf(), -7.0);
        let found = difference(&known(a), &known(b));
        if found > worst.0 {
            worst = (found, name.to_owned());
        }
    };
    let (ours_of, plain_of) = (columns(&ours.stats), columns(&plain.stats));
    assert_eq!(ours_of.len(), plain_of.len());
    for ((name, a), (_, b)) in ours_of.iter().zip(&plain_of) {
        note(name, a, b);
    }
    for (name, a, b) in [
        ("collision", &ours.stats.collision, &plain.stats.collision),
        ("top_ids", &ours.stats.top_ids, &plain.stats.top_ids),
        ("candidate_ids", &ours.stats.candidate_ids, &plain.stats.candidate_ids),
    ] {
        assert_eq!(a.is_some(), b.is_some(), "{name}");
        if let (Some(a), Some(b)) = (a, b) {
            note(name, a, b);
        }
    }
    note("correct", &ours.stats.correct, &plain.stats.correct);
    note("targets", &ours.stats.targets, &plain.stats.targets);
    let names = ["trunk", "embedding", "scale", "bias"];
    for ((name, a), b) in names.iter().zip(&ours.gradients).zip(&plain.gradients) {
        note(&format!("gradient of {name}"), a, b);
    }
    worst
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn equals_full_logits_in_value_and_gradient(
        seed: u64, n in 1i64..12, v in 5i64..30, tied: bool, chunk in 0usize..14, affine: bool,
        temperature in prop::option::of(0.4f64..3.0), asked in prop::collection::vec(any::<bool>(), 9), forward: bool, in_place: bool,
    ) {
        tch::set_num_threads(1);
        let needs = Needs {
            top_k: if asked[0] { 4 } else { 0 },
            log1m_p: asked[1],
            target_logit: asked[2],
            log_sum_exp: asked[3],
            entropy: asked[4],
            collision: asked[5],
            kl: match (asked[4], forward) {
                (true, true) => Some(Kl::Forward),
                (_, false) => Some(Kl::Reverse),
                _ => None,
            },
            candidates: asked[6],
            candidate_log1m_p: asked[7],
            off_target: asked[8],
        };
        for way in [Way::TwoPasses, Way::Recomputed, Way::Fused] {
            // In place, a surrogate that is dropped has done its work already.
            let in_place = in_place && way != Way::Recomputed;
            let case = Case { seed, n, v, tied, chunk, affine, temperature, in_place, needs };
            let (worst, at) = compare(case, way);
            prop_assert!(worst <= 1e-11, "{way:?}: {at} differs by {worst}");
        }
    }
}

/// Each need alone, so that none hides behind another.
#[test]
fn every_need_alone_equals_full_logits() {
    tch::set_num_threads(1);
    let none = Needs::default();
    let alone = [
        none,
        Needs { top_k: 4, ..none },
        Needs { log1m_p: true, ..none },
        Needs {
            target_logit: true,
            ..none
        },
        Needs {
            log_sum_exp: true,
            ..none
        },
        Needs { entropy: true, ..none },
        Needs {
            collision: true,
            ..none
        },
        Needs {
            kl: Some(Kl::Forward),
            ..none
        },
        Needs {
            kl: Some(Kl::Reverse),
            ..none
        },
        Needs {
            candidates: true,
            ..none
        },
        Needs {
            candidate_log1m_p: true,
            ..none
        },
        Needs {
            off_target: true,
            ..none
        },
    ];
    let mut compared = 0;
    for needs in alone {
        for (chunk, way) in [
            (0, Way::Recomputed),
            (4, Way::Recomputed),
            (0, Way::TwoPasses),
            (4, Way::TwoPasses),
            (0, Way::Fused),
            (4, Way::Fused),
        ] {
            let case = Case {
                seed: 5,
                n: 9,
                v: 11,
                tied: true,
                chunk,
                affine: true,
                temperature: Some(0.7),
                in_place: false,
                needs,
            };
            let (worst, at) = compare(case, way);
            assert!(worst <= 1e-11, "{needs:?} {way:?} {chunk}: {at} differs by {worst}");
            compared += 1;
        }
    }
    assert_eq!(compared, 72);
}

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
            op.fused(|stats, _| {
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

/// Past the budget the first chunks are read again and the last computed again.
#[test]
fn kept_and_recomputed_chunks_meet() {
    tch::set_num_threads(1);
    let mut made = Numbers::new(2);
    let (n, v) = (5i64, 5i64 << 20);
    let embedding = Tensor::linspace(-3.0, 3.0, v, (Kind::Float, Device::Cpu)).view([v, 1]);
    let hidden = made.tensor(&[n, 1], 2.0).to_kind(Kind::Float).set_requires_grad(true);
    let targets = Tensor::from_slice(&[0, 7, v - 1, v / 2, 3]);
    // Chunks of five million logits: three are within sixteen million, two are not.
    let op = TokenOp::new(&hidden, &embedding, &targets, &Needs::default())
        .unwrap()
        .with_chunk_rows(1);
    let stats = op.forward().unwrap();
    (&stats.logp * Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0]))
        .sum(Kind::Float)
        .backward();
    let gradient = |op: &TokenOp| {
        hidden.grad().defined().then(|| hidden.grad().zero_());
        op.surrogate(&stats).unwrap().backward();
        numbers(&hidden.grad())
    };
    let (kept, recomputed) = (gradient(&op), gradient(&op));
    assert_eq!(kept, recomputed);
    assert!(kept.iter().all(|g| g.abs() > 1e-3));
}

/// States so wide that single logits are walked over two at a time, the target of one row among the largest of it.
#[test]
fn single_logits_come_in_portions() {
    tch::set_num_threads(1);
    let (n, v, d) = (3i64, 4i64, 3i64 << 20);
    let wave = |rows: i64, speed: f64| {
        let line = Tensor::linspace(0.0, speed, rows * d, (Kind::Float, Device::Cpu));
        (line.sin() * 1e-3).view([rows, d]).set_requires_grad(true)
    };
    let targets = Tensor::from_slice(&[1i64, 3, 3]);
    let needs = Needs {
        top_k: 2,
        target_logit: true,
        ..Needs::default()
    };
    let mut gradients = Vec::new();
    for through_op in [true, false] {
        let (hidden, embedding) = (wave(n, 9e4), wave(v, 7e4));
        let op = TokenOp::new(&hidden, &embedding, &targets, &needs).unwrap();
        let stats = match through_op {
            true => op.forward().unwrap(),
            false => plain::stats(&hidden.matmul(&embedding.tr()), &targets, &needs),
        };
        let weights = Tensor::from_slice(&[1.0f32, -2.0, 3.0]);
        let value = (stats.target_logit.as_ref().unwrap() * &weights).sum(Kind::Float)
            + (stats.top_logits.as_ref().unwrap() * weights.unsqueeze(1)).sum(Kind::Float) * 0.5;
        value.backward();
        if through_op {
            op.surrogate(&stats).unwrap().backward();
        }
        gradients.push((hidden.grad() * 1e3, embedding.grad() * 1e3));
    }
    assert!(difference(&gradients[0].0, &gradients[1].0) < 1e-5);
    assert!(difference(&gradients[0].1, &gradients[1].1) < 1e-5);
    assert!(gradients[0].1.abs().max().double_value(&[]) > 1.0);
}

#[test]
fn the_one_pass_equals_the_two_for_every_token_loss() {
    let mut compared = 0;
    for loss in Loss::samples() {
        let made = Made::new(9, &[3, 4, 2, 1, 5], &[1, 0, -1, 0, 1], 6, 17);
        let two = made.through_op(&loss, &made.counts(), None);
        let (rows, draws) = (made.rows_for(&loss), made.draws());
        let counts = made.weighted(&loss, &made.counts());
        for chunk in [1, 4, 15] {
            let [hidden, embedding] = [&made.hidden, &made.embedding].map(|t| t.detach().set_requires_grad(true));
            let op = made.op(&loss, &hidden, &embedding, &rows).with_chunk_rows(chunk);
            let fused = op.fused_loss(&*loss, &rows, &counts, Some(&draws)).unwrap();
            assert!(!fused.value.total.requires_grad() && !fused.stats.logp.requires_grad());
            fused.backward().unwrap();
            // Nothing is left to hand on.
            fused.backward().unwrap();
            assert!(fused.surrogate().unwrap().is_none());
            let pairs = [
                (&fused.value.total, &two.value.total),
                (&fused.value.per_example, &two.value.per_example),
                (&hidden.grad(), &two.hidden),
                (&embedding.grad(), &two.embedding),
                (&fused.stats.logp, &op.forward().unwrap().logp),
            ];
            for (at, (a, b)) in pairs.into_iter().enumerate() {
                assert!(difference(a, b) < 1e-12, "{loss:?} {chunk}: {at}");
            }
            let names = |value: &LossValue| value.terms.iter().map(|(name, _)| *name).collect::<Vec<_>>();
            assert_eq!(names(&fused.value), names(&two.value));
            for ((name, a), (_, b)) in fused.value.terms.iter().zip(&two.value.terms) {
                assert!(difference(a, b) < 1e-12, "{loss:?} {chunk}: {name}");
            }

            // As in an evaluation, where only the value is wanted.
            let value = tch::no_grad(|| op.fused_loss(&*loss, &rows, &counts, Some(&draws)).unwrap());
            assert!(difference(&value.value.total, &two.value.total) < 1e-12);
            assert!(value.surrogate().unwrap().is_none());
            compared += 1;
        }
    }
    assert_eq!(compared, 3 * Loss::samples().len());
}

/// A loss may leave chunks out, and gradients come on top of those that are there, on every path.
#[test]
fn gradients_are_added_and_chunks_can_be_left_out() {
    for in_place in [false, true] {
        let made = Made::new(4, &[5], &[1], 3, 7);
        let [hidden, embedding] = [&made.hidden, &made.embedding].map(|t| t.detach().set_requires_grad(true));
        let targets = Tensor::from_slice(&made.targets);
        let op = TokenOp::new(&hidden, &embedding, &targets, &Needs::default())
            .unwrap()
            .with_chunk_rows(2);
        let op = if in_place { op.with_gradient_in_place() } else { op };
        let only = |wanted: Range<i64>| {
            let fused = op.fused(|stats, rows| {
                let total = stats.logp.sum(Kind::Double);
                let total = if rows == wanted { total } else { total.detach().zero_() };
                Ok(LossValue {
                    per_example: total.detach().view([1]),
                    total,
                    terms: vec![("logp", stats.logp.sum(Kind::Double).detach())],
                })
            });
            let fused = fused.unwrap();
            assert_eq!(fused.value.terms.len(), 1);
            assert!(difference(&fused.value.terms[0].1, &fused.stats.logp.sum(Kind::Double)) < 1e-14);
            assert!(
                difference(
                    &fused.value.total,
                    &fused
                        .stats
                        .logp
                        .narrow(0, wanted.start, wanted.end - wanted.start)
                        .sum(Kind::Double)
                ) < 1e-14
            );
            fused.backward().unwrap();
            (hidden.grad().copy(), embedding.grad().copy())
        };
        let first = only(0..2);
        let both = only(2..4);
        let last = only(4..5);
        let again = only(0..2);
        assert!(numbers(&first.0)[6..].iter().all(|g| g.abs() == 0.0));
        assert!(numbers(&both.0)[6..12].iter().all(|g| g.abs() > 0.0));
        assert!(difference(&(&again.0 - &last.0), &first.0) < 1e-14);
        assert!(difference(&(&again.1 - &last.1), &first.1) < 1e-14);
        // The same sum at once.
        let whole = made.hidden.detach().set_requires_grad(true);
        let plain = whole
            .matmul(&made.embedding.tr())
            .log_softmax(-1, None)
            .gather(1, &targets.unsqueeze(1), false);
        plain.sum(Kind::Double).backward();
        assert!(difference(&last.0, &whole.grad()) < 1e-14);
    }
}

#[test]
fn only_what_is_trained_gets_a_gradient() {
    let made = Made::new(4, &[5], &[1], 3, 7);
    let targets = Tensor::from_slice(&made.targets);
    let [scale, bias] = [2.0, 0.5].map(Tensor::from);
    let mut tried = 0;
    for trained in 0..4 {
        for in_place in [false, true] {
            let all = [&made.hidden, &made.embedding, &scale, &bias].map(Tensor::detach);
            let _ = all[trained].set_requires_grad(true);
            let needs = Needs {
                log_sum_exp: true,
                target_logit: true,
                ..Needs::default()
            };
            let op = TokenOp::new(&all[0], &all[1], &targets, &needs).and_then(|op| op.with_affine(&all[2], &all[3]));
            let op = if in_place {
                op.unwrap().with_gradient_in_place()
            } else {
                op.unwrap()
            };
            let stats = op.forward().unwrap();
            (stats.log_sum_exp.as_ref().unwrap() + stats.target_logit.as_ref().unwrap())
                .sum(Kind::Double)
                .backward();
            op.surrogate(&stats).unwrap().backward();
            for (at, t) in all.iter().enumerate() {
                assert_eq!(t.grad().defined(), at == trained, "{trained}: {at}");
            }
            assert!(all[trained].grad().abs().min().double_value(&[]) > 0.0);
            tried += 1;
        }
    }
    assert_eq!(tried, 8);
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

#[test]
fn what_is_given_beside_the_batch_and_does_not_fit_is_an_error_with_both_sides() {
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let ids = |size: &[i64], id: i64| Tensor::full(size, id, (Kind::Int64, Device::Cpu));
    let none = Needs::default();
    let op = |v: i64, needs: &Needs| TokenOp::new(&zeros(&[2, 4]), &zeros(&[v, 4]), &ids(&[2], 0), needs);
    let five = || op(5, &none).unwrap();
    let one = Tensor::from(1.0f32);
    let cases: Vec<(&str, Result<TokenOp, Error>)> = vec![
        (
            "candidates: expected [2, C] of Int64, C at least 1, got [2] of Int64",
            five().with_candidates(&ids(&[2], 0)),
        ),
        (
            "candidates: expected [2, C] of Int64, C at least 1, got [3, 1] of Int64",
            five().with_candidates(&ids(&[3, 1], 0)),
        ),
        (
            "candidates: expected [2, C] of Int64, C at least 1, got [2, 0] of Int64",
            five().with_candidates(&ids(&[2, 0], 0)),
        ),
        (
            "candidates: expected [2, C] of Int64, C at least 1, got [2, 1] of Float",
            five().with_candidates(&zeros(&[2, 1])),
        ),
        (
            "candidates: expected ids in -1..5, got 5",
            five().with_candidates(&ids(&[2, 1], 5)),
        ),
        (
            "candidates: expected ids in -1..5, got -2",
            five().with_candidates(&ids(&[2, 1], -2)),
        ),
        (
            "the reference's hidden: expected two dimensions, got [2]",
            five().with_reference(&zeros(&[2]), &zeros(&[5, 3])),
        ),
        (
            "the reference's hidden: expected [2, D'] as the policy's has 2 rows, got [3, 3]",
            five().with_reference(&zeros(&[3, 3]), &zeros(&[5, 3])),
        ),
        (
            "the reference's embedding: expected [5, 3] as the policy has 5 tokens and the reference's hidden is [2, 3], got [6, 3]",
            five().with_reference(&zeros(&[2, 3]), &zeros(&[6, 3])),
        ),
        (
            "the reference's embedding: expected [5, 3] as the policy has 5 tokens and the reference's hidden is [2, 3], got [5, 4]",
            five().with_reference(&zeros(&[2, 3]), &zeros(&[5, 4])),
        ),
        (
            "the reference's embedding: expected Float, as `the reference's hidden` is, got Double",
            five().with_reference(&zeros(&[2, 3]), &zeros(&[5, 3]).to_kind(Kind::Double)),
        ),
        (
            "the reference's hidden: expected f64, f32, bf16 or f16, got Int64",
            five().with_reference(&ids(&[2, 3], 0), &ids(&[5, 3], 0)),
        ),
        (
            "scale: expected a floating-point number without dimensions, got [1] of Float",
            five().with_affine(&zeros(&[1]), &one),
        ),
        (
            "bias: expected a floating-point number without dimensions, got [] of Int64",
            five().with_affine(&one, &Tensor::from(1i64)),
        ),
        (
            "`temperature` is 0, expected a finite number above 0",
            five().with_temperature(0.0),
        ),
        (
            "`temperature` is -1, expected a finite number above 0",
            five().with_temperature(-1.0),
        ),
        (
            "`temperature` is inf, expected a finite number above 0",
            five().with_temperature(f64::INFINITY),
        ),
        (
            "`temperature` is NaN, expected a finite number above 0",
            five().with_temperature(f64::NAN),
        ),
        (
            "embedding: expected at least 2 tokens, as `log(1 - p)` of candidates is asked for, got 1",
            op(
                1,
                &Needs {
                    candidate_log1m_p: true,
                    ..none
                },
            ),
        ),
        (
            "embedding: expected at least 2 tokens, as the tokens other than the target are asked for, got 1",
            op(
                1,
                &Needs {
                    off_target: true,
                    ..none
                },
            ),
        ),
        (
            "embedding: expected at least 18446744073709551615 tokens, to take the 18446744073709551615 largest logits, got 5 tokens",
            op(
                5,
                &Needs {
                    top_k: usize::MAX,
                    ..none
                },
            ),
        ),
    ];
    assert_eq!(cases.len(), 21);
    for (expected, result) in cases {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }
    // One token is enough for everything else, and as many as are taken.
    assert!(
        op(
            1,
            &Needs {
                top_k: 1,
                entropy: true,
                ..none
            }
        )
        .is_ok()
    );

    let constant = |_: &TokenStats, _: Range<i64>| -> Result<LossValue, Error> { unreachable!() };
    for (needs, expected) in [
        (
            Needs {
                candidates: true,
                ..none
            },
            "candidates: expected ids by `with_candidates`, as the needs ask about them, got none",
        ),
        (
            Needs {
                candidate_log1m_p: true,
                ..none
            },
            "candidates: expected ids by `with_candidates`, as the needs ask about them, got none",
        ),
        (
            Needs {
                kl: Some(Kl::Forward),
                ..none
            },
            "the reference: expected hidden states by `with_reference`, as the needs ask for a divergence from it, got none",
        ),
    ] {
        let op = op(5, &needs).unwrap();
        assert_eq!(op.forward().unwrap_err().to_string(), expected);
        assert_eq!(op.fused(constant).unwrap_err().to_string(), expected);
    }
}

#[test]
fn what_a_fused_loss_is_given_must_fit_too() {
    let made = Made::new(4, &[2, 3], &[1, 0], 3, 7);
    let targets = Tensor::from_slice(&made.targets);
    let loss = Loss::samples()
        .into_iter()
        .find(|loss| loss.draws_per_row() == 1)
        .unwrap();
    let op = TokenOp::new(&made.hidden, &made.embedding, &targets, &loss.needs())
        .unwrap()
        .with_chunk_rows(3);
    let text = |rows: &Made, draws: &Tensor| {
        let found = op.fused_loss(&*loss, &rows.token_rows(), &made.counts(), Some(draws));
        found.unwrap_err().to_string()
    };
    let fewer = made.rows(&[0, 1, 2, 3]);
    assert_eq!(
        text(&fewer, &made.draws()),
        "rows: expected 5 rows, as the op has, got [4]"
    );
    assert_eq!(
        text(&made, &fewer.draws()),
        "draws: expected 5 rows, as the op has, got [4, 1]"
    );
    assert_eq!(
        text(&made, &made.draws().repeat([1, 2])),
        "draws: expected [3, 1], uniform in [0, 1), as the contrast draws once per row, got [3, 2] of Double"
    );
    let shrinking = op.fused(|stats, rows| {
        let total = stats.logp.sum(Kind::Double);
        let per_example = Tensor::zeros([rows.end - rows.start], (Kind::Double, Device::Cpu));
        Ok(LossValue {
            total,
            per_example,
            terms: Vec::new(),
        })
    });
    assert_eq!(
        shrinking.unwrap_err().to_string(),
        "per_example: expected [3], as for the rows before, got [2]"
    );

    let rows = made.token_rows();
    let part = rows.narrow(1..4).unwrap();
    assert_eq!(
        (numbers(&part.example), numbers(&part.label)),
        (vec![0.0, 1.0, 1.0], vec![1.0, 0.0, 0.0])
    );
    assert_eq!((numbers(&part.is_eos), part.n_examples), (vec![1.0, 0.0, 0.0], 2));
    assert!(rows.narrow(0..5).is_ok() && rows.narrow(2..2).is_ok());
    for (range, text) in [(-1..2, "-1..2"), (3..6, "3..6"), (Range { start: 3, end: 2 }, "3..2")] {
        let expected = format!("rows: expected a part of 0..5, got {text}");
        assert_eq!(rows.narrow(range).unwrap_err().to_string(), expected);
    }
}
