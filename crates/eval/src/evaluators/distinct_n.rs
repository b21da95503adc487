//! Share of different n-grams, within a reply and over all replies.

use std::collections::HashSet;

use super::{Evaluator, Scorer};
use crate::error::{Error, Result};
use crate::evaluation::{Aggregate, Direction, Evaluation, Generation, Series, check_ids};
use crate::words::words;

pub(super) const DISTINCT_1: Evaluator = Evaluator {
    name: "distinct_1",
    summary: "share of different words, within each reply and over all replies",
    series: &[Series {
        name: "distinct_1",
        direction: Direction::Higher,
    }],
    corpus: &[Series {
        name: "corpus_distinct_1",
        direction: Direction::Higher,
    }],
    scorer: Scorer::Generations(|rows| scores(rows, 1)),
};

pub(super) const DISTINCT_2: Evaluator = Evaluator {
    name: "distinct_2",
    summary: "share of different word pairs, within each reply and over all replies",
    series: &[Series {
        name: "distinct_2",
        direction: Direction::Higher,
    }],
    corpus: &[Series {
        name: "corpus_distinct_2",
        direction: Direction::Higher,
    }],
    scorer: Scorer::Generations(|rows| scores(rows, 2)),
};

/// Distinct n-grams over n-grams, of each reply (`distinct_n`) and of all replies together
/// (`corpus_distinct_n`).
///
/// `distinct = |set of n-grams| / |n-grams|` over the [`words`]. The corpus value is what the paper
/// reports; it falls as the corpus grows, so compare it only between equal numbers of replies. The
/// mean of the per-reply values is named `distinct_n` and is another number: it sees repetition
/// within a reply only.
///
/// **Parameters** `n` of at least 1; registered are 1 and 2. Values lie in (0, 1].
///
/// **Errors** `n` of 0, no generations, a repeated id. A reply with fewer than `n` words is
/// undefined: excluded and listed, and it adds nothing to the corpus value.
///
/// **Reference** Li et al., A Diversity-Promoting Objective Function for Neural Conversation
/// Models, 2016; ParlAI's `InterDistinctMetric` (corpus) and `IntraDistinctMetric` (per reply).
///
/// **Differs from the paper** words are normalised as in ParlAI; ParlAI counts a reply without
/// n-grams as about 0 instead of leaving it out.
///
/// ```
/// # use unsay_eval::{Generation, evaluators::distinct_n};
/// # let row = |id: &str, text: &str| Generation { example: id.into(), prompt: String::new(), completion: text.into(),
/// #     tokens: vec![], finished: true, gold: None };
/// let out = distinct_n::scores(&[row("1", "no no"), row("2", "no yes")], 1)?;
/// assert_eq!(out.value("distinct_1"), Some(0.75)); // (1/2 + 2/2) / 2
/// assert_eq!(out.value("corpus_distinct_1"), Some(0.5)); // {no, yes} of 4
/// # Ok::<(), unsay_eval::Error>(())
/// ```
pub fn scores(generations: &[Generation], n: usize) -> Result<Evaluation> {
    if n == 0 {
        return Err(Error::Range {
            name: "n",
            expected: "at least 1",
            got: n.to_string(),
        });
    }
    check_ids("distinct_n", generations.iter().map(|g| g.example.as_str()))?;
    let series = format!("distinct_{n}");
    let replies: Vec<Vec<String>> = generations.iter().map(|g| words(&g.completion)).collect();
    let mut out = Evaluation::default();
    let (mut all, mut total) = (HashSet::new(), 0_usize);
    for (generation, reply) in generations.iter().zip(&replies) {
        let own: HashSet<&[String]> = reply.windows(n).collect();
        let count = reply.windows(n).len();
        if count == 0 {
            out.excluded.push(generation.example.clone());
            continue;
        }
        out.push(&series, &generation.example, own.len() as f64 / count as f64);
        all.extend(own);
        total += count;
    }
    out.push_mean(&series);
    if total > 0 {
        let value = all.len() as f64 / total as f64;
        out.corpus.push(Aggregate {
            name: format!("corpus_{series}"),
            value,
            n: out.scores.len(),
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::reply;

    #[test]
    fn values_worked_out_by_hand() {
        // pairs: {x y, y x, x y} 2 of 3; {x y} 1 of 1; "z" has none
        let rows = [reply("1", "x y x y"), reply("2", "X, y!"), reply("3", "the z")];
        let out = scores(&rows, 2).unwrap();
        assert_eq!(out.excluded, ["3"]);
        assert_eq!(out.scores.len(), 2);
        assert!((out.value("distinct_2").unwrap() - (2.0 / 3.0 + 1.0) / 2.0).abs() < 1e-12);
        // over all: {x y, y x} of 4
        assert!((out.value("corpus_distinct_2").unwrap() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn replies_without_words_leave_no_value() {
        let out = scores(&[reply("1", ""), reply("2", "the")], 1).unwrap();
        assert_eq!((out.scores.len(), out.corpus.len(), out.excluded.len()), (0, 0, 2));
        let error = scores(&[reply("1", "x")], 0).unwrap_err();
        assert_eq!(error.to_string(), "`n` must be at least 1, got 0");
    }
}
