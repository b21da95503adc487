//! D2O. No code of its authors is known: the cases are computed from the formula.

use serde_json::Value;
use tch::{Device, Tensor};
use unsay_losses::ranked::{Batch, D2o, Loss, Objective, RankedCounts};
use unsay_losses::{CompletionRows, LossValue};

use crate::causal::Sequences;
use crate::files::{Golden, all_close, close, floats, id, number, shape, term, total};
use crate::plain::numbers;
use crate::unpaired::stats_of;

fn loss(case: &Value) -> Loss {
    Loss::D2o(D2o {
        alpha: case["params"]["alpha"].as_f64().unwrap(),
        beta: case["params"]["beta"].as_f64().unwrap(),
    })
}

/// Compares the argument of the logistic function of every prompt, its mean in the terms, and the mean loss.
fn compare(golden: &Golden, case: &Value, objective: &Objective, batch: &Batch<'_>, value: &LossValue) {
    let (id, outputs) = (id(case), &case["outputs"]);
    let (samples, negatives) = objective.loss.rewards(&objective.groups(batch).unwrap()).unwrap();
    let theirs = floats(&outputs["logits"]);
    all_close(
        &format!("{id} logit"),
        &numbers(&(samples - negatives)),
        &theirs,
        golden.rtol,
    );
    let mean = theirs.iter().sum::<f64>() / theirs.len() as f64;
    close(&format!("{id} margin"), term(value, "reward_margin"), mean, golden.rtol);
    close(id, total(value), number(&outputs["loss_mean"]), golden.rtol);
}

/// Compares the gradient to the samples and then the negatives.
fn compare_gradient(golden: &Golden, case: &Value, ours: &Tensor, keys: [&str; 2]) {
    let theirs = keys.map(|key| floats(&case["grads"][key])).concat();
    all_close(&format!("{} gradient", id(case)), &numbers(ours), &theirs, golden.rtol);
}

/// Log-probabilities of the samples of all prompts and then of their negatives.
struct Sums {
    policy: [Vec<f64>; 2],
    reference: [Vec<f64>; 2],
}

impl Sums {
    fn of(inputs: &Value, k: usize) -> Sums {
        let of = |keys: [&str; 2]| {
            assert_eq!(shape(&inputs[keys[0]]), [shape(&inputs[keys[1]])[0], k], "{keys:?}");
            keys.map(|key| floats(&inputs[key]))
        };
        Sums {
            policy: of(["policy_logps_self_samples", "policy_logps_negative"]),
            reference: of(["ref_minus_logps_self_samples", "ref_plus_logps_negative"]),
        }
    }

    /// Each sample with the negative of its prompt, as if it were a prompt's only one.
    fn one_by_one(&self, k: usize) -> Sums {
        let repeated = |[samples, negatives]: &[Vec<f64>; 2]| {
            let each = negatives.iter().flat_map(|&negative| vec![negative; k]);
            [samples.clone(), each.collect()]
        };
        Sums {
            policy: repeated(&self.policy),
            reference: repeated(&self.reference),
        }
    }

    /// The loss with `k` samples per prompt, and the gradient of its mean. Compares with a case where there is one.
    fn run(&self, objective: &Objective, k: usize, with: Option<(&Golden, &Value)>) -> (LossValue, Tensor) {
        let stats = stats_of(&self.policy.concat());
        let rows = CompletionRows::new(&vec![1; self.policy.concat().len()], Device::Cpu).unwrap();
        let batch = Batch {
            stats: &stats,
            rows: &rows,
            n_samples: &vec![k; self.policy[1].len()],
            reference: Some(&Tensor::from_slice(&self.reference.concat())),
        };
        let counts = RankedCounts::of(&rows, batch.n_samples).unwrap();
        let value = objective.evaluate(&batch, &counts).unwrap();
        if let Some((golden, case)) = with {
            compare(golden, case, objective, &batch, &value);
        }
        value.total.backward();
        (value, stats.logp.grad())
    }
}

pub(crate) fn d2o(golden: &Golden) -> (usize, usize) {
    let (mut from_logits, mut bounded) = (0, 0);
    for case in &golden.cases {
        let (id, inputs, outputs) = (id(case), &case["inputs"], &case["outputs"]);
        let k = case["params"]["K"].as_u64().unwrap() as usize;
        let objective = Objective::from(loss(case));
        if inputs.get("policy_logits_self").is_some() {
            let both = |own: &str, negative: &str| {
                let negative = Sequences::of(inputs, negative, "labels_neg");
                Sequences::of(inputs, own, "labels_self").then(&negative)
            };
            let policy = both("policy_logits_self", "policy_logits_neg");
            let reference = both("ref_minus_logits_self", "ref_plus_logits_neg");
            let (leaf, op) = policy.op(&objective.needs());
            let (stats, rows) = (op.forward().unwrap(), policy.rows());
            let batch = Batch {
                stats: &stats,
                rows: &rows,
                n_samples: &vec![k; shape(&inputs["labels_neg"])[0]],
                reference: Some(&reference.logps()),
            };
            let counts = RankedCounts::of(&rows, batch.n_samples).unwrap();
            let value = objective.evaluate(&batch, &counts).unwrap();
            compare(golden, case, &objective, &batch, &value);
            value.total.backward();
            op.surrogate(&stats).unwrap().backward();
            let keys = ["loss_mean_wrt_policy_logits_self", "loss_mean_wrt_policy_logits_neg"];
            compare_gradient(golden, case, &leaf.grad(), keys);
            from_logits += 1;
            continue;
        }
        let sums = Sums::of(inputs, k);
        let (value, gradient) = sums.run(&objective, k, Some((golden, case)));
        let losses = floats(&outputs["losses"]);
        let ours = numbers(&value.per_example)
            .iter()
            .map(|x| x * losses.len() as f64)
            .collect::<Vec<_>>();
        all_close(id, &ours, &losses, golden.rtol);
        let keys = [
            "loss_mean_wrt_policy_logps_self_samples",
            "loss_mean_wrt_policy_logps_negative",
        ];
        compare_gradient(golden, case, &gradient, keys);

        // The mean of the pairwise losses of each sample with the negative is a bound.
        let Some(pairwise) = outputs.get("instance_dpo_mean") else {
            continue;
        };
        let (value, _) = sums.one_by_one(k).run(&objective, 1, None);
        let each = numbers(&value.per_example);
        let means: Vec<f64> = each
            .chunks(k)
            .map(|own| losses.len() as f64 * own.iter().sum::<f64>())
            .collect();
        all_close(&format!("{id} pairwise"), &means, &floats(pairwise), golden.rtol);
        let below = losses.iter().zip(&means).all(|(loss, mean)| *loss <= mean + 1e-12);
        assert_eq!(outputs["jensen_d2o_le_instance_mean"], Value::Bool(below), "{id}");
        bounded += 1;
    }
    assert!((from_logits, bounded) == (1, 2) || !golden.committed);
    (golden.cases.len(), 0)
}
