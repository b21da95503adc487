//! Unigram F1 against the gold reply.

use std::collections::HashMap;

use super::{Evaluator, Scorer};
use crate::error::{Error, Result};
use crate::evaluation::{Direction, Evaluation, Generation, Series};
use crate::words::words;

pub(super) const EVALUATOR: Evaluator = Evaluator {
    name: "f1",
    summary: "unigram overlap with the gold reply, ParlAI normalisation",
    series: &[Series {
        name: "f1",
        direction: Direction::Higher,
    }],
    corpus: &[],
    scorer: Scorer::GoldGenerations(scores),
};

/// Unigram F1 of a reply against a gold reply.
///
/// With `c` the size of the multiset intersection of their [`words`], precision `p = c / #reply`
/// and recall `r = c / #gold`: `F1 = 2 p r / (p + r)`, and 0 when `c` is 0, so also when one side
/// or both have no words.
///
/// **Parameters** any two texts; the value lies in [0, 1] and is symmetric.
///
/// **Errors** none.
///
/// **Reference** ParlAI, `F1Metric` in `parlai/core/metrics.py`; the F1 of Adolphs et al., The
/// CRINGE Loss, 2022, Table 2.
///
/// **Differs from the paper** one gold reply per example, where ParlAI takes the best of several.
///
/// ```
/// // {b: 1, c: 1} shared, 3 words against 4
/// let f1 = unsay_eval::evaluators::f1::f1("b c x", "the b, c d e!");
/// assert!((f1 - 2.0 * 2.0 / 7.0).abs() < 1e-12);
/// ```
pub fn f1(reply: &str, gold: &str) -> f64 {
    let (reply, gold) = (words(reply), words(gold));
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in &gold {
        *left.entry(word).or_default() += 1;
    }
    let common = reply.iter().filter(|w| take_one(&mut left, w)).count();
    if common == 0 {
        return 0.0;
    }
    let precision = common as f64 / reply.len() as f64;
    let recall = common as f64 / gold.len() as f64;
    2.0 * precision * recall / (precision + recall)
}

/// Takes one copy of `word` out of the multiset; false when there is none left.
fn take_one(left: &mut HashMap<&str, usize>, word: &str) -> bool {
    match left.get_mut(word) {
        Some(n) if *n > 0 => {
            *n -= 1;
            true
        }
        _ => false,
    }
}

/// [`f1`] of every generation against its gold reply; corpus value: the plain mean.
///
/// **Errors** no generations, a repeated id, a generation without gold reply.
pub fn scores(generations: &[Generation]) -> Result<Evaluation> {
    Evaluation::per_generation(EVALUATOR.name, generations, |g| {
        let no_gold = || Error::NoGold {
            evaluator: EVALUATOR.name,
            example: g.example.clone(),
        };
        Ok(Some(f1(&g.completion, g.gold.as_deref().ok_or_else(no_gold)?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::reply;

    #[test]
    fn values_worked_out_by_hand() {
        let cases = [
            // common 2 of 2 and 2: the articles and the stop do not count
            ("The cat sat.", "a cat sat", 1.0),
            // common {i:1, like:1}: p = 2/4, r = 2/3, F1 = 4/7
            ("I like red apples", "i like pears", 4.0 / 7.0),
            // copies count up to the other side's: common {no:2}, p = 2/3, r = 1
            ("no no no", "no, no", 0.8),
            ("no, no", "no no no", 0.8),
            // no common word
            ("yes", "no", 0.0),
            // one side, both sides without words
            ("", "hello", 0.0),
            ("hello", "the", 0.0),
            ("", "", 0.0),
            ("a the", "an", 0.0),
            // "don't" is the two words don, t: common 1, p = 1/2, r = 1/2
            ("don't", "can't", 0.5),
        ];
        for (got, gold, want) in cases {
            assert!(
                (f1(got, gold) - want).abs() < 1e-12,
                "{got:?} against {gold:?}: {}",
                f1(got, gold)
            );
        }
        assert_eq!(cases.len(), 10);
    }

    #[test]
    fn scores_keep_order_and_need_gold() {
        let gold = |id: &str, text: &str, gold: &str| Generation {
            gold: Some(gold.into()),
            ..reply(id, text)
        };
        let out = scores(&[gold("x", "no no no", "no no"), gold("y", "yes", "no")]).unwrap();
        assert_eq!(
            out.scores.iter().map(|s| s.example.as_str()).collect::<Vec<_>>(),
            ["x", "y"]
        );
        assert!((out.value("f1").unwrap() - 0.4).abs() < 1e-12);
        let error = scores(&[gold("x", "a", "b"), reply("y", "c")]).unwrap_err();
        assert_eq!(error.to_string(), "`f1` needs a gold reply, example `y` has none");
    }
}
