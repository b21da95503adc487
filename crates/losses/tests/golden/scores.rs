//! Losses over scores: reward models.

use serde_json::Value;
use tch::{Kind, Tensor};
use unsay_losses::scores::{BestChoice, BradleyTerry, Loss, ScoreCounts, Scores};

use crate::files::{Golden, all_close, close, floats, id, integers, number, shape, term, total};
use crate::plain::numbers;

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

/// Value and terms over the whole batch, with gradients left on the leaves.
fn run(id: &str, loss: &Loss, scores: &Scores<'_>, outputs: &Value, rtol: f64) -> usize {
    let value = loss.evaluate(scores, &ScoreCounts::of(scores)).unwrap();
    value.total.backward();
    let each = value.per_example.sum(Kind::Double).double_value(&[]);
    close(&format!("{id} per answer"), each, total(&value), rtol);
    let mut terms = 0;
    for (theirs, ours) in [("accuracy", "accuracy"), ("margin_mean", "score_margin")] {
        let Some(theirs) = outputs[theirs].as_f64() else {
            continue;
        };
        close(&format!("{id} {ours}"), term(&value, ours), theirs, rtol);
        terms += 1;
    }
    close(id, total(&value), number(&outputs["loss"]), rtol);
    terms
}

pub(crate) fn reward_models(golden: &Golden) -> (usize, usize) {
    let mut terms = 0;
    for case in &golden.cases {
        let (id, inputs, grads) = (id(case), &case["inputs"], &case["grads"]);
        let what = format!("{id} gradient");
        if inputs.get("rewards").is_some() {
            let answers = shape(&inputs["rewards"])[1];
            let scores = leaf(&floats(&inputs["rewards"]));
            let best = Tensor::from_slice(&integers(&inputs["best"]));
            let table = scores.view([-1, answers as i64]);
            let choices = Scores::Choices {
                scores: &table,
                best: &best,
            };
            let loss = Loss::BestChoice(BestChoice {});
            terms += run(id, &loss, &choices, &case["outputs"], golden.rtol);
            all_close(
                &what,
                &numbers(&scores.grad()),
                &floats(&grads["loss_wrt_rewards"]),
                golden.rtol,
            );
            continue;
        }
        // One reference scores with the second of two logits.
        let two_logits = inputs.get("chosen_logits").is_some();
        let side = |name: &str| {
            let list = &inputs[format!("{name}{}", if two_logits { "_logits" } else { "" })];
            assert!(!two_logits || shape(list)[1] == 2, "{id}");
            leaf(&floats(list))
        };
        let score = |side: &Tensor| match two_logits {
            true => side.view([-1, 2]).select(1, 1),
            false => side.shallow_clone(),
        };
        let (chosen, rejected) = (side("chosen"), side("rejected"));
        let margin = inputs["margin"]
            .is_array()
            .then(|| Tensor::from_slice(&floats(&inputs["margin"])));
        let pairs = Scores::Pairs {
            chosen: &score(&chosen),
            rejected: &score(&rejected),
            margin: margin.as_ref(),
        };
        let centre = case["params"]["center_rewards_coefficient"].as_f64().unwrap_or(0.0);
        let loss = Loss::BradleyTerry(BradleyTerry { centre });
        terms += run(id, &loss, &pairs, &case["outputs"], golden.rtol);
        let both = Tensor::cat(&[chosen.grad(), rejected.grad()], 0);
        let theirs = match grads.get("loss_wrt_logits_chosen_then_rejected") {
            Some(both) => floats(both),
            None => [floats(&grads["loss_wrt_chosen"]), floats(&grads["loss_wrt_rejected"])].concat(),
        };
        all_close(&what, &numbers(&both), &theirs, golden.rtol);
    }
    assert!(terms == 9 || !golden.committed);
    (golden.cases.len(), 0)
}
