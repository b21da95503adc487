//! Pairs as whole sequences of logits, and objectives over them as TRL names them.

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unsay_losses::paired::{Batch, Objective, PairCounts};
use unsay_losses::{CompletionRows, LossValue, Needs, TokenOp};

use crate::files::{floats, id, integers, shape, term};
use crate::plain::numbers;

/// An objective as a manifest has it.
pub(crate) fn objective(text: Value) -> Objective {
    let objective: Objective = serde_json::from_value(text).unwrap();
    assert_eq!(objective.problems().len(), 0, "{objective:?}");
    objective
}

/// A loss as TRL names it; the version that the names are of decides what `aot_pair` is.
pub(crate) fn trl(name: &str, params: &Value) -> Value {
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
pub(crate) struct Sequences {
    pub(crate) logits: Vec<f64>,
    reference: Vec<f64>,
    ids: Vec<i64>,
    counted: Vec<bool>,
    length: usize,
}

/// What our side gives for [`Sequences`].
pub(crate) struct Ours {
    pub(crate) value: LossValue,
    /// Of each completion, chosen ones first.
    pub(crate) rewards: Vec<f64>,
    pub(crate) logps: Vec<f64>,
    pub(crate) reference: Vec<f64>,
    /// The log-probabilities that the loss reads.
    pub(crate) read: Vec<f64>,
    pub(crate) lengths: Vec<i64>,
    /// Of the policy, on average over the tokens that count.
    pub(crate) entropy: f64,
    /// With zeros where a logit predicts nothing that counts.
    pub(crate) gradient: Vec<f64>,
}

impl Ours {
    pub(crate) fn term(&self, name: &str) -> f64 {
        term(&self.value, name)
    }
}

impl Sequences {
    /// From a case with logits of policy and reference, ids (or labels) and which of them count.
    pub(crate) fn of(case: &Value, ids: &str, counted: Vec<bool>) -> Sequences {
        let inputs = &case["inputs"];
        let table = shape(&inputs[ids]);
        let logits = shape(&inputs["policy_logits"]);
        assert_eq!(
            (&logits[..2], counted.len()),
            (&table[..], table[0] * table[1]),
            "{}",
            id(case)
        );
        assert_eq!(shape(&inputs["ref_logits"]), logits, "{}", id(case));
        Sequences {
            logits: floats(&inputs["policy_logits"]),
            reference: floats(&inputs["ref_logits"]),
            ids: integers(&inputs[ids]),
            counted,
            length: table[1],
        }
    }

    /// Runs an objective through the op: the hidden states are the logits and the embedding is the identity. The logits
    /// at one position predict the token at the next: the only shift there is.
    pub(crate) fn run(&self, objective: &Objective) -> Ours {
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
        let needs = Needs {
            entropy: true,
            ..objective.needs()
        };
        let op = TokenOp::new(&logits, &identity, &targets, &needs).unwrap();
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
            reference: numbers(&rows.sums(&reference).unwrap()),
            entropy: stats.entropy.as_ref().unwrap().mean(Kind::Double).double_value(&[]),
            lengths: rows.lengths().to_vec(),
            gradient,
        }
    }
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
