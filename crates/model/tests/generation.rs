//! Generation against plain recomputation, and against itself in other batches.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::HashSet;

use common::{config, decoder, random_ids};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor, no_grad};
use unsay_model::{Decoder, Engine, Error, Generated, Generation, Sampling, logps};

const EOS: u32 = 3;

fn model(kind: Kind) -> Decoder {
    tch::set_num_threads(1);
    // A milder spread than elsewhere, so that samples vary.
    let config = unsay_model::Config {
        initializer_range: 0.2,
        ..config(6, 2, 4, 2)
    };
    decoder(&config, 11, kind)
}

fn prompts(n: usize) -> Vec<Vec<u32>> {
    let lengths = random_ids(n, 9, 4);
    let prompt = |i: usize| random_ids(1 + lengths[i] as usize, 31, 100 + i as u64);
    (0..n)
        .map(|i| prompt(i).into_iter().map(|id| id as u32).collect())
        .collect()
}

/// A uniform draw that depends on prompt and step alone.
fn uniform(prompt: usize, step: usize) -> f32 {
    ChaCha8Rng::seed_from_u64((prompt * 1000 + step) as u64).random()
}

fn complete(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    sampling: &Sampling,
    ends: &[u32],
    batch: usize,
) -> Result<Vec<Generated>, Error> {
    Generation::new(decoder, sampling, ends)
        .batch(batch)
        .draws(&mut uniform)
        .run(prompts)
}

fn run(decoder: &Decoder, prompts: &[Vec<u32>], sampling: &Sampling, batch: usize) -> Vec<Generated> {
    complete(decoder, prompts, sampling, &[EOS], batch).unwrap()
}

fn ids(tokens: &[u32]) -> Tensor {
    let tokens: Vec<i64> = tokens.iter().map(|&t| i64::from(t)).collect();
    Tensor::from_slice(&tokens).view([1, -1])
}

/// Logits after a sequence, without any cache.
fn next_logits(decoder: &Decoder, tokens: &[u32]) -> Vec<f64> {
    let hidden = no_grad(|| decoder.hidden(&ids(tokens)).unwrap());
    let last = hidden.narrow(1, tokens.len() as i64 - 1, 1);
    Vec::<f64>::try_from(
        last.linear(&decoder.output_embedding().detach(), None::<&Tensor>)
            .view([-1]),
    )
    .unwrap()
}

fn settings() -> Vec<Sampling> {
    let plain = Sampling::new(12);
    vec![
        plain.clone(),
        Sampling {
            temperature: 0.7,
            top_k: Some(5),
            ..plain.clone()
        },
        Sampling {
            top_p: Some(0.8),
            min_new_tokens: 4,
            ..plain.clone()
        },
        Sampling {
            top_k: Some(12),
            top_p: Some(0.6),
            block_ngram: Some(2),
            temperature: 1.5,
            ..plain
        },
        Sampling {
            block_ngram: Some(1),
            min_new_tokens: 12,
            ..Sampling::greedy(12)
        },
        Sampling::greedy(12),
    ]
}

#[test]
fn samples_do_not_depend_on_the_batch() {
    let decoder = model(Kind::Double);
    let prompts = prompts(17);
    let mut finished = 0;
    for sampling in settings() {
        let alone = run(&decoder, &prompts, &sampling, 1);
        for batch in [3, 8, 17] {
            for (a, b) in alone.iter().zip(run(&decoder, &prompts, &sampling, batch)) {
                assert_eq!(
                    (&a.ids, a.finished),
                    (&b.ids, b.finished),
                    "{sampling:?} in batches of {batch}"
                );
                assert!(a.logps.iter().zip(&b.logps).all(|(x, y)| (x - y).abs() < 1e-5));
            }
        }
        finished += alone.iter().filter(|g| g.finished).count();
    }
    assert!(finished > 5, "the end token should be met: {finished}");
}

#[test]
fn greedy_equals_recomputation_token_for_token() {
    let decoder = model(Kind::Double);
    let prompts = prompts(7);
    let sampling = Sampling {
        min_new_tokens: 2,
        ..Sampling::greedy(10)
    };
    for (prompt, found) in prompts.iter().zip(run(&decoder, &prompts, &sampling, 4)) {
        let mut tokens = prompt.clone();
        for step in 0..10 {
            let mut logits = next_logits(&decoder, &tokens);
            if step < 2 {
                logits[EOS as usize] = f64::NEG_INFINITY;
            }
            let best = (0..logits.len())
                .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
                .unwrap() as u32;
            if best == EOS {
                break;
            }
            tokens.push(best);
        }
        assert_eq!(found.ids, tokens[prompt.len()..]);
        assert_eq!(found.finished, found.ids.len() < 10);
    }
}

