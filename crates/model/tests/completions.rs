//! Completions of every architecture against plain recomputation: windows, grouped heads, learned positions up to the last,
//! adapters, rows that are refilled or hold the same prompt, beams, and requests that leave no token free.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::HashSet;

use common::{architectures, config, decoder, random, random_ids};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor, no_grad};
use unsay_model::{
    Beam, Config, Decoder, EarlyStopping, Engine, Generated, Generation, LoraConfig, Precision, Sampling, TargetModules,
};

const ENDS: [u32; 2] = [3, 8];
/// Positions of the models.
const LONGEST: usize = 24;
const NEW: usize = 7;

/// Every architecture with few positions, as it is and with an adapter on every linear map.
fn models() -> Vec<(String, Decoder)> {
    models_of(Kind::Double, |config| config)
}

/// The same in a kind and of sizes, of numbers that bf16 has.
fn models_of(kind: Kind, sized: fn(Config) -> Config) -> Vec<(String, Decoder)> {
    tch::set_num_threads(1);
    let settings = LoraConfig {
        r: 2,
        alpha: 3.0,
        target_modules: TargetModules::AllLinear,
        layers: None,
        use_rslora: false,
    };
    let mut models = Vec::new();
    for (i, config) in architectures().into_iter().enumerate() {
        for adapted in [false, true] {
            let config = Config {
                max_position_embeddings: LONGEST,
                initializer_range: 0.25,
                ..sized(config.clone())
            };
            let mut model = decoder(&config, 20 + i as u64, kind);
            let round = |model: &Decoder| {
                for param in model.params().trainable() {
                    let mut value = param.value().shallow_clone();
                    no_grad(|| value.copy_(&value.to_kind(Kind::BFloat16)));
                }
            };
            round(&model);
            if adapted {
                model.add_lora(&settings, &mut ChaCha8Rng::seed_from_u64(3)).unwrap();
                for (seed, param) in (30..).zip(model.params().trainable()) {
                    let values = random(&param.value().size(), seed) * 0.2;
                    no_grad(|| param.value().shallow_clone().copy_(&values));
                }
                round(&model);
            }
            models.push((format!("{:?}, adapted {adapted}", config.architecture), model));
        }
    }
    models
}

/// Prompts of one token up to the longest that leaves room, some of them equal.
fn prompts() -> Vec<Vec<u32>> {
    let lengths = [1, 17, 4, 17, 2, 9, 4, 1, 12, 17, 3, 5, 16];
    let prompt = |i: usize, n: usize| random_ids(n, 31, (i % 5 + 100 * n) as u64);
    let mut prompts: Vec<Vec<u32>> = lengths
        .iter()
        .enumerate()
        .map(|(i, &n)| prompt(i, n).into_iter().map(|id| id as u32).collect())
        .collect();
    prompts[6] = prompts[2].clone();
    prompts[9] = prompts[1].clone();
    assert_eq!(prompts[1].len() + NEW, LONGEST);
    prompts
}

fn uniform(prompt: usize, step: usize) -> f32 {
    ChaCha8Rng::seed_from_u64((prompt * 1000 + step) as u64).random()
}

fn complete(model: &Decoder, prompts: &[Vec<u32>], sampling: &Sampling, batch: usize) -> Vec<Generated> {
    let request = Generation::new(model, sampling, &ENDS).batch(batch);
    request.draws(&mut uniform).run(prompts).unwrap()
}

/// Log-probs after a sequence, computed from its beginning.
fn next(model: &Decoder, ids: &[u32]) -> Vec<f64> {
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let states = no_grad(|| model.hidden(&Tensor::from_slice(&ids).view([1, -1])).unwrap());
    let logits = states
        .get(0)
        .get(-1)
        .unsqueeze(0)
        .linear(&model.output_embedding().detach(), None::<&Tensor>);
    Vec::<f64>::try_from(logits.log_softmax(-1, Kind::Double).view([-1])).unwrap()
}

