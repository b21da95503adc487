//! Two heads through the op against the plain formula: full logits of both heads, example by example, and autograd.

#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod plain;

use plain::{Made, Numbers, difference, numbers};
use tch::{Device, Kind, Tensor};
use unsay_losses::director::{Director, DirectorCounts, DirectorLoss, Reduction};
use unsay_losses::{Described, LossValue, Needs, TokenCounts, TokenOp, TokenRows, TokenStats};

/// The two forms of the second head.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Second {
    /// An embedding of its own.
    Own,
    /// The language head's logits, scaled and shifted.
    Shared,
}

/// Everything that is trained.
struct Weights {
    hidden: Tensor,
    language: Tensor,
    own: Tensor,
    scale: Tensor,
    bias: Tensor,
}

impl Weights {
    fn of(made: &Made) -> Self {
        let mut numbers = Numbers::new(3);
        let leaf = |t: &Tensor| t.detach().copy().set_requires_grad(true);
        Weights {
            hidden: leaf(&made.hidden),
            language: leaf(&made.embedding),
            own: leaf(&numbers.tensor(&made.embedding.size(), 1.0)),
            scale: leaf(&Tensor::from(-0.7f64)),
            bias: leaf(&Tensor::from(0.4f64)),
        }
    }

    /// Gradients; zeros where there are none.
    fn gradients(&self) -> Vec<Tensor> {
        [&self.hidden, &self.language, &self.own, &self.scale, &self.bias]
            .map(|t| if t.grad().defined() { t.grad() } else { t.zeros_like() })
            .into()
    }
}

/// Runs a micro-batch through two ops, adding to the gradients of the weights; `index` are its rows.
fn through_ops(
    loss: &Director,
    made: &Made,
    weights: &Weights,
    index: &[i64],
    second: Second,
    counts: &DirectorCounts,
    chunk: Option<usize>,
) -> LossValue {
    let hidden = weights.hidden.index_select(0, &Tensor::from_slice(index));
    let targets = Tensor::from_slice(&made.targets);
    let chunked = |op: TokenOp| match chunk {
        Some(rows) => op.with_chunk_rows(rows),
        None => op,
    };
    let language = chunked(TokenOp::new(&hidden, &weights.language, &targets, &loss.generator_needs()).unwrap());
    let needs = loss.classifier_needs();
    let judge = chunked(match second {
        Second::Own => TokenOp::new(&hidden, &weights.own, &targets, &needs).unwrap(),
        Second::Shared => TokenOp::new(&hidden, &weights.language, &targets, &needs)
            .and_then(|op| op.with_affine(&weights.scale, &weights.bias))
            .unwrap(),
    });
    let (generator, classifier) = (language.forward().unwrap(), judge.forward().unwrap());
    let value = loss
        .evaluate(&generator, &classifier, &made.token_rows(), counts)
        .unwrap();
    value.total.backward();
    (language.surrogate(&generator).unwrap() + judge.surrogate(&classifier).unwrap()).backward();
    value
}

/// The formula as it is written, for the whole batch.
fn by_formula(loss: &Director, made: &Made, weights: &Weights, second: Second) -> Vec<Tensor> {
    let z = weights.hidden.matmul(&weights.language.tr());
    let u = match second {
        Second::Own => weights.hidden.matmul(&weights.own.tr()),
        Second::Shared => &z * &weights.scale + &weights.bias,
    };
    let (v, logp) = (z.size()[1], z.log_softmax(-1, None));
    let mut values = Vec::new();
    for (e, &label) in made.labels.iter().enumerate() {
        let rows: Vec<usize> = (0..made.n_rows())
            .filter(|&row| made.example[row] == e as i64)
            .collect();
        let learns = label == -1 || label == 1 && loss.train_generator_on_positives;
        let mut sum = Tensor::from(0f64);
        let mut tokens = 0.0;
        for row in rows {
            let (row, y) = (row as i64, made.targets[row]);
            if learns {
                sum -= logp.get(row).get(y);
                tokens += 1.0;
            }
            if label != -1 {
                let p = u.get(row).get(y).sigmoid();
                let right = if label == 1 { p } else { 1.0 - p };
                let mut judgement = -right.log();
                for token in (0..v).filter(|&token| token != y) {
                    judgement += (u.get(row).get(token).sigmoid() - 0.5).square() * (loss.norm / (v - 1) as f64);
                }
                sum += judgement * loss.gamma;
                tokens += 1.0;
            }
        }
        values.push(sum / tokens);
    }
    let n = values.len() as f64;
    match loss.reduction {
        Reduction::Mean => values.iter().map(|value| value / n).collect(),
        Reduction::Sum => values,
    }
}

