//! How long replies are.

use super::{Evaluator, Scorer};
use crate::error::Result;
use crate::evaluation::{Direction, Evaluation, Generation, Series};

pub(super) const EVALUATOR: Evaluator = Evaluator {
    name: "length",
    summary: "tokens per reply, end-of-sequence not counted",
    series: &[Series {
        name: "length",
        direction: Direction::Neither,
    }],
    corpus: &[],
    scorer: Scorer::Generations(scores),
};

/// Tokens of a reply, end-of-sequence not counted; an empty reply has length 0 and is not excluded.
///
/// `length = #tokens`; corpus value: the plain mean. F1, safety and distinct-n all move with
/// length, so it belongs beside them.
///
/// **Parameters** none.
///
/// **Errors** no generations, a repeated id.
///
/// **Reference** ours.
///
/// ```
/// # use unsay_eval::{Generation, evaluators::length};
/// # let row = |id: &str, tokens: &[u32]| Generation { example: id.into(), prompt: String::new(),
/// #     completion: String::new(), tokens: tokens.to_vec(), finished: true, gold: None };
/// assert_eq!(length::scores(&[row("1", &[5, 6, 7]), row("2", &[])])?.value("length"), Some(1.5));
/// # Ok::<(), unsay_eval::Error>(())
/// ```
pub fn scores(generations: &[Generation]) -> Result<Evaluation> {
    Evaluation::per_generation(EVALUATOR.name, generations, |g| Ok(Some(g.tokens.len() as f64)))
}
