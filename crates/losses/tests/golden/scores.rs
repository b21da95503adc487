//! Losses over scores: reward models.

use serde_json::Value;
use tch::{Kind, Tensor};
use unsay_losses::scores::{BestChoice, BradleyTerry, Loss, ScoreCounts, Scores};

use crate::files::{cases, close, committed, counted, floats, integers};
use crate::plain::numbers;

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

/// Value and terms over the whole batch, with gradients left on the leaves.
fn run(id: &str, loss: &Loss, scores: &Scores<'_>, outputs: &Value) -> usize {
    let value = loss.evaluate(scores, &ScoreCounts::of(scores)).unwrap();
    value.total.backward();
    let each = value.per_example.sum(Kind::Double).double_value(&[]);
    close(&format!("{id} per answer"), each, value.total.double_value(&[]));
    let mut terms = 0;
    for (theirs, ours) in [("accuracy", "accuracy"), ("margin_mean", "score_margin")] {
        let Some(theirs) = outputs[theirs].as_f64() else {
            continue;
        };
        let ours = value.terms.iter().find(|(name, _)| *name == ours).unwrap();
        close(&format!("{id} {}", ours.0), ours.1.double_value(&[]), theirs);
        terms += 1;
    }
    close(id, value.total.double_value(&[]), outputs["loss"].as_f64().unwrap());
    terms
}

fn same(id: &str, ours: &Tensor, theirs: &[f64]) {
    let ours = numbers(ours);
    assert_eq!(ours.len(), theirs.len(), "{id}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        close(&format!("{id} gradient"), *ours, *theirs);
    }
}

#[test]
fn golden_reward_models_equal_the_references() {
    let (mut compared, mut terms) = (0, 0);
    for case in cases("reward_model_loss") {
        let id = case["id"].as_str().unwrap();
        let (inputs, grads) = (&case["inputs"], &case["grads"]);
        compared += 1;
        if id == "lmhp_best_of_4" {
            let scores = leaf(&floats(&inputs["rewards"]));
            let best = Tensor::from_slice(&integers(&inputs["best"]));
            let table = scores.view([-1, 4]);
            let choices = Scores::Choices {
                scores: &table,
                best: &best,
            };
            terms += run(id, &Loss::BestChoice(BestChoice {}), &choices, &case["outputs"]);
            same(id, &scores.grad(), &floats(&grads["loss_wrt_rewards"]));
            continue;
        }
        // One reference scores with the second of two logits.
        let two_logits = id == "halos_two_logit_head";
        let side = |name: &str| {
            leaf(&floats(
                &inputs[format!("{name}{}", if two_logits { "_logits" } else { "" })],
            ))
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
        terms += run(
            id,
            &Loss::BradleyTerry(BradleyTerry { centre }),
            &pairs,
            &case["outputs"],
        );
        let both = Tensor::cat(&[chosen.grad(), rejected.grad()], 0);
        let theirs = match grads.get("loss_wrt_logits_chosen_then_rejected") {
            Some(both) => floats(both),
            None => [floats(&grads["loss_wrt_chosen"]), floats(&grads["loss_wrt_rejected"])].concat(),
        };
        same(id, &both, &theirs);
    }
    counted("reward_model_loss", (compared, 0), (10, 0));
    assert!(terms == 9 || !committed());
}
