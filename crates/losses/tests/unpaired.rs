//! What is around every unpaired loss: denominators of the whole batch, what is retained, terms for the log, and which
//! inputs must be there.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

use tch::{Device, Kind, Tensor};
use unsay_losses::unpaired::{Batch, Kto, Loss, Npo, Objective, UnpairedCounts};
use unsay_losses::{CompletionRows, LossValue, Needs, Result, Retain, TokenStats};

fn near(ours: &[f64], expected: &[f64]) -> bool {
    ours.len() == expected.len() && ours.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Completions given as numbers per row.
#[derive(Clone)]
struct Made {
    lengths: Vec<usize>,
    desirable: Vec<bool>,
    logp: Vec<f64>,
    reference: Vec<f64>,
    kl: Vec<f64>,
    weights: Vec<f64>,
}

/// What an objective gives on them.
struct Outcome {
    value: LossValue,
    gradient: Vec<f64>,
    of_kl: Vec<f64>,
}

fn numbers(t: &Tensor) -> Vec<f64> {
    match t.defined() {
        true => Vec::try_from(t.detach()).unwrap(),
        false => Vec::new(),
    }
}

impl Made {
    /// Desirable, undesirable, desirable; log-ratios -0.5, -1 and 1.5.
    fn three() -> Made {
        Made {
            lengths: vec![2, 1, 1],
            desirable: vec![true, false, true],
            logp: vec![-1.0, -2.0, -3.0, -0.5],
            reference: vec![-1.5, -1.0, -2.0, -2.0],
            kl: vec![0.1, 0.2, 0.4, 0.3],
            weights: vec![9.0, 2.0, 9.0],
        }
    }

    /// The completions `from..to`.
    fn part(&self, from: usize, to: usize) -> Made {
        let row = |completion: usize| self.lengths[..completion].iter().sum::<usize>();
        let rows = row(from)..row(to);
        Made {
            lengths: self.lengths[from..to].to_vec(),
            desirable: self.desirable[from..to].to_vec(),
            logp: self.logp[rows.clone()].to_vec(),
            reference: self.reference[rows.clone()].to_vec(),
            kl: self.kl[rows].to_vec(),
            weights: self.weights[from..to].to_vec(),
        }
    }

    fn rows(&self) -> CompletionRows {
        CompletionRows::new(&self.lengths, Device::Cpu).unwrap()
    }

    fn counts(&self) -> UnpairedCounts {
        UnpairedCounts::of(&self.rows(), &self.desirable).unwrap()
    }

    /// Runs an objective on a batch that `change` may change.
    fn try_run(
        &self,
        objective: &Objective,
        counts: &UnpairedCounts,
        change: impl Fn(Batch<'_>, &dyn Fn(Batch<'_>) -> Result<Outcome>) -> Result<Outcome>,
    ) -> Result<Outcome> {
        tch::set_num_threads(1);
        let leaf = |x: &[f64]| Tensor::from_slice(x).set_requires_grad(true);
        let n = self.logp.len() as i64;
        let (targets, correct) = (
            Tensor::zeros([n], (Kind::Int64, Device::Cpu)),
            Tensor::zeros([n], (Kind::Bool, Device::Cpu)),
        );
        let mut stats = TokenStats::new(targets, leaf(&self.logp), correct);
        stats.kl = objective.needs().kl.map(|_| leaf(&self.kl));
        let batch = Batch {
            stats: &stats,
            rows: &self.rows(),
            desirable: &self.desirable,
            reference: Some(&Tensor::from_slice(&self.reference)),
            baseline: Some(0.5),
            weights: Some(&Tensor::from_slice(&self.weights)),
        };
        change(batch, &|batch| {
            let value = objective.evaluate(&batch, counts)?;
            value.total.backward();
            let of_kl = batch.stats.kl.as_ref().map(|kl| numbers(&kl.grad()));
            Ok(Outcome {
                gradient: numbers(&batch.stats.logp.grad()),
                of_kl: of_kl.unwrap_or_default(),
                value,
            })
        })
    }

    fn run(&self, objective: &Objective, counts: &UnpairedCounts) -> Outcome {
        self.try_run(objective, counts, |batch, run| run(batch)).unwrap()
    }
}

