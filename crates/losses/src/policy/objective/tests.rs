use tch::Device;

use super::*;
use crate::policy::tests::{floats, near, objectives, stats, tensor};
use crate::policy::{Cispo, Grpo, Ppo, Reinforce, Rloo};

/// Six tokens of three completions.
struct Made {
    columns: [Tensor; 5],
    lengths: Vec<usize>,
}

impl Made {
    fn new() -> Self {
        let logp = [-1.0, -0.3, -2.0, -0.7, -1.4, -0.1];
        let columns = [
            tensor(&logp).set_requires_grad(true),
            tensor(&[-1.1, -0.9, -1.2, -0.8, -1.3, -0.6]),
            tensor(&[0.5, -1.0, 2.0, -0.3, 1.0, -2.0]),
            tensor(&[-0.9, -0.4, -1.5, -1.7, -1.4, -0.3]),
            tensor(&[0.6, 0.2, 1.1, 0.9, 0.4, 0.8]).set_requires_grad(true),
        ];
        Made {
            columns,
            lengths: vec![2, 1, 3],
        }
    }

    /// Value, terms and both gradients of some of the completions.
    fn run(&self, objective: &Objective, from: usize, to: usize) -> (f64, Vec<f64>, Vec<(&'static str, f64)>) {
        let start: usize = self.lengths[..from].iter().sum();
        let n: usize = self.lengths[from..to].iter().sum();
        let part: Vec<Tensor> = self
            .columns
            .iter()
            .map(|c| c.narrow(0, start as i64, n as i64))
            .collect();
        let rows = CompletionRows::new(&self.lengths[from..to], Device::Cpu).unwrap();
        let stats = TokenStats {
            entropy: Some(part[4].shallow_clone()),
            ..stats(&part[0])
        };
        let batch = Batch {
            stats: &stats,
            old: &part[1],
            advantage: &part[2],
            reference: Some(&part[3]),
            rows: &rows,
        };
        let counts = PolicyCounts {
            tokens: 6.0,
            completions: 3.0,
        };
        let value = objective.evaluate(&batch, &counts).unwrap();
        value.total.backward();
        let terms = value.terms.iter().map(|(name, t)| (*name, t.double_value(&[])));
        (
            value.total.double_value(&[]),
            floats(&value.per_example),
            terms.collect(),
        )
    }

    fn gradients(&self) -> Vec<f64> {
        let of = |t: &Tensor| match t.grad().defined() {
            true => floats(&t.grad()),
            false => vec![0.0; 6],
        };
        [of(&self.columns[0]), of(&self.columns[4])].concat()
    }
}

#[test]
fn penalty_and_bonus_are_aggregated_with_the_loss() {
    let objective = Objective {
        kl: Some(KlPenalty {
            estimator: KlEstimator::K2,
            coefficient: 0.5,
            clamp: KlClamp::default(),
        }),
        entropy: 0.25,
        ..Objective::new(Loss::Reinforce(Reinforce {}), Aggregate::SequenceMean)
    };
    let made = Made::new();
    let (total, each, terms) = made.run(&objective, 0, 3);
    // Per token: -A logp + (logp - ref)²/4 - H/4.
    let tokens = [
        0.5 + 0.0025 - 0.15,
        -0.3 + 0.0025 - 0.05,
        4.0 + 0.0625 - 0.275,
        -0.21 + 0.25 - 0.225,
        1.4 - 0.1,
        -0.2 + 0.01 - 0.2,
    ];
    let by_hand = [
        (tokens[0] + tokens[1]) / 6.0,
        tokens[2] / 3.0,
        (tokens[3] + tokens[4] + tokens[5]) / 9.0,
    ];
    assert!(near(&each, &by_hand), "{each:?} {by_hand:?}");
    assert!((total - by_hand.iter().sum::<f64>()).abs() < 1e-12);
    // -A + (logp - ref)/2 for log-probabilities and -1/4 for entropies, each over 6, 3 or 9.
    let slopes = [
        (-0.5 - 0.05) / 6.0,
        (1.0 + 0.05) / 6.0,
        (-2.0 - 0.25) / 3.0,
        (0.3 + 0.5) / 9.0,
        -1.0 / 9.0,
        (2.0 + 0.1) / 9.0,
    ];
    let shares = [6.0, 6.0, 3.0, 9.0, 9.0, 9.0].map(|n| -0.25 / n);
    assert!(
        near(&made.gradients(), &[slopes, shares].concat()),
        "{:?}",
        made.gradients()
    );
    let names: Vec<&str> = terms.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        ["policy_loss", "ratio", "log_ratio", "approx_kl", "kl", "entropy"]
    );
    let log_ratios = [0.1f64, 0.6, -0.8, 0.1, -0.1, 0.5];
    let values: Vec<f64> = terms.iter().map(|(_, value)| *value).collect();
    let by_hand = [
        (0.5 - 0.3) / 6.0 + 4.0 / 3.0 + (-0.21 + 1.4 - 0.2) / 9.0,
        log_ratios.iter().map(|x| x.exp()).sum::<f64>() / 6.0,
        0.4 / 6.0,
        log_ratios.iter().map(|x| x * x / 2.0).sum::<f64>() / 6.0,
        (0.01 + 0.01 + 0.25 + 1.0 + 0.0 + 0.04) / 12.0,
        4.0 / 6.0,
    ];
    assert!(near(&values, &by_hand), "{values:?} {by_hand:?}");
}

