//! What only the token family promises: what labels, rows and draws mean to every one of its losses.

use tch::{Device, Kind, Tensor};
use unsay_losses::token::{Loss, Nll};
use unsay_losses::{LossValue, Result, TokenCounts, TokenRows};

use crate::plain::{self, Made, all_finite, difference};

const LENGTHS: [usize; 5] = [3, 4, 2, 1, 5];

/// Every loss in every setting that its file lists.
fn losses() -> Vec<Loss> {
    tch::set_num_threads(1);
    let all = Loss::samples();
    assert!(!Loss::NAMES.is_empty() && all.len() >= Loss::NAMES.len());
    all
}

#[test]
fn no_rows_are_an_error() {
    let made = Made::new(1, &LENGTHS, &[1, 0, -1, 0, 1], 6, 17);
    let none = Tensor::zeros([0, 17], (Kind::Double, Device::Cpu));
    let stats = plain::stats(
        &none,
        &Tensor::zeros([0], (Kind::Int64, Device::Cpu)),
        &Default::default(),
    );
    for loss in losses() {
        let error = loss
            .evaluate(&stats, &made.token_rows(), &made.counts(), None)
            .unwrap_err();
        assert_eq!(error.to_string(), "the batch of token rows is empty", "{loss:?}");
    }
}

#[test]
fn a_batch_of_only_positives_is_plain_likelihood() {
    let made = Made::new(3, &LENGTHS, &[1, -1, 1, 1, -1], 6, 17);
    let expected = made.through_op(&Loss::Nll(Nll {}), &made.counts(), None);
    let more_on_positives = |loss: &Loss| match loss {
        Loss::Cringe(cringe) => cringe.contrast_on_positives,
        Loss::Sigmoid(sigmoid) => sigmoid.sigmoid_on_positives,
        Loss::GradientAscent(ascent) => ascent.retain < 1.0,
        Loss::ContrastiveToken(_) | Loss::UnlikelihoodContext(_) => true,
        _ => false,
    };
    let (mut compared, mut more) = (Vec::new(), 0);
    for loss in losses() {
        if more_on_positives(&loss) {
            more += 1;
            continue;
        }
        let ours = made.through_op(&loss, &made.counts(), None);
        assert!((ours.total() - expected.total()).abs() < 1e-12, "{loss:?}");
        assert!(difference(&ours.hidden, &expected.hidden) < 1e-12, "{loss:?}");
        // A part that no row of the batch has is left out.
        let terms: Vec<&str> = ours.value.terms.iter().map(|(name, _)| *name).collect();
        assert_eq!(terms, ["ce_loss"], "{loss:?}");
        compared.push(loss.name());
    }
    assert_eq!(compared.len() + more, losses().len());
    compared.dedup();
    assert!(compared.len() > 1 && more > 0, "{compared:?}");
}

fn evaluate(loss: &Loss, made: &Made) -> Result<LossValue> {
    let rows = made.rows_for(loss);
    let op = made.op(loss, &made.hidden, &made.embedding, &rows);
    let counts = made.weighted(loss, &made.counts());
    loss.evaluate(&op.forward().unwrap(), &rows, &counts, Some(&made.draws()))
}

#[test]
fn a_batch_with_nothing_to_learn_from_is_an_error_with_a_hint() {
    let negative = Made::new(3, &[2, 3], &[0, 0], 6, 17);
    let (mut refused, mut learned) = (0, 0);
    for loss in losses() {
        let result = evaluate(&loss, &negative);
        if loss.rows_trained(&negative.counts()) > 0.0 {
            assert!(all_finite(&result.unwrap().total), "{loss:?}");
            learned += 1;
            continue;
        }
        let name = loss.name();
        assert_eq!(
            result.unwrap_err().to_string(),
            format!(
                "`{name}` has nothing to learn from: 0 positive, 5 negative and 0 unlabelled tokens\n\
                 hint: `{name}` learns from positive and unlabelled examples; add some to every batch"
            )
        );
        refused += 1;
    }
    assert!(refused > 0 && learned > 0 && refused + learned == losses().len());

    let only_ends: Loss = serde_json::from_str(r#"{"cringe": {"alpha": 1.0, "k": 2, "count_eos": false}}"#).unwrap();
    let error = evaluate(&only_ends, &Made::new(3, &[1, 1], &[0, 0], 6, 17))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("`cringe` has nothing to learn from: 0 positive, 2 negative"),
        "{error}"
    );
}

#[test]
fn rows_and_draws_that_do_not_fit_are_errors() {
    let made = Made::new(1, &LENGTHS, &[1, 0, -1, 0, 1], 6, 17);
    let mut draw = 0;
    for loss in losses() {
        let rows = || made.rows_for(&loss);
        let stats = made
            .op(&loss, &made.hidden, &made.embedding, &rows())
            .forward()
            .unwrap();
        let counts = made.weighted(&loss, &made.counts());
        let error = |rows: &TokenRows, counts: &TokenCounts, draws: Option<&Tensor>| {
            loss.evaluate(&stats, rows, counts, draws).unwrap_err().to_string()
        };
        let fine = made.draws();
        let with = |rows: &TokenRows| error(rows, &counts, Some(&fine));
        assert_eq!(
            with(&made.rows(&[0, 1]).rows_for(&loss)),
            "example: expected [15] of Int64, as `stats` has 15 rows, got [2] of Int64"
        );
        let label = rows().label + 1;
        assert_eq!(
            with(&TokenRows { label, ..rows() }),
            "label: expected 1 (positive), 0 (negative) or -1 (unlabelled), got 2"
        );
        let label = rows().label - 1;
        assert_eq!(
            with(&TokenRows { label, ..rows() }),
            "label: expected 1 (positive), 0 (negative) or -1 (unlabelled), got -2"
        );
        let n_examples = 3;
        assert_eq!(
            with(&TokenRows { n_examples, ..rows() }),
            "example: expected 0..3, got 4"
        );
        let example = rows().example - 1;
        assert_eq!(with(&TokenRows { example, ..rows() }), "example: expected 0..5, got -1");
        if loss.draws_per_row() == 0 {
            continue;
        }
        draw += 1;
        let wide = Tensor::zeros([15, 2], (Kind::Double, Device::Cpu));
        let wrong = [
            wide,
            made.draws() + 1.0,
            made.draws() - 1.0,
            made.draws().to_kind(Kind::Int64),
            made.draws() * f64::NAN,
        ];
        for draws in wrong.iter().map(Some).chain([None]) {
            let text = error(&rows(), &counts, draws);
            assert!(text.starts_with("draws: expected [15, 1], uniform in [0, 1)"), "{text}");
        }
    }
    assert!(0 < draw && draw < losses().len());
}
