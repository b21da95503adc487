//! What the methods promise on paper: numbers worked out by hand, limits in which one loss becomes another, and what a
//! gradient may touch.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod plain;

use plain::{Made, difference, numbers};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use unsay_losses::paired::{
    Batch, Cpo, Dpo, Ipo, Loss, Objective, Orpo, PairCounts, PairedLoss, Pairs, PairwiseCringe, Simpo, SlicHf,
};
use unsay_losses::token::{Cringe, Nll, TokenLoss};
use unsay_losses::{CompletionRows, Completions, LossValue, TokenCounts, TokenOp, TokenRows, token};

/// One pair of completions of one token with these log-probabilities, which collect gradients.
fn one_pair(chosen: f64, rejected: f64, reference: Option<(f64, f64)>) -> (Tensor, Pairs) {
    let logps = Tensor::from_slice(&[chosen, rejected]).set_requires_grad(true);
    let one = |x: f64| Tensor::from_slice(&[x]);
    let side = |at: i64, reference: Option<f64>| {
        Completions::from_sums(&logps.narrow(0, at, 1), reference.map(one).as_ref(), &one(1.0)).unwrap()
    };
    let pairs = Pairs::new(side(0, reference.map(|r| r.0)), side(1, reference.map(|r| r.1))).unwrap();
    (logps, pairs)
}

/// The value of one pair and its gradient to the two log-probabilities.
fn on_one_pair(loss: &dyn PairedLoss, chosen: f64, rejected: f64, reference: Option<(f64, f64)>) -> (f64, Vec<f64>) {
    let (logps, pairs) = one_pair(chosen, rejected, reference);
    let value = loss.values(&pairs).unwrap();
    value.sum(Kind::Double).backward();
    (value.double_value(&[0]), numbers(&logps.grad()))
}

fn near(what: &str, ours: f64, expected: f64, bound: f64) {
    assert!((ours - expected).abs() < bound, "{what}: {ours} is not {expected}");
}

#[test]
fn oracles_of_losses_over_pairs() {
    let dpo = Dpo {
        beta: 0.1,
        label_smoothing: 0.0,
    };
    let (value, push) = on_one_pair(&dpo, -10.0, -20.0, Some((-12.0, -15.0))); // h = 7
    near("dpo", value, 0.403186, 1e-6);
    near("dpo's push up", push[0] / -0.1, 0.331812, 1e-6);
    near("dpo's push down", push[1] / 0.1, 0.331812, 1e-6);
    let (value, _) = on_one_pair(&dpo, -10.0, -20.0, Some((-10.0, -20.0)));
    near("dpo at the reference", value, std::f64::consts::LN_2, 1e-12);

    let (value, push) = on_one_pair(&Ipo { beta: 0.1 }, -10.0, -20.0, Some((-12.0, -15.0)));
    near("ipo", value, 4.0, 1e-12); // (7 - 5)^2
    near("ipo's push past its target", push[1], -4.0, 1e-12);

    let simpo = Simpo {
        beta: 2.5,
        gamma: 1.4,
        label_smoothing: 0.0,
        hinge: false,
    };
    near("simpo", on_one_pair(&simpo, -1.0, -1.2, None).0, 1.241154, 1e-6);

    let orpo = Orpo { beta: 1.0 };
    near("orpo", on_one_pair(&orpo, -0.5, -1.0, None).0, 0.320300, 1e-6);
    let terms = orpo.extra_terms(&one_pair(-0.5, -1.0, None).1).unwrap();
    assert_eq!((terms.len(), terms[0].0), (1, "log_odds_ratio"));
    near("orpo's odds", terms[0].1.double_value(&[0]), 0.974077, 1e-6);
}

#[test]
fn oracles_of_the_gate() {
    let loss = PairwiseCringe {
        b: 0.0,
        tau: 10.0,
        ..PairwiseCringe::new(1.0, 1)
    };
    let table = [
        (-20.0, 0.8808),
        (-10.0, 0.7311),
        (0.0, 0.5),
        (10.0, 0.2689),
        (20.0, 0.1192),
    ];
    for (margin, gate) in table {
        let (_, pairs) = one_pair(margin - 30.0, -30.0, None);
        near("gate", loss.gate(&pairs).unwrap().double_value(&[0]), gate, 5e-5);
    }
}

/// One row of logits through the op as a negative; value, gradient.
fn negative(row: &[f64], target: i64, loss: &Cringe, draw: f64) -> (f64, Vec<f64>) {
    let logits = Tensor::from_slice(row).view([1, -1]).set_requires_grad(true);
    let identity = Tensor::eye(row.len() as i64, (Kind::Double, Device::Cpu));
    let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[target]), &loss.needs()).unwrap();
    let stats = op.forward().unwrap();
    let rows = TokenRows::new(&[0], &[false], &[0], Device::Cpu).unwrap();
    let draws = Tensor::from_slice(&[draw]).view([1, 1]);
    let value = loss
        .evaluate(&stats, &rows, &TokenCounts::of(&rows).unwrap(), Some(&draws))
        .unwrap()
        .total;
    value.backward();
    op.surrogate(&stats).unwrap().backward();
    (value.double_value(&[]), numbers(&logits.grad()))
}

