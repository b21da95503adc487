//! PPO: one update from logits, and the older loss with its rewards.

use tch::{Device, Kind, Tensor};
use unsay_losses::policy::kl::{KlClamp, KlEstimator};
use unsay_losses::policy::{Aggregate, Batch, Loss, Objective, PolicyCounts, ValueBatch, ValueLoss};
use unsay_losses::{Needs, TokenOp, TokenStats};

use crate::files::{Golden, all_close, close, floats, id, number, shape, term, total};
use crate::plain::numbers;
use crate::table::{Table, leaf, ppo, run, stats};

/// Of numbers that the reference held in `f32`.
const COARSE: f64 = 1e-7;

pub(crate) fn update(golden: &Golden) -> (usize, usize) {
    let (rtol, coarse) = (golden.rtol, golden.rtol.max(COARSE));
    for case in &golden.cases {
        let id = id(case);
        let (inputs, outputs, params) = (&case["inputs"], &case["outputs"], &case["params"]);
        let valid = |name: &str| Table::new(&inputs[name], |padded| padded.abs() < 1e-12);
        let (policy, critic) = (valid("padding_mask"), valid("padding_mask_p1"));
        let context = params["context_length"].as_i64().unwrap();
        let response = policy.width as i64;
        let whole = context + response;

        let sizes = shape(&inputs["logits"]);
        assert_eq!(sizes[..2], [policy.lengths.len(), whole as usize], "{id}");
        let logits = leaf(&inputs["logits"]);
        let v = sizes[2] as i64;
        // The states that predict the response: one before each of its tokens.
        let states = logits
            .view([-1, whole, v])
            .narrow(1, context - 1, response)
            .reshape([-1, v]);
        let picked = policy.pick(&states);
        let hidden = picked.detach().set_requires_grad(true);
        let targets = policy.read(&inputs["responses"]).to_kind(Kind::Int64);
        let identity = Tensor::eye(v, (Kind::Double, Device::Cpu));
        let op = TokenOp::new(&hidden, &identity, &targets, &Needs::default()).unwrap();
        let op = op.with_temperature(number(&params["temperature"]) + 1e-7).unwrap();
        let stats = op.forward().unwrap();
        let logps = numbers(&policy.read(&outputs["new_logprobs"]));
        all_close(&format!("{id} logp"), &numbers(&stats.logp), &logps, rtol);
        let rows = policy.rows();
        let batch = Batch {
            stats: &stats,
            old: &policy.read(&inputs["old_logprobs"]),
            advantage: &policy.read(&inputs["advantages"]),
            reference: None,
            rows: &rows,
        };
        let objective = Objective::new(Loss::Ppo(ppo(number(&params["cliprange"]))), Aggregate::TokenMean);
        let ours = run(&objective, &batch);
        close(id, total(&ours), number(&outputs["pg_loss"]), rtol);
        let clipped = number(&outputs["pg_clipfrac"]);
        close(&format!("{id} clip"), term(&ours, "clip_fraction"), clipped, coarse);
        let ratios = numbers(&policy.read(&outputs["ratio"]));
        let own = numbers(&(&stats.logp - batch.old).exp());
        all_close(&format!("{id} ratios"), &own, &ratios, rtol);
        let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
        close(&format!("{id} ratio"), term(&ours, "ratio"), mean, rtol);

        op.surrogate(&stats).unwrap().backward();
        (picked * hidden.grad()).sum(Kind::Double).backward();
        let theirs = floats(&case["grads"]["loss_wrt_logits"]);
        all_close(
            &format!("{id} gradient of the logits"),
            &numbers(&logits.grad()),
            &theirs,
            rtol,
        );

        assert_eq!(shape(&inputs["value_head"]), sizes[..2], "{id}");
        let head = leaf(&inputs["value_head"]);
        let values = head.view([-1, whole]).narrow(1, context - 1, response).reshape([-1]);
        let rows = critic.rows();
        let batch = ValueBatch {
            values: &critic.pick(&values),
            old: Some(&critic.read(&inputs["old_values"])),
            returns: &critic.read(&inputs["returns"]),
            rows: &rows,
        };
        let loss = ValueLoss {
            clip: Some(number(&params["cliprange_value"])),
        };
        let value = loss
            .evaluate(&batch, Aggregate::TokenMean, &PolicyCounts::of(&rows))
            .unwrap();
        close(&format!("{id} value"), total(&value), number(&outputs["vf_loss"]), rtol);
        let clipped = number(&outputs["vf_clipfrac"]);
        close(
            &format!("{id} value clip"),
            term(&value, "value_clip_fraction"),
            clipped,
            coarse,
        );
        let weight = number(&params["vf_coef"]);
        let both = total(&ours) + weight * total(&value);
        close(&format!("{id} loss"), both, number(&outputs["loss"]), rtol);
        (value.total * weight).backward();
        let theirs = floats(&case["grads"]["loss_wrt_value_head"]);
        all_close(
            &format!("{id} gradient of the value head"),
            &numbers(&head.grad()),
            &theirs,
            rtol,
        );
    }
    (golden.cases.len(), 0)
}

