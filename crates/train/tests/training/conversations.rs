//! Conversations of which every answer is learnt.

use crate::accumulation::{places, seen};
use crate::support::{decoder, largest_difference, source};
use tch::Kind;
use unsay_data::{Encoded, Label, Span};
use unsay_losses::token::Loss;
use unsay_train::{Examples, LanguageObjective};

/// Answers among other tokens, some ended and some cut.
fn conversation(i: usize, label: Label) -> Encoded {
    let n = 9 + i % 5;
    let ids = (0..n)
        .map(|at| 4 + ((i * 5 + at * at * 3 + at / 2) % 9) as u32)
        .collect();
    let spans = vec![
        Span {
            start: 1 + i % 2,
            end: 4,
            ended: i.is_multiple_of(3),
        },
        Span {
            start: 5 + i % 3,
            end: n - i % 2,
            ended: true,
        },
    ];
    Encoded {
        ids,
        spans,
        label,
        example: i,
    }
}

/// A row's state sees what comes before it and nothing else: a conversation teaches what its answers teach one by one,
/// each after what comes before it. So every token loss reads the right text with every answer.
#[test]
fn every_token_loss_learns_from_a_conversation_what_it_learns_from_its_answers() {
    let labels = [Label::Positive, Label::Negative, Label::Unlabelled];
    let whole: Vec<Encoded> = (0..12).map(|i| conversation(i, labels[i % 3])).collect();
    let mut apart = Vec::new();
    for encoded in &whole {
        for span in &encoded.spans {
            apart.push(Encoded {
                ids: encoded.ids[..span.end].to_vec(),
                spans: vec![*span],
                label: encoded.label,
                example: apart.len(),
            });
        }
    }
    let losses = Loss::samples();
    assert_eq!((losses.len(), apart.len()), (19, 24));
    for loss in losses {
        let of = |encoded: &[Encoded]| {
            let texts = || source(encoded.to_vec(), 1.0);
            let examples = Examples::new(vec![texts()], texts()).unwrap();
            let objective = LanguageObjective::new(decoder(Kind::Double), loss.clone(), examples).unwrap();
            let picks: Vec<usize> = (0..encoded.len()).collect();
            let places = places(unsay_train::Objective::examples(&objective), &picks);
            seen(&objective, &places, 5)
        };
        let (together, one_by_one) = (of(&whole), of(&apart));
        assert!((together.loss - one_by_one.loss).abs() < 1e-10, "{loss:?}");
        assert!(
            largest_difference(&together.gradients, &one_by_one.gradients) < 1e-10,
            "{loss:?}"
        );
        assert!(together.gradients.iter().any(|g| g.abs() > 1e-6), "{loss:?}");
    }
}
