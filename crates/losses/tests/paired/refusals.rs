//! What does not fit together around a paired loss is refused by name.

use super::*;

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
