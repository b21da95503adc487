//! Rollouts of a small random model.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests

use tch::Device;
use unsay_data::{Example, Label, Limits, Tokenizer, encode_prompt, stream};
use unsay_model::{Config, Decoder, Generation, Sampling, Size};
use unsay_rl::{Rollout, RolloutSettings, rollout};

const TEXT: [&str; 4] = [
    "hello there",
    "how are you today",
    "go away you fool",
    "i like long walks on the beach",
];
const LIMITS: Limits = Limits {
    max_prompt: 20,
    max_completion: 12,
};

fn model() -> (Decoder, Tokenizer) {
    tch::set_num_threads(1);
    let tokenizer = Tokenizer::train(TEXT.into_iter(), 300).unwrap();
    let size = Size {
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
    };
    let mut config = Config::new(&size, tokenizer.vocab_size(), LIMITS.width());
    config.initializer_range = 0.3;
    let decoder = Decoder::init(&config, &mut stream(3, "init", 0), Device::Cpu).unwrap();
    (decoder, tokenizer)
}

fn prompts() -> Vec<Example> {
    let example = |(i, text): (usize, &&str)| Example {
        id: format!("e{i}"),
        prompt: (*text).into(),
        completion: "x".into(),
        label: Label::Positive,
        seen_prompt: true,
        messages: Vec::new(),
    };
    TEXT.iter().enumerate().map(example).collect()
}

fn run(prompts: &[Example], samples: usize, batch: usize, seed: u64) -> Vec<Rollout> {
    let (decoder, tokenizer) = model();
    let settings = RolloutSettings {
        samples_per_prompt: samples,
        batch,
        sampling: Sampling::new(12),
    };
    rollout(&decoder, &tokenizer, &LIMITS, prompts, &settings, seed, &mut |_| {}).unwrap()
}

/// A manifest's sampling block is read into these settings, so it decides how replies are found.
#[test]
fn beams_are_searched() {
    let (decoder, tokenizer) = model();
    let sampling: Sampling =
        serde_json::from_str(r#"{ "max_new_tokens": 12, "beam": { "size": 3, "length_penalty": 0 } }"#).unwrap();
    let mut settings = RolloutSettings {
        samples_per_prompt: 1,
        batch: 4,
        sampling: sampling.clone(),
    };
    let call = |settings: &RolloutSettings, seed| {
        rollout(&decoder, &tokenizer, &LIMITS, &prompts(), settings, seed, &mut |_| {})
    };
    let found = call(&settings, 0).unwrap();
    assert_eq!(found, call(&settings, 1).unwrap(), "nothing is drawn");
    let rows: Vec<Vec<u32>> = prompts()
        .iter()
        .map(|example| encode_prompt(&tokenizer, example, &LIMITS).unwrap())
        .collect();
    let made = Generation::new(&decoder, &sampling, tokenizer.ends())
        .run(&rows)
        .unwrap();
    assert_eq!(found.len(), 4);
    for (found, made) in found.iter().zip(&made) {
        assert_eq!((&found.ids, found.finished), (&made.ids, made.finished));
        // With a penalty of 0 the score is the sum of the log-probs, and no greedy completion has a better one.
        assert!((made.score.unwrap() - made.logps.iter().sum::<f32>()).abs() < 1e-4);
    }
    let greedy = Generation::new(&decoder, &Sampling::greedy(12), tokenizer.ends())
        .run(&rows)
        .unwrap();
    assert_ne!(
        made.iter().map(|one| &one.ids).collect::<Vec<_>>(),
        greedy.iter().map(|one| &one.ids).collect::<Vec<_>>()
    );
    settings.samples_per_prompt = 2;
    let error = call(&settings, 0).unwrap_err().to_string();
    assert_eq!(
        error,
        "`samples_per_prompt` must be 1 with beams, which find one completion, got 2"
    );
}

#[test]
fn a_completion_depends_on_neither_batch_nor_neighbours() {
    let prompts = prompts();
    let all = run(&prompts, 3, 64, 5);
    assert_eq!(all.len(), 12);
    let place: Vec<(usize, usize)> = all.iter().map(|r| (r.prompt, r.sample)).collect();
    assert_eq!(place[..4], [(0, 0), (0, 1), (0, 2), (1, 0)]);
    let ids = |rows: &[Rollout]| rows.iter().map(|r| r.ids.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&all), ids(&run(&prompts, 3, 2, 5)), "batch size");
    let first_samples: Vec<Rollout> = all.iter().filter(|r| r.sample == 0).cloned().collect();
    assert_eq!(ids(&first_samples), ids(&run(&prompts, 1, 64, 5)), "number of samples");
    assert_eq!(ids(&all[..6]), ids(&run(&prompts[..2], 3, 64, 5)), "other prompts");
    assert_eq!(all, run(&prompts, 3, 64, 5), "the same call gives the same bytes");
    assert_ne!(ids(&all), ids(&run(&prompts, 3, 64, 6)), "seed");
    assert_ne!(all[0].ids, all[1].ids, "samples of one prompt differ");
}

#[test]
fn text_and_log_probabilities_belong_to_the_tokens() {
    let (_, tokenizer) = model();
    let rollouts = run(&prompts(), 4, 8, 9);
    for r in &rollouts {
        assert_eq!(r.completion, tokenizer.decode(&r.ids).unwrap());
        assert_eq!(r.logps.len(), r.ids.len() + usize::from(r.finished));
        assert!(r.logps.iter().all(|l| l.is_finite() && *l <= 0.0));
        assert!(!r.ids.contains(&Tokenizer::EOS));
    }
    assert_eq!(rollouts.len(), 16);
}

#[test]
fn settings_out_of_range_are_errors() {
    let (decoder, tokenizer) = model();
    let call = |prompts: &[Example], samples, batch| {
        let settings = RolloutSettings {
            samples_per_prompt: samples,
            batch,
            sampling: Sampling::new(4),
        };
        rollout(&decoder, &tokenizer, &LIMITS, prompts, &settings, 0, &mut |_| {})
            .unwrap_err()
            .to_string()
    };
    assert_eq!(call(&[], 1, 1), "rollout got no prompts");
    assert_eq!(call(&prompts(), 0, 1), "`samples_per_prompt` must be at least 1, got 0");
    assert_eq!(call(&prompts(), 1, 0), "`batch` must be at least 1, got 0");
}
