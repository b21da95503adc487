//! What can be put around a loss over pairs: every switch in value and gradient, against plain arithmetic.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

#[path = "../plain/mod.rs"]
mod plain;
mod refusals;

use plain::{Numbers, numbers};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unsay_losses::paired::{Batch, Divergence, Loss, Objective, PairCounts, Pairs};
use unsay_losses::{CompletionRows, Completions, LossValue, Needs, TokenOp, TokenStats};

/// Two pairs: chosen completions of 3 and 1 tokens, rejected ones of 2 and 4.
const LENGTHS: [usize; 4] = [3, 1, 2, 4];
const BETA: f64 = 0.3;
const V: i64 = 5;

/// Rows of completions with everything that an objective can ask for.
struct Made {
    lengths: Vec<usize>,
    stats: TokenStats,
    logp: Vec<f64>,
    reference: Vec<f64>,
    collision: Vec<f64>,
}

fn made() -> Made {
    tch::set_num_threads(1);
    let n = LENGTHS.iter().sum::<usize>() as i64;
    let mut random = Numbers::new(3);
    // The target is the token with the largest logit in the first pair, with the smallest in the second.
    let step = Tensor::from_slice(&[2.0f64, 0.5, 0.0, -0.5, -2.0]);
    let logits = random.tensor(&[n, V], 0.2) + step;
    let targets: Vec<i64> = LENGTHS
        .iter()
        .zip([0, 4, 0, 4])
        .flat_map(|(&n, target)| vec![target; n])
        .collect();
    let identity = Tensor::eye(V, (Kind::Double, Device::Cpu));
    let needs = Needs {
        collision: true,
        ..Needs::default()
    };
    let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&targets), &needs).unwrap();
    let stats = op.forward().unwrap();
    let collision: Vec<f64> = numbers(&logits)
        .chunks(V as usize)
        .map(|row| {
            let sum: f64 = row.iter().map(|x| x.exp()).sum();
            row.iter().map(|x| (x.exp() / sum).powi(2)).sum::<f64>().ln()
        })
        .collect();
    let logp = numbers(&stats.logp);
    let reference = logp.iter().map(|logp| logp - 1.0 + 2.0 * random.next()).collect();
    Made {
        lengths: LENGTHS.to_vec(),
        stats,
        logp,
        reference,
        collision,
    }
}

impl Made {
    /// Some of the completions, as a batch of their own.
    fn part(&self, completions: &[usize]) -> Made {
        let start = |completion: usize| self.lengths[..completion].iter().sum::<usize>();
        let rows: Vec<usize> = completions
            .iter()
            .flat_map(|&c| start(c)..start(c) + self.lengths[c])
            .collect();
        let index = Tensor::from_slice(&rows.iter().map(|&row| row as i64).collect::<Vec<_>>());
        let pick = |t: &Tensor| t.detach().index_select(0, &index);
        let leaf = |t: &Tensor| pick(t).set_requires_grad(true);
        // Built by the op, so that a new column breaks nothing here, and then filled with these rows.
        let identity = Tensor::eye(2, (Kind::Double, Device::Cpu));
        let blank = Tensor::zeros([rows.len() as i64, 2], (Kind::Double, Device::Cpu));
        let stats = TokenOp::new(
            &blank,
            &identity,
            &pick(&self.stats.targets).clamp(0, 1),
            &Needs::default(),
        )
        .unwrap()
        .forward()
        .unwrap();
        let pick_numbers = |all: &[f64]| rows.iter().map(|&row| all[row]).collect::<Vec<f64>>();
        Made {
            lengths: completions.iter().map(|&c| self.lengths[c]).collect(),
            stats: TokenStats {
                logp: leaf(&self.stats.logp),
                collision: self.stats.collision.as_ref().map(pick),
                ..stats
            },
            logp: pick_numbers(&self.logp),
            reference: pick_numbers(&self.reference),
            collision: pick_numbers(&self.collision),
        }
    }

    fn rows(&self) -> CompletionRows {
        CompletionRows::new(&self.lengths, Device::Cpu).unwrap()
    }

