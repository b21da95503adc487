//! What negative-only and unpaired methods promise on paper: numbers worked out by hand, limits in which one loss
//! becomes another, and bounds.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod plain;

use plain::{Numbers, difference, numbers};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use unsay_losses::paired::{Dpo, PairedLoss, Pairs};
use unsay_losses::ranked::{self, D2o, Groups, RankedCounts, RankedLoss};
use unsay_losses::unpaired::{self, Kto, Labelled, Npo, SequenceGradientAscent, UnpairedCounts, UnpairedLoss};
use unsay_losses::{CompletionRows, Completions, LossValue, Retain, TokenOp, TokenStats};

/// Completions with these log-ratios to a reference of -20 each; the leaf is their log-probability.
fn completions(ratios: &[f64]) -> (Tensor, Completions) {
    let leaf = (Tensor::from_slice(ratios) - 20.0).set_requires_grad(true);
    let all = |x: f64| leaf.full_like(x).detach();
    let completions = Completions::from_sums(&leaf, Some(&all(-20.0)), &all(5.0)).unwrap();
    (leaf, completions)
}

/// Values and the gradient of their sum.
fn finish(leaf: &Tensor, values: &Tensor) -> [Vec<f64>; 2] {
    values.sum(Kind::Double).backward();
    [numbers(values), numbers(&leaf.grad())]
}

/// An unpaired loss on completions with these log-ratios.
fn on_labelled(loss: &dyn UnpairedLoss, ratios: &[f64], desirable: &[bool], baseline: Option<f64>) -> [Vec<f64>; 2] {
    let (leaf, completions) = completions(ratios);
    let labelled = Labelled {
        baseline,
        ..Labelled::new(completions, desirable).unwrap()
    };
    finish(&leaf, &loss.values(&labelled).unwrap())
}

/// D2O on one prompt: log-ratios of the samples, and of the negative.
fn on_samples(loss: &D2o, samples: &[f64], negative: f64) -> [Vec<f64>; 2] {
    let (leaf, completions) = completions(&[samples, &[negative]].concat());
    let groups = Groups::split(&completions, &[samples.len()]).unwrap();
    finish(&leaf, &loss.values(&groups).unwrap())
}

/// DPO on pairs of a chosen completion with each of these log-ratios and a rejected one.
fn on_pairs(loss: &Dpo, chosen: &[f64], rejected: f64) -> [Vec<f64>; 2] {
    let all: Vec<f64> = chosen.iter().chain(&vec![rejected; chosen.len()]).copied().collect();
    let (leaf, completions) = completions(&all);
    finish(&leaf, &loss.values(&Pairs::split(&completions).unwrap()).unwrap())
}

fn d2o(alpha: f64, beta: f64) -> D2o {
    D2o { alpha, beta }
}

fn dpo(beta: f64) -> Dpo {
    Dpo {
        beta,
        label_smoothing: 0.0,
    }
}

fn near(what: &str, ours: f64, expected: f64, bound: f64) {
    assert!((ours - expected).abs() < bound, "{what}: {ours} is not {expected}");
}

#[test]
fn oracles_by_hand() {
    tch::set_num_threads(1);
    let kto = Kto {
        beta: 0.1,
        desirable_weight: 1.0,
        undesirable_weight: 1.0,
    };
    let [values, _] = on_labelled(&kto, &[2.0, -3.0], &[true, false], Some(0.5));
    near("kto, desirable", values[0], 0.462570, 1e-6);
    near("kto, undesirable", values[1], 0.413382, 1e-6);

    let [values, push] = on_labelled(&Npo { beta: 0.1 }, &[0.0, -10.0], &[false, false], None);
    near("npo at the reference", values[0], 13.862944, 1e-6);
    near("npo ten nats below", values[1], 6.265233, 1e-6);
    near("npo's push at the reference", push[0], 1.0, 1e-12);
    near("npo's push ten nats below", push[1], 0.537883, 1e-6);

    let [values, push] = on_samples(&d2o(0.1, 0.1), &[1.0, 3.0], -5.0);
    near("d2o", values[0], 0.403186, 1e-6);
    near("d2o's push on a sample", push[1], -0.05 * 0.331812, 1e-7);
    near("d2o's push on the negative", push[2], 0.1 * 0.331812, 1e-7);
}