#[test]
fn oracles_of_cringe_and_of_a_step_along_its_gradient() {
    let logits = [2.0, 1.0, 0.0, -1.0];
    let cringe = Cringe::new(1.0, 1);
    let (value, push) = negative(&logits, 0, &cringe, 0.5);
    near("negative favourite", value, 1.31326, 1e-5);
    near("its weight", push[0], 0.73106, 1e-5);
    let stepped: Vec<f64> = logits.iter().zip(&push).map(|(z, g)| z - g).collect();
    let sum: f64 = stepped.iter().map(|z| z.exp()).sum();
    let after = [(1.26894, 0.3365), (1.73106, 0.5341), (0.0, 0.0946), (-1.0, 0.0348)];
    for (z, (logit, p)) in stepped.iter().zip(after) {
        near("logit after a step", *z, logit, 1e-5);
        near("probability after a step", z.exp() / sum, p, 5e-5);
    }
    let (value, push) = negative(&logits, 3, &cringe, 0.5);
    near("unlikely negative", value, 0.048587, 1e-6);
    near("its weight", push[3], 0.047426, 1e-6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The drawn token is never the negative itself, and only the two of them are pushed, by as much.
    #[test]
    fn cringe_moves_the_negative_and_one_other_logit_alone(
        row in prop::collection::vec(-3.0..3.0f64, 3..9),
        target: prop::sample::Index,
        k: prop::sample::Index,
        draw in 0.0..1.0f64,
        detach_positives: bool,
    ) {
        tch::set_num_threads(1);
        let target = target.index(row.len());
        let loss = Cringe { detach_positives, ..Cringe::new(1.0, 1 + k.index(row.len() - 1)) };
        let (_, push) = negative(&row, target as i64, &loss, draw);
        prop_assert!(push[target] > 0.0 && push[target] < 1.0);
        let mut others = push.clone();
        others.remove(target);
        others.retain(|g| g.abs() > 0.0);
        if detach_positives {
            prop_assert!(others.is_empty());
        } else {
            prop_assert_eq!(others.len(), 1);
            prop_assert!((others[0] + push[target]).abs() < 1e-15);
        }
    }
}

/// Chosen completions of 3, 1 and 4 tokens, then rejected ones of 2, 5 and 1.
fn made() -> Made {
    tch::set_num_threads(1);
    Made::new(7, &[3, 1, 4, 2, 5, 1], &[1, 1, 1, 0, 0, 0], 6, 17)
}

const LENGTHS: [usize; 6] = [3, 1, 4, 2, 5, 1];
const N_PAIRS: f64 = 3.0;

/// Value, gradient of the hidden states and of the embedding.
type Outcome = (LossValue, Tensor, Tensor);

/// The batch as pairs.
fn as_pairs(made: &Made, objective: &Objective) -> Outcome {
    let hidden = made.hidden.detach().set_requires_grad(true);
    let embedding = made.embedding.detach().set_requires_grad(true);
    let op = TokenOp::new(
        &hidden,
        &embedding,
        &Tensor::from_slice(&made.targets),
        &objective.needs(),
    )
    .unwrap();
    let stats = op.forward().unwrap();
    let rows = CompletionRows::new(&LENGTHS, Device::Cpu).unwrap();
    let draws = made.draws();
    let batch = Batch {
        stats: &stats,
        rows: &rows,
        reference: None,
        draws: Some(&draws),
        baseline: None,
    };
    let value = objective.evaluate(&batch, &PairCounts::of(&rows)).unwrap();
    value.total.backward();
    op.surrogate(&stats).unwrap().backward();
    (value, hidden.grad(), embedding.grad())
}

/// The batch as labelled completions.
fn as_tokens(made: &Made, loss: token::Loss) -> Outcome {
    let outcome = made.through_op(&loss, &made.counts(), None);
    (outcome.value, outcome.hidden, outcome.embedding)
}

/// Asserts that `ours` is `theirs` times `scale`, in value and gradient.
fn equal_up_to(scale: f64, ours: &Outcome, theirs: &Outcome) {
    let pairs = [
        (&ours.0.total, &theirs.0.total),
        (&ours.1, &theirs.1),
        (&ours.2, &theirs.2),
    ];
    for (ours, theirs) in pairs {
        assert!(theirs.abs().max().double_value(&[]) > 0.01);
        assert!(difference(ours, &(theirs * scale)) < 1e-12);
    }
}

#[test]
fn pairwise_cringe_with_an_open_gate_is_cringe() {
    let made = made();
    let mut tried = 0;
    for (k, detach_positives) in [(1, false), (4, false), (4, true)] {
        let binary = Cringe {
            detach_positives,
            ..Cringe::new(0.7, k)
        };
        // Sums over tokens and a mean over pairs, against a mean over all tokens.
        let scale = made.n_rows() as f64 / N_PAIRS;
        let theirs = as_tokens(&made, token::Loss::Cringe(binary));
        for (tau, gate_gradient) in [(2.0, true), (2.0, false), (0.0, false)] {
            let loss = PairwiseCringe {
                b: f64::INFINITY,
                tau,
                gate_gradient,
                detach_positives,
                ..PairwiseCringe::new(0.7, k)
            };
            equal_up_to(scale, &as_pairs(&made, &Loss::PairwiseCringe(loss).into()), &theirs);
            tried += 1;
        }
        // With a gate that is not open it is another loss.
        let gated = PairwiseCringe {
            b: 0.0,
            tau: 10.0,
            ..PairwiseCringe::new(0.7, k)
        };
        let gated = as_pairs(&made, &Loss::PairwiseCringe(gated).into());
        assert!(difference(&gated.0.total, &(&theirs.0.total * scale)) > 0.01);
    }
    assert_eq!(tried, 9);
}

#[test]
fn pairwise_cringe_without_contrast_and_gate_is_likelihood_of_the_chosen() {
    let made = made();
    let ours = as_pairs(&made, &Loss::PairwiseCringe(PairwiseCringe::new(0.0, 3)).into());
    let chosen_tokens = LENGTHS[..3].iter().sum::<usize>() as f64;
    equal_up_to(
        chosen_tokens / N_PAIRS,
        &ours,
        &as_tokens(&made, token::Loss::Nll(Nll {})),
    );
}

#[test]
fn cringe_of_a_batch_without_negatives_is_likelihood() {
    let positive = Made::new(3, &[3, 4], &[1, 1], 6, 17);
    let cringe = as_tokens(&positive, token::Loss::Cringe(Cringe::new(5.0, 4)));
    assert!(cringe.0.terms.iter().all(|(name, _)| *name != "ct_loss"));
    equal_up_to(1.0, &cringe, &as_tokens(&positive, token::Loss::Nll(Nll {})));
}

/// The likelihood that is part of a loss has the weight that the loss gives it, on top of the pairs' values.
#[test]
fn losses_with_a_likelihood_of_their_own_add_it_with_its_weight() {
    let made = made();
    let likelihood = as_tokens(&made, token::Loss::Nll(Nll {}));
    let cpo = |alpha| {
        Loss::Cpo(Cpo {
            beta: 0.1,
            alpha,
            label_smoothing: 0.0,
            hinge: false,
        })
    };
    let slic = |lambda| Loss::SlicHf(SlicHf { delta: 1.0, lambda });
    let mut tried = 0;
    for (with, without, weight) in [
        (cpo(0.3), cpo(0.0), 0.3),
        (slic(2.0), slic(0.0), 2.0),
        (Loss::Orpo(Orpo { beta: 0.5 }), Loss::Orpo(Orpo { beta: 1.0 }), 0.0),
    ] {
        let (with, without) = (as_pairs(&made, &with.into()), as_pairs(&made, &without.into()));
        let rest = |ours: &Tensor, theirs: &Tensor, likelihood: &Tensor| match weight > 0.0 {
            true => difference(&(ours - theirs), &(likelihood * weight)),
            // With twice the weight of the odds all but the likelihood doubles.
            false => difference(&(ours * 2.0 - theirs), likelihood),
        };
        assert!(rest(&with.0.total, &without.0.total, &likelihood.0.total) < 1e-12);
        assert!(rest(&with.1, &without.1, &likelihood.1) < 1e-12);
        assert!(rest(&with.2, &without.2, &likelihood.2) < 1e-12);
        tried += 1;
    }
    assert_eq!(tried, 3);
}

/// ORPO's push on a log-probability grows without bound as a rejected completion becomes certain; on its logits it does
/// not.
#[test]
fn orpo_pushes_the_logits_of_a_certain_rejected_completion_by_no_more_than_twice_its_weight() {
    let loss = Loss::Orpo(Orpo { beta: 0.8 });
    let mut largest = 0.0f64;
    for lead in [0.0, 5.0, 15.0, 27.6, 40.0, 1e4] {
        for kind in [Kind::Double, Kind::Float] {
            let mut logits = [0.0; 12];
            // One chosen token nobody would say; two rejected ones, both certain.
            (logits[0], logits[4], logits[9]) = (-lead, lead, lead);
            let logits = Tensor::from_slice(&logits)
                .view([3, 4])
                .to_kind(kind)
                .set_requires_grad(true);
            let identity = Tensor::eye(4, (kind, Device::Cpu));
            let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[0i64, 0, 1]), &loss.needs()).unwrap();
            let stats = op.forward().unwrap();
            let rows = CompletionRows::new(&[1, 2], Device::Cpu).unwrap();
            let pairs = Pairs::split(&Completions::of(&stats, &rows, None, None).unwrap()).unwrap();
            let value = loss.values(&pairs).unwrap();
            value.sum(kind).backward();
            op.surrogate(&stats).unwrap().backward();
            let push = logits.grad().narrow(0, 1, 2).abs().sum(Kind::Double).double_value(&[]);
            assert!(
                value.double_value(&[0]).is_finite() && push < 2.0 * 0.8 * 1.001,
                "lead {lead}: {push}"
            );
            largest = largest.max(push);
        }
    }
    assert!(largest > 1.5, "{largest}");
}
