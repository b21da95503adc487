//! Unpaired losses: KTO, APO-zero, BCO, NPO and SimNPO.

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unsay_losses::paired::{self, Dpo, PairCounts};
use unsay_losses::unpaired::{
    ApoZeroUnpaired, Batch, Bco, Kto, Labelled, Loss, Npo, Objective, Simnpo, UnpairedCounts,
};
use unsay_losses::{CompletionRows, LossValue, RunningMean, TokenStats, mismatched_kl};

use crate::causal::Sequences;
use crate::files::{TOLERANCE, cases, close, close_to, counted, floats};
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
fn compare(id: &str, given: &Given, value: &LossValue, case: &Value, gradient: [&str; 2], tolerance: f64) {
    let theirs = floats(&case["outputs"]["losses"]);
    let n = theirs.len() as f64;
    let ours = numbers(&value.per_example);
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        close_to(id, ours * n, *theirs, tolerance);
    }
    let mean = theirs.iter().sum::<f64>() / n;
    close_to(id, value.total.double_value(&[]), mean, tolerance);
    if let Some(theirs) = case["outputs"].get("loss_nanmean") {
        close_to(id, value.total.double_value(&[]), theirs.as_f64().unwrap(), tolerance);
    }
    let theirs = gradient.map(|key| floats(&case["grads"][key])).concat();
    let ours = numbers(&given.stats.logp.grad());
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        close_to(&format!("{id} gradient"), *ours, theirs, tolerance);
    }
}