#[test]
fn the_full_divergence_is_a_penalty_with_its_own_gradient() {
    let rows = CompletionRows::new(&[2, 1], Device::Cpu).unwrap();
    let logp = tensor(&[-1.0, -2.0, -0.5]).set_requires_grad(true);
    let kl = tensor(&[0.5, 3.0, 1.0]).set_requires_grad(true);
    let stats = TokenStats {
        kl: Some(kl.shallow_clone()),
        ..stats(&logp)
    };
    let batch = Batch {
        stats: &stats,
        old: &logp,
        advantage: &tensor(&[0.0; 3]),
        reference: None,
        rows: &rows,
    };
    let objective = |value| Objective {
        kl: Some(KlPenalty {
            estimator: KlEstimator::Full,
            coefficient: 0.5,
            clamp: KlClamp { log_ratio: None, value },
        }),
        ..Objective::new(Loss::Reinforce(Reinforce {}), Aggregate::TokenMean)
    };
    // Of a batch of 4 tokens; a value that is held has no gradient.
    let counts = PolicyCounts {
        tokens: 4.0,
        completions: 3.0,
    };
    for (bound, value, slopes) in [
        (None, 4.5, [0.125, 0.125, 0.125]),
        (Some(2.0), 3.5, [0.125, 0.0, 0.125]),
    ] {
        let ours = objective(bound).evaluate(&batch, &counts).unwrap();
        ours.total.backward();
        let term = ours.terms.iter().find(|(name, _)| *name == "kl").unwrap();
        assert!(
            (ours.total.double_value(&[]) - 0.5 * value / 4.0).abs() < 1e-12,
            "{ours:?}"
        );
        assert!((term.1.double_value(&[]) - value / 4.0).abs() < 1e-12, "{ours:?}");
        assert!(near(&floats(&kl.grad()), &slopes) && near(&floats(&logp.grad()), &[0.0; 3]));
        let _ = kl.grad().zero_();
    }
}