fn npo(nll: f64, kl: f64) -> Objective {
    Objective {
        loss: Loss::Npo(Npo { beta: 0.5 }),
        retain: Retain { nll, kl },
    }
}

fn kto() -> Objective {
    Objective::from(Loss::Kto(Kto {
        beta: 0.1,
        desirable_weight: 1.0,
        undesirable_weight: 1.0,
    }))
}

fn terms(value: &LossValue) -> Vec<(&'static str, f64)> {
    let terms = value.terms.iter();
    terms.map(|(name, term)| (*name, term.double_value(&[]))).collect()
}

fn same_terms(value: &LossValue, expected: &[(&'static str, f64)]) {
    let (names, values): (Vec<_>, Vec<_>) = terms(value).into_iter().unzip();
    let (expected_names, expected): (Vec<_>, Vec<_>) = expected.iter().copied().unzip();
    assert_eq!(names, expected_names);
    assert!(near(&values, &expected), "{values:?}");
}

#[test]
fn negatives_are_pushed_and_the_others_held_with_denominators_of_the_whole_batch() {
    let counts = UnpairedCounts {
        desirable: 4.0,
        undesirable: 2.0,
        desirable_tokens: 10.0,
    };
    let ours = Made::three().run(&npo(0.5, 2.0), &counts);
    // 0.5 · 3/10 + 2 · 0.3/10, -(2/0.5) log σ(0.5) / 2, 0.5 · 0.5/10 + 2 · 0.3/10
    let values = [0.21, -2.0 * sigmoid(0.5).ln(), 0.085];
    assert!(near(&numbers(&ours.value.per_example), &values), "{:?}", ours.value);
    let total = ours.value.total.double_value(&[]);
    assert!((total - values.iter().sum::<f64>()).abs() < 1e-12);
    assert!(
        near(&ours.gradient, &[-0.05, -0.05, sigmoid(-0.5), -0.05]),
        "{:?}",
        ours.gradient
    );
    assert!(near(&ours.of_kl, &[0.2, 0.2, 0.0, 0.2]), "{:?}", ours.of_kl);
    same_terms(
        &ours.value,
        &[
            ("reward_desirable", 0.125),
            ("reward_undesirable", -0.25),
            ("reward_margin", 0.375),
            ("logp_desirable", -0.875),
            ("logp_undesirable", -1.5),
            ("retain_nll", 0.35),
            ("retain_kl", 0.06),
        ],
    );
    let logged = ours.value.terms.iter().map(|(_, term)| term);
    assert!(logged.chain([&ours.value.per_example]).all(|t| !t.requires_grad()));
    // One term alone.
    let ours = Made::three().run(&npo(0.5, 0.0), &counts);
    assert!(near(&numbers(&ours.value.per_example), &[0.15, values[1], 0.025]));
    assert_eq!(terms(&ours.value).last().map(|(name, _)| *name), Some("retain_nll"));
    let ours = Made::three().run(&npo(0.0, 2.0), &counts);
    assert!(near(&numbers(&ours.value.per_example), &[0.06, values[1], 0.06]));
    assert_eq!(terms(&ours.value).last().map(|(name, _)| *name), Some("retain_kl"));
    assert!(near(&ours.gradient, &[0.0, 0.0, sigmoid(-0.5), 0.0]));
}

#[test]
fn a_loss_that_trains_both_kinds_divides_by_both() {
    let counts = UnpairedCounts {
        desirable: 4.0,
        undesirable: 2.0,
        desirable_tokens: 10.0,
    };
    let ours = Made::three().run(&kto(), &counts);
    let values = [sigmoid(0.1), sigmoid(-0.15), sigmoid(-0.1)].map(|x| x / 6.0);
    assert!(near(&numbers(&ours.value.per_example), &values), "{:?}", ours.value);
    assert_eq!(ours.value.terms.len(), 5);
}

#[test]
fn micro_batches_add_up() {
    let made = Made::three();
    let counts = made.counts();
    let mut compared = 0;
    for loss in Loss::samples() {
        let objective = Objective {
            loss,
            retain: Retain { nll: 0.3, kl: 0.7 },
        };
        let whole = made.run(&objective, &counts);
        let parts = [made.part(0, 1), made.part(1, 3)].map(|part| part.run(&objective, &counts));
        let join = |of: &dyn Fn(&Outcome) -> Vec<f64>| parts.iter().flat_map(of).collect::<Vec<f64>>();
        assert!(
            near(&join(&|part| part.gradient.clone()), &whole.gradient),
            "{objective:?}"
        );
        assert!(near(&join(&|part| part.of_kl.clone()), &whole.of_kl), "{objective:?}");
        let per_example = join(&|part| numbers(&part.value.per_example));
        assert!(near(&per_example, &numbers(&whole.value.per_example)), "{objective:?}");
        let total = join(&|part| vec![part.value.total.double_value(&[])])
            .iter()
            .sum::<f64>();
        assert!(
            (total - whole.value.total.double_value(&[])).abs() < 1e-12,
            "{objective:?}"
        );
        let sums: Vec<(&str, f64)> = (terms(&parts[0].value).into_iter())
            .zip(terms(&parts[1].value))
            .map(|((name, a), (other, b))| {
                assert_eq!(name, other);
                (name, a + b)
            })
            .collect();
        same_terms(&whole.value, &sums);
        compared += 1;
    }
    assert_eq!(compared, 11);
}

#[test]
fn negatives_alone_are_enough() {
    let made = Made::three().part(1, 2);
    let mut compared = 0;
    for loss in Loss::samples() {
        for retain in [Retain::default(), Retain { nll: 1.0, kl: 1.0 }] {
            let ours = made.run(
                &Objective {
                    loss: loss.clone(),
                    retain,
                },
                &made.counts(),
            );
            assert!(ours.gradient[0].is_finite() && ours.gradient[0] > 0.0, "{loss:?}");
            assert!(ours.value.total.double_value(&[]).is_finite(), "{loss:?}");
            let names: Vec<&str> = terms(&ours.value).iter().map(|(name, _)| *name).collect();
            assert_eq!(names, ["reward_undesirable", "logp_undesirable"]);
            compared += 1;
        }
    }
    assert_eq!(compared, 22);
}

#[test]
fn without_negatives_there_is_only_what_is_trained_otherwise() {
    let made = Made::three().part(2, 3);
    let ours = made.run(&kto(), &made.counts());
    assert!(near(&numbers(&ours.value.per_example), &[sigmoid(-0.1)]));
    let names: Vec<&str> = terms(&ours.value).iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["reward_desirable", "logp_desirable"]);
    let ours = made.run(&npo(2.0, 0.0), &made.counts());
    assert!(near(&numbers(&ours.value.per_example), &[1.0]) && near(&ours.gradient, &[-2.0]));
    let error = made.try_run(&npo(0.0, 0.0), &made.counts(), |batch, run| run(batch));
    assert_eq!(
        error.err().unwrap().to_string(),
        "`npo` has nothing to learn from: 1 desirable and no undesirable completions\n\
         hint: add undesirable completions to every batch, or a weight under `retain`"
    );
    // The whole batch decides: a micro-batch of desirable completions adds nothing.
    let counts = made.counts() + Made::three().part(1, 2).counts();
    let ours = made.run(&npo(0.0, 0.0), &counts);
    assert!(near(&numbers(&ours.value.per_example), &[0.0]) && near(&ours.gradient, &[0.0]));
}

#[test]
fn weights_reach_the_loss_that_takes_them() {
    let of = |text: &str| -> Vec<f64> {
        let loss: Loss = serde_json::from_str(text).unwrap();
        let made = Made::three();
        numbers(&made.run(&Objective::from(loss), &made.counts()).value.per_example)
    };
    let plain = of(r#"{"bco": {"beta": 0.5}}"#);
    let weighted = of(r#"{"bco": {"beta": 0.5, "density_ratios": true}}"#);
    assert!(
        near(&weighted, &[plain[0], 2.0 * plain[1], plain[2]]),
        "{plain:?} {weighted:?}"
    );
}

#[test]
fn what_is_missing_or_does_not_fit_is_an_error() {
    let made = Made::three();
    let bco: Loss = serde_json::from_str(r#"{"bco": {"beta": 0.5, "density_ratios": true}}"#).unwrap();
    let bco = Objective::from(bco);
    type Change = for<'a, 'b> fn(Batch<'a>, &'b dyn Fn(Batch<'_>) -> Result<Outcome>) -> Result<Outcome>;
    let changes: [(Change, &str); 4] = [
        (
            |batch, run| {
                run(Batch {
                    reference: None,
                    ..batch
                })
            },
            "reference: expected the reference's log-probabilities, as the loss compares with it, got none",
        ),
        (
            |batch, run| run(Batch { weights: None, ..batch }),
            "weights: expected one for each completion, got none",
        ),
        (
            |batch, run| {
                run(Batch {
                    baseline: None,
                    ..batch
                })
            },
            "baseline: expected the finite whole-batch number that the loss subtracts from rewards, got none",
        ),
        (
            |batch, run| {
                run(Batch {
                    desirable: &[true],
                    ..batch
                })
            },
            "desirable: expected 3 labels, one for each completion, got 1",
        ),
    ];
    for (change, expected) in changes {
        let error = made.try_run(&bco, &made.counts(), change).err().unwrap();
        assert_eq!(error.to_string(), expected);
    }
    let objective = npo(0.0, 1.0);
    let error = made.try_run(&objective, &made.counts(), |batch, run| {
        let stats = TokenStats {
            kl: None,
            ..TokenStats::new(
                batch.stats.targets.shallow_clone(),
                batch.stats.logp.shallow_clone(),
                batch.stats.correct.shallow_clone(),
            )
        };
        run(Batch { stats: &stats, ..batch })
    });
    assert!(
        error
            .err()
            .unwrap()
            .to_string()
            .starts_with("stats.kl: expected the column")
    );
    // What a loss does not read need not be there.
    let plain: Loss = serde_json::from_str(r#"{"simnpo": {"beta": 2.0}}"#).unwrap();
    let ours = made.try_run(&Objective::from(plain), &made.counts(), |batch, run| {
        run(Batch {
            reference: None,
            baseline: None,
            weights: None,
            ..batch
        })
    });
    assert!(ours.is_ok());
}

#[test]
fn counts_that_do_not_cover_the_part_are_errors() {
    let made = Made::three();
    let fine = made.counts();
    for counts in [
        UnpairedCounts { desirable: 1.0, ..fine },
        UnpairedCounts {
            undesirable: 0.0,
            ..fine
        },
        UnpairedCounts {
            desirable_tokens: 2.0,
            ..fine
        },
        UnpairedCounts {
            desirable: f64::NAN,
            ..fine
        },
        UnpairedCounts {
            undesirable: f64::NAN,
            ..fine
        },
        UnpairedCounts {
            desirable_tokens: f64::NAN,
            ..fine
        },
        UnpairedCounts {
            desirable: f64::INFINITY,
            ..fine
        },
        UnpairedCounts {
            undesirable: f64::INFINITY,
            ..fine
        },
        UnpairedCounts {
            desirable_tokens: f64::INFINITY,
            ..fine
        },
    ] {
        let error = made.try_run(&kto(), &counts, |batch, run| run(batch)).err().unwrap();
        let text = error.to_string();
        assert!(
            text.starts_with("counts: expected sizes of the whole batch, at least this part's"),
            "{text}"
        );
    }
    assert!(made.try_run(&kto(), &fine, |batch, run| run(batch)).is_ok());
}

#[test]
fn problems_of_loss_and_retain_are_shown_together_and_nothing_is_computed() {
    let text = r#"{"loss": {"npo": {"beta": 0.0}}, "retain": {"nll": -1.0, "kl": -1.0}}"#;
    let objective: Objective = serde_json::from_str(text).unwrap();
    assert_eq!(objective.problems().len(), 3);
    let made = Made::three();
    let error = made.try_run(&objective, &made.counts(), |batch, run| run(batch));
    assert_eq!(
        error.err().unwrap().to_string(),
        "`npo.beta` is 0, expected a finite number above 0"
    );
    let text = r#"{"loss": {"npo": {"beta": 0.1}}, "nll": 1.0}"#;
    let typo = serde_json::from_str::<Objective>(text).unwrap_err().to_string();
    assert!(typo.starts_with("unknown field `nll`"), "{typo}");
    let plain: Objective = serde_json::from_str(r#"{"loss": {"kto": {"beta": 0.1}}}"#).unwrap();
    assert_eq!(plain, kto());
    assert!(plain.uses_reference() && plain.needs() == Needs::default());
}
