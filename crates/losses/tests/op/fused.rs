//! Value and gradient in one pass.

use std::cell::Cell;
use std::ops::Range;

use tch::{Device, Kind, Tensor};
use unsay_losses::token::{Cringe, Loss, Nll, TokenLoss};
use unsay_losses::{Card, Described, Error, LossValue, Needs, Result, TokenCounts, TokenOp, TokenRows, TokenStats};

use crate::plain::{Made, difference, numbers};
use crate::{ALL, columns};

#[test]
fn the_one_pass_equals_the_two_for_every_token_loss() {
    let (mut compared, mut chosen) = (0, 0);
    for loss in Loss::samples() {
        let made = Made::new(9, &[3, 4, 2, 1, 5], &[1, 0, -1, 0, 1], 6, 17);
        let two = made.through_op(&loss, &made.counts(), None);
        let (rows, draws) = (made.rows_for(&loss), made.draws());
        let counts = made.weighted(&loss, &made.counts());
        let top_rows = loss.top_rows(&rows).unwrap();
        for (chunk, choose) in [1, 4, 15].into_iter().flat_map(|chunk| [(chunk, false), (chunk, true)]) {
            let [hidden, embedding] = [&made.hidden, &made.embedding].map(|t| t.detach().set_requires_grad(true));
            let op = made.op(&loss, &hidden, &embedding, &rows).with_chunk_rows(chunk);
            let op = match &top_rows {
                Some(wanted) if choose => {
                    chosen += 1;
                    op.with_top_rows(wanted).unwrap()
                }
                _ if choose => continue,
                _ => op,
            };
            let fused = op.fused_loss(&*loss, &rows, &counts, Some(&draws)).unwrap();
            assert!(!fused.value.total.requires_grad() && !fused.stats.logp.requires_grad());
            fused.backward().unwrap();
            // Nothing is left to hand on.
            fused.backward().unwrap();
            assert!(fused.surrogate().unwrap().is_none());
            let pairs = [
                (&fused.value.total, &two.value.total),
                (&fused.value.per_example, &two.value.per_example),
                (&hidden.grad(), &two.hidden),
                (&embedding.grad(), &two.embedding),
                (&fused.stats.logp, &op.forward().unwrap().logp),
            ];
            for (at, (a, b)) in pairs.into_iter().enumerate() {
                assert!(difference(a, b) < 1e-12, "{loss:?} {chunk}: {at}");
            }
            let names = |value: &LossValue| value.terms.iter().map(|(name, _)| *name).collect::<Vec<_>>();
            assert_eq!(names(&fused.value), names(&two.value));
            for ((name, a), (_, b)) in fused.value.terms.iter().zip(&two.value.terms) {
                assert!(difference(a, b) < 1e-12, "{loss:?} {chunk}: {name}");
            }

            // As in an evaluation, where only the value is wanted.
            let value = tch::no_grad(|| op.fused_loss(&*loss, &rows, &counts, Some(&draws)).unwrap());
            assert!(difference(&value.value.total, &two.value.total) < 1e-12);
            assert!(value.surrogate().unwrap().is_none());
            compared += 1;
        }
    }
    assert_eq!(compared, 3 * Loss::samples().len() + chosen);
    // CRINGE with its switches reads those of some rows.
    assert_eq!(chosen, 3 * 5);
    let made = Made::new(9, &[3], &[0], 6, 17);
    let (hidden, embedding, targets) = (&made.hidden, &made.embedding, Tensor::from_slice(&made.targets));
    let op = || TokenOp::new(hidden, embedding, &targets, &Cringe::new(1.0, 2).needs()).unwrap();
    for wrong in [Tensor::from_slice(&[true]), Tensor::from_slice(&[1i64, 0, 1])] {
        assert!(op().with_top_rows(&wrong).is_err());
    }
    // Only those are taken, and are those of all rows.
    let all = op().forward().unwrap();
    let some = op().with_top_rows(&Tensor::from_slice(&[true, false, true])).unwrap();
    let some = some.forward().unwrap();
    for (at, found) in [(0, true), (1, false), (2, true)] {
        let [all, some] = [&all, &some].map(|stats| stats.top_logits.as_ref().unwrap().get(at));
        let expected = if found { all } else { all.zeros_like() };
        assert!(difference(&some, &expected) < 1e-15);
    }
}

