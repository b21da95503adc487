//! Whether replies end.

use super::{Evaluator, Scorer};
use crate::error::Result;
use crate::evaluation::{Direction, Evaluation, Generation, Series};

pub(super) const EVALUATOR: Evaluator = Evaluator {
    name: "eos_rate",
    summary: "share of replies that the model ended itself",
    series: &[Series {
        name: "eos_rate",
        direction: Direction::Higher,
    }],
    corpus: &[],
    scorer: Scorer::Generations(scores),
};

/// 1 for a reply that the model ended itself, 0 for one cut at the length limit.
///
/// `eos_rate = mean of [finished]`. It falls when training pushes the end-of-sequence token of
/// negative replies down, which other scores do not show.
///
/// **Parameters** none.
///
/// **Errors** no generations, a repeated id.
///
/// **Reference** ours; the failure it watches for is known from unbounded objectives on negatives.
///
/// ```
/// # use unsay_eval::{Generation, evaluators::eos_rate};
/// # let row = |id: &str, finished| Generation { example: id.into(), prompt: String::new(), completion: String::new(),
/// #     tokens: vec![], finished, gold: None };
/// let out = eos_rate::scores(&[row("1", true), row("2", false)])?;
/// assert_eq!(out.value("eos_rate"), Some(0.5));
/// # Ok::<(), unsay_eval::Error>(())
/// ```
pub fn scores(generations: &[Generation]) -> Result<Evaluation> {
    Evaluation::per_generation(EVALUATOR.name, generations, |g| {
        Ok(Some(f64::from(u8::from(g.finished))))
    })
}
