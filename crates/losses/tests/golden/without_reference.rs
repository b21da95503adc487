//! Pairs without a reference: SimPO, AlphaPO, CPO, IPO against nothing, ORPO and pairwise CRINGE.

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unsay_losses::paired::{
    Alphapo, Batch, Cpo, IpoMean, Loss, Objective, Orpo, PairCounts, PairedLoss, Pairs, PairwiseCringe, Simpo,
};
use unsay_losses::token::{Nll, TokenLoss};
use unsay_losses::{CompletionRows, Completions, LossValue, TokenCounts, TokenOp, TokenRows};

use crate::files::{cases, close, counted, floats, integers, rows_of};
use crate::plain::numbers;
use crate::token::{candidates, draw_for};

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn all_close(what: &str, ours: &[f64], theirs: &Value) {
    let theirs = floats(theirs);
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (at, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        close(&format!("{what} {at}"), *ours, theirs);
    }
}

#[test]
fn golden_simpo_alphapo_cpo_and_ipo_without_a_reference_equal_both_references() {
    let mut compared = 0;
    for case in cases("simpo_cpo") {
        let id = case["id"].as_str().unwrap();
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
        all_close(id, &numbers(&values), &outputs["losses"]);
        all_close(
            &format!("{id} chosen reward"),
            &numbers(&reward_chosen),
            &outputs["chosen_rewards"],
        );
        all_close(
            &format!("{id} rejected reward"),
            &numbers(&reward_rejected),
            &outputs["rejected_rewards"],
        );
        for (name, logp) in [("chosen", chosen), ("rejected", rejected)] {
            all_close(
                &format!("{id} gradient of {name}"),
                &numbers(&logp.grad()),
                &case["grads"][format!("loss_mean_wrt_policy_{name}_logps")],
            );
        }
        compared += 1;
    }
    counted("simpo_cpo", (compared, 0), (10, 0));
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
        let width = targets[0].len();
        let mut rows = Rows {
            at: Vec::new(),
            targets: Vec::new(),
            lengths: Vec::new(),
        };
        for (completion, targets) in targets.iter().enumerate() {
            rows.lengths.push(targets.iter().flatten().count());
            for (position, target) in targets.iter().enumerate() {
                let Some(target) = target else { continue };
                rows.at.push((completion * width + position) as i64);
                rows.targets.push(*target);
            }
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
fn leaf(value: &Value, width: usize) -> Tensor {
    Tensor::from_slice(&floats(value))
        .view([-1, width as i64])
        .set_requires_grad(true)
}

fn term(value: &LossValue, name: &str) -> f64 {
    value
        .terms
        .iter()
        .find(|(n, _)| *n == name)
        .unwrap()
        .1
        .double_value(&[])
}

#[test]
fn golden_orpo_equals_the_reference_with_the_likelihood_of_the_prompt_added() {
    let mut compared = 0;
    for case in cases("orpo_trl024") {
        let id = case["id"].as_str().unwrap();
        let (inputs, outputs) = (&case["inputs"], &case["outputs"]);
        let loss = Orpo {
            beta: number(&case["params"]["beta"]),
        };
        let lists = |name: &str| -> Vec<Vec<i64>> { inputs[name].as_array().unwrap().iter().map(integers).collect() };
        let (ids, kept, labels) = (lists("input_ids"), lists("attention_mask"), lists("labels"));
        let width = inputs["logits"][0][0].as_array().unwrap().len();

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
        assert!(whole.at.len() > completions.lengths[..n_pairs].iter().sum::<usize>());

        // Our objective, whose likelihood is that of the completion.
        let logits = leaf(&inputs["logits"], width);
        let (value, pairs) = completions.run(&logits, &Objective::from(Loss::Orpo(loss)), None);
        let odds = loss.values(&pairs).unwrap();
        all_close(id, &numbers(&odds.neg()), &outputs["beta_log_sigmoid_log_odds"]);
        let own_nll: f64 =
            -numbers(&pairs.chosen.logp).iter().sum::<f64>() / numbers(&pairs.chosen.tokens).iter().sum::<f64>();
        close(
            &format!("{id} with our likelihood"),
            value.total.double_value(&[]),
            odds.mean(Kind::Double).double_value(&[]) + own_nll,
        );
        close(id, term(&value, "nll_chosen"), own_nll);
        close(id, term(&value, "log_odds_ratio"), number(&outputs["log_odds_chosen"]));
        let means = Tensor::cat(
            &[
                &pairs.chosen.logp / &pairs.chosen.tokens,
                &pairs.rejected.logp / &pairs.rejected.tokens,
            ],
            0,
        );
        all_close(id, &numbers(&means), &outputs["avg_logps"]);

        // The reference's: the odds of the completions, the likelihood of prompt and completion.
        let logits = leaf(&inputs["logits"], width);
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
        close(id, nll.double_value(&[]), number(&outputs["nll_loss"]));
        close(id, (odds + nll).double_value(&[]), number(&outputs["loss"]));
        all_close(id, &numbers(&logits.grad()), &case["grads"]["loss_wrt_logits"]);
        compared += 1;
    }
    counted("orpo_trl024", (compared, 0), (2, 0));
}

#[test]
fn golden_pairwise_cringe_equals_the_formula_with_and_without_gradient_through_the_gate() {
    let mut compared = 0;
    for case in cases("pairwise_cringe") {
        let id = case["id"].as_str().unwrap();
        let (params, inputs, outputs) = (&case["params"], &case["inputs"], &case["outputs"]);
        let padding = params["null_idx"].as_i64().unwrap();
        let k = params["num_pos_predictions"].as_u64().unwrap() as usize;
        let width = inputs["logits_w"][0][0].as_array().unwrap().len();
        let targets = |side: &str| -> Vec<Vec<Option<i64>>> {
            let keep = |row: &Value| integers(row).iter().map(|&t| (t != padding).then_some(t)).collect();
            inputs[side].as_array().unwrap().iter().map(keep).collect()
        };
        let (chosen, rejected) = (targets("targets_w"), targets("targets_l"));
        let n_pairs = chosen.len() as f64;
        let rows = Rows::new(&[chosen.clone(), rejected].concat());

        // Draws in the middle of the interval of the token that was sampled; any for the chosen completions.
        let n_rejected_from = chosen.len() * chosen[0].len();
        let places = integers(&inputs["sampled_topk_position_l"]);
        let table = rows_of(&inputs["logits_l"], width);
        let draws: Vec<f64> = rows
            .at
            .iter()
            .zip(&rows.targets)
            .map(|(&at, &target)| match (at as usize).checked_sub(n_rejected_from) {
                None => 0.5,
                Some(at) => draw_for(&candidates(&table[at], target, k).1, places[at] as usize),
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
            let (w, l) = (leaf(&inputs["logits_w"], width), leaf(&inputs["logits_l"], width));
            let logits = Tensor::cat(&[&w, &l], 0);
            let (value, pairs) = rows.run(&logits, &Objective::from(Loss::PairwiseCringe(loss)), Some(&draws));
            close(
                &what,
                value.total.double_value(&[]),
                number(&outputs[gate]["loss_mean"]),
            );
            let per_pair: Vec<f64> = numbers(&value.per_example).iter().map(|x| x * n_pairs).collect();
            all_close(&what, &per_pair, &outputs[gate]["loss_per_pair"]);
            all_close(&what, &numbers(&pairs.chosen.logp), &outputs["logp_w"]);
            all_close(&what, &numbers(&pairs.rejected.logp), &outputs["logp_l"]);
            all_close(
                &what,
                &numbers(pairs.rejected.term.as_ref().unwrap()),
                &outputs["cringe_sum_l"],
            );
            all_close(&what, &numbers(&loss.gate(&pairs).unwrap()), &outputs["gate"]);
            for (name, list) in [
                ("gate", "gate"),
                ("reward_margin", "margin"),
                ("cringe_rejected", "cringe_sum_l"),
            ] {
                let mean = floats(&outputs[list]).iter().sum::<f64>() / n_pairs;
                close(&format!("{what} {name}"), term(&value, name), mean);
            }
            for (name, side) in [("w", &w), ("l", &l)] {
                let theirs = &case["grads"][gate][format!("grad_wrt_logits_{name}")];
                all_close(&format!("{what} gradient of {name}"), &numbers(&side.grad()), theirs);
            }
            compared += 1;
        }
    }
    // Each with and without gradient through the gate.
    counted("pairwise_cringe", (compared / 2, 0), (3, 0));
}