/// A mean over tokens with its slopes, by hand.
struct ByHand {
    mean: f64,
    slopes: Vec<f64>,
}

impl ByHand {
    fn of(tokens: Vec<(f64, f64)>) -> ByHand {
        let n = tokens.len() as f64;
        ByHand {
            mean: tokens.iter().map(|(value, _)| value).sum::<f64>() / n,
            slopes: tokens.iter().map(|(_, slope)| slope / n).collect(),
        }
    }

    /// `max(−A r, −A clip(r))`, with the slope to the log-probability.
    fn policy(logp: &Tensor, batch: &Batch<'_>, clip: f64) -> ByHand {
        let columns = numbers(logp)
            .into_iter()
            .zip(numbers(batch.old))
            .zip(numbers(batch.advantage));
        let token = |((logp, old), a): ((f64, f64), f64)| {
            let ratio = f64::exp(logp - old);
            let (free, held) = (-a * ratio, -a * ratio.clamp(1.0 - clip, 1.0 + clip));
            (free.max(held), if free >= held { free } else { 0.0 })
        };
        ByHand::of(columns.map(token).collect())
    }

    /// `max((V − R)², (clip(V) − R)²) / 2`, with the slope to the value.
    fn value(batch: &ValueBatch<'_>, clip: f64) -> ByHand {
        let old = numbers(batch.old.unwrap());
        let columns = numbers(batch.values).into_iter().zip(old).zip(numbers(batch.returns));
        let token = |((value, old), returns): ((f64, f64), f64)| {
            let held = value.clamp(old - clip, old + clip) - returns;
            let free = value - returns;
            let slope = if free.abs() >= held.abs() { free } else { 0.0 };
            (0.5 * free.powi(2).max(held.powi(2)), slope)
        };
        ByHand::of(columns.map(token).collect())
    }
}

