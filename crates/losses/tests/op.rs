//! The chunked op against plain full logits and autograd: same values, same gradients, whatever the chunk.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod plain;

use std::ops::Range;

use plain::{Given, Numbers, all_finite, difference, numbers};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
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
    needs: Needs,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Plain,
    TwoPasses,
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
        if way == Way::TwoPasses {
            let stats = op.forward().unwrap();
            let value = scalar(&stats, seed, n, 0..n);
            value.backward();
            op.surrogate(&stats).unwrap().backward();
            (value, stats)
        } else {
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
        temperature in prop::option::of(0.4f64..3.0), asked in prop::collection::vec(any::<bool>(), 9), forward: bool,
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
        let case = Case { seed, n, v, tied, chunk, affine, temperature, needs };
        for way in [Way::TwoPasses, Way::Fused] {
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
                needs,
            };
            let (worst, at) = compare(case, way);
            assert!(worst <= 1e-11, "{needs:?} {way:?} {chunk}: {at} differs by {worst}");
            compared += 1;
        }
    }
    assert_eq!(compared, 48);
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
            let value = scalar(&stats, 3, 1, 0..1);
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
