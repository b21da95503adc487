//! D2O. No code of its authors is known: the cases are computed from the formula.

use serde_json::Value;
use tch::{Device, Tensor};
use unsay_losses::paired::{Dpo, PairedLoss, Pairs};
use unsay_losses::ranked::{Batch, D2o, Loss, Objective, RankedCounts};
use unsay_losses::{CompletionRows, Completions, LossValue};

use crate::causal::Sequences;
use crate::files::{cases, close, committed, counted, floats};
use crate::plain::numbers;
use crate::unpaired::stats_of;

fn d2o(case: &Value) -> Loss {
    Loss::D2o(D2o {
        alpha: case["params"]["alpha"].as_f64().unwrap(),
        beta: case["params"]["beta"].as_f64().unwrap(),
    })
}

/// Compares the argument of the logistic function of every prompt, its mean in the terms, and the mean loss.
fn compare(id: &str, case: &Value, objective: &Objective, batch: &Batch<'_>, value: &LossValue) {
    let (samples, negatives) = objective.loss.rewards(&objective.groups(batch).unwrap()).unwrap();
    let theirs = floats(&case["outputs"]["logits"]);
    let ours = numbers(&(samples - negatives));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        close(&format!("{id} logit"), *ours, *theirs);
    }
    let term = value.terms.iter().find(|(name, _)| *name == "reward_margin").unwrap();
    let mean = theirs.iter().sum::<f64>() / theirs.len() as f64;
    close(&format!("{id} margin"), term.1.double_value(&[]), mean);
    close(
        id,
        value.total.double_value(&[]),
        case["outputs"]["loss_mean"].as_f64().unwrap(),
    );
}

fn compare_gradient(id: &str, ours: &Tensor, theirs: [&Value; 2]) {
    let (ours, theirs) = (numbers(ours), theirs.map(floats).concat());
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        close(&format!("{id} gradient"), *ours, *theirs);
    }
}

#[test]
fn golden_d2o_equals_the_formula() {
    let (mut from_sums, mut from_logits, mut bounded) = (0, 0, 0);
    for case in cases("d2o") {
        let id = case["id"].as_str().unwrap();
        let (inputs, outputs, grads) = (&case["inputs"], &case["outputs"], &case["grads"]);
        let k = case["params"]["K"].as_u64().unwrap() as usize;
        let objective = Objective::from(d2o(&case));
        if inputs.get("policy_logits_self").is_some() {
            let policy = Sequences::of(inputs, "policy_logits_self", "labels_self").then(&Sequences::of(
                inputs,
                "policy_logits_neg",
                "labels_neg",
            ));
            let reference = Sequences::of(inputs, "ref_minus_logits_self", "labels_self").then(&Sequences::of(
                inputs,
                "ref_plus_logits_neg",
                "labels_neg",
            ));
            let (leaf, op) = policy.op(&objective.needs());
            let (stats, rows) = (op.forward().unwrap(), policy.rows());
            let batch = Batch {
                stats: &stats,
                rows: &rows,
                n_samples: &vec![k; rows.n_completions() / (k + 1)],
                reference: Some(&reference.logps()),
            };
            let counts = RankedCounts::of(&rows, batch.n_samples).unwrap();
            let value = objective.evaluate(&batch, &counts).unwrap();
            compare(id, &case, &objective, &batch, &value);
            value.total.backward();
            op.surrogate(&stats).unwrap().backward();
            let theirs = ["loss_mean_wrt_policy_logits_self", "loss_mean_wrt_policy_logits_neg"].map(|key| &grads[key]);
            compare_gradient(id, &leaf.grad(), theirs);
            from_logits += 1;
            continue;
        }
        let of = |keys: [&str; 2]| keys.map(|key| floats(&inputs[key]));
        let policy = of(["policy_logps_self_samples", "policy_logps_negative"]);
        let reference = of(["ref_minus_logps_self_samples", "ref_plus_logps_negative"]);
        let n_prompts = policy[1].len();
        let stats = stats_of(&policy.concat());
        let rows = CompletionRows::new(&vec![1; policy.concat().len()], Device::Cpu).unwrap();
        let batch = Batch {
            stats: &stats,
            rows: &rows,
            n_samples: &vec![k; n_prompts],
            reference: Some(&Tensor::from_slice(&reference.concat())),
        };
        let counts = RankedCounts::of(&rows, batch.n_samples).unwrap();
        let value = objective.evaluate(&batch, &counts).unwrap();
        compare(id, &case, &objective, &batch, &value);
        let losses = floats(&outputs["losses"]);
        let ours = numbers(&value.per_example);
        assert_eq!(ours.len(), losses.len());
        for (ours, theirs) in ours.iter().zip(&losses) {
            close(id, ours * n_prompts as f64, *theirs);
        }
        value.total.backward();
        let theirs = [
            "loss_mean_wrt_policy_logps_self_samples",
            "loss_mean_wrt_policy_logps_negative",
        ];
        compare_gradient(id, &stats.logp.grad(), theirs.map(|key| &grads[key]));
        from_sums += 1;

        // Given where alpha = beta: the mean of the pairwise losses of each sample with the negative is a bound.
        let Some(pairwise) = outputs.get("instance_dpo_mean") else {
            continue;
        };
        let dpo = Dpo {
            beta: case["params"]["beta"].as_f64().unwrap(),
            label_smoothing: 0.0,
        };
        let side = |policy: &[f64], reference: &[f64]| {
            let (policy, reference) = (Tensor::from_slice(policy), Tensor::from_slice(reference));
            Completions::from_sums(&policy, Some(&reference), &policy.ones_like()).unwrap()
        };
        for (prompt, theirs) in floats(pairwise).into_iter().enumerate() {
            let own = prompt * k..(prompt + 1) * k;
            let samples = side(&policy[0][own.clone()], &reference[0][own]);
            let negative = side(&vec![policy[1][prompt]; k], &vec![reference[1][prompt]; k]);
            let values = numbers(&dpo.values(&Pairs::new(samples, negative).unwrap()).unwrap());
            let mean = values.iter().sum::<f64>() / k as f64;
            close(&format!("{id} pairwise"), mean, theirs);
            assert!(losses[prompt] <= mean + 1e-12, "{id}: {} above {mean}", losses[prompt]);
        }
        assert_eq!(outputs["jensen_d2o_le_instance_mean"], Value::Bool(true));
        bounded += 1;
    }
    counted("d2o", (from_sums + from_logits, 0), (4, 0));
    if committed() {
        assert_eq!((from_logits, bounded), (1, 2));
    }
}