/// What a narrow embedding collects in place comes from one product: it is as good as one rounding, whatever the chunks.
#[test]
fn a_narrow_gradient_is_rounded_once() {
    let made = Made::new(4, &[20, 21], &[1, 0], 8, 11);
    let narrow = |t: &Tensor| t.detach().to_kind(Kind::BFloat16);
    let targets = Tensor::from_slice(&made.targets);
    let known = |t: &Tensor| narrow(t).to_kind(Kind::Double).set_requires_grad(true);
    let (hidden, embedding) = (known(&made.hidden), known(&made.embedding));
    let logits = hidden.matmul(&embedding.tr());
    let at = |t: &Tensor| t.gather(1, &targets.unsqueeze(1), false).sum(Kind::Double);
    (at(&logits.log_softmax(-1, None)) + at(&logits) * 0.5).backward();
    let size = embedding.grad().abs().max().double_value(&[]);
    let needs = Needs {
        target_logit: true,
        ..Needs::default()
    };
    for chunk in [1, 7, 41] {
        let [hidden, own] = [&made.hidden, &made.embedding].map(|t| narrow(t).set_requires_grad(true));
        for times in [1.0, 2.0] {
            let op = TokenOp::new(&hidden, &own, &targets, &needs).unwrap();
            let op = op.with_chunk_rows(chunk).with_gradient_in_place();
            let fused = op.fused(|stats, _| {
                let total = stats.logp.sum(Kind::Float) + stats.target_logit.as_ref().unwrap().sum(Kind::Float) * 0.5;
                Ok(LossValue {
                    per_example: total.detach().view([1]),
                    total,
                    terms: Vec::new(),
                })
            });
            fused.unwrap().backward().unwrap();
            assert_eq!(own.grad().kind(), Kind::BFloat16);
            let found = own.grad().to_kind(Kind::Double) / times;
            let off = difference(&found, &embedding.grad());
            assert!(off < 0.01 * size, "{chunk}, {times}: {off} of {size}");
        }
    }
}

/// A loss may leave chunks out, and gradients come on top of those that are there, on every path.
#[test]
fn gradients_are_added_and_chunks_can_be_left_out() {
    for in_place in [false, true] {
        let made = Made::new(4, &[5], &[1], 3, 7);
        let [hidden, embedding] = [&made.hidden, &made.embedding].map(|t| t.detach().set_requires_grad(true));
        let targets = Tensor::from_slice(&made.targets);
        let op = TokenOp::new(&hidden, &embedding, &targets, &Needs::default())
            .unwrap()
            .with_chunk_rows(2);
        let op = if in_place { op.with_gradient_in_place() } else { op };
        let only = |wanted: Range<i64>| {
            let fused = op.fused(|stats, rows| {
                let total = stats.logp.sum(Kind::Double);
                let total = if rows == wanted { total } else { total.detach().zero_() };
                Ok(LossValue {
                    per_example: total.detach().view([1]),
                    total,
                    terms: vec![("logp", stats.logp.sum(Kind::Double).detach())],
                })
            });
            let fused = fused.unwrap();
            assert_eq!(fused.value.terms.len(), 1);
            assert!(difference(&fused.value.terms[0].1, &fused.stats.logp.sum(Kind::Double)) < 1e-14);
            assert!(
                difference(
                    &fused.value.total,
                    &fused
                        .stats
                        .logp
                        .narrow(0, wanted.start, wanted.end - wanted.start)
                        .sum(Kind::Double)
                ) < 1e-14
            );
            fused.backward().unwrap();
            (hidden.grad().copy(), embedding.grad().copy())
        };
        let first = only(0..2);
        let both = only(2..4);
        let last = only(4..5);
        let again = only(0..2);
        assert!(numbers(&first.0)[6..].iter().all(|g| g.abs() == 0.0));
        assert!(numbers(&both.0)[6..12].iter().all(|g| g.abs() > 0.0));
        assert!(difference(&(&again.0 - &last.0), &first.0) < 1e-14);
        assert!(difference(&(&again.1 - &last.1), &first.1) < 1e-14);
        // The same sum at once.
        let whole = made.hidden.detach().set_requires_grad(true);
        let plain = whole
            .matmul(&made.embedding.tr())
            .log_softmax(-1, None)
            .gather(1, &targets.unsqueeze(1), false);
        plain.sum(Kind::Double).backward();
        assert!(difference(&last.0, &whole.grad()) < 1e-14);
    }
}

