//! Pairs without a reference: SimPO, AlphaPO, CPO, IPO against nothing, ORPO and pairwise CRINGE.

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unsay_losses::paired::{
    Alphapo, Batch, Cpo, IpoMean, Loss, Objective, Orpo, PairCounts, PairedLoss, Pairs, PairwiseCringe, Simpo,
};
use unsay_losses::token::{Nll, TokenLoss};
use unsay_losses::{CompletionRows, Completions, LossValue, TokenCounts, TokenOp, TokenRows};

use crate::files::{Golden, all_close, close, floats, id, integers, number, rows_of, shape, term, total};
use crate::plain::numbers;
use crate::tokens::{candidates, draw_for};

pub(crate) fn simpo_cpo(golden: &Golden) -> (usize, usize) {
    let rtol = golden.rtol;
    for case in &golden.cases {
        let id = id(case);
        let params = &case["params"];
        let (beta, label_smoothing) = (number(&params["beta"]), number(&params["label_smoothing"]));
        // TRL divides `simpo_gamma` by beta; the authors' code takes the ratio.
        let (trl, gamma) = match params.get("gamma_beta_ratio") {
            Some(ratio) => (false, beta * number(ratio)),
            None => (true, number(&params["simpo_gamma"])),
        };
        let alpha = params.get("alpha").map_or(0.0, number);
        let hinge = params["loss_type"] == "hinge";
        let loss = match (trl, params["loss_type"].as_str().unwrap()) {
            (true, "simpo") if alpha > 0.0 => Loss::Alphapo(Alphapo {
                beta,
                gamma,
                alpha,
                label_smoothing,
            }),
            (true, "simpo") | (false, "sigmoid" | "hinge") => Loss::Simpo(Simpo {
                beta,
                gamma,
                label_smoothing,
                hinge,
            }),
            (true, "sigmoid" | "hinge") => Loss::Cpo(Cpo {
                beta,
                alpha: 1.0, // the files hold the pairs' part alone
                label_smoothing,
                hinge,
            }),
            // There it is an option of a loss without a reference, here of a loss with one.
            (true, "ipo") => Loss::IpoMean(IpoMean { beta }),
            (_, other) => panic!("{id}: no loss for {other}"),
        };

        // The files hold means per token where the loss takes means: sums over 3 and 7 tokens here.
        let side = |name: &str, tokens: f64| {
            let logp = Tensor::from_slice(&floats(&case["inputs"][name])).set_requires_grad(true);
            let tokens = Tensor::full_like(&logp, if loss.per_token() { tokens } else { 1.0 });
            let sums = Completions::from_sums(&(&logp * &tokens), None, &tokens).unwrap();
            (logp, sums)
        };
        let (chosen, chosen_sums) = side("policy_chosen_logps", 3.0);
        let (rejected, rejected_sums) = side("policy_rejected_logps", 7.0);
        let pairs = Pairs {
            reference_free: loss.uses_reference(),
            ..Pairs::new(chosen_sums, rejected_sums).unwrap()
        };
        let values = loss.values(&pairs).unwrap();
        values.mean(Kind::Double).backward();
        let (reward_chosen, reward_rejected) = loss.rewards(&pairs).unwrap();
        let outputs = &case["outputs"];
        all_close(id, &numbers(&values), &floats(&outputs["losses"]), rtol);
        for (name, logp, rewards) in [
            ("chosen", chosen, reward_chosen),
            ("rejected", rejected, reward_rejected),
        ] {
            let theirs = floats(&outputs[format!("{name}_rewards")]);
            all_close(&format!("{id} {name} reward"), &numbers(&rewards), &theirs, rtol);
            let theirs = floats(&case["grads"][format!("loss_mean_wrt_policy_{name}_logps")]);
            all_close(
                &format!("{id} gradient of {name}"),
                &numbers(&logp.grad()),
                &theirs,
                rtol,
            );
        }
    }
    (golden.cases.len(), 0)
}

/// Rows of a table of logits `[B, T, V]`: those that predict something, completion after completion.
struct Rows {
    /// Which of the `B · T` rows of logits, in order.
    at: Vec<i64>,
    targets: Vec<i64>,
    /// How many belong to each completion.
    lengths: Vec<usize>,
}

impl Rows {
    /// From the target that each row of logits predicts, where it does.
    fn new(targets: &[Vec<Option<i64>>]) -> Self {
        let mut start = 0;
        let mut rows = Rows {
            at: Vec::new(),
            targets: Vec::new(),
            lengths: Vec::new(),
        };
        for targets in targets {
            rows.lengths.push(targets.iter().flatten().count());
            for (position, target) in targets.iter().enumerate() {
                let Some(target) = target else { continue };
                rows.at.push((start + position) as i64);
                rows.targets.push(*target);
            }
            start += targets.len();
        }
        rows
    }

    /// The op over these rows of `logits` `[B · T, V]`, with the identity as embedding.
    fn op(&self, logits: &Tensor, needs: &unsay_losses::Needs) -> TokenOp {
        let rows = logits.index_select(0, &Tensor::from_slice(&self.at));
        let identity = Tensor::eye(logits.size()[1], (Kind::Double, Device::Cpu));
        TokenOp::new(&rows, &identity, &Tensor::from_slice(&self.targets), needs).unwrap()
    }

