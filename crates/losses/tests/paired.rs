//! What can be put around a loss over pairs: every switch in value and gradient, against plain arithmetic.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod plain;

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
fn a_batch_that_does_not_fit_is_an_error() {
    let made = made();
    let rows = made.rows();
    let reference = Tensor::from_slice(&made.reference);
    let full = Batch {
        stats: &made.stats,
        rows: &rows,
        reference: Some(&reference),
        draws: None,
        baseline: None,
    };
    let own = PairCounts::of(&rows);
    let text = |loss: Value, batch: &Batch<'_>, counts: PairCounts| {
        let objective = objective(json!({ "loss": loss, "weighting": "none" }));
        objective.evaluate(batch, &counts).unwrap_err().to_string()
    };
    let without = Batch {
        reference: None,
        ..full
    };
    assert_eq!(
        text(dpo(), &without, own),
        "reference: expected the reference's log-probabilities, as the loss compares with it, got none"
    );
    let short = reference.narrow(0, 0, 1);
    let stretched = Batch {
        reference: Some(&short),
        ..full
    };
    assert!(text(dpo(), &stretched, own).starts_with("values per row: expected [10]"));
    let ld = objective(json!({ "loss": dpo(), "logps": { "ld": { "alpha": 0.5 } } }));
    let error = ld.evaluate(&stretched, &own).unwrap_err().to_string();
    assert!(error.starts_with("values per row: expected [10]"), "{error}");

    let bco = json!({ "bco_pair": { "beta": 0.1 } });
    for baseline in [None, Some(f64::NAN), Some(f64::INFINITY)] {
        let expected = format!(
            "baseline: expected the finite whole-batch number that the loss subtracts from rewards, got {}",
            baseline.map_or("none".to_owned(), |number| number.to_string())
        );
        assert_eq!(text(bco.clone(), &Batch { baseline, ..full }, own), expected);
    }

    for counts in [
        PairCounts { pairs: 1.0, ..own },
        PairCounts { pairs: f64::NAN, ..own },
        PairCounts {
            chosen_tokens: 3.0,
            ..own
        },
        PairCounts {
            chosen_tokens: f64::NAN,
            ..own
        },
        PairCounts {
            pairs: f64::INFINITY,
            ..own
        },
        PairCounts {
            chosen_tokens: f64::INFINITY,
            ..own
        },
    ] {
        let error = text(dpo(), &full, counts);
        assert!(
            error.starts_with("counts: expected sizes of the whole batch"),
            "{error}"
        );
    }

    let larger = PairCounts { pairs: 3.0, ..own };
    for loss in [
        json!({ "aot": { "beta": 0.1 } }),
        json!({ "aot_unpaired": { "beta": 0.1 } }),
    ] {
        assert_eq!(
            text(loss, &full, larger),
            "batch: expected all pairs at once, as the loss compares pairs with each other, got 2 of 3"
        );
    }

    let odd_rows = CompletionRows::new(&[3, 3, 4], Device::Cpu).unwrap();
    let odd = Batch {
        rows: &odd_rows,
        ..full
    };
    for objective in [&objective(json!({ "loss": dpo() })), &ld] {
        let error = objective.evaluate(&odd, &own).unwrap_err().to_string();
        assert_eq!(
            error,
            "completions: expected the chosen ones and then as many rejected ones, got 3 completions"
        );
    }

    let mut blind = made.part(&[0, 1, 2, 3]);
    blind.stats.collision = None;
    let wpo = objective(json!({ "loss": dpo(), "weighting": { "wpo": { "clamp": true } } }));
    let error = blind.evaluate(&wpo, None).unwrap_err().to_string();
    assert!(error.starts_with("stats.collision: expected the column"), "{error}");
    // One value is not stretched over all rows.
    let mut short = made.part(&[0, 1, 2, 3]);
    short.stats.collision = Some(Tensor::from_slice(&[-1.0]));
    let error = short.evaluate(&wpo, None).unwrap_err().to_string();
    assert!(error.starts_with("values per row: expected [10]"), "{error}");
}