#[test]
fn at_the_reference_every_value_is_known() {
    let ln_2 = std::f64::consts::LN_2;
    for beta in [0.05, 0.1, 1.0] {
        let [npo, push] = on_labelled(&Npo { beta }, &[0.0], &[false], None);
        near("npo", npo[0], 2.0 / beta * ln_2, 1e-12);
        near("npo's push", push[0], 1.0, 1e-12);
        near("d2o", on_samples(&d2o(0.3, beta), &[0.0; 3], 0.0)[0][0], ln_2, 1e-12);
        near("dpo", on_pairs(&dpo(beta), &[0.0], 0.0)[0][0], ln_2, 1e-12);
    }
}

#[test]
fn npo_tends_to_gradient_ascent_as_beta_falls() {
    let ratios = [4.0, -7.0, 0.5];
    let [_, ascent] = on_labelled(&SequenceGradientAscent {}, &ratios, &[false; 3], None);
    assert_eq!(ascent, [1.0; 3]);
    let mut last = f64::INFINITY;
    for beta in [1.0, 0.1, 0.01, 1e-3, 1e-4] {
        let [_, push] = on_labelled(&Npo { beta }, &ratios, &[false; 3], None);
        let errors = push.iter().zip(&ascent).map(|(ours, limit)| (ours - limit).abs());
        let error = errors.fold(0.0, f64::max);
        assert!(error < last / 2.0, "beta {beta}: {error} after {last}");
        // 2σ(βu) - 1 is close to βu/2.
        assert!(error <= beta * 7.0 / 2.0 + 1e-12, "beta {beta}: {error}");
        last = error;
    }
    assert!(last < 1e-3);
}

