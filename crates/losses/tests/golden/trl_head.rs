//! The losses over pairs of TRL's newest trainer, from logits.

use serde_json::{Value, json};
use unsay_losses::paired::Objective;

use crate::files::{Golden, TOLERANCE, all_close, close, flags, floats, id, number, total};
use crate::pairs::{Sequences, mean, objective, trl};

/// The tolerance for cases that ran in `f32`.
const IN_F32: f64 = 1e-5;

/// The losses that are given a label smoothing and do not use it. Ours would: they are compared with none.
fn smoothing_ignored(name: &str) -> bool {
    ["sigmoid", "sigmoid_norm", "sft"].contains(&name)
}

/// The weighted sum of objectives that a case of `dpo_family_trl_head` is.
fn objectives(params: &Value) -> Vec<(f64, Objective)> {
    let mut parts = Vec::new();
    let (names, weights) = (
        params["loss_types"].as_array().unwrap(),
        floats(&params["loss_weights"]),
    );
    assert_eq!(
        (names.len(), names.is_empty()),
        (weights.len(), false),
        "a weight for each loss"
    );
    for (name, weight) in names.iter().zip(weights) {
        let name = name.as_str().unwrap();
        let mut params = params.clone();
        if smoothing_ignored(name) {
            params["label_smoothing"] = json!(0.0);
        }
        let mut text = match name {
            "ipo" => json!({ "loss": { "ipo_mean": { "beta": params["beta"] } } }),
            "sigmoid_norm" => json!({ "loss": trl("sigmoid", &params), "logps": "mean" }),
            "sft" => json!({ "loss": trl("sigmoid", &params), "nll": 1.0 }),
            name => json!({ "loss": trl(name, &params) }),
        };
        if let Some(alpha) = params["ld_alpha"].as_f64() {
            text["logps"] = json!({ "ld": { "alpha": alpha } });
        }
        if params["use_weighting"].as_bool().unwrap() {
            text["weighting"] = json!({ "wpo": { "clamp": false } });
        }
        text["divergence"] = match params["f_divergence_type"].as_str().unwrap() {
            "js_divergence" => json!("js"),
            "alpha_divergence" => json!({ "alpha": { "alpha": params["f_alpha_divergence_coef"] } }),
            other => json!(other),
        };
        if name == "sft" {
            // The likelihood is a term around a loss: that loss is taken off again.
            parts.push((-weight, objective(json!({ "loss": text["loss"] }))));
        }
        parts.push((weight, objective(text)));
    }
    parts
}

pub(crate) fn family(golden: &Golden) -> (usize, usize) {
    let (mut other_rewards, mut in_f32, mut smoothed) = (0, 0, 0);
    for case in &golden.cases {
        let (id, params) = (id(case), &case["params"]);
        let sequences = Sequences::of(case, "input_ids", flags(&case["inputs"]["completion_mask"]));
        let single = params["dtype"] == "float32";
        let rtol = if single { golden.rtol.max(IN_F32) } else { golden.rtol };
        let mut sum = 0.0;
        let mut gradient = vec![0.0; sequences.logits.len()];
        let mut last = None;
        for (weight, objective) in objectives(params) {
            let ours = sequences.run(&objective);
            sum += weight * total(&ours.value);
            let both = gradient.iter_mut().zip(&ours.gradient);
            both.for_each(|(sum, one)| *sum += weight * one);
            last = Some(ours);
        }
        let ours = last.unwrap();
        let out = |name: &str| number(&case["outputs"][name]);
        let near = |what: &str, ours: f64, theirs: f64| close(&format!("{id} {what}"), ours, theirs, rtol);
        near("loss", sum, out("loss"));
        let theirs = floats(&case["grads"]["loss_wrt_policy_logits"]);
        if single {
            // Differences of `f32` numbers are right to their own size only.
            assert_eq!(gradient.len(), theirs.len(), "{id}");
            let largest = theirs.iter().fold(0.0f64, |a, b| a.max(b.abs()));
            let far = gradient
                .iter()
                .zip(&theirs)
                .find(|(a, b)| (*a - *b).abs() > rtol * largest);
            assert_eq!(far, None, "{id} gradient");
        } else {
            all_close(&format!("{id} gradient"), &gradient, &theirs, rtol);
        }
        near("entropy", ours.entropy, out("entropy"));
        // They divide log-ratios by tokens in the loss but not in the rewards. Ours are the rewards that the loss
        // compares.
        let per_token = params["loss_types"]
            .as_array()
            .unwrap()
            .iter()
            .any(|name| name == "ipo" || name == "sigmoid_norm");
        let rewards = match per_token {
            true => {
                let beta = number(&params["beta"]);
                assert!(
                    params["ld_alpha"].is_null(),
                    "{id}: means per token with weights on the tokens"
                );
                let sums = sequences.run(&objective(json!({ "loss": { "dpo": { "beta": beta } } })));
                if objectives(params).len() == 1 {
                    let means = sums
                        .rewards
                        .iter()
                        .zip(&sums.lengths)
                        .map(|(reward, &n)| reward / n as f64);
                    all_close(
                        &format!("{id} reward"),
                        &ours.rewards,
                        &means.collect::<Vec<_>>(),
                        1e-12,
                    );
                }
                other_rewards += 1;
                sums
            }
            false => ours,
        };
        near(
            "chosen reward",
            rewards.term("reward_chosen"),
            out("rewards_chosen_mean"),
        );
        near(
            "rejected reward",
            rewards.term("reward_rejected"),
            out("rewards_rejected_mean"),
        );
        let halves = |logps: &[f64]| logps.chunks(logps.len() / 2).map(mean).collect::<Vec<_>>();
        // Their logged log-probabilities have weights on their tokens where the loss has. Ours have none; what the loss
        // reads has.
        let logps = match params["ld_alpha"].is_null() {
            true => &rewards.logps,
            false => &rewards.read,
        };
        near("chosen logp", halves(logps)[0], out("logps_chosen_mean"));
        near("rejected logp", halves(logps)[1], out("logps_rejected_mean"));
        close(id, rewards.term("logp_chosen"), halves(&rewards.logps)[0], TOLERANCE);
        close(id, rewards.term("logp_rejected"), halves(&rewards.logps)[1], TOLERANCE);
        in_f32 += usize::from(single);
        smoothed += usize::from(smoothing_counts(case, &sequences, rtol));
    }
    assert!((other_rewards, in_f32, smoothed) == (2, 1, 1) || !golden.committed);
    (golden.cases.len(), 0)
}

/// Compares what a label smoothing that they ignore would be here: the loss with it from theirs without.
fn smoothing_counts(case: &Value, sequences: &Sequences, rtol: f64) -> bool {
    let (id, params) = (id(case), &case["params"]);
    let plain = params["loss_types"] == json!(["sigmoid"])
        && params["f_divergence_type"] == "reverse_kl"
        && params["ld_alpha"].is_null()
        && params["use_weighting"] == false;
    let smoothing = number(&params["label_smoothing"]);
    if !plain || smoothing <= 0.0 {
        return false;
    }
    let smoothed = sequences.run(&objective(json!({ "loss": trl("sigmoid", params) })));
    // −(1 − ε) log σ(x) − ε log σ(−x) = −log σ(x) + ε x
    let weight = floats(&params["loss_weights"])[0];
    let theirs = number(&case["outputs"]["loss"]) / weight;
    let expected = theirs + smoothing * smoothed.term("reward_margin");
    close(&format!("{id} smoothed"), total(&smoothed.value), expected, rtol);
    assert!((expected - theirs).abs() > 0.0, "{id}");
    true
}
