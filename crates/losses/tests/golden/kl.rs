//! Estimates of the KL to the reference, and the KL itself.

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unsay_losses::policy::kl::{KlClamp, KlEstimator};
use unsay_losses::policy::{Aggregate, Batch, KlPenalty, Loss, Objective, PolicyCounts, Reinforce};
use unsay_losses::{CompletionRows, TokenOp};

use crate::files::{Golden, all_close, close, floats, id, shape, total};
use crate::plain::{difference, numbers};

/// What `f32` can do.
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

fn estimates(golden: &Golden, case: &Value) -> (usize, usize) {
    let id = id(case);
    let given = |name: &str| floats(&case["inputs"][name]);
    let (logps, references) = (given("logprobs"), given("ref_logprobs"));
    let (mut values, mut gradients) = (0, 0);
    for (name, theirs) in case["outputs"].as_object().unwrap() {
        let what = format!("{id} {name}");
        let output = OUTPUTS.into_iter().find(|(own, ..)| own == name);
        let (_, estimator, clamp, kind) = output.unwrap_or_else(|| panic!("{what}: no such estimate"));
        let logp = Tensor::from_slice(&logps).to_kind(kind).set_requires_grad(true);
        let reference = Tensor::from_slice(&references).to_kind(kind);
        let ours = estimator.per_token(&logp, &reference, &clamp).unwrap();
        let theirs = floats(theirs);
        if kind == Kind::Double {
            all_close(&what, &numbers(&ours), &theirs, golden.exact());
        } else {
            let own = numbers(&ours);
            assert_eq!([own.len(), logps.len(), references.len()], [theirs.len(); 3], "{what}");
            for ((ours, theirs), d) in own.iter().zip(theirs).zip(logps.iter().zip(&references)) {
                // In `f32`, the reference subtracts from `e^{−d}` what is close to it: its error is that of the
                // larger number.
                let rounding = f64::from(f32::EPSILON) * (1.0 + (d.1 - d.0).exp()).min(1e3);
                let bound = golden.rtol.max(SINGLE) * theirs.abs() + rounding;
                assert!((ours - theirs).abs() <= bound, "{what}: {ours} is not {theirs}");
            }
            // Ours in `f32` against ours in `f64`: without that error.
            let wide = |x: &[f64]| Tensor::from_slice(x).to_kind(Kind::Float).to_kind(Kind::Double);
            let exact = estimator.per_token(&wide(&logps), &wide(&references), &clamp).unwrap();
            all_close(&what, &own, &numbers(&exact), SINGLE);
        }
        values += 1;
        if let Some(theirs) = case["grads"].get(format!("{name}_sum_wrt_logprob")) {
            ours.sum(kind).backward();
            all_close(
                &format!("{what} gradient"),
                &numbers(&logp.grad()),
                &floats(theirs),
                golden.exact(),
            );
            gradients += 1;
        }
    }
    assert_eq!(
        gradients,
        case["grads"].as_object().map_or(0, serde_json::Map::len),
        "{id}"
    );
    (values, gradients)
}

pub(crate) fn estimators(golden: &Golden) -> (usize, usize) {
    let (mut values, mut gradients, mut full) = (0, 0, 0);
    let rtol = golden.exact();
    for case in &golden.cases {
        if case["inputs"].get("logprobs_all").is_none() {
            let (v, g) = estimates(golden, case);
            values += v;
            gradients += g;
            continue;
        }
        // The whole distributions: log-probabilities are logits, and the op has the KL as a column.
        let id = id(case);
        let v = shape(&case["inputs"]["logprobs_all"])[2] as i64;
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
        let theirs = floats(&case["outputs"]["trl_legacy_full"]);
        all_close(id, &numbers(stats.kl.as_ref().unwrap()), &theirs, rtol);
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
        close(&format!("{id} penalty"), total(&value), 0.5 * mean, rtol);
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        let plain = policy.detach().set_requires_grad(true);
        let logps = plain.log_softmax(-1, None);
        let divergence = logps.exp() * (&logps - reference.log_softmax(-1, None));
        (divergence.sum(Kind::Double) * (0.5 / theirs.len() as f64)).backward();
        assert!(numbers(&plain.grad()).iter().any(|x| x.abs() > 0.0));
        let what = format!("{id} gradient of the penalty");
        assert!(difference(&hidden.grad(), &plain.grad()) < 1e-12, "{what}");
        // On average over the policy's distribution, k1 and k3 are the same number.
        for estimator in [KlEstimator::K1, KlEstimator::K3] {
            let each = estimator.per_token(&policy, &reference, &FREE).unwrap();
            let mean = (policy.exp() * each).sum_dim_intlist([-1i64].as_slice(), false, None);
            all_close(&format!("{id} {estimator:?}"), &numbers(&mean), &theirs, rtol);
        }
        full += 1;
    }
    assert!((values, gradients, full) == (36, 18, 1) || !golden.committed);
    (golden.cases.len(), 0)
}