#[test]
fn parts_that_do_not_go_together_are_all_named() {
    let cases = [
        (json!({ "loss": dpo() }), vec![]),
        (
            json!({ "loss": { "dpo": { "beta": 0 } }, "nll": -1, "logps": { "ld": { "alpha": 1.5 } },
                "divergence": { "alpha": { "alpha": 1 } } }),
            vec![
                "`dpo.beta` is 0, expected a finite number above 0",
                "`divergence.alpha.alpha` is 1, expected a finite number other than 1, whose limit is `reverse_kl`",
                "`nll` is -1, expected a finite number, at least 0",
                "`logps.ld.alpha` is 1.5, expected a number from 0 to 1",
            ],
        ),
        (json!({ "loss": dpo(), "logps": { "ld": { "alpha": 0 } } }), vec![]),
        (json!({ "loss": dpo(), "logps": { "ld": { "alpha": 1 } } }), vec![]),
        (
            json!({ "loss": dpo(), "logps": { "ld": { "alpha": -0.1 } } }),
            vec!["`logps.ld.alpha` is -0.1, expected a number from 0 to 1"],
        ),
        (
            json!({ "loss": { "ipo_mean": { "beta": 0.1 } }, "logps": "mean", "divergence": "js" }),
            vec![
                "`logps` is mean, expected `sum`, as the loss divides by the number of tokens itself",
                "`divergence` is js, expected `reverse_kl`, as the loss is not one of the difference of two log-ratios",
            ],
        ),
        (
            json!({ "loss": { "ipo_mean": { "beta": 0.1 } }, "logps": { "ld": { "alpha": 0.5 } } }),
            vec![
                "`logps` is { ld: { alpha: 0.5 } }, expected `sum`, as the loss divides by the number of tokens itself",
            ],
        ),
        (
            json!({ "loss": { "aot": { "beta": 0.1 } }, "weighting": { "wpo": { "clamp": true } } }),
            vec![
                "`weighting` is { wpo: { clamp: true } }, expected `none`, as the loss compares whole batches and its terms \
                 belong to no pair",
            ],
        ),
    ];
    for (text, expected) in cases {
        let objective = objective(text);
        let problems: Vec<String> = objective.problems().iter().map(ToString::to_string).collect();
        assert_eq!(problems, expected);
        if let Some(first) = expected.first() {
            assert_eq!(made().evaluate(&objective, None).unwrap_err().to_string(), *first);
        }
    }
}

#[test]
fn reference_free_goes_with_losses_that_compare_sides_of_the_reference() {
    let fixed = "expected `false`, as the loss compares each log-ratio with a fixed number";
    let without = "expected `false`, as the loss has no reference";
    let mut seen = [0; 3];
    for loss in Loss::samples() {
        let (kind, expected) = match (loss.uses_reference(), loss.name()) {
            (true, "apo_down" | "apo_zero" | "bco_pair" | "nca" | "sppo") => (0, Some(fixed)),
            (true, _) => (1, None),
            (false, _) => (2, Some(without)),
        };
        let free = Objective {
            reference_free: true,
            ..Objective::from(loss)
        };
        let problems: Vec<String> = free.problems().iter().map(ToString::to_string).collect();
        let expected: Vec<String> = expected
            .iter()
            .map(|text| format!("`reference_free` is true, {text}"))
            .collect();
        assert_eq!(problems, expected, "{free:?}");
        if let Some(first) = expected.first() {
            assert_eq!(made().evaluate(&free, None).unwrap_err().to_string(), *first);
        }
        seen[kind] += 1;
    }
    assert!(
        seen.iter().all(|n| *n >= 5) && seen.iter().sum::<i32>() == Loss::samples().len() as i32,
        "{seen:?}"
    );
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
fn divergences_go_with_losses_of_margins_and_sorting_couples_pairs() {
    let names = |pick: &dyn Fn(&Loss) -> bool| {
        let mut names: Vec<&str> = with_reference()
            .iter()
            .filter(|loss| pick(loss))
            .map(|loss| loss.name())
            .collect();
        names.dedup();
        names
    };
    let margins = ["discopop", "dpo", "exo", "hinge", "ipo", "robust"];
    assert_eq!(names(&|loss| loss.takes_divergence()), margins);
    let zero = ["apo_down", "apo_zero", "bco_pair", "nca", "sppo"];
    assert_eq!(names(&|loss| !loss.is_of_margin()), zero);
    assert_eq!(names(&|loss| loss.couples_pairs()), ["aot", "aot_unpaired"]);
    assert_eq!(names(&|loss| loss.per_token()), ["ipo_mean"]);
    assert_eq!(names(&|loss| loss.baseline().is_some()), ["bco_pair"]);
    assert_eq!(
        names(&|loss| loss.needs() != Needs::default() || loss.draws_per_row() > 0 || loss.nll() > 0.0).len(),
        0
    );
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
