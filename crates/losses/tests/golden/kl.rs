//! Estimates of the KL to the reference, and the KL itself.

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unsay_losses::policy::kl::{KlClamp, KlEstimator};
use unsay_losses::policy::{Aggregate, Batch, KlPenalty, Loss, Objective, PolicyCounts, Reinforce};
use unsay_losses::{CompletionRows, TokenOp};

use crate::files::{cases, close, close_to, committed, counted, floats};
use crate::plain::numbers;

/// What `f32` can do: the tolerance that the file suggests.
const SINGLE: f64 = 1e-5;

const FREE: KlClamp = KlClamp {
    log_ratio: None,
    value: None,
};

/// OpenRLHF holds every estimate.
const OPENRLHF: KlClamp = KlClamp {
    log_ratio: None,
    value: Some(10.0),
};

/// verl holds `k3` alone, twice.
const VERL_K3: KlClamp = KlClamp {
    log_ratio: Some(20.0),
    value: Some(10.0),
};

/// What each output of the reference is here.
const OUTPUTS: [(&str, KlEstimator, KlClamp, Kind); 12] = [
    ("openrlhf_k1_float32_clamped10", KlEstimator::K1, OPENRLHF, Kind::Float),
    ("openrlhf_k2_float32_clamped10", KlEstimator::K2, OPENRLHF, Kind::Float),
    ("openrlhf_k3_float32_clamped10", KlEstimator::K3, OPENRLHF, Kind::Float),
    ("trl_legacy_kl", KlEstimator::K1, FREE, Kind::Double),
    ("trl_legacy_abs", KlEstimator::Abs, FREE, Kind::Double),
    ("trl_legacy_mse", KlEstimator::K2, FREE, Kind::Double),
    ("verl_k1", KlEstimator::K1, FREE, Kind::Double),
    ("verl_abs", KlEstimator::Abs, FREE, Kind::Double),
    ("verl_k2", KlEstimator::K2, FREE, Kind::Double),
    ("verl_k3", KlEstimator::K3, VERL_K3, Kind::Double),
    ("verl_k1+", KlEstimator::K1WithK2Gradient, FREE, Kind::Double),
    ("verl_k3+", KlEstimator::K3WithK2Gradient, VERL_K3, Kind::Double),
];

fn estimates(case: &Value) -> (usize, usize) {
    let id = case["id"].as_str().unwrap();
    let (logps, references) = (
        floats(&case["inputs"]["logprobs"]),
        floats(&case["inputs"]["ref_logprobs"]),
    );
    let (mut values, mut gradients) = (0, 0);
    assert_eq!(case["outputs"].as_object().unwrap().len(), OUTPUTS.len(), "{id}");
    for (name, estimator, clamp, kind) in OUTPUTS {
        let what = format!("{id} {name}");
        let logp = Tensor::from_slice(&logps).to_kind(kind).set_requires_grad(true);
        let reference = Tensor::from_slice(&references).to_kind(kind);
        let ours = estimator.per_token(&logp, &reference, &clamp).unwrap();
        let theirs = floats(&case["outputs"][name]);
        assert_eq!(numbers(&ours).len(), theirs.len(), "{what}");
        for ((ours, theirs), d) in numbers(&ours).iter().zip(theirs).zip(logps.iter().zip(&references)) {
            if kind == Kind::Double {
                close(&what, *ours, theirs);
            } else {
                // In `f32`, the reference subtracts from `e^{−d}` what is close to it: its error is that of the
                // larger number.
                let rounding = f64::from(f32::EPSILON) * (1.0 + (d.1 - d.0).exp()).min(1e3);
                let bound = SINGLE * theirs.abs() + rounding;
                assert!((ours - theirs).abs() <= bound, "{what}: {ours} is not {theirs}");
            }
        }
        if kind == Kind::Float {
            // Ours in `f32` against ours in `f64`: without that error.
            let wide = |x: &[f64]| Tensor::from_slice(x).to_kind(Kind::Float).to_kind(Kind::Double);
            let exact = estimator.per_token(&wide(&logps), &wide(&references), &clamp).unwrap();
            for (ours, exact) in numbers(&ours).iter().zip(numbers(&exact)) {
                close_to(&what, *ours, exact, SINGLE);
            }
        }
        values += 1;
        if let Some(theirs) = case["grads"].get(format!("{name}_sum_wrt_logprob")) {
            ours.sum(kind).backward();
            for (ours, theirs) in numbers(&logp.grad()).iter().zip(floats(theirs)) {
                close(&format!("{what} gradient"), *ours, theirs);
            }
            gradients += 1;
        }
    }
    assert_eq!(gradients, case["grads"].as_object().unwrap().len(), "{id}");
    (values, gradients)
}