#[test]
fn fractions_count_what_was_clipped() {
    let ppo = Ppo {
        clip_low: 0.2,
        clip_high: 0.2,
        dual_clip: Some(1.5),
        log_ratio_clamp: None,
    };
    let objective = Objective::new(Loss::Ppo(ppo), Aggregate::TokenMean);
    let (_, _, terms) = Made::new().run(&objective, 0, 3);
    let grpo = Grpo {
        clip_low: 0.2,
        clip_high: 0.2,
        delta: Some(1.5),
    };
    let same = Objective::new(Loss::Grpo(grpo), Aggregate::TokenMean);
    assert_eq!(Made::new().run(&same, 0, 3).2, terms);
    let of = |name: &str| terms.iter().find(|(own, _)| *own == name).unwrap().1;
    // Log-ratios .1 .6 -.8 .1 -.1 .5 of A .5 -1 2 -.3 1 -2: none is clipped on its good side; both large ones of
    // bad tokens exceed 1.5.
    assert!((of("clip_fraction") - 0.0).abs() < 1e-12 && (of("dual_clip_fraction") - 2.0 / 6.0).abs() < 1e-12);
    let mut flipped = Made::new();
    flipped.columns[2] = -&flipped.columns[2];
    let (_, _, terms) = flipped.run(&objective, 0, 3);
    let of = |name: &str| terms.iter().find(|(own, _)| *own == name).unwrap().1;
    assert!((of("clip_fraction") - 3.0 / 6.0).abs() < 1e-12 && of("dual_clip_fraction").abs() < 1e-12);
}

