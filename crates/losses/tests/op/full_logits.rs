//! Every stat, alone and with the others, on every way through the op, against full logits and autograd.

use proptest::prelude::*;
use tch::Tensor;
use unsay_losses::{Kl, LossValue, Needs, TokenOp, TokenStats};

use crate::plain::{self, Given, Numbers, difference};
use crate::{columns, scalar};

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
            let fused = op.with_all_stats().fused(|stats, rows| {
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
            without_logp: false,
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
