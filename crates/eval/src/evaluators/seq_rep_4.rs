//! Repetition within a reply.

use std::collections::HashSet;

use super::{Evaluator, Scorer};
use crate::error::Result;
use crate::evaluation::{Direction, Evaluation, Generation, Series};

pub(super) const EVALUATOR: Evaluator = Evaluator {
    name: "seq_rep_4",
    summary: "share of repeated token 4-grams within each reply",
    series: &[Series {
        name: "seq_rep_4",
        direction: Direction::Lower,
    }],
    corpus: &[],
    scorer: Scorer::Generations(scores),
};

const N: usize = 4;

/// The share of 4-grams of a reply that are repeats.
///
/// `seq-rep-4 = 1 - |set of 4-grams| / |4-grams|` over the reply's tokens, end-of-sequence not
/// counted; corpus value: the plain mean over the replies that have a 4-gram.
///
/// **Parameters** none. Values lie in [0, 1).
///
/// **Errors** no generations, a repeated id. A reply of fewer than 4 tokens has no 4-gram: it is
/// excluded and listed, not scored 0, so a model cannot look unrepetitive by being short.
///
/// **Reference** Welleck et al., Neural Text Generation with Unlikelihood Training, 2019
/// (seq-rep-n).
///
/// **Differs from the paper** the paper generates a fixed number of tokens, so no reply is too
/// short there.
///
/// ```
/// # use unsay_eval::{Generation, evaluators::seq_rep_4};
/// # let row = |id: &str, tokens: &[u32]| Generation { example: id.into(), prompt: String::new(),
/// #     completion: String::new(), tokens: tokens.to_vec(), finished: true, gold: None };
/// // 1234, 2341, 3412, 4123, 1234: four different of five
/// let out = seq_rep_4::scores(&[row("1", &[1, 2, 3, 4, 1, 2, 3, 4]), row("2", &[1, 2])])?;
/// assert!((out.value("seq_rep_4").unwrap() - 0.2).abs() < 1e-12);
/// assert_eq!(out.excluded, ["2"]);
/// # Ok::<(), unsay_eval::Error>(())
/// ```
pub fn scores(generations: &[Generation]) -> Result<Evaluation> {
    Evaluation::per_generation(EVALUATOR.name, generations, |g| {
        let grams = g.tokens.windows(N);
        let count = grams.len();
        let distinct = grams.collect::<HashSet<_>>().len();
        Ok((count > 0).then(|| 1.0 - distinct as f64 / count as f64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::reply;

    #[test]
    fn values_worked_out_by_hand() {
        let cases: [(&[u32], Option<f64>); 6] = [
            (&[], None),
            (&[7, 7, 7], None),
            (&[7, 7, 7, 7], Some(0.0)),
            // 7777 four times: 1 - 1/4
            (&[7; 7], Some(0.75)),
            (&[1, 2, 3, 4, 5, 6], Some(0.0)),
            // 1212, 2121, 1212, 2121, 1212: 1 - 2/5
            (&[1, 2, 1, 2, 1, 2, 1, 2], Some(0.6)),
        ];
        for (tokens, want) in cases {
            let out = scores(&[Generation {
                tokens: tokens.to_vec(),
                ..reply("x", "")
            }])
            .unwrap();
            assert_eq!(out.value("seq_rep_4").is_some(), want.is_some(), "{tokens:?}");
            assert_eq!(out.excluded.len(), usize::from(want.is_none()));
            if let (Some(got), Some(want)) = (out.value("seq_rep_4"), want) {
                assert!((got - want).abs() < 1e-12, "{tokens:?}: {got}");
            }
        }
        assert_eq!(cases.len(), 6);
    }
}
