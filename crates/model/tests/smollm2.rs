//! SmolLM2-135M-Instruct against transformers on the same weights: tokens, loss, logits and gradients.
//!
//! Runs where the folder of the model is: named by `UNSAY_SMOLLM2`, or in the user's cache. The expected numbers are in
//! `parity/smollm2.json`, made by `parity/smollm2.py`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "a test says what it measured, or why it did not run")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use tch::{Device, Kind, Tensor, no_grad};
use unsay_model::{Decoder, Generation, Sampling};

#[derive(Deserialize)]
struct Facts {
    greedy: Vec<Completion>,
    input_ids: Vec<i64>,
    /// −100 is off.
    labels: Vec<i64>,
    loss: f64,
    largest_logit: f64,
    /// Position, token, logit.
    logits: Vec<(i64, i64, f64)>,
    /// At each position.
    log_sum_exp: Vec<f64>,
    gradients: BTreeMap<String, Gradient>,
}

#[derive(Deserialize)]
struct Completion {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    finished: bool,
}

#[derive(Deserialize)]
struct Gradient {
    norm: f64,
    largest: f64,
    /// Index in the flattened parameter, value.
    entries: Vec<(i64, f64)>,
}

/// Errors are measured against the largest number of their kind: a logit against the largest logit, an entry of a
/// gradient against the largest of that gradient.
const TOLERANCE: f64 = 1e-5;

fn facts() -> Facts {
    serde_json::from_str(include_str!("parity/smollm2.json")).unwrap()
}

fn model() -> Option<Decoder> {
    let found = std::env::var_os("UNSAY_SMOLLM2").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        let folders = std::fs::read_dir(cache.join("unsay/data")).ok()?;
        let mut folders = folders.filter_map(Result::ok).map(|f| f.path());
        folders.find(|f| {
            f.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("smollm2-135m-instruct-"))
        })
    });
    let Some(folder) = found else {
        println!("skipped: UNSAY_SMOLLM2 names no folder, and the cache holds no smollm2-135m-instruct");
        return None;
    };
    tch::set_num_threads(1);
    Some(Decoder::load(&folder, Device::Cpu).unwrap())
}

#[test]
fn greedy_decoding_gives_the_tokens_of_transformers() {
    let Some(model) = model() else { return };
    let facts = facts();
    let prompts: Vec<Vec<u32>> = facts.greedy.iter().map(|g| g.prompt.clone()).collect();
    let ends = model.config().eos_token_ids.clone();
    let sampling = Sampling::greedy(32);
    let mut n_tokens = 0;
    // One by one, and all at once with padding.
    for batch in [1, prompts.len()] {
        let found = Generation::new(&model, &sampling, &ends)
            .batch(batch)
            .run(&prompts)
            .unwrap();
        for (expected, found) in facts.greedy.iter().zip(&found) {
            assert_eq!(
                (&found.ids, found.finished),
                (&expected.completion, expected.finished),
                "in batches of {batch}"
            );
            n_tokens += found.ids.len();
        }
    }
    println!("{} prompts, {n_tokens} tokens in two batch sizes", prompts.len());
    assert!(facts.greedy.iter().filter(|g| g.completion.len() >= 20).count() >= 4);
}

#[test]
fn logits_loss_and_gradients_are_those_of_transformers() {
    let Some(model) = model() else { return };
    let facts = facts();
    let ids = Tensor::from_slice(&facts.input_ids).view([1, -1]);
    let hidden = model.hidden(&ids).unwrap();
    let logits = hidden.linear(&model.output_embedding(), None::<&Tensor>).squeeze_dim(0);
    let n = facts.input_ids.len() as i64;
    let targets = Tensor::from_slice(&facts.labels).narrow(0, 1, n - 1);
    let loss = logits
        .narrow(0, 0, n - 1)
        .cross_entropy_loss::<Tensor>(&targets, None, tch::Reduction::Mean, -100, 0.0);
    loss.backward();

    let value = |t: &Tensor, at: &[i64]| t.double_value(at);
    let mut worst = 0.0_f64;
    for &(position, token, expected) in &facts.logits {
        worst = worst.max((value(&logits, &[position, token]) - expected).abs() / facts.largest_logit);
    }
    let sums = logits.logsumexp([-1], false);
    for (position, expected) in (0..).zip(&facts.log_sum_exp) {
        worst = worst.max((value(&sums, &[position]) - expected).abs() / facts.largest_logit);
    }
    let largest = value(&logits.abs().max(), &[]);
    worst = worst.max((largest - facts.largest_logit).abs() / facts.largest_logit);
    let loss_error = (value(&loss, &[]) - facts.loss).abs() / facts.loss;
    println!(
        "{} logits: largest error {worst:.1e} of the largest logit; loss: {loss_error:.1e}",
        facts.logits.len()
    );
    assert!(facts.logits.len() >= 200 && facts.log_sum_exp.len() as i64 == n);
    assert!(worst < TOLERANCE && loss_error < TOLERANCE);

    assert_eq!(facts.gradients.len(), 10);
    for (name, expected) in &facts.gradients {
        let gradient = model.params().get(name).unwrap().grad();
        let flat = no_grad(|| gradient.view([-1]));
        let entries = expected.entries.iter().map(|&(i, e)| (value(&flat, &[i]) - e).abs());
        let worst = entries.fold(0.0, f64::max) / expected.largest;
        let norm = (value(&flat.to_kind(Kind::Double).norm(), &[]) - expected.norm).abs() / expected.norm;
        println!("{name}: entries {worst:.1e}, norm {norm:.1e}");
        assert_eq!(expected.entries.len(), 8);
        assert!(worst < TOLERANCE && norm < TOLERANCE, "{name}: {worst:.1e} {norm:.1e}");
    }
}