fn made() -> Made {
    Made::new(11, &[3, 1, 4, 2, 2], &[-1, 1, 0, -1, 0], 5, 9)
}

fn losses() -> Vec<Director> {
    let mut all = Director::samples();
    all.push(Director {
        norm: 2.0,
        ..Director::new(1.5)
    });
    all
}

#[test]
fn values_and_gradients_equal_the_plain_formula_with_both_forms_of_the_second_head() {
    tch::set_num_threads(1);
    let made = made();
    let all: Vec<i64> = (0..made.n_rows() as i64).collect();
    let counts = DirectorCounts::of(&made.token_rows()).unwrap();
    let mut compared = 0;
    for loss in losses() {
        for second in [Second::Own, Second::Shared] {
            let plain = Weights::of(&made);
            let values = by_formula(&loss, &made, &plain, second);
            Tensor::stack(&values, 0).sum(Kind::Double).backward();
            for chunk in [None, Some(1), Some(5)] {
                let ours = Weights::of(&made);
                let value = through_ops(&loss, &made, &ours, &all, second, &counts, chunk);
                assert!(difference(&value.per_example, &Tensor::stack(&values, 0)) < 1e-12);
                let total: f64 = values.iter().map(|value| value.double_value(&[])).sum();
                assert!((value.total.double_value(&[]) - total).abs() < 1e-12);
                let (ours, plain) = (ours.gradients(), plain.gradients());
                for (ours, plain) in ours.iter().zip(&plain) {
                    assert!(difference(ours, plain) < 1e-12, "{loss:?} {second:?} {chunk:?}");
                }
                // Hidden states, the language head and the second head that is in use: all of them move.
                let moved = ours.iter().map(|t| t.abs().max().double_value(&[]) > 1e-6);
                let shared = second == Second::Shared;
                assert_eq!(moved.collect::<Vec<_>>(), [true, true, !shared, shared, shared]);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 18);
}

#[test]
fn micro_batches_of_whole_examples_add_up_in_any_order() {
    tch::set_num_threads(1);
    let made = made();
    let rows_of = |examples: &[i64]| -> Vec<usize> {
        (0..made.n_rows())
            .rev()
            .filter(|&row| examples.contains(&made.example[row]))
            .collect()
    };
    let parts = [rows_of(&[4, 0]), rows_of(&[1]), rows_of(&[2, 3])];
    assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), made.n_rows());
    let all: Vec<i64> = (0..made.n_rows() as i64).collect();
    let counts: DirectorCounts = parts
        .iter()
        .map(|part| DirectorCounts::of(&made.rows(part).token_rows()).unwrap())
        .sum();
    assert_eq!(counts, DirectorCounts::of(&made.token_rows()).unwrap());
    let mut compared = 0;
    for loss in losses() {
        for second in [Second::Own, Second::Shared] {
            let (whole, split) = (Weights::of(&made), Weights::of(&made));
            let value = through_ops(&loss, &made, &whole, &all, second, &counts, None);
            let mut total = 0.0;
            let mut per_example = value.per_example.zeros_like();
            let mut terms = vec![0.0; value.terms.len()];
            for part in &parts {
                let index: Vec<i64> = part.iter().map(|&row| row as i64).collect();
                let own = through_ops(&loss, &made.rows(part), &split, &index, second, &counts, Some(2));
                total += own.total.double_value(&[]);
                per_example += own.per_example;
                for ((sum, own), whole) in terms.iter_mut().zip(&own.terms).zip(&value.terms) {
                    assert_eq!(own.0, whole.0);
                    *sum += own.1.double_value(&[]);
                }
            }
            assert!((total - value.total.double_value(&[])).abs() < 1e-12);
            assert!(difference(&per_example, &value.per_example) < 1e-12);
            for (sum, whole) in terms.iter().zip(&value.terms) {
                assert!((sum - whole.1.double_value(&[])).abs() < 1e-12, "{}", whole.0);
            }
            for (ours, whole) in split.gradients().iter().zip(whole.gradients()) {
                assert!(difference(ours, &whole) < 1e-12, "{loss:?} {second:?}");
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 6);
}

/// Under the default a batch twice as large, of the same examples, has the same gradient; under the sum twice the
/// gradient.
#[test]
fn only_the_sum_grows_with_the_batch() {
    tch::set_num_threads(1);
    let one = made();
    let mut two = made();
    let again: Vec<usize> = (0..one.n_rows()).chain(0..one.n_rows()).collect();
    two = two.rows(&again);
    two.labels = [one.labels.clone(), one.labels.clone()].concat();
    let n = one.labels.len() as i64;
    two.example.iter_mut().skip(one.n_rows()).for_each(|e| *e += n);
    for (reduction, factor) in [(Reduction::Mean, 1.0), (Reduction::Sum, 2.0)] {
        let loss = Director {
            reduction,
            ..Director::new(0.5)
        };
        let run = |made: &Made| {
            let weights = Weights::of(made);
            let index: Vec<i64> = (0..made.n_rows() as i64).collect();
            let counts = DirectorCounts::of(&made.token_rows()).unwrap();
            let value = through_ops(&loss, made, &weights, &index, Second::Own, &counts, None);
            (value.total.double_value(&[]), weights.own.grad())
        };
        let (small, large) = (run(&one), run(&two));
        assert!((large.0 - factor * small.0).abs() < 1e-12);
        assert!(difference(&large.1, &(small.1 * factor)) < 1e-12);
        assert!(numbers(&large.1).iter().any(|g| g.abs() > 1e-6));
    }
}

/// What a loss says to stats of made logits.
fn text(loss: &Director, classifier: &TokenStats, counts: &DirectorCounts) -> String {
    let generator = stats(&TARGETS, Kind::Float, &Needs::default());
    let error = loss.evaluate(&generator, classifier, &few(), counts).unwrap_err();
    error.to_string()
}

const TARGETS: [i64; 4] = [0, 0, 1, 3];

/// Three examples for the targets.
fn few() -> TokenRows {
    TokenRows::new(&[0, 1, 0, 2], &[false; 4], &[-1, 1, 0], Device::Cpu).unwrap()
}

fn stats(targets: &[i64], kind: Kind, needs: &Needs) -> TokenStats {
    let hidden = Tensor::zeros([targets.len() as i64, 4], (kind, Device::Cpu));
    let identity = Tensor::eye(4, (kind, Device::Cpu));
    let op = TokenOp::new(&hidden, &identity, &Tensor::from_slice(targets), needs).unwrap();
    op.forward().unwrap()
}

#[test]
fn parameters_and_counts_outside_their_range_are_errors() {
    let loss = Director::new(0.5);
    let counts = DirectorCounts::of(&few()).unwrap();
    let classifier = stats(&TARGETS, Kind::Float, &loss.classifier_needs());
    assert_eq!(
        text(&Director::new(0.0), &classifier, &counts),
        "`director.gamma` is 0, expected a finite number above 0"
    );
    for examples in [2.0, f64::NAN, f64::INFINITY] {
        let expected = "counts.examples: expected examples of the whole batch, at least this part's 3, got ";
        let got = text(&loss, &classifier, &DirectorCounts { examples, ..counts });
        assert_eq!(got, format!("{expected}{examples}"));
    }
    let no_tokens = DirectorCounts {
        tokens: TokenCounts::default(),
        ..counts
    };
    assert!(text(&loss, &classifier, &no_tokens).starts_with("counts: expected sizes"));
    let both = Director {
        norm: -1.0,
        ..Director::new(f64::NAN)
    };
    let problems: Vec<String> = both.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "`director.gamma` is NaN, expected a finite number above 0",
            "`director.norm` is -1, expected a finite number, at least 0"
        ]
    );
}

