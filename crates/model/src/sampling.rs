//! How the next token is chosen.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Settings of a [`Generation`](crate::Generation). The order is that of the field: end-of-sequence and
/// n-gram bans, temperature, top-k, then top-p on what top-k left, renormalised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; above 0.
    #[serde(default = "one")]
    pub temperature: f64,
    /// Keep the k most probable tokens; at least 1. More than the vocabulary keeps all.
    #[serde(default)]
    pub top_k: Option<usize>,
    /// Keep the smallest set of most probable tokens whose mass reaches p; in (0, 1].
    #[serde(default)]
    pub top_p: Option<f64>,
    /// The end token cannot be chosen before so many others were.
    #[serde(default)]
    pub min_new_tokens: usize,
    /// Stop after so many tokens, the end token counted; at least 1.
    pub max_new_tokens: usize,
    /// No n-gram of this length occurs twice within a completion.
    #[serde(default)]
    pub block_ngram: Option<usize>,
    /// Take the most probable token; temperature, top-k and top-p must be left alone.
    #[serde(default)]
    pub greedy: bool,
    /// Search with beams instead of drawing; `greedy`, temperature, top-k and top-p must be left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beam: Option<Beam>,
}

/// Beam search, as in transformers: per prompt the `size` most probable unfinished completions are continued side by side,
/// and of the `size` best finished ones the best is taken. A completion's score is the sum of its log-probs over its length
/// to the power of the length penalty; bans of end tokens and n-grams are applied to the log-probs and not renormalised.
///
/// **Differs from** transformers: n-grams are those of the completion alone. From ParlAI, whose beams normalise lengths and
/// stop by rules of their own, and block n-grams of the context too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beam {
    /// How many unfinished completions are continued; 2 to 256.
    pub size: usize,
    /// The power of the length that a sum of log-probs is divided by: above 0 favours long completions, 0 is the plain
    /// sum; -10 to 10.
    #[serde(default = "one")]
    pub length_penalty: f64,
    /// When the search is over.
    #[serde(default)]
    pub early_stopping: EarlyStopping,
}

/// When a beam search is over, apart from the longest length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EarlyStopping {
    /// Once `size` completions have finished and the best unfinished one, taken at its present length, is not better than
    /// the worst of them (`False` in transformers).
    #[default]
    Heuristic,
    /// Once `size` completions have finished (`True` in transformers).
    Full,
    /// Like `heuristic`, but with a length penalty above 0 the best unfinished one is taken at the longest length (`"never"`
    /// in transformers).
    Never,
}

impl Beam {
    /// How many continuations of a prompt are looked at per step, given the number of end tokens.
    pub(crate) fn n_best(&self, n_ends: usize) -> usize {
        self.size * (1 + n_ends.max(1))
    }

    /// The score of a completion of a sum of log-probs and a length.
    pub(crate) fn score(&self, sum: f32, length: usize) -> f32 {
        (f64::from(sum) / (length as f64).powf(self.length_penalty)) as f32
    }
}

fn one() -> f64 {
    1.0
}

