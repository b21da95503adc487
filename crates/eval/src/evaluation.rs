//! What evaluators read and return.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A reply that a model gave to the prompt of one example.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Id of the example that the prompt comes from; unique in what one evaluator is given.
    pub example: String,
    /// The prompt, dialogue turns joined by `\n`.
    pub prompt: String,
    /// The reply as text.
    pub completion: String,
    /// The reply as token ids, without the end-of-sequence token.
    pub tokens: Vec<u32>,
    /// True when the model ended the reply itself, false when it was cut at the length limit.
    pub finished: bool,
    /// The reply found in the data, where there is one.
    pub gold: Option<String>,
}

/// One number for one example.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Name of the series, for instance `f1` or `safe_oracle`.
    pub evaluator: String,
    /// Id of the example.
    pub example: String,
    /// The value, always finite.
    pub value: f64,
}

/// Which way a number is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
    /// Neither: it describes.
    Neither,
}

/// A named number and its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Series {
    /// The name in `scores` or in the corpus values.
    pub name: &'static str,
    /// Which way is better.
    pub direction: Direction,
}

/// A value over all scored examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Aggregate {
    /// Its name, for instance `perplexity`.
    pub name: String,
    /// The value.
    pub value: f64,
    /// How many examples it is made of.
    pub n: usize,
}

/// What one evaluator found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// One score per example and series, in input order.
    pub scores: Vec<Score>,
    /// Values over the whole input; one that no example defines is left out.
    pub corpus: Vec<Aggregate>,
    /// Ids of the examples for which the evaluator is undefined; they are in no score and no mean.
    pub excluded: Vec<String>,
}

impl Evaluation {
    /// Adds one score.
    pub(crate) fn push(&mut self, series: &str, example: &str, value: f64) {
        self.scores.push(Score {
            evaluator: series.to_owned(),
            example: example.to_owned(),
            value,
        });
    }

    /// Adds the plain mean of a series to the corpus values, unless the series is empty.
    pub(crate) fn push_mean(&mut self, series: &str) {
        let values = self.scores.iter().filter(|s| s.evaluator == series).map(|s| s.value);
        let (sum, n) = values.fold((0.0, 0_usize), |(sum, n), v| (sum + v, n + 1));
        if n > 0 {
            self.corpus.push(Aggregate {
                name: series.to_owned(),
                value: sum / n as f64,
                n,
            });
        }
    }

    /// The corpus value with this name, if it is defined.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.corpus.iter().find(|a| a.name == name).map(|a| a.value)
    }

    /// One score per generation in a series of its own name, and their mean; `None` excludes.
    pub(crate) fn per_generation(
        evaluator: &'static str,
        generations: &[Generation],
        mut score: impl FnMut(&Generation) -> Result<Option<f64>>,
    ) -> Result<Self> {
        check_ids(evaluator, generations.iter().map(|g| g.example.as_str()))?;
        let mut out = Self::default();
        for generation in generations {
            match score(generation)? {
                Some(value) => out.push(evaluator, &generation.example, value),
                None => out.excluded.push(generation.example.clone()),
            }
        }
        out.push_mean(evaluator);
        Ok(out)
    }
}

/// An error when there are no examples or two share an id.
pub(crate) fn check_ids<'a>(evaluator: &'static str, ids: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = HashSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(Error::Duplicate {
                evaluator,
                example: id.to_owned(),
            });
        }
    }
    if seen.is_empty() {
        Err(Error::Empty { evaluator })
    } else {
        Ok(())
    }
}

#[cfg(test)]
pub(crate) fn reply(example: &str, completion: &str) -> Generation {
    Generation {
        example: example.into(),
        prompt: "hello".into(),
        completion: completion.into(),
        tokens: Vec::new(),
        finished: true,
        gold: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_input_and_repeated_ids_are_errors() {
        let none = check_ids("f1", std::iter::empty());
        assert_eq!(none.unwrap_err().to_string(), "`f1` got no examples to score");
        let twice = check_ids("f1", ["a", "b", "a"].into_iter()).unwrap_err();
        assert_eq!(
            twice.to_string(),
            "`f1` got example `a` twice; scores are paired by example"
        );
    }

    #[test]
    fn an_excluded_example_is_in_no_mean() {
        let rows = [reply("a", "x"), reply("b", ""), reply("c", "y")];
        let out = Evaluation::per_generation("demo", &rows, |g| {
            Ok((!g.completion.is_empty()).then_some(if g.example == "a" { 1.0 } else { 0.0 }))
        });
        let out = out.unwrap();
        assert_eq!(out.excluded, ["b"]);
        assert_eq!(
            out.corpus,
            [Aggregate {
                name: "demo".into(),
                value: 0.5,
                n: 2
            }]
        );
        assert_eq!(out.value("demo"), Some(0.5));
        assert_eq!(out.value("other"), None);
    }
}