#[test]
fn two_references_enter_each_on_its_side() {
    // The same policy, with another reference for samples and for negatives: only log-ratios matter.
    let logp = Tensor::from_slice(&[-10.0f64, -12.0, -9.0]);
    let value = |reference: [f64; 3]| {
        let completions = Completions::from_sums(&logp, Some(&Tensor::from_slice(&reference)), &logp.ones_like());
        let groups = Groups::split(&completions.unwrap(), &[2]).unwrap();
        numbers(&d2o(0.5, 0.25).values(&groups).unwrap())[0]
    };
    let same = value([-11.0, -11.0, -11.0]); // z = 0 - 0.5 · 2
    near("one reference", same, (1.0 + 1f64.exp()).ln(), 1e-12);
    let harmful = value([-12.0, -12.0, -11.0]); // samples 1 nat further from it: z = 0.25 - 1
    near("samples have their own", harmful, (1.0 + 0.75f64.exp()).ln(), 1e-12);
    let helpful = value([-11.0, -11.0, -9.0]); // the negative at it: z = 0
    near("negatives have theirs", helpful, 2f64.ln(), 1e-12);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn d2o_with_one_sample_is_dpo(sample in -30.0..30.0, negative in -30.0..30.0, beta in 0.01..2.0) {
        let [values, push] = on_samples(&d2o(beta, beta), &[sample], negative);
        let [expected, expected_push] = on_pairs(&dpo(beta), &[sample], negative);
        prop_assert!((values[0] - expected[0]).abs() < 1e-12);
        for (ours, theirs) in push.iter().zip(&expected_push) {
            prop_assert!((ours - theirs).abs() < 1e-12);
        }
    }

    #[test]
    fn d2o_with_equal_samples_is_that_with_one(
        sample in -30.0..30.0, negative in -30.0..30.0, k in 2usize..12, alpha in 0.01..2.0, beta in 0.01..2.0,
    ) {
        let loss = d2o(alpha, beta);
        let [values, push] = on_samples(&loss, &vec![sample; k], negative);
        let [expected, expected_push] = on_samples(&loss, &[sample], negative);
        prop_assert!((values[0] - expected[0]).abs() < 1e-11);
        for ours in &push[..k] {
            prop_assert!((ours * k as f64 - expected_push[0]).abs() < 1e-11);
        }
        prop_assert!((push[k] - expected_push[1]).abs() < 1e-11);
    }

    #[test]
    fn d2o_is_at_most_the_mean_of_pairwise_losses(
        samples in prop::collection::vec(-30.0..30.0, 1..12), negative in -30.0..30.0, beta in 0.01..2.0,
    ) {
        let [values, _] = on_samples(&d2o(beta, beta), &samples, negative);
        let [pairwise, _] = on_pairs(&dpo(beta), &samples, negative);
        let mean = pairwise.iter().sum::<f64>() / samples.len() as f64;
        prop_assert!(values[0] <= mean + 1e-12, "{} above {}", values[0], mean);
    }

    #[test]
    fn npo_is_d2o_without_the_samples_up_to_a_factor(negative in -30.0..30.0, alpha in 0.01..2.0) {
        // Samples at their reference drop out of the value; their own gradient is what NPO lacks.
        let [values, push] = on_samples(&d2o(alpha, 0.7), &[0.0, 0.0], negative);
        let [npo, npo_push] = on_labelled(&Npo { beta: alpha }, &[negative], &[false], None);
        let factor = 2.0 / alpha;
        prop_assert!((factor * values[0] - npo[0]).abs() < 1e-9);
        prop_assert!((factor * push[2] - npo_push[0]).abs() < 1e-12);
    }

    #[test]
    fn kto_moves_each_completion_its_own_way_and_by_a_quarter_at_most(
        ratio in -300.0..300.0, baseline in 0.0..10.0, beta in 0.01..1.0, weight in 0.1..4.0,
    ) {
        let loss = Kto { beta, desirable_weight: weight, undesirable_weight: weight };
        let [values, push] = on_labelled(&loss, &[ratio, ratio], &[true, false], Some(baseline));
        prop_assert!((values[0] + values[1] - weight).abs() < 1e-12);
        prop_assert!(push[0] <= 0.0 && (push[0] + push[1]).abs() < 1e-15);
        prop_assert!(push[1] <= weight * beta / 4.0 + 1e-15);
    }
}

/// A made policy and reference over the same tokens.
struct Policy {
    hidden: Tensor,
    embedding: Tensor,
    reference: [Tensor; 2],
    targets: Tensor,
    rows: CompletionRows,
}

impl Policy {
    fn new(lengths: &[usize]) -> Policy {
        tch::set_num_threads(1);
        let mut made = Numbers::new(7);
        let n = lengths.iter().sum::<usize>();
        let targets: Vec<i64> = (0..n).map(|_| made.below(11) as i64).collect();
        Policy {
            hidden: made.tensor(&[n as i64, 4], 1.5),
            embedding: made.tensor(&[11, 4], 1.5),
            reference: [made.tensor(&[n as i64, 3], 1.5), made.tensor(&[11, 3], 1.5)],
            targets: Tensor::from_slice(&targets),
            rows: CompletionRows::new(lengths, Device::Cpu).unwrap(),
        }
    }

    fn reference_logps(&self) -> Tensor {
        let logits = self.reference[0].matmul(&self.reference[1].tr());
        let column = self.targets.unsqueeze(1);
        logits.log_softmax(-1, None).gather(1, &column, false).squeeze_dim(1)
    }

