//! Unpaired losses: KTO, APO-zero, BCO, NPO and SimNPO.

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unsay_losses::paired::{self, Dpo, PairCounts};
use unsay_losses::unpaired::{
    ApoZeroUnpaired, Batch, Bco, Kto, Labelled, Loss, Npo, Objective, Simnpo, UnpairedCounts,
};
use unsay_losses::{CompletionRows, LossValue, RunningMean, TokenStats, mismatched_kl};

use crate::causal::Sequences;
use crate::files::{Golden, all_close, close, floats, id, number, rows_of, shape, term, total};
use crate::plain::numbers;

/// Stats of log-probabilities that a file gives as numbers: a leaf, and nothing else known.
pub(crate) fn stats_of(logp: &[f64]) -> TokenStats {
    let n = logp.len() as i64;
    TokenStats::new(
        Tensor::zeros([n], (Kind::Int64, Device::Cpu)),
        Tensor::from_slice(logp).set_requires_grad(true),
        Tensor::zeros([n], (Kind::Bool, Device::Cpu)),
    )
}

/// Desirable and then undesirable completions of some tokens each, log-probabilities of policy and reference given.
struct Given {
    stats: TokenStats,
    reference: Tensor,
    rows: CompletionRows,
    desirable: Vec<bool>,
}

impl Given {
    fn new(policy: [Vec<f64>; 2], reference: [Vec<f64>; 2], tokens: usize) -> Given {
        assert_eq!(
            [0, 1].map(|side| policy[side].len()),
            [0, 1].map(|side| reference[side].len())
        );
        let [n_desirable, n_undesirable] = [0, 1].map(|side| policy[side].len() / tokens);
        Given {
            stats: stats_of(&policy.concat()),
            reference: Tensor::from_slice(&reference.concat()),
            rows: CompletionRows::new(&vec![tokens; n_desirable + n_undesirable], Device::Cpu).unwrap(),
            desirable: [vec![true; n_desirable], vec![false; n_undesirable]].concat(),
        }
    }

    fn batch(&self, baseline: Option<f64>) -> Batch<'_> {
        Batch {
            stats: &self.stats,
            rows: &self.rows,
            desirable: &self.desirable,
            reference: Some(&self.reference),
            baseline,
            weights: None,
        }
    }

    fn labelled(&self, loss: &Loss) -> Labelled {
        Objective::from(loss.clone()).labelled(&self.batch(None)).unwrap()
    }

    fn run(&self, loss: &Loss, baseline: Option<f64>) -> LossValue {
        let counts = UnpairedCounts::of(&self.rows, &self.desirable).unwrap();
        let value = Objective::from(loss.clone()).evaluate(&self.batch(baseline), &counts);
        let value = value.unwrap();
        value.total.backward();
        value
    }
}

/// Compares losses per completion, their mean and the gradient of the mean with respect to the log-probabilities.
fn compare(golden: &Golden, case: &Value, given: &Given, value: &LossValue, gradient: [&str; 2]) {
    let (id, rtol) = (id(case), golden.rtol);
    let theirs = floats(&case["outputs"]["losses"]);
    let n = theirs.len() as f64;
    let ours: Vec<f64> = numbers(&value.per_example).iter().map(|x| x * n).collect();
    all_close(id, &ours, &theirs, rtol);
    close(id, total(value), theirs.iter().sum::<f64>() / n, rtol);
    if let Some(theirs) = case["outputs"].get("loss_nanmean") {
        close(id, total(value), number(theirs), rtol);
    }
    let theirs = gradient.map(|key| floats(&case["grads"][key])).concat();
    all_close(
        &format!("{id} gradient"),
        &numbers(&given.stats.logp.grad()),
        &theirs,
        rtol,
    );
}

/// Compares rewards per completion and their means in the terms.
fn compare_rewards(golden: &Golden, case: &Value, rewards: &[f64], value: &LossValue, scale: f64) {
    let (id, rtol) = (id(case), golden.exact());
    let theirs = ["chosen_rewards", "rejected_rewards"].map(|key| -> Vec<f64> {
        let theirs = floats(&case["outputs"][key]);
        theirs.iter().map(|reward| scale * reward).collect()
    });
    all_close(&format!("{id} reward"), rewards, &theirs.concat(), rtol);
    for (name, theirs) in ["reward_desirable", "reward_undesirable"].into_iter().zip(theirs) {
        if theirs.is_empty() {
            assert!(value.terms.iter().all(|(own, _)| *own != name), "{id} {name}");
            continue;
        }
        let mean = theirs.iter().sum::<f64>() / theirs.len() as f64;
        close(&format!("{id} {name}"), term(value, name), mean, rtol);
    }
}

