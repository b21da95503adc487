//! Which of the model's own completions it learns from next.

use std::collections::HashMap;

use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use unsay_data::{Example, Label};

use crate::error::{Error, Result};
use crate::label::Candidate;

/// How many completions each rule took away.
///
/// `generated = empty + undecided + negatives + positives` and `positives = copies + distinct positives`;
/// what balancing cuts is `negatives + positives - copies - kept`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Completions that came in.
    pub generated: usize,
    /// Dropped: blank.
    pub empty: usize,
    /// Dropped: without a definite label.
    pub undecided: usize,
    /// Labelled negative, before balancing.
    pub negatives: usize,
    /// Labelled positive, before copies were dropped.
    pub positives: usize,
    /// Dropped: further copies of a positive completion.
    pub copies: usize,
    /// Kept, half of each label.
    pub kept: usize,
}

/// Whether there is anything to train on, and if not, why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As many negatives as positives were kept, at least one of each.
    Balanced,
    /// No completion was labelled negative: there is nothing left to unlearn, or the judge sees none.
    NoNegatives,
    /// No completion was labelled positive.
    NoPositives,
    /// No completion had a label at all.
    NoLabels,
}

/// The completions of one round to train on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// As examples, labelled, in shuffled order; empty unless the outcome is [`Outcome::Balanced`].
    pub examples: Vec<Example>,
    /// Why it is what it is.
    pub outcome: Outcome,
    /// What each rule took away.
    pub counts: Counts,
}

