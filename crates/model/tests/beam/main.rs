//! Beam search: equal to transformers' token for token, to itself in other batches, and guided like other generation.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../common/mod.rs"]
mod common;

use std::path::Path;

use common::{config, decoder, random_ids};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use unsay_model::{Beam, Decoder, EarlyStopping, Generated, Generation, Sampling};

/// What `make.py` wrote.
#[derive(Deserialize)]
struct Case {
    checkpoint: String,
    prompt: Vec<u32>,
    #[serde(flatten)]
    beam: BeamOf,
    min_new_tokens: usize,
    block_ngram: Option<usize>,
    ends: Vec<u32>,
    completion: Vec<u32>,
    score: f32,
}

#[derive(Deserialize)]
struct BeamOf {
    size: usize,
    length_penalty: f64,
    early_stopping: EarlyStopping,
}

impl Case {
    fn sampling(&self) -> Sampling {
        Sampling {
            min_new_tokens: self.min_new_tokens,
            block_ngram: self.block_ngram,
            beam: Some(Beam {
                size: self.beam.size,
                length_penalty: self.beam.length_penalty,
                early_stopping: self.beam.early_stopping,
            }),
            ..Sampling::new(12)
        }
    }
}

fn is_expected(made: &Generated, case: &Case) -> bool {
    let n = made.ids.len();
    made.ids == case.completion[..n] && case.completion.len() == n + usize::from(made.finished)
}

#[test]
fn completions_and_scores_are_those_of_transformers() {
    tch::set_num_threads(1);
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let text = std::fs::read_to_string(here.join("beam/expected.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    let (mut ended, mut short) = (0, 0);
    for (i, case) in cases.iter().enumerate() {
        let folder = here.join("parity/cases").join(&case.checkpoint);
        let model = Decoder::load(&folder, Device::Cpu).unwrap();
        let sampling = case.sampling();
        let made = Generation::new(&model, &sampling, &case.ends)
            .run(std::slice::from_ref(&case.prompt))
            .unwrap();
        let made = &made[0];
        let place = format!(
            "case {i}: {}, {sampling:?}, ends {:?}, prompt {:?}",
            case.checkpoint, case.ends, case.prompt
        );
        assert!(is_expected(made, case), "{place}: {:?}, got {made:?}", case.completion);
        assert_eq!(
            made.finished,
            case.completion.last().is_some_and(|id| case.ends.contains(id)),
            "{place}"
        );
        let score = made.score.unwrap();
        let tolerance = 1e-5 * case.score.abs().max(1.0);
        assert!(
            (score - case.score).abs() < tolerance,
            "{place}: {} {score}",
            case.score
        );
        let sum: f32 = made.logps.iter().sum();
        let own = sum / (made.logps.len() as f64).powf(case.beam.length_penalty) as f32;
        assert!((own - score).abs() < 1e-4, "{place}: {own} {score}");
        ended += usize::from(made.finished);
        short += usize::from(case.completion.len() < 12);
    }
    assert!(
        cases.len() == 144 && ended == 68 && short == 66,
        "{} {ended} {short}",
        cases.len()
    );
}

const END: u32 = 3;

fn model(kind: Kind) -> Decoder {
    tch::set_num_threads(1);
    let config = unsay_model::Config {
        initializer_range: 0.2,
        ..config(6, 2, 4, 2)
    };
    decoder(&config, 11, kind)
}

fn prompts(n: usize) -> Vec<Vec<u32>> {
    let prompt = |i: usize| random_ids(1 + (5 * i) % 9, 31, 100 + (i % 7) as u64);
    (0..n)
        .map(|i| prompt(i).into_iter().map(|id| id as u32).collect())
        .collect()
}

fn beams(size: usize) -> Sampling {
    Sampling {
        beam: Some(Beam {
            size,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
        }),
        ..Sampling::new(10)
    }
}

#[test]
fn a_search_depends_on_neither_batch_nor_neighbours() {
    let (model, prompts) = (model(Kind::Double), prompts(13));
    for sampling in [
        beams(2),
        Sampling {
            block_ngram: Some(2),
            min_new_tokens: 4,
            ..beams(5)
        },
    ] {
        let made = |prompts: &[Vec<u32>], batch| {
            let request = Generation::new(&model, &sampling, &[END, 8]).batch(batch);
            request.run(prompts).unwrap()
        };
        let alone: Vec<Generated> = prompts
            .iter()
            .flat_map(|prompt| made(std::slice::from_ref(prompt), 1))
            .collect();
        assert!(alone.iter().any(|one| one.finished) && alone.iter().any(|one| one.ids.len() > 5));
        for batch in [1, 7, 20, 200] {
            for (one, other) in alone.iter().zip(made(&prompts, batch)) {
                assert_eq!((&one.ids, one.finished), (&other.ids, other.finished), "{batch} rows");
                assert!((one.score.unwrap() - other.score.unwrap()).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn a_guide_decides_what_a_search_finds() {
    let (model, prompts) = (model(Kind::Double), prompts(3));
    let sampling = beams(3);
    let plain = Generation::new(&model, &sampling, &[END]).run(&prompts).unwrap();
    let same = |_: &Tensor, logits: &Tensor| Ok(logits.shallow_clone());
    assert_eq!(
        Generation::new(&model, &sampling, &[END])
            .guide(&same)
            .run(&prompts)
            .unwrap(),
        plain
    );
    // Half of the tokens are out of the question.
    let even = Tensor::arange(31, (Kind::Int64, Device::Cpu))
        .remainder(2)
        .eq(0)
        .logical_or(&Tensor::arange(31, (Kind::Int64, Device::Cpu)).eq(i64::from(END)));
    let guide = |_: &Tensor, logits: &Tensor| Ok(logits + (&even.to_kind(Kind::Double) - 1.0) * 50.0);
    let made = Generation::new(&model, &sampling, &[END])
        .guide(&guide)
        .run(&prompts)
        .unwrap();
    assert_ne!(made, plain);
    assert!(made.iter().flat_map(|one| &one.ids).all(|id| id % 2 == 0));
    assert!(made.iter().map(|one| one.ids.len()).sum::<usize>() > 5);
}

#[test]
fn searches_that_cannot_be_are_errors() {
    let model = model(Kind::Float);
    let error = Generation::new(&model, &beams(16), &[END])
        .run(&prompts(1))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "`size` of beams: expected at most 15 for a vocabulary of 31, got 16"
    );
    let nan = |_: &Tensor, logits: &Tensor| Ok(logits * f64::NAN);
    let error = Generation::new(&model, &beams(2), &[END])
        .guide(&nan)
        .run(&prompts(2))
        .unwrap_err();
    assert!(
        error.to_string().starts_with("non-finite log-probability at prompt"),
        "{error}"
    );
    assert!(Generation::new(&model, &beams(2), &[END]).run(&[]).unwrap().is_empty());
}