const TRL_GRADIENTS: [&str; 2] = [
    "loss_nanmean_wrt_policy_chosen_logps",
    "loss_nanmean_wrt_policy_rejected_logps",
];

/// The four columns of TRL's cases as completions of one token each.
fn trl(inputs: &Value) -> Given {
    Given::new(
        ["policy_chosen_logps", "policy_rejected_logps"].map(|key| floats(&inputs[key])),
        ["ref_chosen_logps", "ref_rejected_logps"].map(|key| floats(&inputs[key])),
        1,
    )
}

pub(crate) fn kto_trl(golden: &Golden) -> (usize, usize) {
    for case in &golden.cases {
        let id = id(case);
        let parameter = |name: &str| number(&case["params"][name]);
        let inputs = &case["inputs"];
        let (beta, desirable_weight, undesirable_weight) = (
            parameter("beta"),
            parameter("desirable_weight"),
            parameter("undesirable_weight"),
        );
        let given = trl(inputs);
        let kl = number(&case["outputs"]["kl"]);
        let (loss, baseline) = match case["params"]["loss_type"].as_str().unwrap() {
            "kto" => {
                let logps = ["policy_kl_logps", "ref_kl_logps"].map(|key| floats(&inputs[key]));
                let ours = kl_of(&logps);
                close(&format!("{id} kl"), ours, kl, golden.rtol);
                let loss = Loss::Kto(Kto {
                    beta,
                    desirable_weight,
                    undesirable_weight,
                });
                (loss, Some(ours))
            }
            "apo_zero_unpaired" => {
                close(&format!("{id} has no kl"), 0.0, kl, golden.rtol);
                let loss = Loss::ApoZeroUnpaired(ApoZeroUnpaired {
                    beta,
                    desirable_weight,
                    undesirable_weight,
                });
                (loss, None)
            }
            other => panic!("{id}: {other}"),
        };
        let value = given.run(&loss, baseline);
        compare(golden, case, &given, &value, TRL_GRADIENTS);
        let rewards = numbers(&loss.rewards(&given.labelled(&loss)).unwrap());
        compare_rewards(golden, case, &rewards, &value, 1.0);
    }
    (golden.cases.len(), 0)
}

/// What mismatched completions say of the KL: log-probabilities of the policy and of the reference.
fn kl_of([policy, reference]: &[Vec<f64>; 2]) -> f64 {
    assert_eq!(policy.len(), reference.len());
    mismatched_kl(&Tensor::from_slice(policy), &Tensor::from_slice(reference)).unwrap()
}

pub(crate) fn kto_halos(golden: &Golden) -> (usize, usize) {
    for case in &golden.cases {
        let (id, inputs) = (id(case), &case["inputs"]);
        let beta = number(&case["params"]["beta"]);
        let sums = |key: &str| -> Vec<f64> { rows_of(&inputs[key]).iter().map(|row| row.iter().sum()).collect() };
        assert_eq!(shape(&inputs["policy_kl"]), shape(&inputs["ref_kl"]), "{id}");
        let width = shape(&inputs["policy_kl"])[1];
        // Rows with a log-ratio of exactly 0 are left out there.
        let (policy, reference): (Vec<f64>, Vec<f64>) = (sums("policy_kl").into_iter())
            .zip(sums("ref_kl"))
            .filter(|(policy, reference)| (policy - reference).abs() > 0.0)
            .unzip();
        let baseline = kl_of(&[policy, reference]);
        close(
            &format!("{id} kl"),
            baseline,
            number(&case["outputs"]["kl"]),
            golden.rtol,
        );
        // A masked token has log-probability 0 on both sides, so it is like one that is certain.
        let of = |keys: [&str; 2]| {
            keys.map(|key| {
                assert!(matches!(shape(&inputs[key])[..], [0] | [_, _]), "{id} {key}");
                assert!(rows_of(&inputs[key]).iter().all(|row| row.len() == width), "{id} {key}");
                floats(&inputs[key])
            })
        };
        let given = Given::new(
            of(["policy_chosen", "policy_rejected"]),
            of(["ref_chosen", "ref_rejected"]),
            width,
        );
        let loss = Loss::Kto(Kto {
            beta,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
        });
        let value = given.run(&loss, Some(baseline));
        let gradients = ["loss_mean_wrt_policy_chosen", "loss_mean_wrt_policy_rejected"];
        compare(golden, case, &given, &value, gradients);
        // Their rewards are log-ratios.
        let rewards = numbers(&loss.rewards(&given.labelled(&loss)).unwrap());
        compare_rewards(golden, case, &rewards, &value, beta);
    }
    (golden.cases.len(), 0)
}