fn banned(ids: &[u32], sampling: &Sampling) -> HashSet<u32> {
    let mut out = HashSet::new();
    if ids.len() < sampling.min_new_tokens {
        out.extend(ENDS);
    }
    if let Some(n) = sampling.block_ngram
        && ids.len() + 1 >= n
    {
        let tail = &ids[ids.len() + 1 - n..];
        out.extend(
            ids.windows(n)
                .filter(|window| &window[..n - 1] == tail)
                .map(|window| window[n - 1]),
        );
    }
    out
}

/// The definition: the most probable token that is allowed, or the inverse of the distribution over the `k` most probable.
fn plain(model: &Decoder, prompt: &[u32], sampling: &Sampling, which: usize) -> (Vec<u32>, bool) {
    let mut ids = Vec::new();
    while ids.len() < sampling.max_new_tokens {
        let logps = next(model, &[prompt, &ids].concat());
        let out = banned(&ids, sampling);
        let mut order: Vec<u32> = (0..logps.len() as u32).filter(|id| !out.contains(id)).collect();
        order.sort_by(|&a, &b| logps[b as usize].total_cmp(&logps[a as usize]));
        order.truncate(if sampling.greedy { 1 } else { sampling.top_k.unwrap() });
        let mass = |id: &u32| logps[*id as usize].exp();
        let aim = f64::from(uniform(which, ids.len())) * order.iter().map(mass).sum::<f64>();
        let mut upto = 0.0;
        let chosen = order.iter().find(|id| {
            upto += mass(id);
            sampling.greedy || upto > aim
        });
        let chosen = *chosen.unwrap();
        if ENDS.contains(&chosen) {
            return (ids, true);
        }
        ids.push(chosen);
    }
    (ids, false)
}

/// How far the log-probs of completions are from recomputation by `plain`, each prompt being a request of its own: the sum, the
/// largest and how many.
fn errors(plain: &Decoder, complete: impl Fn(&[Vec<u32>]) -> Vec<Generated>) -> (f64, f64, u32) {
    let (mut sum, mut most, mut n) = (0.0, 0.0_f64, 0);
    for prompt in prompts() {
        let found = complete(std::slice::from_ref(&prompt)).remove(0);
        for (at, (id, logp)) in found.ids.iter().zip(&found.logps).enumerate() {
            let expected = next(plain, &[&prompt, &found.ids[..at]].concat())[*id as usize];
            let error = (expected - f64::from(*logp)).abs();
            (sum, most, n) = (sum + error, most.max(error), n + 1);
        }
    }
    (sum, most, n)
}

/// Wide enough for weights of a single row.
fn wide(config: Config) -> Config {
    Config {
        hidden_size: 64,
        head_dim: 16,
        intermediate_size: 96,
        ..config
    }
}

/// An engine that is kept has weights of its own for requests of one row, of maps that are wide enough, and in bf16 states in
/// f32. Its errors are those of rounding: in bf16 less than those of an engine that is made for a request and rounds all states.
#[test]
fn a_kept_engine_says_of_a_single_prompt_what_recomputation_says() {
    let sampling = Sampling {
        top_k: Some(6),
        ..Sampling::new(NEW)
    };
    let bf16 = Precision::Bf16 { even_if_slower: true };
    // In bf16 the states of prompts, final states and logits are rounded.
    for (precision, largest, mean) in [(Precision::default(), 1e-4, 1e-5), (bf16, 0.2, 0.02)] {
        let (mut of_kept, mut of_made) = ((0.0, 0), (0.0, 0));
        let same = models_of(Kind::Float, wide);
        for ((name, plain), (_, model)) in models_of(Kind::Double, wide).into_iter().zip(same) {
            let model = model.with_precision(precision).unwrap();
            let engine = Engine::new(&model).unwrap();
            let (kept, most, n) = errors(&plain, |prompts| {
                let request = Generation::on(&engine, &sampling, &ENDS);
                request.draws(&mut uniform).run(prompts).unwrap()
            });
            assert!(most < largest, "{name} {precision:?}: {most}");
            of_kept = (of_kept.0 + kept, of_kept.1 + n);
            let (made, _, n) = errors(&plain, |prompts| complete(&model, prompts, &sampling, 1));
            of_made = (of_made.0 + made, of_made.1 + n);
        }
        let [kept, made] = [of_kept, of_made].map(|(sum, n)| sum / f64::from(n));
        assert!(of_kept.1 > 500 && kept < mean, "{of_kept:?}");
        if precision == bf16 {
            // Equal where the processor does not multiply bf16.
            assert!(kept <= made, "{kept} beside {made}");
        }
    }
}

