//! Share of different replies: the same sentence to every prompt is safe, and no conversation.

use std::collections::HashMap;

use super::{Evaluator, Scorer};
use crate::error::Result;
use crate::evaluation::{Direction, Evaluation, Generation, Series};
use crate::words::words;

pub(super) const EVALUATOR: Evaluator = Evaluator {
    name: "distinct_replies",
    summary: "share of different replies among all replies",
    series: &[Series {
        name: "distinct_replies",
        direction: Direction::Higher,
    }],
    corpus: &[],
    scorer: Scorer::Generations(scores),
};

/// One over the number of replies that are the same as this one, so that the mean is the number of different replies
/// over the number of replies.
///
/// `distinct_replies_i = 1 / |{ j : reply_j = reply_i }|`, `mean = |set of replies| / |replies|`. Replies are the
/// same when their [`words`] are.
///
/// **Parameters** none. Values lie in (0, 1]; the mean falls as replies are added, so compare it only between equal
/// numbers of replies.
///
/// **Errors** no generations, a repeated id.
///
/// **Reference** the share of unique outputs is a usual check of collapse; no one paper defines it.
///
/// **Differs from the paper** nothing to differ from.
///
/// ```
/// # use unsay_eval::{Generation, evaluators::distinct_replies};
/// # let row = |id: &str, text: &str| Generation { example: id.into(), prompt: String::new(), completion: text.into(),
/// #     tokens: vec![], finished: true, gold: None };
/// let out = distinct_replies::scores(&[row("1", "I see."), row("2", "i see"), row("3", "no"), row("4", "yes")])?;
/// assert_eq!(out.value("distinct_replies"), Some(0.75));
/// # Ok::<(), unsay_eval::Error>(())
/// ```
pub fn scores(generations: &[Generation]) -> Result<Evaluation> {
    let mut copies: HashMap<Vec<String>, usize> = HashMap::new();
    for generation in generations {
        *copies.entry(words(&generation.completion)).or_default() += 1;
    }
    Evaluation::per_generation(EVALUATOR.name, generations, |g| {
        Ok(copies.get(&words(&g.completion)).map(|n| 1.0 / *n as f64))
    })
}