#[test]
fn golden_kl_estimators_equal_those_of_three_libraries() {
    let (mut values, mut gradients, mut full) = (0, 0, 0);
    for case in cases("kl_estimators") {
        if case["id"] != "full" {
            let (v, g) = estimates(&case);
            values += v;
            gradients += g;
            continue;
        }
        // The whole distributions: log-probabilities are logits, and the op has the KL as a column.
        let all = case["inputs"]["logprobs_all"].as_array().unwrap();
        let v = all[0][0].as_array().unwrap().len() as i64;
        let of = |name: &str| Tensor::from_slice(&floats(&case["inputs"][name])).view([-1, v]);
        let (policy, reference) = (of("logprobs_all"), of("ref_logprobs_all"));
        let identity = Tensor::eye(v, (Kind::Double, Device::Cpu));
        let targets = Tensor::zeros([policy.size()[0]], (Kind::Int64, Device::Cpu));
        let penalty = KlPenalty {
            estimator: KlEstimator::Full,
            coefficient: 0.5,
            clamp: FREE,
        };
        let objective = Objective {
            kl: Some(penalty),
            ..Objective::new(Loss::Reinforce(Reinforce {}), Aggregate::TokenMean)
        };
        let hidden = policy.detach().set_requires_grad(true);
        let op = TokenOp::new(&hidden, &identity, &targets, &objective.needs()).unwrap();
        let op = op.with_reference(&reference, &identity).unwrap();
        let stats = op.forward().unwrap();
        let ours = numbers(stats.kl.as_ref().unwrap());
        let theirs = floats(&case["outputs"]["trl_legacy_full"]);
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            close("full", *ours, *theirs);
        }
        // As a penalty, on tokens of no advantage: its mean, with the gradient that autograd has through all scores.
        let rows = CompletionRows::new(&vec![1; theirs.len()], Device::Cpu).unwrap();
        let batch = Batch {
            stats: &stats,
            old: &stats.logp,
            advantage: &stats.logp.detach().zeros_like(),
            reference: None,
            rows: &rows,
        };
        let value = objective.evaluate(&batch, &PolicyCounts::of(&rows)).unwrap();
        let mean = theirs.iter().sum::<f64>() / theirs.len() as f64;
        close("full penalty", value.total.double_value(&[]), 0.5 * mean);
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        let plain = policy.detach().set_requires_grad(true);
        let logps = plain.log_softmax(-1, None);
        let divergence = logps.exp() * (&logps - reference.log_softmax(-1, None));
        (divergence.sum(Kind::Double) * (0.5 / theirs.len() as f64)).backward();
        assert!(numbers(&plain.grad()).iter().any(|x| x.abs() > 1e-3));
        for (ours, plain) in numbers(&hidden.grad()).iter().zip(numbers(&plain.grad())) {
            assert!((ours - plain).abs() < 1e-12, "{ours} is not {plain}");
        }
        // On average over the policy's distribution, k1 and k3 are the same number.
        for estimator in [KlEstimator::K1, KlEstimator::K3] {
            let each = estimator.per_token(&policy, &reference, &FREE).unwrap();
            let mean = (policy.exp() * each).sum_dim_intlist([-1i64].as_slice(), false, None);
            for (ours, theirs) in numbers(&mean).iter().zip(&theirs) {
                close(&format!("full {estimator:?}"), *ours, *theirs);
            }
        }
        full += 1;
    }
    counted("kl_estimators", (cases("kl_estimators").len(), 0), (4, 0));
    assert!((values, gradients, full) == (36, 18, 1) || !committed());
}
