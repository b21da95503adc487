//! Losses of reinforcement learning: those of OpenRLHF, verl and trlx, and GRPO.

use tch::Tensor;
use unsay_losses::policy::kl::{KlClamp, KlEstimator};
use unsay_losses::policy::{
    Aggregate, Batch, Cispo, Grpo, Gspo, KlPenalty, Loss, Objective, PolicyCounts, Ppo, ValueBatch, ValueLoss,
};
use unsay_losses::{CompletionRows, LossValue};

use crate::advantages::normalised;
use crate::files::{Golden, all_close, close, floats, id, number, shape, term, total};
use crate::plain::numbers;
use crate::table::{Table, leaf, run, stats};

/// Of numbers that the reference divided by a number of tokens `+ 1e-8`.
const NEAR: f64 = 1e-8;

/// Reason: one reference takes another advantage for each token of a completion, where its loss has one ratio for all of
/// them, and that is refused here. Its value and gradient are the means over the choices of one token's advantage for the
/// whole of each completion: each token is chosen as often as the others of its completion.
fn one_at_a_time(rows: &CompletionRows, advantage: &Tensor) -> Vec<Tensor> {
    let given = numbers(advantage);
    let lengths: Vec<usize> = rows.lengths().iter().map(|&n| n as usize).collect();
    let run = |number: usize| -> Tensor {
        let mut start = 0;
        let mut chosen = Vec::new();
        for &n in &lengths {
            chosen.extend(vec![given[start + number % n]; n]);
            start += n;
        }
        Tensor::from_slice(&chosen)
    };
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let runs = lengths.iter().fold(1, |all, &n| all / gcd(all, n) * n);
    (0..runs).map(run).collect()
}

pub(crate) fn policy_and_value(golden: &Golden) -> (usize, usize) {
    let (mut policies, mut critics) = (0, 0);
    for case in &golden.cases {
        let id = id(case);
        let (inputs, outputs, params) = (&case["inputs"], &case["outputs"], &case["params"]);
        let table = Table::of_mask(&inputs["mask"]);
        for (name, list) in inputs.as_object().unwrap() {
            assert_eq!(shape(list), shape(&inputs["mask"]), "{id} {name}");
        }
        let rows = table.rows();
        let counts = PolicyCounts::of(&rows);
        // Shares of tokens are divided by their number `+ 1e-8` by one reference: little in the committed numbers.
        let nearly = if golden.committed {
            golden.rtol
        } else {
            golden.rtol.max(NEAR)
        };
        let mut rtol = golden.rtol;
        let mut loss = 0.0;
        let clip = |names: &[&str]| names.iter().find_map(|name| params[*name].as_f64());
        let given = |names: [&str; 2]| names.iter().any(|name| params.get(*name).is_some());
        let (has_policy, has_critic) = (given(["clip_low", "cliprange"]), given(["clip_eps", "cliprange_value"]));
        assert!(
            has_policy || has_critic,
            "{id}: the clip of neither a policy nor a value loss"
        );

        let values = leaf(&inputs["values"]);
        if has_critic {
            let critic = ValueBatch {
                values: &table.pick(&values),
                old: Some(&table.read(&inputs["old_values"])),
                returns: &table.read(&inputs["returns"]),
                rows: &rows,
            };
            let own = ValueLoss {
                clip: clip(&["clip_eps", "cliprange_value"]),
            };
            let value = own.evaluate(&critic, Aggregate::TokenMean, &counts).unwrap();
            value.total.backward();
            loss += total(&value) * params["vf_coef"].as_f64().unwrap_or(1.0);
            let theirs = case["grads"].get("wrt_values").unwrap_or(&case["grads"]["wrt"]);
            table.same(id, &values.grad(), theirs, rtol);
            if let Some(theirs) = outputs["extra_0"].as_f64() {
                close(
                    &format!("{id} clipped"),
                    term(&value, "value_clip_fraction"),
                    theirs,
                    nearly,
                );
            }
            critics += 1;
        }
        if has_policy {
            let own = Ppo {
                clip_low: clip(&["clip_low", "cliprange"]).unwrap(),
                clip_high: clip(&["clip_high", "cliprange"]).unwrap(),
                dual_clip: clip(&["dual_clip", "clip_ratio_c"]),
                // The one that has both in one loss has none.
                log_ratio_clamp: (!has_critic).then_some(20.0),
            };
            let gspo = match params["policy_loss_type"].as_str() {
                None | Some("ppo") => false,
                Some("gspo") => true,
                Some(other) => panic!("{id}: an unknown loss `{other}`"),
            };
            let aggregate = match params["loss_agg_mode"].as_str() {
                Some("seq-mean-token-sum") => Aggregate::SequenceSum,
                Some("seq-mean-token-mean") => Aggregate::SequenceMean,
                Some("seq-mean-token-sum-norm") => Aggregate::FixedLength { length: table.width },
                None if gspo || params["token_level"] == false => Aggregate::SequenceMean,
                None | Some("token-mean") => Aggregate::TokenMean,
                Some(other) => panic!("{id}: an unknown mode `{other}`"),
            };
            if aggregate == Aggregate::SequenceMean {
                rtol = rtol.max(NEAR);
            }
            // Reason: verl divides the sum over all completions by the length, but not by their number.
            let scale = match aggregate {
                Aggregate::FixedLength { .. } => counts.completions,
                _ => 1.0,
            };
            let own = match gspo {
                true => Loss::Gspo(Gspo {
                    clip_low: own.clip_low,
                    clip_high: own.clip_high,
                }),
                false => Loss::Ppo(own),
            };
            let logp = leaf(&inputs["new_logprobs"]);
            let objective = Objective::new(own, aggregate);
            let given = table.read(&inputs["advantages"]);
            let runs = match gspo {
                true => one_at_a_time(&rows, &given),
                false => vec![given.shallow_clone()],
            };
            let part = 1.0 / runs.len() as f64;
            let evaluate = |advantage: &Tensor| {
                let batch = Batch {
                    stats: &stats(&table.pick(&logp)),
                    old: &table.read(&inputs["old_logprobs"]),
                    advantage,
                    reference: None,
                    rows: &rows,
                };
                objective.evaluate(&batch, &counts)
            };
            if gspo {
                let refused = evaluate(&given).unwrap_err().to_string();
                assert!(
                    refused.starts_with("advantage: expected one for all tokens"),
                    "{refused}"
                );
            }
            let runs: Vec<LossValue> = runs.iter().map(|a| evaluate(a).unwrap()).collect();
            runs.iter().for_each(|run| (&run.total * part).backward());
            let mean = |of: &dyn Fn(&LossValue) -> f64| part * runs.iter().map(of).sum::<f64>();
            loss += scale * mean(&total);
            let theirs = floats(&case["grads"]["wrt"]);
            all_close(
                &format!("{id} gradient"),
                &numbers(&(logp.grad() * scale)),
                &theirs,
                rtol,
            );
            let extras = [
                ("extra_0", "clip_fraction", 1.0),
                ("extra_1", "log_ratio", -1.0),
                ("extra_2", "dual_clip_fraction", 1.0),
            ];
            for (extra, name, sign) in extras {
                let Some(theirs) = outputs[extra].as_f64() else {
                    continue;
                };
                close(
                    &format!("{id} {name}"),
                    sign * mean(&|run| term(run, name)),
                    theirs,
                    nearly,
                );
            }
            policies += 1;
        }
        close(id, loss, number(&outputs["loss"]), rtol);
    }
    assert!((policies, critics) == (9, 4) || !golden.committed);
    (golden.cases.len(), 0)
}