/// Compares rewards per completion and their means in the terms.
fn compare_rewards(id: &str, rewards: &[f64], value: &LossValue, theirs: [Vec<f64>; 2]) {
    assert_eq!(rewards.len(), theirs.concat().len());
    for (ours, theirs) in rewards.iter().zip(theirs.concat()) {
        close(&format!("{id} reward"), *ours, theirs);
    }
    let names = ["reward_desirable", "reward_undesirable"];
    for (name, theirs) in names.into_iter().zip(theirs) {
        let term = value.terms.iter().find(|(own, _)| *own == name);
        assert_eq!(term.is_some(), !theirs.is_empty(), "{id} {name}");
        if let Some((_, ours)) = term {
            let mean = theirs.iter().sum::<f64>() / theirs.len() as f64;
            close(&format!("{id} {name}"), ours.double_value(&[]), mean);
        }
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

#[test]
fn golden_kto_and_apo_zero_unpaired_equal_trl() {
    let mut compared = 0;
    for case in cases("kto_trl024") {
        let id = case["id"].as_str().unwrap();
        let parameter = |name: &str| case["params"][name].as_f64().unwrap();
        let inputs = &case["inputs"];
        let (beta, desirable_weight, undesirable_weight) = (
            parameter("beta"),
            parameter("desirable_weight"),
            parameter("undesirable_weight"),
        );
        let given = trl(inputs);
        let kl = case["outputs"]["kl"].as_f64().unwrap();
        let (loss, baseline) = match case["params"]["loss_type"].as_str().unwrap() {
            "kto" => {
                let logps = ["policy_kl_logps", "ref_kl_logps"].map(|key| Tensor::from_slice(&floats(&inputs[key])));
                let ours = mismatched_kl(&logps[0], &logps[1]).unwrap();
                close(&format!("{id} kl"), ours, kl);
                let loss = Loss::Kto(Kto {
                    beta,
                    desirable_weight,
                    undesirable_weight,
                });
                (loss, Some(ours))
            }
            "apo_zero_unpaired" => {
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
        compare(id, &given, &value, &case, TRL_GRADIENTS, TOLERANCE);
        let rewards = numbers(&loss.rewards(&given.labelled(&loss)).unwrap());
        let theirs = ["chosen_rewards", "rejected_rewards"].map(|key| floats(&case["outputs"][key]));
        compare_rewards(id, &rewards, &value, theirs);
        compared += 1;
    }
    counted("kto_trl024", (compared, 0), (6, 0));
}

#[test]
fn golden_kto_equals_halos_token_by_token() {
    let mut compared = 0;
    for case in cases("kto_halos") {
        let id = case["id"].as_str().unwrap();
        let beta = case["params"]["beta"].as_f64().unwrap();
        let inputs = &case["inputs"];
        let sums = |key: &str| -> Vec<f64> {
            let rows = inputs[key].as_array().unwrap();
            rows.iter().map(|row| floats(row).iter().sum()).collect()
        };
        let width = inputs["policy_kl"][0].as_array().unwrap().len();
        // Rows with a log-ratio of exactly 0 are left out there.
        let (policy, reference): (Vec<f64>, Vec<f64>) = (sums("policy_kl").into_iter())
            .zip(sums("ref_kl"))
            .filter(|(policy, reference)| (policy - reference).abs() > 0.0)
            .unzip();
        let baseline = mismatched_kl(&Tensor::from_slice(&policy), &Tensor::from_slice(&reference)).unwrap();
        close(&format!("{id} kl"), baseline, case["outputs"]["kl"].as_f64().unwrap());
        // A masked token has log-probability 0 on both sides, so it is like one that is certain.
        let given = Given::new(
            ["policy_chosen", "policy_rejected"].map(|key| floats(&inputs[key])),
            ["ref_chosen", "ref_rejected"].map(|key| floats(&inputs[key])),
            width,
        );
        let loss = Loss::Kto(Kto {
            beta,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
        });
        let value = given.run(&loss, Some(baseline));
        let gradients = ["loss_mean_wrt_policy_chosen", "loss_mean_wrt_policy_rejected"];
        compare(id, &given, &value, &case, gradients, TOLERANCE);
        // Their rewards are log-ratios.
        let rewards = numbers(&loss.rewards(&given.labelled(&loss)).unwrap());
        let theirs = ["chosen_rewards", "rejected_rewards"]
            .map(|key| floats(&case["outputs"][key]).iter().map(|ratio| beta * ratio).collect());
        compare_rewards(id, &rewards, &value, theirs);
        compared += 1;
    }
    counted("kto_halos", (compared, 0), (4, 0));
}

#[test]
fn golden_bco_equals_trl_over_the_steps_of_a_run() {
    // The file's tolerance: the reference keeps the running mean in `f32`.
    let tolerance = 1e-6;
    let mut mean = RunningMean::default();
    let mut seen = 0.0;
    let mut compared = 0;
    for case in cases("bco_trl024") {
        let id = case["id"].as_str().unwrap();
        let loss = Loss::Bco(Bco {
            beta: case["params"]["beta"].as_f64().unwrap(),
            density_ratios: false,
        });
        let given = trl(&case["inputs"]);
        let rewards = numbers(&loss.rewards(&given.labelled(&loss)).unwrap());
        mean.update(&rewards).unwrap();
        seen += rewards.len() as f64;
        let outputs = &case["outputs"];
        close_to(id, mean.mean(), outputs["delta"].as_f64().unwrap(), tolerance);
        close(id, seen, outputs["running"]["count"].as_f64().unwrap());
        let value = given.run(&loss, Some(mean.mean()));
        compare(id, &given, &value, &case, TRL_GRADIENTS, tolerance);
        compared += 1;
    }
    counted("bco_trl024", (compared, 0), (5, 0));
}

#[test]
fn golden_npo_and_simnpo_equal_open_unlearning_from_logits() {
    let mut compared = 0;
    for case in cases("npo") {
        let id = case["id"].as_str().unwrap();
        let (kind, beta) = (
            case["params"]["kind"].as_str().unwrap(),
            case["params"]["beta"].as_f64().unwrap(),
        );
        let inputs = &case["inputs"];
        let forget = Sequences::of(inputs, "policy_logits", "labels");
        let reference = Sequences::of(inputs, "ref_logits", "labels");
        for (ours, theirs) in forget.sums().iter().zip(floats(&case["outputs"]["forget_nll_sum"])) {
            close(&format!("{id} nll"), -ours, theirs);
        }
        let theirs = case["outputs"]["loss"].as_f64().unwrap();
        let gradient = floats(&case["grads"]["loss_wrt_policy_logits"]);
        let compare_gradient = |ours: &Tensor| {
            let ours = numbers(ours);
            assert_eq!(ours.len(), gradient.len());
            for (ours, theirs) in ours.iter().zip(&gradient) {
                close(&format!("{id} gradient"), *ours, *theirs);
            }
        };
        let loss = match kind {
            "npo" => Loss::Npo(Npo { beta }),
            // The reference also counts a first label, which no logits predict. No case has one.
            "simnpo" => {
                let first = inputs["labels"].as_array().unwrap().iter().map(|row| &row[0]);
                assert!(first.into_iter().all(|label| label == -100), "{id}");
                Loss::Simnpo(Simnpo {
                    beta,
                    delta: case["params"]["delta"].as_f64().unwrap(),
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
                close(id, scaled.double_value(&[]), theirs);
                scaled.backward();
                op.surrogate(&stats).unwrap().backward();
                let own = leaf.grad().narrow(0, win_positions, forget.logits.size()[0]);
                compare_gradient(&own);
                compared += 1;
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
        close(id, value.total.double_value(&[]), theirs);
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        compare_gradient(&leaf.grad());
        compared += 1;
    }
    counted("npo", (compared, 0), (5, 0));
}
