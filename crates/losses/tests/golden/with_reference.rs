//! Losses over pairs with a reference.

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unsay_losses::Baseline;
use unsay_losses::paired::{Batch, Loss, Objective, PairCounts, Pairs};
use unsay_losses::{CompletionRows, Completions, LossValue, RunningMean, TokenOp};

use crate::files::{cases, close, close_to, committed, counted, floats, integers};
use crate::plain::numbers;

/// Cases whose reference-free loss comes with rewards against the reference all the same. Without a reference there is
/// no such number: ours are those of the log-probabilities.
const REWARDS_AGAINST_AN_UNUSED_REFERENCE: [&str; 2] = ["reference_free", "sigmoid_reference_free"];

/// Cases of `dpo_family_trl_head` that divide log-ratios by tokens in the loss but not in the rewards. Ours are the
/// rewards that the loss compares.
const REWARDS_OF_SUMS: [&str; 2] = ["ipo", "sigmoid_norm"];

/// The case of `dpo_family_trl_head` that is given a label smoothing and does not use it. Ours would: it is compared
/// with none.
const SMOOTHING_IGNORED: &str = "sigmoid_label_smoothing_ignored";

/// The case of `dpo_family_trl_head` that ran in `f32`, and the tolerance for it.
const IN_F32: (&str, f64) = ("alpha_divergence_0.5_float32", 1e-5);

/// The case of `dpo_family_trl_head` whose logged log-probabilities have weights on their tokens. Ours have none; what the
/// loss reads has.
const LOGPS_WEIGHTED: &str = "ld_dpo_0.5";

fn objective(text: Value) -> Objective {
    let objective: Objective = serde_json::from_value(text).unwrap();
    assert_eq!(objective.problems().len(), 0, "{objective:?}");
    objective
}

/// A loss as TRL names it; the version that the names are of decides what `aot_pair` is.
fn trl(name: &str, params: &Value) -> Value {
    let beta = &params["beta"];
    let with = |key: &str, more: &[(&str, Value)]| {
        let mut fields = json!({ "beta": beta });
        for (name, value) in more {
            fields[*name] = value.clone();
        }
        json!({ key: fields })
    };
    let smoothed = |key: &str| with(key, &[("label_smoothing", params["label_smoothing"].clone())]);
    match name {
        "sigmoid" => smoothed("dpo"),
        "robust" => smoothed("robust"),
        "exo_pair" => smoothed("exo"),
        "aot" => smoothed("aot"),
        "aot_pair" | "aot_unpaired" => smoothed("aot_unpaired"),
        "hinge" => with("hinge", &[]),
        "ipo" => with("ipo", &[]),
        "sppo_hard" => with("sppo", &[]),
        "nca_pair" => with("nca", &[]),
        "apo_zero" => with("apo_zero", &[]),
        "apo_down" => with("apo_down", &[]),
        "bco_pair" => with("bco_pair", &[("running_mean", json!(false))]),
        "discopop" => with(
            "discopop",
            &[("tau", params.get("discopop_tau").cloned().unwrap_or(json!(0.05)))],
        ),
        other => panic!("{other}"),
    }
}

/// Whole sequences with their logits, chosen ones first; true marks the tokens that count.
struct Sequences {
    logits: Vec<f64>,
    reference: Vec<f64>,
    ids: Vec<i64>,
    counted: Vec<bool>,
    length: usize,
}

/// What our side gives for [`Sequences`].
struct Ours {
    value: LossValue,
    /// Of each completion, chosen ones first.
    rewards: Vec<f64>,
    logps: Vec<f64>,
    /// The log-probabilities that the loss reads.
    read: Vec<f64>,
    lengths: Vec<i64>,
    /// With zeros where a logit predicts nothing that counts.
    gradient: Vec<f64>,
}

impl Ours {
    fn term(&self, name: &str) -> f64 {
        let term = self.value.terms.iter().find(|(term, _)| *term == name);
        term.unwrap().1.double_value(&[])
    }
}