#[test]
fn parts_of_a_batch_add_up() {
    let estimator = KlEstimator::K3;
    for plain in objectives() {
        let objective = Objective {
            kl: Some(KlPenalty {
                estimator,
                coefficient: 0.3,
                clamp: KlClamp::default(),
            }),
            entropy: 0.2,
            ..plain
        };
        let (mut whole, mut parts) = (Made::new(), Made::new());
        for made in [&mut whole, &mut parts] {
            // The same for all tokens of a completion, as some losses want.
            made.columns[2] = tensor(&[0.5, 0.5, 2.0, -0.3, -0.3, -0.3]);
        }
        let (total, each, terms) = whole.run(&objective, 0, 3);
        let (a, b) = (parts.run(&objective, 0, 1), parts.run(&objective, 1, 3));
        assert!((total - a.0 - b.0).abs() < 1e-12, "{objective:?}");
        assert!(near(&each, &[a.1, b.1].concat()) && near(&whole.gradients(), &parts.gradients()));
        for ((term, a), b) in terms.iter().zip(&a.2).zip(&b.2) {
            assert_eq!((term.0, term.0), (a.0, b.0));
            assert!((term.1 - a.1 - b.1).abs() < 1e-12, "{objective:?} {}", term.0);
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let plain = Objective::new(Loss::Reinforce(Reinforce {}), Aggregate::TokenMean);
    let penalty = Some(KlPenalty {
        estimator: KlEstimator::K1,
        coefficient: 0.1,
        clamp: KlClamp::default(),
    });
    let rows = CompletionRows::new(&[2], Device::Cpu).unwrap();
    let (two, three) = (tensor(&[0.0; 2]), tensor(&[0.0; 3]));
    let plain_stats = stats(&two);
    let batch = Batch {
        stats: &plain_stats,
        old: &two,
        advantage: &two,
        reference: None,
        rows: &rows,
    };
    let counts = PolicyCounts::of(&rows);
    let text = |objective: &Objective, batch: &Batch<'_>, counts: &PolicyCounts| {
        objective.evaluate(batch, counts).unwrap_err().to_string()
    };
    let few = PolicyCounts {
        completions: 0.0,
        ..counts
    };
    assert!(text(&plain, &batch, &few).starts_with("counts: expected sizes of the whole batch"));
    let shape = "expected [2], floating point, on Cpu, got [3] of Double on Cpu";
    assert_eq!(
        text(&plain, &Batch { old: &three, ..batch }, &counts),
        format!("old: {shape}")
    );
    let entropy = TokenStats {
        entropy: Some(three.shallow_clone()),
        ..stats(&two)
    };
    let kl = TokenStats {
        kl: Some(three.shallow_clone()),
        ..stats(&two)
    };
    for (stats, what) in [(&entropy, "stats.entropy"), (&kl, "stats.kl")] {
        assert_eq!(
            text(&plain, &Batch { stats, ..batch }, &counts),
            format!("{what}: {shape}")
        );
    }
    let with_kl = Objective {
        kl: penalty,
        ..plain.clone()
    };
    assert_eq!(
        text(&with_kl, &batch, &counts),
        "reference: expected the reference's log-probability of every row, for the penalty, got none"
    );
    let with_entropy = Objective {
        entropy: 0.1,
        ..plain.clone()
    };
    assert!(text(&with_entropy, &batch, &counts).starts_with("stats.entropy: expected the column"));
    let with_full = Objective {
        kl: penalty.map(|kl| KlPenalty {
            estimator: KlEstimator::Full,
            ..kl
        }),
        ..plain.clone()
    };
    assert!(text(&with_full, &batch, &counts).starts_with("stats.kl: expected the column"));
    assert!(with_kl.uses_reference() && !plain.uses_reference() && !with_full.uses_reference());
    assert!(with_kl.needs() == Needs::default() && with_full.needs().kl == Some(Kl::Reverse));
    assert!(with_entropy.needs().entropy && plain.needs() == Needs::default());

    let problems =
        |objective: &Objective| -> Vec<String> { objective.problems().iter().map(ToString::to_string).collect() };
    let wrong = Objective {
        loss: Loss::Rloo(Rloo {
            clip_low: 0.0,
            clip_high: 0.2,
        }),
        aggregate: Aggregate::FixedLength { length: 0 },
        kl: penalty.map(|kl| KlPenalty {
            coefficient: -1.0,
            clamp: KlClamp {
                log_ratio: Some(0.0),
                value: None,
            },
            ..kl
        }),
        entropy: f64::NAN,
    };
    assert_eq!(
        problems(&wrong),
        [
            "`rloo.clip_low` is 0, expected a number above 0, at most 1",
            "`aggregate.fixed_length.length` is 0, expected a whole number, at least 1",
            "`aggregate` is { fixed_length: { length: 0 } }, expected `sequence_mean`, as the loss has one value per completion",
            "`kl.coefficient` is -1, expected a finite number, at least 0",
            "`kl.clamp.log_ratio` is 0, expected a finite number above 0",
            "`entropy` is NaN, expected a finite number, at least 0",
        ]
    );
    assert_eq!(text(&wrong, &batch, &counts), problems(&wrong)[0]);
    let held = Objective {
        kl: with_full.kl.map(|kl| KlPenalty {
            clamp: KlClamp {
                log_ratio: Some(20.0),
                value: Some(10.0),
            },
            ..kl
        }),
        ..plain.clone()
    };
    let expected = "`kl.clamp.log_ratio` is 20, expected none, as `full` is not made of the log-ratio of one token";
    assert_eq!(problems(&held), [expected]);
    for loss in Loss::samples() {
        let ours = problems(&Objective::new(loss.clone(), Aggregate::TokenMean));
        assert_eq!(ours.is_empty(), !loss.per_completion(), "{loss:?}");
    }
}

#[test]
fn the_manifest_form_has_one_key_per_loss() {
    let text = r#"{ "loss": { "cispo": { "max_ratio": 5 } }, "aggregate": { "fixed_length": { "length": 9 } } }"#;
    let objective: Objective = serde_json::from_str(text).unwrap();
    let cispo = Loss::Cispo(Cispo { max_ratio: 5.0 });
    assert_eq!(objective, Objective::new(cispo, Aggregate::FixedLength { length: 9 }));
    let missing = serde_json::from_str::<Objective>(r#"{ "loss": { "reinforce": {} } }"#);
    assert!(
        missing
            .unwrap_err()
            .to_string()
            .starts_with("missing field `aggregate`")
    );
    let grpo: Loss = serde_json::from_str(r#"{ "grpo": { "clip_low": 0.2, "clip_high": 0.3 } }"#).unwrap();
    let expected = Grpo {
        clip_low: 0.2,
        clip_high: 0.3,
        delta: None,
    };
    assert_eq!(grpo, Loss::Grpo(expected));
}