    /// Value of an objective and its gradient, added to that of `logits`.
    fn run(&self, logits: &Tensor, objective: &Objective, draws: Option<&Tensor>) -> (LossValue, Pairs) {
        let op = self.op(logits, &objective.needs());
        let stats = op.forward().unwrap();
        let rows = CompletionRows::new(&self.lengths, Device::Cpu).unwrap();
        let batch = Batch {
            stats: &stats,
            rows: &rows,
            reference: None,
            draws,
            baseline: None,
        };
        let value = objective.evaluate(&batch, &PairCounts::of(&rows)).unwrap();
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        (value, objective.pairs(&batch).unwrap())
    }
}

/// A leaf `[rows, width]` of a nested list of logits.
fn leaf(value: &Value) -> Tensor {
    let width = shape(value)[2] as i64;
    Tensor::from_slice(&floats(value))
        .view([-1, width])
        .set_requires_grad(true)
}

pub(crate) fn orpo(golden: &Golden) -> (usize, usize) {
    let rtol = golden.rtol;
    for case in &golden.cases {
        let id = id(case);
        let (inputs, outputs) = (&case["inputs"], &case["outputs"]);
        let loss = Orpo {
            beta: number(&case["params"]["beta"]),
        };
        let table = shape(&inputs["logits"]);
        let lists = |name: &str| -> Vec<Vec<i64>> {
            assert_eq!(shape(&inputs[name]), table[..2], "{id} {name}");
            inputs[name].as_array().unwrap().iter().map(integers).collect()
        };
        let (ids, kept, labels) = (lists("input_ids"), lists("attention_mask"), lists("labels"));

        // The shift: logits at a position predict the next token. In completions the labels say which tokens count.
        let shifted = |of: &dyn Fn(usize, usize) -> Option<i64>, completions: usize| -> Vec<Vec<Option<i64>>> {
            let row = |c| (1..ids[0].len()).map(|t| of(c, t)).chain([None]).collect();
            (0..completions).map(row).collect()
        };
        let of_completion = |c: usize, t: usize| (labels[c][t] != -100).then_some(labels[c][t]);
        let of_prompt_too = |c: usize, t: usize| (kept[c][t] == 1).then_some(ids[c][t]);
        let completions = Rows::new(&shifted(&of_completion, ids.len()));
        let n_pairs = ids.len() / 2;
        let whole = Rows::new(&shifted(&of_prompt_too, n_pairs));
        assert!(whole.at.len() >= completions.lengths[..n_pairs].iter().sum::<usize>());

        // Our objective, whose likelihood is that of the completion.
        let logits = leaf(&inputs["logits"]);
        let (value, pairs) = completions.run(&logits, &Objective::from(Loss::Orpo(loss)), None);
        let odds = loss.values(&pairs).unwrap();
        let theirs = floats(&outputs["beta_log_sigmoid_log_odds"]);
        all_close(id, &numbers(&odds.neg()), &theirs, rtol);
        // The mean of log σ of the log-odds.
        let mean = -odds.mean(Kind::Double).double_value(&[]) / loss.beta;
        close(id, mean, number(&outputs["log_odds_ratio"]), rtol);
        let own_nll: f64 =
            -numbers(&pairs.chosen.logp).iter().sum::<f64>() / numbers(&pairs.chosen.tokens).iter().sum::<f64>();
        close(
            &format!("{id} with our likelihood"),
            total(&value),
            odds.mean(Kind::Double).double_value(&[]) + own_nll,
            rtol,
        );
        close(id, term(&value, "nll_chosen"), own_nll, rtol);
        close(
            id,
            term(&value, "log_odds_ratio"),
            number(&outputs["log_odds_chosen"]),
            rtol,
        );
        let means = Tensor::cat(
            &[
                &pairs.chosen.logp / &pairs.chosen.tokens,
                &pairs.rejected.logp / &pairs.rejected.tokens,
            ],
            0,
        );
        all_close(id, &numbers(&means), &floats(&outputs["avg_logps"]), rtol);

        // The reference's: the odds of the completions, the likelihood of prompt and completion.
        let logits = leaf(&inputs["logits"]);
        let op = completions.op(&logits, &loss.needs());
        let stats = op.forward().unwrap();
        let rows = CompletionRows::new(&completions.lengths, Device::Cpu).unwrap();
        let both = Completions::of(&stats, &rows, None, None).unwrap();
        let odds = loss.values(&Pairs::split(&both).unwrap()).unwrap().mean(Kind::Double);
        odds.backward();
        op.surrogate(&stats).unwrap().backward();
        let op = whole.op(&logits, &Nll {}.needs());
        let stats = op.forward().unwrap();
        let n = whole.at.len();
        let rows = TokenRows::new(&vec![0; n], &vec![false; n], &[1], Device::Cpu).unwrap();
        let nll = Nll {}
            .evaluate(&stats, &rows, &TokenCounts::of(&rows).unwrap(), None)
            .unwrap()
            .total;
        nll.backward();
        op.surrogate(&stats).unwrap().backward();
        close(id, nll.double_value(&[]), number(&outputs["nll_loss"]), rtol);
        close(id, (odds + nll).double_value(&[]), number(&outputs["loss"]), rtol);
        let theirs = floats(&case["grads"]["loss_wrt_logits"]);
        all_close(id, &numbers(&logits.grad()), &theirs, rtol);
    }
    (golden.cases.len(), 0)
}

