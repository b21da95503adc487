//! Which way a rejected completion is pushed is what the card says.

use std::cell::RefCell;

use tch::Tensor;

use crate::batch::Batch;
use crate::every;
use crate::plain::numbers;
use crate::subject::{How, Missing, Pushed, Subject, Table};

/// The mean change of the completions of a role, if there are any.
fn mean(batch: &Batch, changes: &[f64], role: i8) -> Option<f64> {
    let of_role = batch.completions.iter().zip(changes).filter(|(c, _)| c.role == role);
    let changes: Vec<f64> = of_role.map(|(_, change)| *change).collect();
    (!changes.is_empty()).then(|| changes.iter().sum::<f64>() / changes.len() as f64)
}

/// What a small step against the gradient of the states changes, completion by completion.
fn changes(subject: &Subject, batch: &Batch) -> Vec<f64> {
    let ours = subject.whole(batch, How::default()).unwrap();
    let gradient = &ours.gradients[0];
    let scale = 1e-4 / gradient.abs().max().double_value(&[]).max(1e-12);
    let stepped = &batch.states - gradient * scale;
    let targets = Tensor::from_slice(&batch.targets).unsqueeze(1);
    let per_row = |states: &Tensor| match subject.setting.pushes() {
        Pushed::Logp => batch.logps(states),
        Pushed::Score => numbers(&states.matmul(&batch.embedding.get(0))),
        Pushed::Judgement => {
            let heads = subject.setting.heads();
            let shared = heads[1].table == Table::Shared;
            let table = if shared { &batch.embedding } else { &batch.second };
            numbers(&states.matmul(&table.tr()).gather(1, &targets, false))
        }
    };
    let before = batch.sums(&per_row(&batch.states));
    batch
        .sums(&per_row(&stepped))
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .collect()
}

/// Moves the reference so that the policy likes what was chosen more, and what was rejected less, by that much a token.
fn apart(batch: &mut Batch, by: f64) {
    for completion in &batch.completions {
        let away = if completion.role == 0 { by } else { -by };
        for row in completion.start..completion.start + completion.length {
            batch.reference[row] += away;
        }
    }
}

/// Where a rejected completion goes from where training starts.
#[derive(Debug, PartialEq)]
enum Way {
    Nowhere,
    Down,
    /// Down relative to the chosen one, which may move as well.
    Below,
}

/// What the card says, in its words.
fn said(subject: &Subject) -> Way {
    let says = subject.setting.card().on_negatives;
    let from_the_reference = subject.setting.asks_for().contains(&Missing::Reference);
    match says {
        _ if says.starts_with("ignored") => Way::Nowhere,
        // Without a reference a log-ratio is a log-probability, and starts below that.
        _ if says.contains("down to a log-ratio of") && !from_the_reference => Way::Below,
        _ if says.contains("down relative to") => Way::Below,
        _ => {
            assert!(says.contains("down"), "{says}");
            Way::Down
        }
    }
}

/// From where training starts: the policy is its reference, and what it sampled is its own.
#[test]
fn one_step_pushes_negatives_where_the_card_says() {
    let seen = RefCell::new([0; 3]);
    let all = every(|subject| {
        let mut batch = subject.batch(4, 18);
        batch.reference = batch.logps(&batch.states);
        batch.old.clone_from(&batch.reference);
        if subject.setting.card().on_negatives.contains("up for margins near zero") {
            apart(&mut batch, 2.0);
        }
        let changes = changes(subject, &batch);
        let (negative, positive) = (mean(&batch, &changes, 0).unwrap(), mean(&batch, &changes, 1));
        match said(subject) {
            Way::Nowhere => {
                seen.borrow_mut()[0] += 1;
                assert!(negative.abs() < 1e-15, "{negative}");
            }
            Way::Down => {
                seen.borrow_mut()[1] += 1;
                assert!(negative < -1e-9, "{negative}");
            }
            Way::Below => {
                seen.borrow_mut()[2] += 1;
                assert!(negative - positive.unwrap() < -1e-9, "{negative} {positive:?}");
            }
        }
    });
    let seen = seen.into_inner();
    assert!(seen.iter().sum::<usize>() == all && !seen.contains(&0), "{seen:?}");
}