#[test]
fn what_a_fused_loss_is_given_must_fit_too() {
    let made = Made::new(4, &[2, 3], &[1, 0], 3, 7);
    let targets = Tensor::from_slice(&made.targets);
    let loss = Loss::samples()
        .into_iter()
        .find(|loss| loss.draws_per_row() == 1)
        .unwrap();
    let op = TokenOp::new(&made.hidden, &made.embedding, &targets, &loss.needs())
        .unwrap()
        .with_chunk_rows(3);
    let text = |rows: &Made, draws: &Tensor| {
        let found = op.fused_loss(&*loss, &rows.token_rows(), &made.counts(), Some(draws));
        found.unwrap_err().to_string()
    };
    let fewer = made.rows(&[0, 1, 2, 3]);
    assert_eq!(
        text(&fewer, &made.draws()),
        "rows: expected 5 rows, as the op has, got [4]"
    );
    assert_eq!(
        text(&made, &fewer.draws()),
        "draws: expected [5, 1], uniform in [0, 1), as many per row as the loss draws, got [4, 1] of Double"
    );
    assert_eq!(
        text(&made, &made.draws().repeat([1, 2])),
        "draws: expected [5, 1], uniform in [0, 1), as many per row as the loss draws, got [5, 2] of Double"
    );
    let shrinking = op.fused(|stats, rows| {
        let total = stats.logp.sum(Kind::Double);
        let per_example = Tensor::zeros([rows.end - rows.start], (Kind::Double, Device::Cpu));
        Ok(LossValue {
            total,
            per_example,
            terms: Vec::new(),
        })
    });
    assert_eq!(
        shrinking.unwrap_err().to_string(),
        "per_example: expected [3], as for the rows before, got [2]"
    );

    let rows = made.token_rows();
    let part = rows.narrow(1..4).unwrap();
    assert_eq!(
        (numbers(&part.example), numbers(&part.label)),
        (vec![0.0, 1.0, 1.0], vec![1.0, 0.0, 0.0])
    );
    assert_eq!((numbers(&part.is_eos), part.n_examples), (vec![1.0, 0.0, 0.0], 2));
    assert!(rows.narrow(0..5).is_ok() && rows.narrow(2..2).is_ok());
    for (range, text) in [(-1..2, "-1..2"), (3..6, "3..6"), (Range { start: 3, end: 2 }, "3..2")] {
        let expected = format!("rows: expected a part of 0..5, got {text}");
        assert_eq!(rows.narrow(range).unwrap_err().to_string(), expected);
    }
}

/// CRINGE that counts how often it is checked and how often it is computed.
struct Counted {
    cringe: Cringe,
    checks: Cell<usize>,
    values: Cell<usize>,
}

impl Described for Counted {
    fn card(&self) -> Card {
        self.cringe.card()
    }

    fn problems(&self) -> Vec<Error> {
        self.checks.set(self.checks.get() + 1);
        self.cringe.problems()
    }
}

impl TokenLoss for Counted {
    fn needs(&self) -> Needs {
        self.cringe.needs()
    }

    fn draws_per_row(&self) -> usize {
        self.cringe.draws_per_row()
    }

    fn rows_trained(&self, counts: &TokenCounts) -> f64 {
        self.cringe.rows_trained(counts)
    }

    fn hint(&self) -> &'static str {
        self.cringe.hint()
    }

    fn value(
        &self,
        stats: &TokenStats,
        rows: &TokenRows,
        counts: &TokenCounts,
        draws: Option<&Tensor>,
    ) -> Result<LossValue> {
        self.values.set(self.values.get() + 1);
        self.cringe.value(stats, rows, counts, draws)
    }

    fn samples() -> Vec<Self> {
        Vec::new()
    }
}