impl Sampling {
    /// Plain sampling from the model's own distribution.
    pub fn new(max_new_tokens: usize) -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_new_tokens: 0,
            max_new_tokens,
            block_ngram: None,
            greedy: false,
            beam: None,
        }
    }

    /// The most probable token at every step.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self {
            greedy: true,
            ..Self::new(max_new_tokens)
        }
    }

    /// Refuses ranges and combinations that mean nothing.
    pub fn check(&self) -> Result<()> {
        let fail = |what: &str, expected: &str, got: String| Err(Error::input(format!("`{what}`"), expected, got));
        if !(1e-4..=1e4).contains(&self.temperature) {
            return fail("temperature", "0.0001 to 10000", self.temperature.to_string());
        }
        if self.top_k == Some(0) {
            return fail("top_k", "at least 1", "0".to_owned());
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return fail("top_p", "above 0, at most 1", p.to_string());
        }
        if self.max_new_tokens == 0 {
            return fail("max_new_tokens", "at least 1", "0".to_owned());
        }
        if self.min_new_tokens > self.max_new_tokens {
            let most = format!("at most `max_new_tokens` {}", self.max_new_tokens);
            return fail("min_new_tokens", &most, self.min_new_tokens.to_string());
        }
        if self.block_ngram == Some(0) {
            return fail("block_ngram", "at least 1", "0".to_owned());
        }
        let shaped = [
            Some(self.temperature)
                .filter(|t| t.to_bits() != 1.0_f64.to_bits())
                .map(|t| format!("temperature {t}")),
            self.top_k.map(|k| format!("top_k {k}")),
            self.top_p.map(|p| format!("top_p {p}")),
        ];
        let shaped: Vec<String> = shaped.into_iter().flatten().collect();
        if self.greedy && !shaped.is_empty() {
            return fail("greedy", "no temperature, top_k or top_p beside it", shaped.join(", "));
        }
        if let Some(beam) = &self.beam {
            if !shaped.is_empty() || self.greedy {
                let got = shaped.into_iter().chain(self.greedy.then(|| "greedy".to_owned()));
                let got = got.collect::<Vec<_>>().join(", ");
                return fail("beam", "no greedy, temperature, top_k or top_p beside it", got);
            }
            if !(2..=256).contains(&beam.size) {
                return fail("size` of `beam", "2 to 256", beam.size.to_string());
            }
            if !(-10.0..=10.0).contains(&beam.length_penalty) {
                return fail("length_penalty", "-10 to 10", beam.length_penalty.to_string());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_beam(size: usize, length_penalty: f64, other: &Sampling) -> Sampling {
        let beam = Beam {
            size,
            length_penalty,
            early_stopping: EarlyStopping::default(),
        };
        Sampling {
            beam: Some(beam),
            ..other.clone()
        }
    }

    #[test]
    fn each_bad_setting_is_refused_by_name() {
        let good = Sampling::new(4);
        good.check().unwrap();
        Sampling::greedy(4).check().unwrap();
        let bad = [
            (
                "temperature",
                Sampling {
                    temperature: 0.0,
                    ..good.clone()
                },
            ),
            (
                "temperature",
                Sampling {
                    temperature: f64::NAN,
                    ..good.clone()
                },
            ),
            (
                "top_k",
                Sampling {
                    top_k: Some(0),
                    ..good.clone()
                },
            ),
            (
                "top_p",
                Sampling {
                    top_p: Some(0.0),
                    ..good.clone()
                },
            ),
            (
                "top_p",
                Sampling {
                    top_p: Some(1.1),
                    ..good.clone()
                },
            ),
            (
                "top_p",
                Sampling {
                    top_p: Some(f64::NAN),
                    ..good.clone()
                },
            ),
            (
                "min_new_tokens",
                Sampling {
                    min_new_tokens: 5,
                    ..good.clone()
                },
            ),
            (
                "max_new_tokens",
                Sampling {
                    max_new_tokens: 0,
                    ..good.clone()
                },
            ),
            (
                "block_ngram",
                Sampling {
                    block_ngram: Some(0),
                    ..good.clone()
                },
            ),
            (
                "greedy",
                Sampling {
                    greedy: true,
                    top_k: Some(3),
                    ..good.clone()
                },
            ),
            ("beam", with_beam(2, 1.0, &Sampling::greedy(4))),
            (
                "beam",
                with_beam(
                    2,
                    1.0,
                    &Sampling {
                        top_p: Some(0.9),
                        ..good.clone()
                    },
                ),
            ),
            ("size` of `beam", with_beam(1, 1.0, &good)),
            ("size` of `beam", with_beam(257, 1.0, &good)),
            ("length_penalty", with_beam(2, f64::NAN, &good)),
        ];
        for (name, sampling) in bad {
            let error = sampling.check().unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
    }
}