    /// Value and gradients through the op, and through full logits and autograd; they must be the same.
    fn both_ways(
        &self,
        needs: &unsay_losses::Needs,
        evaluate: impl Fn(&TokenStats) -> LossValue,
    ) -> (f64, Tensor, Tensor) {
        let leaves = || [&self.hidden, &self.embedding].map(|t| t.copy().set_requires_grad(true));
        let [hidden, embedding] = leaves();
        let op = TokenOp::new(&hidden, &embedding, &self.targets, needs)
            .unwrap()
            .with_reference(&self.reference[0], &self.reference[1])
            .unwrap()
            .with_chunk_rows(2);
        let stats = op.forward().unwrap();
        let value = evaluate(&stats);
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        let through_op = (value.total.double_value(&[]), hidden.grad(), embedding.grad());

        let [hidden, embedding] = leaves();
        let logits = hidden.matmul(&embedding.tr());
        let theirs = self.reference[0].matmul(&self.reference[1].tr());
        let given = plain::Given {
            reference: Some(&theirs),
            ..plain::Given::default()
        };
        let value = evaluate(&plain::stats_of(&logits, &self.targets, needs, &given));
        value.total.backward();
        assert!((value.total.double_value(&[]) - through_op.0).abs() < 1e-12);
        assert!(difference(&through_op.1, &hidden.grad()) < 1e-12);
        assert!(difference(&through_op.2, &embedding.grad()) < 1e-12);
        through_op
    }
}

const RETAIN: Retain = Retain { nll: 0.5, kl: 2.0 };

#[test]
fn what_is_retained_of_labelled_completions_goes_through_the_op() {
    let policy = Policy::new(&[2, 3, 1]);
    let reference = policy.reference_logps();
    let desirable = [true, false, true];
    let counts = UnpairedCounts::of(&policy.rows, &desirable).unwrap();
    let mut values = Vec::new();
    for retain in [Retain::default(), RETAIN] {
        let objective = unpaired::Objective {
            loss: unpaired::Loss::Npo(Npo { beta: 0.1 }),
            retain,
        };
        let (total, hidden, _) = policy.both_ways(&objective.needs(), |stats| {
            let batch = unpaired::Batch {
                stats,
                rows: &policy.rows,
                desirable: &desirable,
                reference: Some(&reference),
                baseline: None,
                weights: None,
            };
            objective.evaluate(&batch, &counts).unwrap()
        });
        let moved = |from: i64, n: i64| hidden.narrow(0, from, n).abs().sum(Kind::Double).double_value(&[]) > 0.0;
        assert!(moved(2, 3), "negatives are always trained");
        assert_eq!([moved(0, 2), moved(5, 1)], [retain.is_on(); 2]);
        values.push(total);
    }
    assert!(values[1] > values[0]);
}

#[test]
fn what_is_retained_beside_samples_and_negatives_goes_through_the_op() {
    // Two samples, a negative, and two completions to retain.
    let policy = Policy::new(&[1, 2, 3, 2, 1]);
    let reference = policy.reference_logps();
    let counts = RankedCounts::of(&policy.rows, &[2]).unwrap();
    let mut values = Vec::new();
    for retain in [Retain::default(), RETAIN] {
        let objective = ranked::Objective {
            retain,
            ..ranked::Objective::from(ranked::Loss::D2o(d2o(0.1, 0.3)))
        };
        let (total, hidden, _) = policy.both_ways(&objective.needs(), |stats| {
            let batch = ranked::Batch {
                stats,
                rows: &policy.rows,
                n_samples: &[2],
                reference: Some(&reference),
            };
            objective.evaluate(&batch, &counts).unwrap()
        });
        let moved = |from: i64, n: i64| hidden.narrow(0, from, n).abs().sum(Kind::Double).double_value(&[]) > 0.0;
        assert!(moved(0, 3) && moved(3, 3), "samples and negatives are always trained");
        assert_eq!(moved(6, 3), retain.is_on());
        values.push(total);
    }
    assert!(values[1] > values[0]);
}