pub(crate) fn grpo(golden: &Golden) -> (usize, usize) {
    let rtol = golden.rtol;
    for case in &golden.cases {
        let id = id(case);
        let (inputs, params) = (&case["inputs"], &case["params"]);
        if inputs.get("rewards_per_func").is_some() {
            normalised(golden, case);
            continue;
        }
        let table = Table::of_mask(&inputs["mask"]);
        let rows = table.rows();
        let clip = |name: &str| params[name].as_f64().or(params["epsilon"].as_f64()).unwrap();
        let (clip_low, clip_high) = (clip("epsilon_low"), clip("epsilon_high"));
        let loss = match (&params["loss_type"], &params["importance_sampling_level"]) {
            (kind, _) if kind == "cispo" => Loss::Cispo(Cispo { max_ratio: clip_high }),
            (_, level) if level == "sequence" => Loss::Gspo(Gspo { clip_low, clip_high }),
            (_, level) => Loss::Grpo(Grpo {
                clip_low,
                clip_high,
                delta: match level.as_str() {
                    None | Some("token") => params["delta"].as_f64(),
                    Some(other) => panic!("{id}: an unknown level `{other}`"),
                },
            }),
        };
        let aggregate = match params["loss_type"].as_str() {
            Some("grpo") => Aggregate::SequenceMean,
            Some("dr_grpo") => Aggregate::FixedLength {
                length: params["max_completion_length"].as_u64().unwrap() as usize,
            },
            None | Some("bnpo" | "dapo" | "cispo") => Aggregate::TokenMean,
            Some(other) => panic!("{id}: an unknown loss `{other}`"),
        };
        let beta = number(&params["beta"]);
        let kl = (beta > 0.0).then_some(KlPenalty {
            estimator: KlEstimator::K3,
            coefficient: beta,
            clamp: KlClamp::default(),
        });
        let objective = Objective {
            kl,
            ..Objective::new(loss, aggregate)
        };
        let logp = leaf(&inputs["new_logprobs"]);
        // One reference takes the frozen reference for the policy that sampled.
        let old = table.read(inputs.get("old_logprobs").unwrap_or(&inputs["ref_logprobs"]));
        let batch = Batch {
            stats: &stats(&table.pick(&logp)),
            old: &old,
            advantage: &table.spread(&floats(&inputs["advantages"])),
            reference: Some(&table.read(&inputs["ref_logprobs"])),
            rows: &rows,
        };
        let ours = run(&objective, &batch);
        close(id, total(&ours), number(&case["outputs"]["loss"]), rtol);
        if let Some(theirs) = case["outputs"]["kl"].as_f64() {
            close(&format!("{id} kl"), term(&ours, "kl"), theirs, rtol);
        }
        table.same(id, &logp.grad(), &case["grads"]["loss_wrt_new_logprobs"], rtol);
    }
    (golden.cases.len(), 0)
}