    /// The value with counts of its own or of a larger batch; gradients are left on `stats`.
    fn evaluate(&self, objective: &Objective, counts: Option<PairCounts>) -> unsay_losses::Result<LossValue> {
        let rows = self.rows();
        let reference = Tensor::from_slice(&self.reference);
        let batch = Batch {
            stats: &self.stats,
            rows: &rows,
            reference: objective.uses_reference().then_some(&reference),
            draws: None,
            baseline: objective.loss.baseline().map(|_| 0.1),
        };
        objective.evaluate(&batch, &counts.unwrap_or(PairCounts::of(&rows)))
    }

    /// Asserts the value of each pair and the gradient of each row's log-probability, as given by hand.
    fn assert(&self, text: Value, values: &[f64], gradient: &[f64]) -> LossValue {
        let objective = objective(text);
        let fresh = self.part(&[0, 1, 2, 3]);
        let value = fresh.evaluate(&objective, None).unwrap();
        value.total.backward();
        let near = |what: &str, ours: &[f64], exact: &[f64]| {
            assert_eq!(ours.len(), exact.len());
            let near = ours.iter().zip(exact).all(|(a, b)| (a - b).abs() < 1e-12);
            assert!(near, "{objective:?}, {what}: {ours:?} is not {exact:?}");
        };
        let b = values.len() as f64;
        let shares: Vec<f64> = values.iter().map(|value| value / b).collect();
        near("values", &numbers(&value.per_example), &shares);
        near("total", &numbers(&value.total), &[shares.iter().sum()]);
        near("gradient", &numbers(&fresh.stats.logp.grad()), gradient);
        value
    }

    /// Sums over completions of numbers per row.
    fn sums(&self, per_row: &[f64]) -> Vec<f64> {
        let mut rest = per_row;
        self.lengths
            .iter()
            .map(|&n| {
                let (own, others) = rest.split_at(n);
                rest = others;
                own.iter().sum()
            })
            .collect()
    }
}

fn objective(text: Value) -> Objective {
    serde_json::from_value(text).unwrap()
}

fn dpo() -> Value {
    json!({ "dpo": { "beta": BETA } })
}

