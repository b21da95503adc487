//! Losses over pairs with a reference.

use serde_json::{Value, json};
use tch::{Kind, Tensor};
use unsay_losses::Baseline;
use unsay_losses::paired::{Loss, Objective, Pairs};
use unsay_losses::{Completions, RunningMean};

use crate::files::{Golden, all_close, close, floats, id, integers, number, shape, total};
use crate::pairs::{Sequences, mean, objective, trl};
use crate::plain::numbers;

/// Whether a case leaves the reference out. Its rewards are against the reference all the same; without one there is no
/// such number, and ours are those of the log-probabilities.
fn reference_free(params: &Value) -> bool {
    params["reference_free"].as_bool().unwrap_or(false)
}

pub(crate) fn original(golden: &Golden) -> (usize, usize) {
    let rtol = golden.rtol;
    let mut other_rewards = 0;
    for case in &golden.cases {
        let (id, params, out) = (id(case), &case["params"], &case["outputs"]);
        let labels = integers(&case["inputs"]["labels"]);
        let sequences = Sequences::of(case, "labels", labels.iter().map(|&label| label != -100).collect());
        let smoothing = params.get("label_smoothing").cloned().unwrap_or(json!(0.0));
        let loss = match params["ipo"].as_bool().unwrap_or(false) {
            true => json!({ "ipo": { "beta": params["beta"] } }),
            false => json!({ "dpo": { "beta": params["beta"], "label_smoothing": smoothing } }),
        };
        let full = objective(json!({ "loss": loss, "reference_free": reference_free(params) }));
        let ours = sequences.run(&full);
        let theirs = |name: &str| floats(&out[name]);
        close(id, total(&ours.value), number(&out["loss_mean"]), rtol);
        let pairs = theirs("losses").len() as f64;
        let per_pair: Vec<f64> = numbers(&ours.value.per_example).iter().map(|x| x * pairs).collect();
        all_close(&format!("{id} pair"), &per_pair, &theirs("losses"), rtol);
        all_close(&format!("{id} logp"), &ours.logps, &theirs("policy_logps"), rtol);
        all_close(&format!("{id} reference"), &ours.reference, &theirs("ref_logps"), rtol);
        let means = ours.logps.iter().zip(&ours.lengths).map(|(sum, &n)| sum / n as f64);
        let means: Vec<f64> = means.collect();
        all_close(&format!("{id} mean logp"), &means, &theirs("policy_logps_avg"), rtol);
        let gradient = floats(&case["grads"]["loss_mean_wrt_policy_logits"]);
        all_close(&format!("{id} gradient"), &ours.gradient, &gradient, rtol);
        let (chosen, rejected) = (theirs("chosen_rewards"), theirs("rejected_rewards"));
        let rewards = [chosen.clone(), rejected.clone()].concat();
        if reference_free(params) {
            let beta = number(&params["beta"]);
            let own: Vec<f64> = ours.logps.iter().map(|logp| beta * logp).collect();
            all_close(&format!("{id} reward"), &ours.rewards, &own, 1e-12);
            let with_reference = sequences.run(&Objective::from(full.loss.clone()));
            all_close(&format!("{id} reward"), &with_reference.rewards, &rewards, rtol);
            other_rewards += 1;
        } else {
            all_close(&format!("{id} reward"), &ours.rewards, &rewards, rtol);
            close(id, ours.term("reward_chosen"), mean(&chosen), rtol);
            close(id, ours.term("reward_rejected"), mean(&rejected), rtol);
            close(id, ours.term("reward_margin"), mean(&chosen) - mean(&rejected), rtol);
            let right = chosen
                .iter()
                .zip(&rejected)
                .filter(|(chosen, rejected)| chosen > rejected);
            close(id, ours.term("reward_accuracy"), right.count() as f64 / pairs, rtol);
        }
    }
    assert!(other_rewards == 1 || !golden.committed);
    (golden.cases.len(), 0)
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

/// Compares values, mean and gradients of a case over log-probabilities.
fn compare_sums(golden: &Golden, case: &Value, loss: &Loss, pairs: &Pairs, leaves: &[Tensor; 2]) {
    let (id, out, rtol) = (id(case), &case["outputs"], golden.rtol);
    let values = loss.values(pairs).unwrap();
    // Losses that sort give the value of a rank to the pair that has it.
    let sorted = |mut values: Vec<f64>| {
        if loss.couples_pairs() {
            values.sort_by(f64::total_cmp);
        }
        values
    };
    let theirs = sorted(floats(&out["losses"]));
    all_close(&format!("{id} pair"), &sorted(numbers(&values)), &theirs, rtol);
    let total = values.mean(Kind::Double);
    if let Some(theirs) = out.get("loss_mean") {
        close(id, total.double_value(&[]), number(theirs), rtol);
    }
    total.backward();
    for (leaf, name) in leaves.iter().zip(["chosen", "rejected"]) {
        let theirs = floats(&case["grads"][format!("loss_mean_wrt_policy_{name}_logps")]);
        all_close(
            &format!("{id} gradient of {name}"),
            &numbers(&leaf.grad()),
            &theirs,
            rtol,
        );
    }
}

/// Compares the rewards of both sides, and gives ours.
fn compare_rewards(golden: &Golden, case: &Value, loss: &Loss, pairs: &Pairs) -> Vec<f64> {
    let (chosen, rejected) = loss.rewards(pairs).unwrap();
    let ours = [numbers(&chosen), numbers(&rejected)];
    for (ours, name) in ours.iter().zip(["chosen_rewards", "rejected_rewards"]) {
        let theirs = floats(&case["outputs"][name]);
        all_close(&format!("{} {name}", id(case)), ours, &theirs, golden.exact());
    }
    ours.concat()
}

/// A divergence as TRL 0.24's cases name it: the coefficient of `alpha` stands in the name, and is one minus ours.
fn divergence(name: Option<&str>) -> Value {
    let coefficient = |name: &str| {
        let digits = name
            .strip_prefix("alpha_divergence_coef")
            .or(name.strip_prefix("alpha_divergence_default_coef"));
        digits.and_then(|digits| digits.parse::<f64>().ok())
    };
    match name {
        None => json!("reverse_kl"),
        Some("js_divergence") => json!("js"),
        Some(name) => match coefficient(name) {
            Some(coefficient) => json!({ "alpha": { "alpha": 1.0 - coefficient } }),
            None => panic!("an unknown divergence `{name}`"),
        },
    }
}

pub(crate) fn trl_024(golden: &Golden) -> (usize, usize) {
    let mut other_rewards = 0;
    for case in &golden.cases {
        let (id, params) = (id(case), &case["params"]);
        // Its `ipo` is handed means: what the loss sees are the log-probabilities of the file either way.
        let full = objective(json!({
            "loss": trl(params["loss_type"].as_str().unwrap(), params),
            "divergence": divergence(params["f_divergence"].as_str()),
            "reference_free": reference_free(params),
        }));
        let (mut pairs, leaves) = pairs_of(&case["inputs"]);
        pairs.divergence = full.divergence;
        pairs.reference_free = full.reference_free;
        compare_sums(golden, case, &full.loss, &pairs, &leaves);
        if full.reference_free {
            let (chosen, _) = full.loss.rewards(&pairs).unwrap();
            let own: Vec<f64> = numbers(&leaves[0]).iter().map(|logp| full.loss.beta() * logp).collect();
            all_close(&format!("{id} reward"), &numbers(&chosen), &own, 1e-12);
            pairs.reference_free = false;
            other_rewards += 1;
        }
        compare_rewards(golden, case, &full.loss, &pairs);
    }
    assert!(other_rewards == 1 || !golden.committed);
    (golden.cases.len(), 0)
}

/// Consecutive steps of one run. The reference keeps the running mean in `f32`, and so the file suggests its tolerance.
pub(crate) fn bco(golden: &Golden) -> (usize, usize) {
    let mut running = RunningMean::default();
    for case in &golden.cases {
        let loss: Loss = serde_json::from_value(json!({ "bco_pair": { "beta": case["params"]["beta"] } })).unwrap();
        assert_eq!(loss.baseline(), Some(Baseline::RunningMeanReward));
        let (mut pairs, leaves) = pairs_of(&case["inputs"]);
        // It is fed one number per step.
        let rewards = compare_rewards(golden, case, &loss, &pairs);
        running.update(&[mean(&rewards)]).unwrap();
        let theirs = number(&case["outputs"]["running_mean_delta"]);
        close(id(case), running.mean(), theirs, golden.rtol);
        pairs.baseline = Some(running.mean());
        compare_sums(golden, case, &loss, &pairs, &leaves);
    }
    (golden.cases.len(), 0)
}

/// A loss of HALOs: each has parameters of its own.
fn of_halos(case: &Value) -> Loss {
    let params = &case["params"];
    let given = |name: &str| params.get(name).is_some();
    let loss = match (given("tau"), given("gamma_beta_ratio"), given("epsilon"), given("beta")) {
        (true, false, false, false) => json!({ "ipo_mean": { "beta": params["tau"] } }),
        (false, true, false, true) => {
            let (beta, ratio) = (number(&params["beta"]), number(&params["gamma_beta_ratio"]));
            json!({ "simpo": { "beta": beta, "gamma": beta * ratio } })
        }
        (false, false, true, true) => {
            json!({ "dpo": { "beta": params["beta"], "label_smoothing": params["epsilon"] } })
        }
        (false, false, false, true) => json!({ "dpo": { "beta": params["beta"] } }),
        _ => panic!("{}: no loss has {params}", id(case)),
    };
    serde_json::from_value(loss).unwrap()
}

pub(crate) fn halos(golden: &Golden) -> (usize, usize) {
    let rtol = golden.rtol;
    for case in &golden.cases {
        let (id, loss) = (id(case), of_halos(case));
        let table = |name: &str| {
            let table: Vec<i64> = shape(&case["inputs"][name]).iter().map(|&n| n as i64).collect();
            Tensor::from_slice(&floats(&case["inputs"][name])).view(table.as_slice())
        };
        let leaves = ["policy_chosen", "policy_rejected"].map(|name| table(name).set_requires_grad(true));
        let side = |leaf: &Tensor, reference: &str| {
            let reference = table(reference);
            assert_eq!(leaf.size(), reference.size(), "{id}");
            // It counts the tokens whose log-ratio is not zero, here all but the padding: ours are handed in.
            let tokens = (leaf - &reference)
                .ne(0.0)
                .sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
            let sums = |t: &Tensor| t.sum_dim_intlist([1i64].as_slice(), false, None);
            Completions::from_sums(&sums(leaf), Some(&sums(&reference)), &tokens).unwrap()
        };
        let pairs = Pairs::new(side(&leaves[0], "ref_chosen"), side(&leaves[1], "ref_rejected")).unwrap();
        let values = loss.values(&pairs).unwrap();
        all_close(id, &numbers(&values), &floats(&case["outputs"]["losses"]), rtol);
        values.mean(Kind::Double).backward();
        for (leaf, name) in leaves.iter().zip(["chosen", "rejected"]) {
            // A padding has no row of its own on our side: what sums pass to it is left out.
            let real = numbers(&table(&format!("policy_{name}")));
            let rows = |slopes: Vec<f64>| -> Vec<f64> {
                assert_eq!(slopes.len(), real.len(), "{id} {name}");
                let kept = slopes.into_iter().zip(&real).filter(|(_, logp)| logp.abs() > 0.0);
                kept.map(|(slope, _)| slope).collect()
            };
            let ours = rows(numbers(&leaf.grad()));
            let theirs = rows(floats(&case["grads"][format!("loss_mean_wrt_policy_{name}")]));
            all_close(&format!("{id} gradient of {name}"), &ours, &theirs, rtol);
        }
        let (chosen, rejected) = loss.rewards(&pairs).unwrap();
        // Its IPO and SimPO report means per token without the factor.
        let factor = if loss.per_token() { loss.beta() } else { 1.0 };
        for (ours, name) in [(chosen, "chosen_rewards"), (rejected, "rejected_rewards")] {
            let theirs = floats(&case["outputs"][name]);
            let theirs: Vec<f64> = theirs.iter().map(|reward| reward * factor).collect();
            all_close(&format!("{id} {name}"), &numbers(&ours), &theirs, rtol);
        }
    }
    (golden.cases.len(), 0)
}

#[test]
fn golden_names_of_divergences_carry_their_coefficient() {
    for (name, alpha) in [
        ("alpha_divergence_coef0.25", 0.75),
        ("alpha_divergence_default_coef1", 0.0),
        ("alpha_divergence_coef3", -2.0),
    ] {
        assert_eq!(divergence(Some(name)), json!({ "alpha": { "alpha": alpha } }));
    }
    assert!(std::panic::catch_unwind(|| divergence(Some("alpha_divergence_coefx"))).is_err());
}