/// Checks read numbers back from the device: once, not for every chunk, and before anything is computed.
#[test]
fn all_rows_are_checked_once_and_first() {
    let made = Made::new(4, &[2, 3], &[1, 0], 3, 7);
    let [hidden, embedding] = [&made.hidden, &made.embedding].map(|t| t.detach().set_requires_grad(true));
    let loss = Counted {
        cringe: Cringe::new(1.0, 2),
        checks: Cell::new(0),
        values: Cell::new(0),
    };
    let op = TokenOp::new(&hidden, &embedding, &Tensor::from_slice(&made.targets), &loss.needs());
    let op = op.unwrap().with_chunk_rows(2).with_gradient_in_place();
    let fused = |rows: &TokenRows, draws: &Tensor| op.fused_loss(&loss, rows, &made.counts(), Some(draws));

    // Of the last chunk, after two that are fine.
    let late = |value: f64| {
        let draws = made.draws().copy();
        let _ = draws.get(4).fill_(value);
        draws
    };
    for (value, text) in [(1.0, "to 1"), (-0.5, "from -0.5 to"), (f64::NAN, "from NaN to NaN")] {
        let error = fused(&made.token_rows(), &late(value)).unwrap_err().to_string();
        assert!(
            error.starts_with("draws: expected [5, 1]") && error.contains(text),
            "{error}"
        );
    }
    let rows = made.token_rows();
    let _ = rows.label.get(4).fill_(2);
    let error = fused(&rows, &made.draws()).unwrap_err().to_string();
    assert!(error.ends_with("got 2"), "{error}");
    let rows = made.token_rows();
    let _ = rows.example.get(4).fill_(2);
    let error = fused(&rows, &made.draws()).unwrap_err().to_string();
    assert_eq!(error, "example: expected 0..2, got 2");
    assert_eq!((loss.checks.get(), loss.values.get()), (5, 0));
    assert!(!embedding.grad().defined());

    fused(&made.token_rows(), &made.draws()).unwrap();
    assert_eq!((loss.checks.get(), loss.values.get()), (6, 3));

    // Draws that nobody takes are nobody's.
    let other = made.draws().narrow(0, 0, 2);
    assert!(
        op.fused_loss(&Nll {}, &made.token_rows(), &made.counts(), Some(&other))
            .is_ok()
    );
}

#[test]
fn the_stats_of_all_rows_are_there_where_they_are_asked_for() {
    let made = Made::new(4, &[5], &[1], 3, 7);
    let targets = Tensor::from_slice(&made.targets);
    let op = || {
        TokenOp::new(&made.hidden, &made.embedding, &targets, &ALL)
            .unwrap()
            .with_chunk_rows(2)
    };
    let stats = |op: TokenOp| {
        let fused = op.fused(|stats, _| {
            let total = stats.logp.sum(Kind::Double);
            Ok(LossValue {
                per_example: total.detach().view([1]),
                total,
                terms: Vec::new(),
            })
        });
        fused.unwrap().stats
    };
    let (brief, all) = (stats(op()), stats(op().with_all_stats()));
    assert_eq!((columns(&brief).len(), columns(&all).len()), (1, 7));
    assert!(brief.top_ids.is_none() && brief.collision.is_none());
    assert!(difference(&brief.logp, &all.logp) < 1e-15);
    assert_eq!(
        (numbers(&brief.targets), numbers(&brief.correct)),
        (numbers(&all.targets), numbers(&all.correct))
    );
}