#[test]
fn heads_that_were_asked_about_other_tokens_or_not_enough_are_errors() {
    let loss = Director::new(0.5);
    let needs = loss.classifier_needs();
    let counts = DirectorCounts::of(&few()).unwrap();
    let of =
        |loss: &Director, targets: &[i64], kind: Kind, needs: &Needs| text(loss, &stats(targets, kind, needs), &counts);
    for (targets, kind, got) in [
        (&TARGETS[..3], Kind::Float, "3 rows of Float on Cpu"),
        (&TARGETS[..], Kind::Double, "4 rows of Double on Cpu"),
    ] {
        assert_eq!(
            of(&loss, targets, kind, &needs),
            format!("classifier: expected 4 rows of Float on Cpu, as `generator`, got {got}")
        );
    }
    assert_eq!(
        of(&loss, &[0, 0, 1, 2], Kind::Float, &needs),
        "classifier.targets: expected those of `generator`, got others"
    );
    let missing = "expected the column that the loss's `needs` asks the op for, got none";
    assert_eq!(
        of(&loss, &TARGETS, Kind::Float, &Needs::default()),
        format!("classifier.target_logit: {missing}")
    );
    let norm = Director { norm: 0.1, ..loss };
    assert_eq!(
        of(&norm, &TARGETS, Kind::Float, &needs),
        format!("classifier.off_target: {missing}")
    );
}