/// f16 ends at 65504: the map with a larger number stays in bf16, the others of its block do not.
#[test]
fn a_kept_engine_takes_weights_that_f16_has_not() {
    let bf16 = Precision::Bf16 { even_if_slower: true };
    let sampling = Sampling {
        min_new_tokens: NEW,
        ..Sampling::greedy(NEW)
    };
    let mut changed = 0;
    for (name, model) in models_of(Kind::Float, wide) {
        let gates = model.params().trainable();
        for gate in gates.filter(|param| param.name().ends_with("0.mlp.gate_proj.weight")) {
            let _ = no_grad(|| gate.value().get(0).get(0).fill_(1e5));
            changed += 1;
        }
        let model = model.with_precision(bf16).unwrap();
        let engine = Engine::new(&model).unwrap();
        let made = Generation::on(&engine, &sampling, &ENDS).run(&prompts()[..1]).unwrap();
        assert_eq!(made[0].ids.len(), NEW, "{name}");
    }
    assert!(changed > 0);
}

#[test]
fn every_architecture_says_what_recomputation_says() {
    let prompts = prompts();
    let settings = [
        Sampling {
            min_new_tokens: 2,
            block_ngram: Some(2),
            ..Sampling::greedy(NEW)
        },
        Sampling {
            top_k: Some(6),
            ..Sampling::new(NEW)
        },
    ];
    let (mut compared, mut finished) = (0, 0);
    for (name, model) in models() {
        for sampling in &settings {
            let expected: Vec<(Vec<u32>, bool)> = prompts
                .iter()
                .enumerate()
                .map(|(which, prompt)| plain(&model, prompt, sampling, which))
                .collect();
            for batch in [1, 4, 100] {
                let made = complete(&model, &prompts, sampling, batch);
                for (which, (one, expected)) in made.iter().zip(&expected).enumerate() {
                    assert_eq!(
                        (&one.ids, one.finished),
                        (&expected.0, expected.1),
                        "{name}, prompt {which}, {batch} rows"
                    );
                    compared += 1;
                    finished += usize::from(one.finished);
                }
            }
        }
    }
    assert_eq!(compared, 18 * 2 * 3 * 13);
    assert!(finished > 200 && finished < compared - 200, "{finished} of {compared}");
}

/// All continuations of all beams, the best of them kept: the search of transformers, one prompt at a time, without a cache.
fn plain_beams(model: &Decoder, prompt: &[u32], sampling: &Sampling, size: usize) -> (Vec<u32>, bool, f64) {
    let mut beams = vec![(Vec::<u32>::new(), 0.0)];
    let mut done: Vec<(Vec<u32>, f64)> = Vec::new();
    loop {
        let length = beams[0].0.len() + 1;
        let mut all = Vec::new();
        for (ids, sum) in &beams {
            let out = banned(ids, sampling);
            for (id, logp) in (0..).zip(next(model, &[prompt, ids].concat())) {
                if !out.contains(&id) {
                    all.push(([&ids[..], &[id]].concat(), sum + logp));
                }
            }
        }
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut going = Vec::new();
        for (rank, (ids, sum)) in all.into_iter().enumerate() {
            if length == sampling.max_new_tokens || ENDS.contains(ids.last().unwrap()) {
                if rank < size {
                    done.push((ids, sum / length as f64));
                }
            } else if going.len() < size {
                going.push((ids, sum));
            }
        }
        done.sort_by(|a, b| b.1.total_cmp(&a.1));
        done.truncate(size);
        let over = going.is_empty() || done.len() == size && going[0].1 / length as f64 <= done[size - 1].1;
        if over {
            let (mut ids, score) = done.swap_remove(0);
            let finished = ENDS.contains(ids.last().unwrap());
            if finished {
                ids.pop();
            }
            return (ids, finished, score);
        }
        beams = going;
    }
}