/// The definition of each filter, written out over one row, then the inverse of the distribution.
#[test]
fn filters_equal_their_definition() {
    let decoder = model(Kind::Double);
    let prompts = prompts(9);
    let mut checked = 0;
    for sampling in settings().into_iter().filter(|s| !s.greedy && s.block_ngram.is_none()) {
        for (i, found) in run(&decoder, &prompts, &sampling, 4).into_iter().enumerate() {
            let mut tokens = prompts[i].clone();
            let chosen = found.ids.iter().copied().chain(found.finished.then_some(EOS));
            for (step, token) in chosen.enumerate() {
                let logits = next_logits(&decoder, &tokens);
                let expected = definition(&logits, &sampling, step, uniform(i, step));
                assert_eq!(expected, token, "{sampling:?}, prompt {i}, step {step}");
                tokens.push(token);
                checked += 1;
            }
        }
    }
    assert!(checked > 150, "{checked}");
}

fn definition(logits: &[f64], sampling: &Sampling, step: usize, u: f32) -> u32 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let mass = |t: usize| {
        if step < sampling.min_new_tokens && t == EOS as usize {
            0.0
        } else {
            (logits[t] / sampling.temperature).exp()
        }
    };
    if sampling.top_k.is_some() || sampling.top_p.is_some() {
        order.sort_by(|&a, &b| mass(b).total_cmp(&mass(a)));
    }
    order.truncate(sampling.top_k.unwrap_or(order.len()));
    let total: f64 = order.iter().map(|&t| mass(t)).sum();
    if let Some(p) = sampling.top_p {
        let mut before = 0.0;
        order.retain(|&t| {
            let keep = before < p * total;
            before += mass(t);
            keep
        });
    }
    let aim = f64::from(u) * order.iter().map(|&t| mass(t)).sum::<f64>();
    let mut upto = 0.0;
    for &t in &order {
        upto += mass(t);
        if upto > aim {
            return t as u32;
        }
    }
    panic!("a draw below one ends before the last token")
}

#[test]
fn sampling_and_scoring_give_the_same_log_probs() {
    for (kind, tolerance) in [(Kind::Double, 1e-6), (Kind::Float, 1e-4)] {
        let decoder = model(kind);
        let prompts = prompts(8);
        let mut checked = 0;
        for sampling in settings() {
            for (prompt, found) in prompts.iter().zip(run(&decoder, &prompts, &sampling, 8)) {
                let completion: Vec<u32> = found.ids.iter().copied().chain(found.finished.then_some(EOS)).collect();
                assert_eq!(completion.len(), found.logps.len());
                let all = [&prompt[..], &completion].concat();
                let hidden = no_grad(|| decoder.hidden(&ids(&all[..all.len() - 1])).unwrap());
                let rows = hidden
                    .squeeze_dim(0)
                    .narrow(0, prompt.len() as i64 - 1, completion.len() as i64);
                let scored = logps(&decoder, &rows, &ids(&completion).view([-1])).unwrap();
                // Kept as f32, whatever they were computed in.
                let scored = Vec::<f64>::try_from(scored.to_kind(Kind::Double)).unwrap();
                for (a, b) in scored.iter().zip(&found.logps) {
                    assert!((a - f64::from(*b)).abs() < tolerance, "{a} {b}");
                    checked += 1;
                }
            }
        }
        assert!(checked > 200);
    }
}

#[test]
fn scoring_equals_the_full_log_softmax_in_chunks() {
    let decoder = model(Kind::Double);
    let rows = 3000;
    let hidden = Tensor::from_slice(&random_ids(rows * 24, 1000, 6))
        .to_kind(Kind::Double)
        .view([rows as i64, 24])
        / 500
        - 1;
    let targets = Tensor::from_slice(&random_ids(rows, 31, 7));
    let expected = hidden
        .linear(&decoder.output_embedding(), None::<&Tensor>)
        .log_softmax(-1, Kind::Double);
    let expected = expected.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1);
    let found = logps(&decoder, &hidden, &targets).unwrap();
    assert!(!found.requires_grad());
    assert!((expected - found).abs().max().double_value(&[]) < 1e-10);
    let none = logps(&decoder, &hidden.narrow(0, 0, 0), &targets.narrow(0, 0, 0)).unwrap();
    assert_eq!(none.size(), [0]);
    let error = logps(&decoder, &hidden, &(&targets + 31)).unwrap_err().to_string();
    assert!(error.contains("target"), "{error}");
}

#[test]
fn limits_and_bans_hold() {
    let decoder = model(Kind::Float);
    let prompts = prompts(20);
    for sampling in settings() {
        let found = run(&decoder, &prompts, &sampling, 7);
        assert_eq!(found.len(), prompts.len());
        for completion in found {
            let n = completion.ids.len() + usize::from(completion.finished);
            assert!(n <= 12 && completion.ids.len() >= sampling.min_new_tokens && (completion.finished || n == 12));
            assert!(!completion.ids.contains(&EOS));
            if let Some(n) = sampling.block_ngram {
                let distinct: HashSet<&[u32]> = completion.ids.windows(n).collect();
                assert_eq!(distinct.len(), (completion.ids.len() + 1).saturating_sub(n));
            }
        }
    }
}