/// What single rows add to the embedding's gradient is far below the resolution of bf16 at their sum: the chunks are
/// added up in f32 and rounded once.
#[test]
fn a_narrow_embedding_loses_nothing_over_many_chunks() {
    let (n, v, d) = (512, 4, 3);
    let states = Tensor::ones([n, d], (Kind::Float, Device::Cpu)) + Tensor::arange(d, (Kind::Float, Device::Cpu)) / 4;
    let embedding = Tensor::zeros([v, d], (Kind::Float, Device::Cpu));
    let targets = Tensor::zeros([n], (Kind::Int64, Device::Cpu));
    let example = vec![0; n as usize];
    let rows = TokenRows::new(&example, &vec![false; n as usize], &[1], Device::Cpu).unwrap();
    let counts = TokenCounts::of(&rows).unwrap();
    let gradient = |kind: Kind, chunk: usize| {
        let embedding = embedding.detach_copy().to_kind(kind).set_requires_grad(true);
        let op = TokenOp::new(&states.to_kind(kind), &embedding, &targets, &Needs::default()).unwrap();
        let op = op.with_chunk_rows(chunk).with_gradient_in_place();
        let fused = op.fused_loss(&Nll {}, &rows, &counts, None).unwrap();
        fused.backward().unwrap();
        embedding.grad().to_kind(Kind::Double)
    };
    let expected = gradient(Kind::Float, 512);
    let away = |found: Tensor| ((found - &expected) / &expected).abs().max().double_value(&[]);
    for chunk in [1, 7, 512] {
        // Half a step of bf16, and as much again for the products.
        let found = away(gradient(Kind::BFloat16, chunk));
        assert!(found < 2.0 / 256.0, "{chunk}: {found}");
    }
    // The same contributions added up in bf16 stop growing long before the end.
    let one = (&expected / n as f64).to_kind(Kind::BFloat16);
    let mut narrow = one.zeros_like();
    for _ in 0..n {
        narrow += &one;
    }
    assert!(away(narrow.to_kind(Kind::Double)) > 0.1);
}

/// Where oneDNN multiplies, only rounding differs, for every token loss, also where bf16 rows are filled up, and the gradient is
/// made behind the last chunk; in f64 nothing does.
#[test]
fn products_by_onednn_are_those_of_blas() {
    let (mut rounded, mut filled_up) = (0, 0);
    for loss in Loss::samples() {
        let made = Made::new(9, &[30, 40, 21, 13, 50], &[1, 0, -1, 0, 1], 16, 33);
        let (rows, draws) = (made.rows_for(&loss), made.draws());
        let counts = made.weighted(&loss, &made.counts());
        let run = |kind: Kind, (onednn, in_place): (bool, bool)| {
            let leaf = |t: &Tensor| t.detach().to_kind(kind).set_requires_grad(true);
            let (hidden, embedding) = (leaf(&made.hidden), leaf(&made.embedding));
            let op = made.op(&loss, &hidden, &embedding, &rows).with_chunk_rows(100);
            let filled: fn(i64) -> i64 = |rows| (rows + 7) / 8 * 8;
            let op = match in_place {
                true => op.with_gradient_in_place(),
                false => op.with_temperature(1.5).unwrap(),
            };
            let op = op.with_onednn(onednn.then_some(filled));
            let fused = op.fused_loss(&*loss, &rows, &counts, Some(&draws)).unwrap();
            fused.backward().unwrap();
            [fused.value.total, hidden.grad(), embedding.grad()].map(|t| t.to_kind(Kind::Double))
        };
        let [(narrow, other), (wide, same)] =
            [Kind::Float, Kind::Double].map(|kind| (run(kind, (false, false)), run(kind, (true, false))));
        for (in_place, exact) in [(false, &wide), (true, &run(Kind::Double, (false, true)))] {
            let [plain, found] = [false, true].map(|onednn| run(Kind::BFloat16, (onednn, in_place)));
            for ((plain, found), exact) in plain.iter().zip(&found).zip(exact) {
                let largest = plain.abs().max().double_value(&[]).max(1e-9);
                let (off, own) = (difference(plain, found) / largest, difference(plain, exact) / largest);
                // Small differences of large numbers are mostly rounding, without rows of zeros too.
                assert!(off < own.max(0.02), "{loss:?} {in_place}: {off}");
                filled_up += 1;
            }
        }
        for ((a, b), (c, d)) in narrow.iter().zip(&other).zip(wide.iter().zip(&same)) {
            let largest = a.abs().max().double_value(&[]).max(1e-9);
            let off = difference(a, b) / largest;
            assert!(off < 1e-5, "{loss:?}: {off}");
            assert!(difference(c, d) == 0.0, "{loss:?}");
            rounded += i32::from(off > 0.0);
        }
    }
    assert!(rounded > 10, "{rounded} tensors are rounded otherwise");
    assert_eq!(filled_up, 6 * Loss::samples().len());
}
