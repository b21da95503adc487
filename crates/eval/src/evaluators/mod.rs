//! The evaluators, one file each, and their registry.

use unsay_reward::Judge;

use crate::error::{Error, Result};
use crate::evaluation::{Evaluation, Generation, Series};
use crate::likelihood::Likelihood;

// One evaluator is two lines: its `mod` here and its entry in `REGISTRY`.
pub mod distinct_n;
pub mod distinct_replies;
pub mod eos_rate;
pub mod f1;
pub mod length;
pub mod logps;
pub mod perplexity;
pub mod safe;
pub mod seq_rep_4;

const REGISTRY: &[Evaluator] = &[
    distinct_n::DISTINCT_1,
    distinct_n::DISTINCT_2,
    distinct_replies::EVALUATOR,
    eos_rate::EVALUATOR,
    f1::EVALUATOR,
    length::EVALUATOR,
    logps::EVALUATOR,
    perplexity::EVALUATOR,
    safe::EVALUATOR,
    seq_rep_4::EVALUATOR,
];

/// An entry of the registry.
#[derive(Debug, Clone, Copy)]
pub struct Evaluator {
    /// The name in manifests and lists.
    pub name: &'static str,
    /// What it says, in one line.
    pub summary: &'static str,
    /// The series of per-example scores it gives. A judge's name is appended to those of a judged one.
    pub series: &'static [Series],
    /// Corpus values that are not the plain mean of a series of the same name.
    pub corpus: &'static [Series],
    /// What it reads, and the function.
    pub scorer: Scorer,
}

/// The function of an evaluator, by what it reads.
#[derive(Debug, Clone, Copy)]
pub enum Scorer {
    /// Replies of the model.
    Generations(fn(&[Generation]) -> Result<Evaluation>),
    /// Replies of the model, and the gold reply to each prompt.
    GoldGenerations(fn(&[Generation]) -> Result<Evaluation>),
    /// Replies of the model and a judge; the last argument is the threshold on P(positive).
    JudgedGenerations(fn(&[Generation], &dyn Judge, f64) -> Result<Evaluation>),
    /// Log-probabilities that the model gives to completions of the data.
    Likelihoods(fn(&[Likelihood]) -> Result<Evaluation>),
}

/// All evaluators, by name.
pub fn registry() -> &'static [Evaluator] {
    REGISTRY
}

/// The evaluator with this name.
///
/// **Errors** the name is unknown; the message lists the known ones.
///
/// ```
/// assert_eq!(unsay_eval::find("f1")?.name, "f1");
/// assert!(unsay_eval::find("bleu").is_err());
/// # Ok::<(), unsay_eval::Error>(())
/// ```
pub fn find(name: &str) -> Result<&'static Evaluator> {
    REGISTRY.iter().find(|e| e.name == name).ok_or_else(|| Error::Unknown {
        name: name.to_owned(),
        known: REGISTRY
            .iter()
            .map(|e| format!("`{}`", e.name))
            .collect::<Vec<_>>()
            .join(", "),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::evaluation::reply;

    #[test]
    fn names_are_sorted_unique_and_documented() {
        assert_eq!(REGISTRY.len(), 10);
        assert!(REGISTRY.is_sorted_by(|a, b| a.name < b.name));
        let mut names = HashSet::new();
        for evaluator in REGISTRY {
            assert!(
                !evaluator.summary.is_empty() && !evaluator.series.is_empty(),
                "{}",
                evaluator.name
            );
            for series in evaluator.series.iter().chain(evaluator.corpus) {
                assert!(names.insert(series.name), "{} is named twice", series.name);
            }
        }
    }

    #[test]
    fn every_evaluator_of_generations_keeps_its_promises() {
        let rows: Vec<Generation> = (0..4_u32)
            .map(|i| Generation {
                tokens: (0..5 + i).map(|t| t % 3).collect(),
                gold: Some("b c d".into()),
                ..reply(&format!("e{i}"), "b c b c")
            })
            .collect();
        let mut seen = 0;
        for evaluator in REGISTRY {
            let (Scorer::Generations(score) | Scorer::GoldGenerations(score)) = evaluator.scorer else {
                continue;
            };
            seen += 1;
            let out = score(&rows).unwrap();
            let promised: HashSet<&str> = evaluator.series.iter().map(|s| s.name).collect();
            assert!(
                out.scores
                    .iter()
                    .all(|s| promised.contains(s.evaluator.as_str()) && s.value.is_finite())
            );
            assert_eq!(
                out.scores.len(),
                evaluator.series.len() * rows.len(),
                "{}",
                evaluator.name
            );
            let mut turned = rows.clone();
            turned.reverse();
            let turned = score(&turned).unwrap();
            for (a, b) in out.corpus.iter().zip(&turned.corpus) {
                assert!((a.value - b.value).abs() < 1e-12, "{}: order matters", evaluator.name);
            }
            assert!(matches!(score(&[]), Err(Error::Empty { .. })), "{}", evaluator.name);
            let twice = [rows[0].clone(), rows[0].clone()];
            assert!(
                matches!(score(&twice), Err(Error::Duplicate { .. })),
                "{}",
                evaluator.name
            );
        }
        assert_eq!(seen, 7);
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = find("bleu").unwrap_err().to_string();
        assert!(
            error.starts_with("unknown evaluator `bleu`, known are `distinct_1`, `distinct_2`, `distinct_replies`"),
            "{error}"
        );
    }
}