/// An engine that took its decoder, one that borrows it, and one that is made for a request are the same, request after
/// request.
#[test]
fn an_engine_serves_several_requests() {
    for kind in [Kind::Double, Kind::Float] {
        let (decoder, sampling) = (model(kind), Sampling::new(12));
        let prompts = prompts(9);
        let expected = run(&decoder, &prompts, &sampling, 4);
        assert!(expected.iter().any(|one| one.ids.len() > 2));
        let borrowed = Engine::new(&decoder).unwrap();
        let taken = Engine::taking(model(kind)).unwrap();
        assert_eq!(taken.config(), decoder.config());
        for engine in [&borrowed, &taken, &taken] {
            let request = Generation::on(engine, &sampling, &[EOS]).batch(4);
            assert_eq!(request.draws(&mut uniform).run(&prompts).unwrap(), expected, "{kind:?}");
        }
    }
}

#[test]
fn progress_counts_prompts_and_draws_are_asked_once() {
    let decoder = model(Kind::Float);
    let prompts = prompts(10);
    let (mut seen, mut asked) = (Vec::new(), HashSet::new());
    let mut draw = |prompt, step| {
        assert!(asked.insert((prompt, step)));
        uniform(prompt, step)
    };
    let (sampling, mut progress) = (Sampling::new(6), |n| seen.push(n));
    let request = Generation::new(&decoder, &sampling, &[EOS]).batch(4);
    request.draws(&mut draw).progress(&mut progress).run(&prompts).unwrap();
    assert!(seen.is_sorted() && seen.last() == Some(&10), "{seen:?}");
    assert!(run(&decoder, &[], &sampling, 4).is_empty());
}

#[test]
fn bad_requests_are_errors() {
    let decoder = model(Kind::Float);
    let good = vec![vec![1, 2]];
    let with_vocab = Sampling {
        block_ngram: Some(1),
        ..Sampling::new(31)
    };
    type Case<'a> = (&'a [Vec<u32>], Sampling, u32, usize, &'a str);
    let cases: [Case; 7] = [
        (
            &[vec![1], vec![]],
            Sampling::new(4),
            EOS,
            2,
            "prompt 1: expected at least one token",
        ),
        (
            &[vec![1; 61]],
            Sampling::new(4),
            EOS,
            2,
            "together at most 64, got 61 and 4",
        ),
        (&[vec![31]], Sampling::new(4), EOS, 2, "token of prompt 0"),
        (&good, Sampling::new(0), EOS, 2, "`max_new_tokens`"),
        (&good, Sampling::new(4), 31, 2, "end token"),
        (&good, Sampling::new(4), EOS, 0, "generation batch"),
        (&good, with_vocab, EOS, 1, "block_ngram"),
    ];
    for (prompts, sampling, eos, batch, word) in cases {
        let found = complete(&decoder, prompts, &sampling, &[eos], batch);
        let error = found.unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    let sampling = Sampling::new(4);
    let request = || Generation::new(&decoder, &sampling, &[EOS]);
    let mut one = |_, _| 1.0;
    let error = request().draws(&mut one).run(&good).unwrap_err();
    assert!(error.to_string().contains("expected [0, 1), got 1"), "{error}");
    let error = request().run(&good).unwrap_err();
    assert!(error.to_string().contains("draws: expected a source"), "{error}");
}

#[test]
fn any_of_several_end_tokens_ends_a_completion() {
    let decoder = model(Kind::Double);
    let prompts = vec![vec![5, 6], vec![7], vec![9, 10, 11]];
    let make = |ends: &[u32], sampling: &Sampling| complete(&decoder, &prompts, sampling, ends, 2).unwrap();
    // What is said until one token ends it, is said until another one comes first.
    let whole = make(&[EOS], &Sampling::new(12));
    let other = whole[0].ids[1];
    let cut = make(&[EOS, other], &Sampling::new(12));
    assert!(cut[0].finished && cut[0].ids.len() <= 1 && cut[0].ids == whole[0].ids[..cut[0].ids.len()]);
    assert_eq!(cut[0].logps.len(), cut[0].ids.len() + 1);
    // None of them comes too early.
    let late = Sampling {
        min_new_tokens: 6,
        ..Sampling::new(12)
    };
    let late = make(&[EOS, other], &late);
    assert!(late.iter().all(|one| one.ids.len() >= 6));
    assert!(
        late.iter()
            .all(|one| one.ids.iter().all(|&id| id != EOS && id != other))
    );
    let error = complete(&decoder, &prompts, &Sampling::new(2), &[], 2).unwrap_err();
    assert!(
        error.to_string().contains("end tokens: expected at least one"),
        "{error}"
    );
}

#[test]
fn a_model_that_overflows_is_an_error() {
    let decoder = model(Kind::Float);
    let weight = decoder.params().get("model.norm.weight").unwrap();
    no_grad(|| {
        let _ = weight.detach().fill_(f64::from(f32::MAX));
    });
    let found = complete(&decoder, &[vec![5, 6]], &Sampling::new(3), &[EOS], 1);
    assert!(
        found
            .unwrap_err()
            .to_string()
            .contains("non-finite log-probability at prompt 0"),
        "expected non-finite"
    );
}