pub(crate) fn legacy(golden: &Golden) -> (usize, usize) {
    let rtol = golden.rtol;
    let (mut compared, mut deviating) = (0, 0);
    for case in &golden.cases {
        let id = id(case);
        let (inputs, outputs, params) = (&case["inputs"], &case["outputs"], &case["params"]);
        let table = Table::of_mask(&inputs["mask"]);
        let rows = table.rows();
        let logp = leaf(&inputs["new_logprobs"]);
        let v = shape(&inputs["logits_for_entropy"])[2] as i64;
        let scores = Tensor::from_slice(&floats(&inputs["logits_for_entropy"])).view([-1, v]);
        let surprise = scores.softmax(-1, None) * scores.log_softmax(-1, None);
        let entropy = table.pick(&-surprise.sum_dim_intlist([-1i64].as_slice(), false, None));
        let stats_of = TokenStats {
            entropy: Some(entropy),
            ..stats(&table.pick(&logp))
        };
        let batch = Batch {
            stats: &stats_of,
            old: &table.read(&inputs["logprobs"]),
            advantage: &table.read(&inputs["advantages"]),
            reference: None,
            rows: &rows,
        };
        let clip = number(&params["cliprange"]);
        let objective = Objective::new(Loss::Ppo(ppo(clip)), Aggregate::TokenMean);
        let ours = run(&objective, &batch);

        let vpreds = leaf(&inputs["vpreds"]);
        let critic = ValueBatch {
            values: &table.pick(&vpreds),
            old: Some(&table.read(&inputs["values"])),
            returns: &table.read(&inputs["returns"]),
            rows: &rows,
        };
        let value_clip = number(&params["cliprange_value"]);
        let loss = ValueLoss { clip: Some(value_clip) };
        let value = loss
            .evaluate(&critic, Aggregate::TokenMean, &PolicyCounts::of(&rows))
            .unwrap();
        let weight = number(&params["vf_coef"]);
        (&value.total * weight).backward();

        let stats = &outputs["stats"];
        for (ours, theirs) in [
            (term(&ours, "approx_kl"), "policy/approxkl"),
            (-term(&ours, "log_ratio"), "policy/policykl"),
            (term(&ours, "clip_fraction"), "policy/clipfrac"),
            (term(&ours, "entropy"), "policy/entropy"),
            (term(&value, "value_error"), "val/error"),
            (term(&value, "value_clip_fraction"), "val/clipfrac"),
        ] {
            close(&format!("{id} {theirs}"), ours, number(&stats[theirs]), rtol);
        }
        // What it takes off the rewards for leaving the reference, masked positions included.
        let estimator = match params["kl_penalty"].as_str().unwrap() {
            "kl" => KlEstimator::K1,
            "abs" => KlEstimator::Abs,
            "mse" => KlEstimator::K2,
            other => panic!("{id}: an unknown penalty `{other}`"),
        };
        let whole = |name: &str| Tensor::from_slice(&floats(&inputs[name]));
        let kl = estimator
            .per_token(&whole("logprobs"), &whole("ref_logprobs"), &KlClamp::default())
            .unwrap();
        all_close(&format!("{id} kl"), &numbers(&kl), &floats(&outputs["kls"]), rtol);
        let penalties = numbers(&(kl * -number(&params["kl_coef"])));
        all_close(
            &format!("{id} penalty"),
            &penalties,
            &floats(&outputs["non_score_rewards"]),
            rtol,
        );

        // Ours are the formula in any case.
        let by_hand = ByHand::policy(&stats_of.logp, &batch, clip);
        close(id, total(&ours), by_hand.mean, rtol);
        all_close(id, &numbers(&table.pick(&logp.grad())), &by_hand.slopes, rtol);
        let by_hand = ByHand::value(&critic, value_clip);
        close(id, total(&value), by_hand.mean, rtol);
        let slopes: Vec<f64> = by_hand.slopes.iter().map(|slope| weight * slope).collect();
        all_close(id, &numbers(&table.pick(&vpreds.grad())), &slopes, rtol);

        let gradients = ["total_wrt_new_logprobs", "total_wrt_vpreds"].map(|key| &case["grads"][key]);
        // Reason: the reference drops a batch whose mean ratio exceeds the threshold by multiplying its loss with 0.
        // That depends on how a batch is split. The mean ratio is there for the caller.
        let (factor, gradient_of) = match term(&ours, "ratio") > number(&params["ratio_threshold"]) {
            true => (0.0, [logp.grad().zeros_like(), vpreds.grad().zeros_like()]),
            false => (1.0, [logp.grad(), vpreds.grad()]),
        };
        let weighted = weight * total(&value);
        for (what, ours, theirs) in [
            ("pg_loss", total(&ours), &outputs["pg_loss"]),
            ("loss/policy", total(&ours), &stats["loss/policy"]),
            ("loss/value", total(&value), &stats["loss/value"]),
            ("weighted value", weighted, &outputs["vf_coef_times_vf_loss"]),
            ("loss/total", total(&ours) + weighted, &stats["loss/total"]),
        ] {
            close(&format!("{id} {what}"), factor * ours, number(theirs), rtol);
        }
        for (ours, theirs) in gradient_of.iter().zip(gradients) {
            table.same(id, ours, theirs, rtol);
        }
        match factor > 0.0 {
            true => compared += 1,
            false => deviating += 1,
        }
    }
    (compared, deviating)
}