/// Consecutive steps of one run. The reference keeps the running mean in `f32`, and so the file suggests its tolerance. It
/// also keeps a variance, which no loss reads.
pub(crate) fn bco(golden: &Golden) -> (usize, usize) {
    let mut mean = RunningMean::default();
    let mut seen = 0.0;
    for case in &golden.cases {
        let (id, running) = (id(case), &case["outputs"]["running"]);
        let loss = Loss::Bco(Bco {
            beta: number(&case["params"]["beta"]),
            density_ratios: false,
        });
        let given = trl(&case["inputs"]);
        let rewards = numbers(&loss.rewards(&given.labelled(&loss)).unwrap());
        mean.update(&rewards).unwrap();
        seen += rewards.len() as f64;
        close(id, mean.mean(), number(&case["outputs"]["delta"]), golden.rtol);
        close(id, mean.mean(), number(&running["mean"]), golden.rtol);
        close(id, seen, number(&running["count"]), golden.exact());
        let value = given.run(&loss, Some(mean.mean()));
        compare(golden, case, &given, &value, TRL_GRADIENTS);
    }
    (golden.cases.len(), 0)
}

pub(crate) fn npo(golden: &Golden) -> (usize, usize) {
    for case in &golden.cases {
        let id = id(case);
        let (kind, beta) = (
            case["params"]["kind"].as_str().unwrap(),
            number(&case["params"]["beta"]),
        );
        let inputs = &case["inputs"];
        let forget = Sequences::of(inputs, "policy_logits", "labels");
        let reference = Sequences::of(inputs, "ref_logits", "labels");
        let nll: Vec<f64> = forget.sums().iter().map(|sum| -sum).collect();
        all_close(
            &format!("{id} nll"),
            &nll,
            &floats(&case["outputs"]["forget_nll_sum"]),
            golden.rtol,
        );
        let theirs = number(&case["outputs"]["loss"]);
        let gradient = floats(&case["grads"]["loss_wrt_policy_logits"]);
        let compare_gradient = |ours: &Tensor| {
            all_close(&format!("{id} gradient"), &numbers(ours), &gradient, golden.rtol);
        };
        let loss = match kind {
            "npo" => Loss::Npo(Npo { beta }),
            // The reference also counts a first label, which no logits predict. Cases must have none.
            "simnpo" => {
                let first = inputs["labels"].as_array().unwrap().iter().map(|row| &row[0]);
                assert!(
                    first.into_iter().all(|label| label == -100),
                    "{id}: a first label counts"
                );
                Loss::Simnpo(Simnpo {
                    beta,
                    delta: number(&case["params"]["delta"]),
                })
            }
            // Not DPO: they scale it by 2/beta, as NPO.
            "dpo_2_over_beta" => {
                let win = Sequences::of(inputs, "win_policy_logits", "win_labels");
                let win_reference = Sequences::of(inputs, "win_ref_logits", "win_labels");
                let win_positions = win.logits.size()[0];
                let (pairs, reference) = (win.then(&forget), win_reference.then(&reference));
                let objective = paired::Objective::from(paired::Loss::Dpo(Dpo {
                    beta,
                    label_smoothing: 0.0,
                }));
                let (leaf, op) = pairs.op(&objective.needs());
                let (stats, rows) = (op.forward().unwrap(), pairs.rows());
                let batch = paired::Batch {
                    stats: &stats,
                    rows: &rows,
                    reference: Some(&reference.logps()),
                    draws: None,
                    baseline: None,
                };
                let value = objective.evaluate(&batch, &PairCounts::of(&rows)).unwrap();
                let scaled = value.total * (2.0 / beta);
                close(id, scaled.double_value(&[]), theirs, golden.rtol);
                scaled.backward();
                op.surrogate(&stats).unwrap().backward();
                let own = leaf.grad().narrow(0, win_positions, forget.logits.size()[0]);
                compare_gradient(&own);
                continue;
            }
            other => panic!("{id}: {other}"),
        };
        let objective = Objective::from(loss);
        let (leaf, op) = forget.op(&objective.needs());
        let (stats, rows) = (op.forward().unwrap(), forget.rows());
        let desirable = vec![false; rows.n_completions()];
        let reference = reference.logps();
        let batch = Batch {
            stats: &stats,
            rows: &rows,
            desirable: &desirable,
            reference: objective.uses_reference().then_some(&reference),
            baseline: None,
            weights: None,
        };
        let counts = UnpairedCounts::of(&rows, &desirable).unwrap();
        let value = objective.evaluate(&batch, &counts).unwrap();
        close(id, total(&value), theirs, golden.rtol);
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        compare_gradient(&leaf.grad());
    }
    (golden.cases.len(), 0)
}