impl Sequences {
    /// Runs an objective through the op: the hidden states are the logits and the embedding is the identity. The logits
    /// at one position predict the token at the next: the only shift there is.
    fn run(&self, objective: &Objective) -> Ours {
        let v = self.logits.len() / self.ids.len();
        let kept: Vec<usize> = (0..self.ids.len())
            .filter(|&at| at % self.length > 0 && self.counted[at])
            .collect();
        let lengths: Vec<usize> = (0..self.ids.len() / self.length)
            .map(|sequence| kept.iter().filter(|&&at| at / self.length == sequence).count())
            .collect();
        let picked = |all: &[f64]| {
            let flat: Vec<f64> = kept.iter().flat_map(|&at| all[(at - 1) * v..at * v].to_vec()).collect();
            Tensor::from_slice(&flat).view([-1, v as i64])
        };
        let targets = Tensor::from_slice(&kept.iter().map(|&at| self.ids[at]).collect::<Vec<_>>());
        let identity = Tensor::eye(v as i64, (Kind::Double, Device::Cpu));
        let logits = picked(&self.logits).set_requires_grad(true);
        let op = TokenOp::new(&logits, &identity, &targets, &objective.needs()).unwrap();
        let frozen = TokenOp::new(&picked(&self.reference), &identity, &targets, &Default::default()).unwrap();
        let (stats, reference) = (op.forward().unwrap(), frozen.forward().unwrap().logp);
        let rows = CompletionRows::new(&lengths, Device::Cpu).unwrap();
        let batch = Batch {
            stats: &stats,
            rows: &rows,
            reference: Some(&reference),
            draws: None,
            baseline: None,
        };
        let value = objective.evaluate(&batch, &PairCounts::of(&rows)).unwrap();
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        let mut gradient = vec![0.0; self.logits.len()];
        for (&at, row) in kept.iter().zip(numbers(&logits.grad()).chunks(v)) {
            gradient[(at - 1) * v..at * v].copy_from_slice(row);
        }
        let pairs = objective.pairs(&batch).unwrap();
        let (chosen, rejected) = objective.loss.rewards(&pairs).unwrap();
        Ours {
            value,
            rewards: [numbers(&chosen), numbers(&rejected)].concat(),
            read: [numbers(&pairs.chosen.logp), numbers(&pairs.rejected.logp)].concat(),
            logps: numbers(&rows.sums(&stats.logp).unwrap()),
            lengths: rows.lengths().to_vec(),
            gradient,
        }
    }
}