#[test]
fn beams_of_every_architecture_find_what_recomputation_finds() {
    let prompts = prompts();
    let mut compared = 0;
    // With the adapters.
    for (name, model) in models().into_iter().skip(1).step_by(2) {
        for (size, min_new_tokens, block_ngram) in [(2, 0, None), (5, 3, Some(1))] {
            let beam = Beam {
                size,
                length_penalty: 1.0,
                early_stopping: EarlyStopping::Heuristic,
            };
            let sampling = Sampling {
                beam: Some(beam),
                min_new_tokens,
                block_ngram,
                ..Sampling::new(NEW)
            };
            let expected: Vec<_> = prompts
                .iter()
                .map(|prompt| plain_beams(&model, prompt, &sampling, size))
                .collect();
            for batch in [1, 11, 200] {
                for (which, (one, expected)) in complete(&model, &prompts, &sampling, batch)
                    .iter()
                    .zip(&expected)
                    .enumerate()
                {
                    let place = format!("{name}, prompt {which}, {size} beams in {batch} rows");
                    assert_eq!((&one.ids, one.finished), (&expected.0, expected.1), "{place}");
                    assert!((f64::from(one.score.unwrap()) - expected.2).abs() < 1e-5, "{place}");
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 9 * 2 * 3 * 13);
}

/// With every token out of the question, the first one was taken all the same.
#[test]
fn a_request_that_leaves_no_token_free_is_refused() {
    tch::set_num_threads(1);
    let model = decoder(&config(2, 1, 4, 1), 1, Kind::Double);
    let complete = |sampling: &Sampling, ends: &[u32]| {
        let request = Generation::new(&model, sampling, ends);
        request.draws(&mut uniform).run(&[vec![5, 6]])
    };
    let all: Vec<u32> = (0..31).collect();
    let sampling = |min_new_tokens, max_new_tokens, block_ngram| Sampling {
        min_new_tokens,
        block_ngram,
        ..Sampling::new(max_new_tokens)
    };
    for (ends, sampling) in [
        (&all[..], sampling(1, 4, None)),
        // At the 21st token 20 are used up and 11 would end it.
        (&all[..11], sampling(21, 25, Some(1))),
    ] {
        for greedy in [false, true] {
            let sampling = Sampling {
                greedy,
                ..sampling.clone()
            };
            let error = complete(&sampling, ends).unwrap_err().to_string();
            assert!(error.starts_with("`min_new_tokens` with"), "{error}");
        }
    }
    let made = complete(&sampling(20, 25, Some(1)), &all[..11]).unwrap();
    assert_eq!(
        made[0].ids.iter().filter(|id| **id > 10).collect::<HashSet<_>>().len(),
        20
    );
    assert!(made[0].finished);
    // The same end twice is one token.
    let twice = [&all[..11], &all[..11]].concat();
    assert_eq!(complete(&sampling(20, 25, Some(1)), &twice).unwrap(), made);
}

/// A guide may leave tokens that bans take away: the first end was taken all the same.
#[test]
fn a_guide_and_bans_that_leave_nothing_are_an_error() {
    tch::set_num_threads(1);
    let model = decoder(&config(2, 1, 4, 1), 1, Kind::Double);
    let ends_alone = |_: &Tensor, logits: &Tensor| {
        let at = Tensor::arange(31, (Kind::Int64, logits.device()));
        let kept = at.eq(0).logical_or(&at.eq(30));
        Ok(logits.masked_fill(&kept.logical_not(), f64::NEG_INFINITY))
    };
    let beam = Beam {
        size: 2,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::Heuristic,
    };
    let plain = Sampling::new(4);
    let beams = Sampling {
        beam: Some(beam),
        ..plain.clone()
    };
    for sampling in [plain, Sampling::greedy(4), beams] {
        let say = |min_new_tokens| {
            let sampling = Sampling {
                min_new_tokens,
                ..sampling.clone()
            };
            let request = Generation::new(&model, &sampling, &[0, 30]).guide(&ends_alone);
            request.draws(&mut uniform).run(&[vec![5, 6]])
        };
        let made = say(0).unwrap();
        assert!(made[0].finished && made[0].ids.is_empty());
        assert!(say(2).is_err(), "{sampling:?}");
    }
}