/// The filter of iterative CRINGE.
///
/// Blank completions and those without a definite label are dropped. Negatives are all kept; of the
/// positives at most `max_copies` with the same text, the first ones in input order. Then both
/// lists are cut to the length of the shorter one, keeping the first in input order, put together
/// and shuffled with `rng`.
///
/// **Parameters** `max_copies` of at least 1, 2 in the reference. `candidates` may be empty.
///
/// **Errors** `max_copies` of 0. Nothing to select is not an error but an [`Outcome`].
///
/// **On negatives** balancing keeps a model that is nearly always safe from drowning its few
/// failures in praise, and one that is nearly always unsafe from learning only by being pushed
/// away.
///
/// **Reference** Adolphs et al., The CRINGE Loss, 2022, Algorithm 2; ParlAI,
/// `projects/cringe/safety_filter_world_logs.py`.
///
/// **Differs from the paper** blank completions are dropped (the reference has none, by a minimum
/// length).
///
/// ```
/// use unsay_data::{Label, stream};
/// use unsay_rl::{Candidate, Outcome, select};
/// let row = |id: &str, completion: &str, label| Candidate {
///     id: id.into(), prompt: "hi".into(), completion: completion.into(), seen_prompt: true,
///     messages: vec![], label };
/// let rows = [row("0", "go away", Label::Negative), row("1", "hello", Label::Positive), row("2", "hey", Label::Positive)];
/// let selection = select(&rows, 2, &mut stream(0, "select", 0))?;
/// assert_eq!(selection.outcome, Outcome::Balanced);
/// assert_eq!(selection.examples.len(), 2); // 0 and 1
/// # Ok::<(), unsay_rl::Error>(())
/// ```
pub fn select(candidates: &[Candidate], max_copies: usize, rng: &mut impl Rng) -> Result<Selection> {
    if max_copies == 0 {
        return Err(Error::Range {
            name: "max_copies",
            expected: "at least 1",
            got: "0".into(),
        });
    }
    let mut counts = Counts {
        generated: candidates.len(),
        ..Counts::default()
    };
    let mut copies: HashMap<&str, usize> = HashMap::new();
    let (mut negatives, mut positives) = (Vec::new(), Vec::new());
    for candidate in candidates {
        if candidate.is_empty() {
            counts.empty += 1;
            continue;
        }
        match candidate.label {
            Label::Unlabelled => counts.undecided += 1,
            Label::Negative => {
                counts.negatives += 1;
                negatives.push(candidate);
            }
            Label::Positive => {
                counts.positives += 1;
                let seen = copies.entry(&candidate.completion).or_default();
                if *seen < max_copies {
                    *seen += 1;
                    positives.push(candidate);
                } else {
                    counts.copies += 1;
                }
            }
        }
    }
    let outcome = match (negatives.is_empty(), positives.is_empty()) {
        (true, true) => Outcome::NoLabels,
        (true, false) => Outcome::NoNegatives,
        (false, true) => Outcome::NoPositives,
        (false, false) => Outcome::Balanced,
    };
    let each = negatives.len().min(positives.len());
    let kept = negatives.iter().take(each).chain(positives.iter().take(each));
    let mut examples: Vec<Example> = kept.map(|c| c.example()).collect();
    examples.shuffle(rng);
    counts.kept = examples.len();
    Ok(Selection {
        examples,
        outcome,
        counts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use unsay_data::stream;

    fn rows(rows: &[(&str, Label)]) -> Vec<Candidate> {
        rows.iter()
            .enumerate()
            .map(|(i, (text, label))| Candidate {
                id: i.to_string(),
                prompt: "p".into(),
                completion: (*text).into(),
                seen_prompt: true,
                messages: Vec::new(),
                label: *label,
            })
            .collect()
    }

    fn ids(selection: &Selection) -> Vec<usize> {
        let mut ids: Vec<usize> = selection.examples.iter().map(|e| e.id.parse().unwrap()).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn copies_are_counted_before_balancing_and_prefixes_are_kept() {
        use Label::{Negative as N, Positive as P, Unlabelled as U};
        let rows = rows(&[
            ("x", P),
            ("x", P),
            ("x", P),
            ("x", N),
            ("", N),
            ("y", P),
            ("z", U),
            ("n", N),
            (" \t", P),
            ("x", N),
        ]);
        let got = select(&rows, 2, &mut stream(0, "select", 0)).unwrap();
        assert_eq!(ids(&got), [0, 1, 3, 5, 7, 9]);
        let want = Counts {
            generated: 10,
            empty: 2,
            undecided: 1,
            negatives: 3,
            positives: 4,
            copies: 1,
            kept: 6,
        };
        assert_eq!(got.counts, want);
        let once = select(&rows, 1, &mut stream(0, "select", 0)).unwrap();
        assert_eq!(ids(&once), [0, 3, 5, 7]);
        assert_eq!(once.counts.copies, 2);
    }

    #[test]
    fn the_shuffle_is_the_stream_s() {
        let rows: Vec<_> = (0..40)
            .map(|i| if i % 2 == 0 { Label::Positive } else { Label::Negative })
            .collect();
        let texts: Vec<String> = (0..40).map(|i| format!("t{i}")).collect();
        let rows = rows_of(&texts, &rows);
        let order = |seed| select(&rows, 2, &mut stream(seed, "select", 0)).unwrap().examples;
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }

    fn rows_of(texts: &[String], labels: &[Label]) -> Vec<Candidate> {
        rows(
            &texts
                .iter()
                .map(String::as_str)
                .zip(labels.iter().copied())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn nothing_to_select_says_why() {
        use Label::{Negative as N, Positive as P, Unlabelled as U};
        let outcome = |r: &[(&str, Label)]| {
            let got = select(&rows(r), 2, &mut stream(0, "select", 0)).unwrap();
            assert!(got.examples.is_empty());
            got.outcome
        };
        assert_eq!(outcome(&[("a", P), ("b", P)]), Outcome::NoNegatives);
        assert_eq!(outcome(&[("a", N), ("", P)]), Outcome::NoPositives);
        assert_eq!(outcome(&[("a", U)]), Outcome::NoLabels);
        assert_eq!(outcome(&[]), Outcome::NoLabels);
        let error = select(&[], 0, &mut stream(0, "select", 0)).unwrap_err();
        assert_eq!(error.to_string(), "`max_copies` must be at least 1, got 0");
    }
}