pub(crate) fn pairwise_cringe(golden: &Golden) -> (usize, usize) {
    let rtol = golden.rtol;
    for case in &golden.cases {
        let id = id(case);
        let (params, inputs, outputs) = (&case["params"], &case["inputs"], &case["outputs"]);
        let padding = params["null_idx"].as_i64().unwrap();
        let k = params["num_pos_predictions"].as_u64().unwrap() as usize;
        let targets = |side: &str, logits: &str| -> Vec<Vec<Option<i64>>> {
            assert_eq!(shape(&inputs[side]), shape(&inputs[logits])[..2], "{id} {side}");
            let keep = |row: &Value| integers(row).iter().map(|&t| (t != padding).then_some(t)).collect();
            inputs[side].as_array().unwrap().iter().map(keep).collect()
        };
        let (chosen, rejected) = (targets("targets_w", "logits_w"), targets("targets_l", "logits_l"));
        let n_pairs = chosen.len() as f64;
        let rows = Rows::new(&[chosen.clone(), rejected].concat());

        // Draws in the middle of the interval of the token that was sampled; any for the chosen completions.
        let n_rejected_from = chosen.len() * chosen[0].len();
        let places = integers(&inputs["sampled_topk_position_l"]);
        let sampled = integers(&inputs["sampled_token_l"]);
        let table = rows_of(&inputs["logits_l"]);
        assert_eq!([places.len(), sampled.len()], [table.len(); 2], "{id}");
        for (at, target) in integers(&inputs["targets_l"]).into_iter().enumerate() {
            let ids = candidates(&table[at], target, k).0;
            assert_eq!(ids[places[at] as usize] as i64, sampled[at], "{id} sampled token {at}");
        }
        let draws: Vec<f64> = rows
            .at
            .iter()
            .zip(&rows.targets)
            .map(|(&at, &target)| match (at as usize).checked_sub(n_rejected_from) {
                None => 0.5,
                Some(at) => draw_for(&candidates(&table[at], target, k).1, places[at] as usize, 0.5),
            })
            .collect();
        let draws = Tensor::from_slice(&draws).view([-1, 1]);

        for (gate_gradient, gate) in [(true, "gate_differentiable"), (false, "gate_detached")] {
            let what = format!("{id} {gate}");
            let loss = PairwiseCringe {
                b: number(&params["b"]),
                tau: number(&params["tau"]),
                gate_gradient,
                ..PairwiseCringe::new(number(&params["alpha"]), k)
            };
            let (w, l) = (leaf(&inputs["logits_w"]), leaf(&inputs["logits_l"]));
            let logits = Tensor::cat(&[&w, &l], 0);
            let (value, pairs) = rows.run(&logits, &Objective::from(Loss::PairwiseCringe(loss)), Some(&draws));
            let of = |list: &str| floats(&outputs[list]);
            let nll: Vec<f64> = numbers(&pairs.chosen.logp).iter().map(|logp| -logp).collect();
            let per_pair: Vec<f64> = numbers(&value.per_example).iter().map(|x| x * n_pairs).collect();
            close(&what, total(&value), number(&outputs[gate]["loss_mean"]), rtol);
            all_close(&what, &per_pair, &floats(&outputs[gate]["loss_per_pair"]), rtol);
            all_close(&what, &nll, &of("ce_sum_w"), rtol);
            all_close(&what, &numbers(&pairs.chosen.logp), &of("logp_w"), rtol);
            all_close(&what, &numbers(&pairs.rejected.logp), &of("logp_l"), rtol);
            let margins = &pairs.chosen.logp - &pairs.rejected.logp;
            all_close(&what, &numbers(&margins), &of("margin"), rtol);
            let contrast = pairs.rejected.term.as_ref().unwrap();
            all_close(&what, &numbers(contrast), &of("cringe_sum_l"), rtol);
            all_close(&what, &numbers(&loss.gate(&pairs).unwrap()), &of("gate"), rtol);
            for (name, list) in [
                ("gate", "gate"),
                ("reward_margin", "margin"),
                ("cringe_rejected", "cringe_sum_l"),
            ] {
                let mean = of(list).iter().sum::<f64>() / n_pairs;
                close(&format!("{what} {name}"), term(&value, name), mean, rtol);
            }
            for (name, side) in [("w", &w), ("l", &l)] {
                let theirs = floats(&case["grads"][gate][format!("grad_wrt_logits_{name}")]);
                all_close(
                    &format!("{what} gradient of {name}"),
                    &numbers(&side.grad()),
                    &theirs,
                    rtol,
                );
            }
        }
    }
    (golden.cases.len(), 0)
}