fn softplus(x: f64) -> f64 {
    (1.0 + x.exp()).ln()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// DPO's values and gradients by hand, from the score of each completion, the slope of that score in each row's
/// log-probability, and the weight of each pair.
fn by_hand(made: &Made, scores: &[f64], row_slopes: &[f64], weights: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let b = scores.len() / 2;
    let margin: Vec<f64> = (0..b).map(|i| BETA * (scores[i] - scores[b + i])).collect();
    let values = margin.iter().zip(weights).map(|(x, w)| w * softplus(-x)).collect();
    let completion: Vec<usize> = made
        .lengths
        .iter()
        .enumerate()
        .flat_map(|(completion, &n)| vec![completion; n])
        .collect();
    let gradient = completion
        .iter()
        .zip(row_slopes)
        .map(|(&completion, row)| {
            let (pair, sign) = (completion % b, if completion < b { -1.0 } else { 1.0 });
            sign * weights[pair] * BETA * sigmoid(-margin[pair]) * row / b as f64
        })
        .collect();
    (values, gradient)
}

/// Log-ratios of completions from rows with weights.
fn ratios(made: &Made, row_weights: &[f64]) -> Vec<f64> {
    let rows = made.logp.iter().zip(&made.reference).zip(row_weights);
    made.sums(
        &rows
            .map(|((logp, reference), w)| w * (logp - reference))
            .collect::<Vec<_>>(),
    )
}

/// Every sample of every loss with a reference; the count guards the loops below against an empty list.
fn with_reference() -> Vec<Loss> {
    let all: Vec<Loss> = Loss::samples()
        .into_iter()
        .filter(|loss| loss.uses_reference())
        .collect();
    assert_eq!(all.len(), 28);
    all
}

#[test]
fn sums_means_and_ld_weights_apply_to_policy_and_reference() {
    let made = made();
    let ones = vec![1.0; 10];
    let (values, gradient) = by_hand(&made, &ratios(&made, &ones), &ones, &[1.0; 2]);
    made.assert(json!({ "loss": dpo() }), &values, &gradient);

    let means: Vec<f64> = LENGTHS.iter().flat_map(|&n| vec![1.0 / n as f64; n]).collect();
    let (values, gradient) = by_hand(&made, &ratios(&made, &means), &means, &[1.0; 2]);
    made.assert(json!({ "loss": dpo(), "logps": "mean" }), &values, &gradient);

    // The pairs share 2 and 1 tokens: the third of the first chosen completion and the last three of the last rejected one
    // are beyond.
    for alpha in [0.0, 0.25, 1.0] {
        let ld = [1.0, 1.0, alpha, 1.0, 1.0, 1.0, 1.0, alpha, alpha, alpha];
        let (values, gradient) = by_hand(&made, &ratios(&made, &ld), &ld, &[1.0; 2]);
        made.assert(
            json!({ "loss": dpo(), "logps": { "ld": { "alpha": alpha } } }),
            &values,
            &gradient,
        );
    }
}

#[test]
fn wpo_weights_say_how_likely_both_completions_are_and_carry_no_gradient() {
    let made = made();
    let ones = vec![1.0; 10];
    let surplus: Vec<f64> = made
        .logp
        .iter()
        .zip(&made.collision)
        .map(|(logp, c)| logp - c)
        .collect();
    let means: Vec<f64> = made
        .sums(&surplus)
        .iter()
        .zip(LENGTHS)
        .map(|(sum, n)| sum / n as f64)
        .collect();
    let weights = [(means[0] + means[2]).exp(), (means[1] + means[3]).exp()];
    assert!(weights[0] > 1.1 && weights[1] < 0.1, "{weights:?}");
    for (clamp, weights) in [(false, weights), (true, [1.0, weights[1]])] {
        let (values, gradient) = by_hand(&made, &ratios(&made, &ones), &ones, &weights);
        let text = json!({ "loss": dpo(), "weighting": { "wpo": { "clamp": clamp } } });
        assert!(objective(text.clone()).needs().collision);
        made.assert(text, &values, &gradient);
    }
    assert!(!objective(json!({ "loss": dpo() })).needs().collision);
}

#[test]
fn a_divergence_is_applied_to_the_log_ratio_of_each_completion() {
    let made = made();
    let u = ratios(&made, &[1.0; 10]);
    type Score = fn(f64) -> f64;
    let cases: [(Value, Score, Score); 3] = [
        (json!("forward_kl"), |u| -(-u).exp(), |u| (-u).exp()),
        (json!("js"), |u| -softplus(-u), |u| sigmoid(-u)),
        (
            json!({ "alpha": { "alpha": 0.4 } }),
            |u| (-0.6 * u).exp() / -0.6,
            |u| (-0.6 * u).exp(),
        ),
    ];
    for (divergence, score, slope) in cases {
        let scores: Vec<f64> = u.iter().map(|&u| score(u)).collect();
        let slopes: Vec<f64> = u.iter().zip(LENGTHS).flat_map(|(&u, n)| vec![slope(u); n]).collect();
        let (values, gradient) = by_hand(&made, &scores, &slopes, &[1.0; 2]);
        made.assert(json!({ "loss": dpo(), "divergence": divergence }), &values, &gradient);
    }
}

#[test]
fn without_a_reference_log_ratios_are_log_probabilities() {
    let made = made();
    let ones = vec![1.0; 10];
    let sums = made.sums(&made.logp);
    let (values, gradient) = by_hand(&made, &sums, &ones, &[1.0; 2]);
    let text = json!({ "loss": dpo(), "reference_free": true });
    assert!(!objective(text.clone()).uses_reference() && objective(json!({ "loss": dpo() })).uses_reference());
    let value = made.assert(text.clone(), &values, &gradient);
    let term = |name: &str| {
        value
            .terms
            .iter()
            .find(|(term, _)| *term == name)
            .unwrap()
            .1
            .double_value(&[])
    };
    assert!((term("reward_chosen") - BETA * (sums[0] + sums[1]) / 2.0).abs() < 1e-12);
    // A reference that is handed in all the same changes nothing.
    let rows = made.rows();
    let reference = Tensor::from_slice(&made.reference);
    let batch = Batch {
        stats: &made.stats,
        rows: &rows,
        reference: Some(&reference),
        draws: None,
        baseline: None,
    };
    let again = objective(text).evaluate(&batch, &PairCounts::of(&rows)).unwrap();
    assert_eq!(numbers(&again.per_example), numbers(&value.per_example));
}

#[test]
fn the_anchor_is_the_plain_likelihood_of_all_chosen_tokens() {
    let made = made();
    let ld = [1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5];
    let (mut values, mut gradient) = by_hand(&made, &ratios(&made, &ld), &ld, &[1.0; 2]);
    let (nll, chosen_tokens) = (0.7, 4.0);
    let sums = made.sums(&made.logp);
    for (value, sum) in values.iter_mut().zip(&sums[..2]) {
        *value -= 2.0 * nll * sum / chosen_tokens;
    }
    gradient
        .iter_mut()
        .take(4)
        .for_each(|slope| *slope -= nll / chosen_tokens);
    let text = json!({ "loss": dpo(), "logps": { "ld": { "alpha": 0.5 } }, "nll": nll });
    let value = made.assert(text, &values, &gradient);
    let (name, mean) = value.terms.last().unwrap();
    assert_eq!(*name, "nll_chosen");
    assert!((mean.double_value(&[]) + (sums[0] + sums[1]) / chosen_tokens).abs() < 1e-12);
    let without = made.evaluate(&objective(json!({ "loss": dpo() })), None).unwrap();
    assert_eq!(without.terms.len(), value.terms.len() - 1);
}

#[test]
fn terms_are_means_over_pairs_and_accuracy_is_strict() {
    let mut made = made();
    // The second pair ties: both log-ratios are 0.
    let tied = LENGTHS[0]..LENGTHS[0] + LENGTHS[1];
    let logp = made.logp.clone();
    made.reference[tied.clone()].copy_from_slice(&logp[tied]);
    made.reference[6..].copy_from_slice(&logp[6..]);
    made.reference[0] = logp[0] - 9.0;
    let (u, sums) = (ratios(&made, &[1.0; 10]), made.sums(&made.logp));
    assert!(u[0] > u[2] && u[1].abs() < 1e-15 && u[3].abs() < 1e-15);
    let value = made.evaluate(&objective(json!({ "loss": dpo() })), None).unwrap();
    let expected = [
        ("reward_chosen", BETA * (u[0] + u[1]) / 2.0),
        ("reward_rejected", BETA * (u[2] + u[3]) / 2.0),
        ("reward_margin", BETA * (u[0] - u[2]) / 2.0),
        ("reward_accuracy", 0.5),
        ("logp_chosen", (sums[0] + sums[1]) / 2.0),
        ("logp_rejected", (sums[2] + sums[3]) / 2.0),
    ];
    assert_eq!(value.terms.len(), expected.len());
    for ((name, term), (expected_name, expected)) in value.terms.iter().zip(expected) {
        assert_eq!(*name, expected_name);
        assert!(
            (term.double_value(&[]) - expected).abs() < 1e-12 && !term.requires_grad(),
            "{name}"
        );
    }
}

#[test]
fn pairs_whose_exponential_is_held_are_counted_in_the_log() {
    let share = |made: &Made, divergence: Value| {
        let objective = objective(json!({ "loss": dpo(), "divergence": divergence }));
        let value = made.evaluate(&objective, None).unwrap();
        let held = value.terms.iter().find(|(name, _)| *name == "held_fraction");
        held.map(|(_, share)| share.double_value(&[]))
    };
    let alpha = || json!({ "alpha": { "alpha": 1.5 } });
    let mut far = made();
    assert_eq!([json!("reverse_kl"), json!("js")].map(|d| share(&far, d)), [None, None]);
    let near = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-15;
    assert!(near(share(&far, json!("forward_kl")), 0.0) && near(share(&far, alpha()), 0.0));
    // The chosen completion of the first pair 45 below the reference, then the rejected one of the second as well.
    far.reference[0] += 45.0;
    assert!(near(share(&far, json!("forward_kl")), 0.5) && near(share(&far, alpha()), 0.0));
    far.reference[6] += 48.0;
    assert!(near(share(&far, json!("forward_kl")), 1.0));
    // Above it: the exponent is half of the log-ratio.
    far.reference[6] -= 48.0 + 90.0;
    assert!(near(share(&far, json!("forward_kl")), 0.5) && near(share(&far, alpha()), 0.5));
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    let made = made();
    let texts = [
        json!({ "loss": dpo(), "nll": 0.7, "weighting": { "wpo": { "clamp": false } } }),
        json!({ "loss": { "ipo_mean": { "beta": 0.2 } }, "nll": 0.1 }),
        json!({ "loss": { "bco_pair": { "beta": 0.2 } }, "logps": { "ld": { "alpha": 0.5 } } }),
    ];
    for text in texts {
        let objective = objective(text);
        let whole = made.part(&[0, 1, 2, 3]);
        let full = whole.evaluate(&objective, None).unwrap();
        full.total.backward();
        let gradient = numbers(&whole.stats.logp.grad());
        let parts = [made.part(&[0, 2]), made.part(&[1, 3])];
        let counts = parts
            .iter()
            .map(|part| PairCounts::of(&part.rows()))
            .sum::<PairCounts>();
        let values = parts
            .each_ref()
            .map(|part| part.evaluate(&objective, Some(counts)).unwrap());
        let near = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        let sum = |pick: &dyn Fn(&LossValue) -> f64| values.iter().map(pick).sum::<f64>();
        assert!(near(
            &[sum(&|value| value.total.double_value(&[]))],
            &numbers(&full.total)
        ));
        for (at, (name, term)) in full.terms.iter().enumerate() {
            let total = sum(&|value| value.terms[at].1.double_value(&[]));
            assert!(near(&[total], &numbers(term)), "{name}");
        }
        values.iter().for_each(|value| value.total.backward());
        let [first, second] = parts.each_ref().map(|part| numbers(&part.stats.logp.grad()));
        let joined = [&first[..3], &second[..1], &first[3..], &second[1..]].concat();
        assert!(near(&joined, &gradient), "{objective:?}");
    }
}

#[test]
fn extreme_margins_stay_finite_in_value_and_gradient() {
    let mut checked = 0;
    let divergences = [
        Divergence::ReverseKl,
        Divergence::ForwardKl,
        Divergence::Js,
        Divergence::Alpha { alpha: 0.5 },
        Divergence::Alpha { alpha: 3.0 },
        Divergence::Alpha { alpha: 1.0 + 1e-6 },
    ];
    let far = [-1e4, 0.0, 1e4];
    let all: Vec<(f64, f64)> = far.iter().flat_map(|&c| far.map(|r| (c, r))).collect();
    for loss in with_reference() {
        for divergence in divergences {
            if divergence != Divergence::ReverseKl && !loss.takes_divergence() {
                continue;
            }
            for kind in [Kind::Float, Kind::Double] {
                let column = |values: Vec<f64>| Tensor::from_slice(&values).to_kind(kind);
                let side = |ratios: Vec<f64>| {
                    let minus = column(vec![-20.0; ratios.len()]);
                    let logp = (column(ratios) + &minus).set_requires_grad(true);
                    let tokens = column(vec![5.0; all.len()]);
                    (Completions::from_sums(&logp, Some(&minus), &tokens).unwrap(), logp)
                };
                let (chosen, chosen_leaf) = side(all.iter().map(|pair| pair.0).collect());
                let (rejected, rejected_leaf) = side(all.iter().map(|pair| pair.1).collect());
                let mut pairs = Pairs::new(chosen, rejected).unwrap();
                pairs.divergence = divergence;
                pairs.baseline = Some(0.5);
                let values = loss.values(&pairs).unwrap();
                values.sum(kind).backward();
                for (what, t) in [
                    ("value", &values),
                    ("chosen", &chosen_leaf.grad()),
                    ("rejected", &rejected_leaf.grad()),
                ] {
                    let finite = numbers(t).iter().all(|x| x.is_finite());
                    assert!(
                        finite,
                        "{what} of {loss:?} with {divergence:?} in {kind:?}: {:?}",
                        numbers(t)
                    );
                }
                checked += 1;
            }
        }
    }
    // 28 samples, 12 of which take all 6 divergences, in two kinds.
    assert_eq!(checked, 2 * (16 + 12 * 6));
}