fn all_close(what: &str, ours: &[f64], theirs: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (at, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        close_to(&format!("{what} {at}"), *ours, *theirs, tolerance);
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn golden_the_original_dpo_from_logits() {
    let mut compared = 0;
    let mut other_rewards = 0;
    for case in cases("dpo_original") {
        let id = case["id"].as_str().unwrap();
        let params = &case["params"];
        let flag = |name: &str| params.get(name).is_some_and(|value| value.as_bool().unwrap());
        let labels = integers(&case["inputs"]["labels"]);
        let sequences = Sequences {
            logits: floats(&case["inputs"]["policy_logits"]),
            reference: floats(&case["inputs"]["ref_logits"]),
            ids: labels.clone(),
            counted: labels.iter().map(|&label| label != -100).collect(),
            length: case["inputs"]["labels"][0].as_array().unwrap().len(),
        };
        let smoothing = params.get("label_smoothing").cloned().unwrap_or(json!(0.0));
        let loss = match flag("ipo") {
            true => json!({ "ipo": { "beta": params["beta"] } }),
            false => json!({ "dpo": { "beta": params["beta"], "label_smoothing": smoothing } }),
        };
        let full = objective(json!({ "loss": loss, "reference_free": flag("reference_free") }));
        let ours = sequences.run(&full);
        let out = &case["outputs"];
        let theirs = |name: &str| floats(&out[name]);
        close(
            id,
            ours.value.total.double_value(&[]),
            out["loss_mean"].as_f64().unwrap(),
        );
        let pairs = theirs("losses").len() as f64;
        let per_pair: Vec<f64> = numbers(&ours.value.per_example).iter().map(|x| x * pairs).collect();
        all_close(&format!("{id} pair"), &per_pair, &theirs("losses"), 1e-9);
        all_close(&format!("{id} logp"), &ours.logps, &theirs("policy_logps"), 1e-9);
        let means: Vec<f64> = ours
            .logps
            .iter()
            .zip(&ours.lengths)
            .map(|(sum, &n)| sum / n as f64)
            .collect();
        all_close(&format!("{id} mean logp"), &means, &theirs("policy_logps_avg"), 1e-9);
        all_close(
            &format!("{id} gradient"),
            &ours.gradient,
            &floats(&case["grads"]["loss_mean_wrt_policy_logits"]),
            1e-9,
        );
        let (chosen, rejected) = (theirs("chosen_rewards"), theirs("rejected_rewards"));
        let rewards = [chosen.clone(), rejected.clone()].concat();
        if REWARDS_AGAINST_AN_UNUSED_REFERENCE.contains(&id) {
            let beta = params["beta"].as_f64().unwrap();
            let own: Vec<f64> = ours.logps.iter().map(|logp| beta * logp).collect();
            all_close(&format!("{id} reward"), &ours.rewards, &own, 1e-12);
            let with_reference = sequences.run(&Objective::from(full.loss.clone()));
            all_close(&format!("{id} reward"), &with_reference.rewards, &rewards, 1e-9);
            other_rewards += 1;
        } else {
            all_close(&format!("{id} reward"), &ours.rewards, &rewards, 1e-9);
            close(id, ours.term("reward_chosen"), mean(&chosen));
            close(id, ours.term("reward_rejected"), mean(&rejected));
            close(id, ours.term("reward_margin"), mean(&chosen) - mean(&rejected));
            let right = chosen
                .iter()
                .zip(&rejected)
                .filter(|(chosen, rejected)| chosen > rejected);
            close(id, ours.term("reward_accuracy"), right.count() as f64 / pairs);
        }
        compared += 1;
    }
    counted("dpo_original", (compared, 0), (5, 0));
    assert!(other_rewards == 1 || !committed());
}

/// Pairs from log-probabilities of whole completions; both policy sides are leaves.
fn pairs_of(inputs: &Value) -> (Pairs, [Tensor; 2]) {
    let column = |name: &str| Tensor::from_slice(&floats(&inputs[name]));
    let leaves = ["policy_chosen_logps", "policy_rejected_logps"].map(|name| column(name).set_requires_grad(true));
    let side = |leaf: &Tensor, reference: &str| {
        Completions::from_sums(leaf, Some(&column(reference)), &leaf.ones_like()).unwrap()
    };
    let pairs = Pairs::new(
        side(&leaves[0], "ref_chosen_logps"),
        side(&leaves[1], "ref_rejected_logps"),
    )
    .unwrap();
    (pairs, leaves)
}

/// Compares values, mean, gradients and rewards of a case over log-probabilities.
fn compare_sums(case: &Value, loss: &Loss, pairs: &Pairs, leaves: &[Tensor; 2], tolerance: f64) {
    let id = case["id"].as_str().unwrap();
    let out = &case["outputs"];
    let values = loss.values(pairs).unwrap();
    // Losses that sort give the value of a rank to the pair that has it.
    let sorted = |mut values: Vec<f64>| {
        if loss.couples_pairs() {
            values.sort_by(f64::total_cmp);
        }
        values
    };
    all_close(
        &format!("{id} pair"),
        &sorted(numbers(&values)),
        &sorted(floats(&out["losses"])),
        tolerance,
    );
    let total = values.mean(Kind::Double);
    if let Some(theirs) = out.get("loss_mean") {
        close_to(id, total.double_value(&[]), theirs.as_f64().unwrap(), tolerance);
    }
    total.backward();
    for (leaf, name) in leaves.iter().zip(["chosen", "rejected"]) {
        let theirs = floats(&case["grads"][format!("loss_mean_wrt_policy_{name}_logps")]);
        all_close(
            &format!("{id} gradient of {name}"),
            &numbers(&leaf.grad()),
            &theirs,
            tolerance,
        );
    }
}

#[test]
fn golden_the_dpo_family_of_trl_024_from_log_probabilities() {
    let mut compared = 0;
    let mut other_rewards = 0;
    for case in cases("dpo_family_trl024") {
        let id = case["id"].as_str().unwrap();
        let params = &case["params"];
        let divergence = match params.get("f_divergence").map(|name| name.as_str().unwrap()) {
            None => json!("reverse_kl"),
            Some("js_divergence") => json!("js"),
            // Its coefficient is one minus ours.
            Some("alpha_divergence_coef0.5") => json!({ "alpha": { "alpha": 0.5 } }),
            Some("alpha_divergence_default_coef1") => json!({ "alpha": { "alpha": 0.0 } }),
            Some(other) => panic!("{other}"),
        };
        let reference_free = params.get("reference_free").is_some();
        // Its `ipo` is handed means: what the loss sees are the log-probabilities of the file either way.
        let loss = trl(params["loss_type"].as_str().unwrap(), params);
        let full = objective(json!({ "loss": loss, "divergence": divergence, "reference_free": reference_free }));
        let (mut pairs, leaves) = pairs_of(&case["inputs"]);
        pairs.divergence = full.divergence;
        pairs.reference_free = reference_free;
        compare_sums(&case, &full.loss, &pairs, &leaves, 1e-9);
        if REWARDS_AGAINST_AN_UNUSED_REFERENCE.contains(&id) {
            let (chosen, _) = full.loss.rewards(&pairs).unwrap();
            let own: Vec<f64> = numbers(&leaves[0]).iter().map(|logp| full.loss.beta() * logp).collect();
            all_close(&format!("{id} reward"), &numbers(&chosen), &own, 1e-12);
            pairs.reference_free = false;
            other_rewards += 1;
        }
        let (chosen, rejected) = full.loss.rewards(&pairs).unwrap();
        all_close(id, &numbers(&chosen), &floats(&case["outputs"]["chosen_rewards"]), 1e-9);
        all_close(
            id,
            &numbers(&rejected),
            &floats(&case["outputs"]["rejected_rewards"]),
            1e-9,
        );
        compared += 1;
    }
    counted("dpo_family_trl024", (compared, 0), (36, 0));
    assert!(other_rewards == 1 || !committed());
}

#[test]
fn golden_bco_of_trl_024_over_consecutive_steps() {
    let mut running = RunningMean::default();
    let mut compared = 0;
    for case in cases("bco_pair_trl024") {
        let id = case["id"].as_str().unwrap();
        let loss: Loss = serde_json::from_value(json!({ "bco_pair": { "beta": case["params"]["beta"] } })).unwrap();
        assert_eq!(loss.baseline(), Some(Baseline::RunningMeanReward));
        let (mut pairs, leaves) = pairs_of(&case["inputs"]);
        let (chosen, rejected) = loss.rewards(&pairs).unwrap();
        all_close(id, &numbers(&chosen), &floats(&case["outputs"]["chosen_rewards"]), 1e-9);
        all_close(
            id,
            &numbers(&rejected),
            &floats(&case["outputs"]["rejected_rewards"]),
            1e-9,
        );
        running
            .update(&[numbers(&chosen), numbers(&rejected)].concat())
            .unwrap();
        // The file's own tolerance: the reference keeps the running mean in `f32`.
        close_to(
            id,
            running.mean(),
            case["outputs"]["running_mean_delta"].as_f64().unwrap(),
            1e-6,
        );
        pairs.baseline = Some(running.mean());
        compare_sums(&case, &loss, &pairs, &leaves, 1e-6);
        compared += 1;
    }
    counted("bco_pair_trl024", (compared, 0), (4, 0));
}

/// The weighted sum of objectives that a case of `dpo_family_trl_head` is.
fn head_objectives(id: &str, params: &Value) -> Vec<(f64, Objective)> {
    let mut parts = Vec::new();
    for (name, weight) in params["loss_types"]
        .as_array()
        .unwrap()
        .iter()
        .zip(floats(&params["loss_weights"]))
    {
        let name = name.as_str().unwrap();
        let mut params = params.clone();
        if id == SMOOTHING_IGNORED {
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

fn head_sequences(case: &Value) -> Sequences {
    let inputs = &case["inputs"];
    Sequences {
        logits: floats(&inputs["policy_logits"]),
        reference: floats(&inputs["ref_logits"]),
        ids: integers(&inputs["input_ids"]),
        counted: integers(&inputs["completion_mask"])
            .iter()
            .map(|&mask| mask == 1)
            .collect(),
        length: inputs["input_ids"][0].as_array().unwrap().len(),
    }
}

#[test]
fn golden_the_dpo_family_of_trl_head_from_logits() {
    let mut compared = 0;
    let mut other_rewards = 0;
    let mut in_f32 = 0;
    for case in cases("dpo_family_trl_head") {
        let id = case["id"].as_str().unwrap();
        let params = &case["params"];
        let sequences = head_sequences(&case);
        let tolerance = if id == IN_F32.0 { IN_F32.1 } else { 1e-9 };
        let mut total = 0.0;
        let mut gradient = vec![0.0; sequences.logits.len()];
        let mut last = None;
        for (weight, objective) in head_objectives(id, params) {
            let ours = sequences.run(&objective);
            total += weight * ours.value.total.double_value(&[]);
            gradient
                .iter_mut()
                .zip(&ours.gradient)
                .for_each(|(sum, one)| *sum += weight * one);
            last = Some(ours);
        }
        let ours = last.unwrap();
        let out = |name: &str| case["outputs"][name].as_f64().unwrap();
        let near = |what: &str, ours: f64, theirs: f64| close_to(&format!("{id} {what}"), ours, theirs, tolerance);
        near("loss", total, out("loss"));
        let theirs = floats(&case["grads"]["loss_wrt_policy_logits"]);
        // Differences of `f32` numbers are right to their own size only.
        let scale = if id == IN_F32.0 {
            theirs.iter().fold(0.0f64, |a, b| a.max(b.abs()))
        } else {
            0.0
        };
        for (at, (ours, theirs)) in gradient.iter().zip(&theirs).enumerate() {
            if (ours - theirs).abs() > tolerance * scale {
                near(&format!("gradient {at}"), *ours, *theirs);
            }
        }
        let rewards = match REWARDS_OF_SUMS.contains(&id) {
            true => {
                // Ours are per token.
                let beta = params["beta"].as_f64().unwrap();
                let sums = sequences.run(&objective(json!({ "loss": { "dpo": { "beta": beta } } })));
                let per_token = sums
                    .rewards
                    .iter()
                    .zip(&sums.lengths)
                    .map(|(reward, &n)| reward / n as f64);
                all_close(
                    &format!("{id} reward"),
                    &ours.rewards,
                    &per_token.collect::<Vec<_>>(),
                    1e-12,
                );
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
        let logps = if id == LOGPS_WEIGHTED {
            &rewards.read
        } else {
            &rewards.logps
        };
        near("chosen logp", halves(logps)[0], out("logps_chosen_mean"));
        near("rejected logp", halves(logps)[1], out("logps_rejected_mean"));
        close(id, rewards.term("logp_chosen"), halves(&rewards.logps)[0]);
        close(id, rewards.term("logp_rejected"), halves(&rewards.logps)[1]);
        in_f32 += usize::from(id == IN_F32.0);
        compared += 1;
    }
    counted("dpo_family_trl_head", (compared, 0), (22, 0));
    assert!((other_rewards, in_f32) == (2, 1) || !committed());
}

#[test]
fn golden_label_smoothing_counts_where_trl_head_ignores_it() {
    let case = cases("dpo_family_trl_head")
        .into_iter()
        .find(|case| case["id"] == SMOOTHING_IGNORED);
    let Some(case) = case else {
        assert!(!committed(), "no case `{SMOOTHING_IGNORED}`");
        return;
    };
    let params = &case["params"];
    let sequences = head_sequences(&case);
    let smoothed = sequences.run(&objective(json!({ "loss": trl("sigmoid", params) })));
    let theirs = case["outputs"]["loss"].as_f64().unwrap();
    // −(1 − ε) log σ(x) − ε log σ(−x) = −log σ(x) + ε x
    let margin = smoothed.term("reward_margin");
    let expected = theirs + params["label_smoothing"].as_f64().unwrap() * margin;
    close(SMOOTHING_IGNORED, smoothed.value.total.double_value(&[]), expected);
    assert!((expected - theirs).abs() > 0.01);
}

#[test]
fn golden_the_pairwise_losses_of_halos_from_tokens() {
    let mut compared = 0;
    for case in cases("halos_pairwise") {
        let id = case["id"].as_str().unwrap();
        let params = &case["params"];
        let loss = match id {
            "DPOTrainer" => json!({ "dpo": { "beta": params["beta"] } }),
            "CDPOTrainer" => json!({ "dpo": { "beta": params["beta"], "label_smoothing": params["epsilon"] } }),
            "IPOTrainer" => json!({ "ipo_mean": { "beta": params["tau"] } }),
            "SimPOTrainer" => {
                let (beta, ratio) = (
                    params["beta"].as_f64().unwrap(),
                    params["gamma_beta_ratio"].as_f64().unwrap(),
                );
                json!({ "simpo": { "beta": beta, "gamma": beta * ratio } })
            }
            other => panic!("an unknown trainer `{other}`"),
        };
        let loss: Loss = serde_json::from_value(loss).unwrap();
        let width = case["inputs"]["policy_chosen"][0].as_array().unwrap().len() as i64;
        let table = |name: &str| Tensor::from_slice(&floats(&case["inputs"][name])).view([-1, width]);
        let leaves = ["policy_chosen", "policy_rejected"].map(|name| table(name).set_requires_grad(true));
        let side = |leaf: &Tensor, reference: &str| {
            let reference = table(reference);
            // It counts the tokens whose log-ratio is not zero, here all but the padding: ours are handed in.
            let tokens = (leaf - &reference)
                .ne(0.0)
                .sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
            let sums = |t: &Tensor| t.sum_dim_intlist([1i64].as_slice(), false, None);
            Completions::from_sums(&sums(leaf), Some(&sums(&reference)), &tokens).unwrap()
        };
        let pairs = Pairs::new(side(&leaves[0], "ref_chosen"), side(&leaves[1], "ref_rejected")).unwrap();
        let values = loss.values(&pairs).unwrap();
        all_close(id, &numbers(&values), &floats(&case["outputs"]["losses"]), 1e-9);
        values.mean(Kind::Double).backward();
        for (leaf, name) in leaves.iter().zip(["chosen", "rejected"]) {
            // A padding has no row of its own on our side: what sums pass to it is left out.
            let real = numbers(&table(&format!("policy_{name}")));
            let ours: Vec<f64> = numbers(&leaf.grad())
                .iter()
                .zip(&real)
                .map(|(slope, logp)| if logp.abs() > 0.0 { *slope } else { 0.0 })
                .collect();
            let theirs: Vec<f64> = floats(&case["grads"][format!("loss_mean_wrt_policy_{name}")])
                .iter()
                .zip(&real)
                .map(|(slope, logp)| if logp.abs() > 0.0 { *slope } else { 0.0 })
                .collect();
            all_close(&format!("{id} gradient of {name}"), &ours, &theirs, 1e-9);
        }
        let (chosen, rejected) = loss.rewards(&pairs).unwrap();
        // Its IPO and SimPO report means per token without the factor.
        let factor = if loss.per_token() { loss.beta() } else { 1.0 };
        for (ours, name) in [(chosen, "chosen_rewards"), (rejected, "rejected_rewards")] {
            let theirs: Vec<f64> = floats(&case["outputs"][name])
                .iter()
                .map(|reward| reward * factor)
                .collect();
            all_close(&format!("{id} {name}"), &numbers(&ours), &theirs, 1e-9);
        }
        compared += 1;
    }
    counted("halos_pairwise", (compared, 0), (4, 0));
}
