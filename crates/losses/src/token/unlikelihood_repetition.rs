//! Unlikelihood of tokens that repeat an n-gram.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::nll::likelihood;
use super::{TokenLoss, marks, wanted};
use crate::error::{not_negative, share};
use crate::value::Part;
use crate::{Card, Described, Error, LossValue, Needs, Result, TokenCounts, TokenRows, TokenStats};

/// Likelihood of positives plus unlikelihood of the tokens of negatives that are part of a repeated n-gram. The negatives
/// are what the model says when it is let run: its own completions, whatever they are about.
///
/// `L = (1/n₊) Σ₊ −log p(y_t) + α (1/D) Σ₋ w_t · −log(1 − p(y_t))` with `w_t = (1 − β) own_t + β prompt_t`. `own_t` is 1
/// for a token of an n-gram that the completion has said before (its first time is not marked), else 0; `prompt_t` is
/// 1 for a token of an n-gram that the prompt has. `D` is the sum of the weights or the number of tokens of negatives,
/// `n₊` the number of tokens of positive and unlabelled examples, each in the whole batch. A side without tokens
/// adds nothing, and so do negatives that repeat nothing.
///
/// **Shapes**: see [`TokenLoss::evaluate`]; the weights are those of [`TokenLoss::marks`].
///
/// **Parameters**: `alpha` (required), the weight of the unlikelihood, finite and at least 0; `n` (required), tokens of
/// an n-gram, at least 1; `context_weight` (required), `β`, from 0 to 1; `divide_by` (`weights`) and `last_ngram`
/// (`true`): see the fields.
///
/// **Errors**: [`Error::Range`] for `alpha`, `n` and `context_weight`; [`Error::Input`] when the rows have no weights;
/// otherwise those of [`TokenLoss::evaluate`].
///
/// **On negatives**: repeats are pushed down, and bounded: `dL/dz_y = α w p/D`, which fades as `p → 0`; tokens that
/// repeat nothing get nothing.
///
/// **Reference**: S. Welleck, I. Kulikov, S. Roller, E. Dinan, K. Cho, J. Weston, "Neural text generation with
/// unlikelihood training", 2019: the sequence-level objective; with repeats of the prompt, M. Li, S. Roller, I. Kulikov,
/// S. Welleck, Y-L. Boureau, K. Cho, J. Weston, "Don't say that! Making inconsistent dialogue unlikely with
/// unlikelihood training", 2020.
///
/// **Differs from the paper**: [`UnlikelihoodRepetition::parlai`] is the released dialogue code and
/// [`UnlikelihoodRepetition::original`] the released code of the first paper, which never looks at the last n-gram; with
/// `last_ngram` it is what that paper says. Both train positives in other steps than negatives, here any
/// batch may hold both. Both clamp `1 − p` at 1e-20; here `log(1 − p)` is exact.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use unsay_losses::token::{TokenLoss, UnlikelihoodRepetition};
/// use unsay_losses::{TokenCounts, TokenOp, TokenRows};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let loss = UnlikelihoodRepetition::parlai(1.0, 2, 0.0);
/// let completion = [0, 1, 0, 1];
/// let marks = loss.marks(&[], &completion).unwrap_or_default();
/// assert_eq!(marks.weights, Some(vec![0.0, 0.0, 1.0, 1.0])); // the second time of `0 1`
/// let rows = TokenRows::new(&[0; 4], &[false; 4], &[0], Device::Cpu)?.with_marks([&marks])?;
///
/// let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0]).view([1, 4]).repeat([4, 1]);
/// let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
/// let stats = TokenOp::new(&logits, &identity, &Tensor::from_slice(&completion), &loss.needs())?.forward()?;
/// let value = loss.evaluate(&stats, &rows, &TokenCounts::of(&rows)?, None)?;
/// // -ln(1 - .6439) and -ln(1 - .2369), their mean.
/// assert!((value.total.double_value(&[]) - (1.032583 + 0.270344) / 2.0).abs() < 1e-6);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlikelihoodRepetition {
    /// Weight of the unlikelihood against the likelihood; finite, at least 0.
    pub alpha: f64,
    /// Tokens of an n-gram; at least 1. Published runs use 4.
    pub n: usize,
    /// Share of the weight that repeats of the prompt have, the rest being that of repeats of the completion itself;
    /// from 0 to 1.
    pub context_weight: f64,
    /// What the unlikelihood is divided by.
    #[serde(default)]
    pub divide_by: DivideBy,
    /// Whether the last n-gram of a completion is looked at like the others.
    #[serde(default = "yes")]
    pub last_ngram: bool,
}

/// What a weighted sum over the tokens of negatives is divided by, over the whole batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DivideBy {
    /// The sum of their weights: each repeat counts the same, however few there are.
    #[default]
    Weights,
    /// The number of their tokens: fewer repeats, a smaller loss.
    Tokens,
}

fn yes() -> bool {
    true
}

impl UnlikelihoodRepetition {
    /// As the dialogue code of Li et al. (ParlAI) computes it: all n-grams, divided by the sum of weights.
    pub fn parlai(alpha: f64, n: usize, context_weight: f64) -> Self {
        UnlikelihoodRepetition {
            alpha,
            n,
            context_weight,
            divide_by: DivideBy::Weights,
            last_ngram: true,
        }
    }

    /// As the code of Welleck et al. computes it: repeats within the completion, all but its last n-gram, divided by the
    /// number of tokens.
    pub fn original(alpha: f64, n: usize) -> Self {
        UnlikelihoodRepetition {
            alpha,
            n,
            context_weight: 0.0,
            divide_by: DivideBy::Tokens,
            last_ngram: false,
        }
    }
}

impl Described for UnlikelihoodRepetition {
    fn card(&self) -> Card {
        Card {
            name: "unlikelihood_repetition",
            summary: "likelihood of positives plus -log(1 - p) of the tokens of negatives that repeat an n-gram",
            formula: "−log p(y) on positives; −α w log(1 − p(y)) on negatives, w > 0 in repeated n-grams",
            on_negatives: "repeats down, the other tokens up in proportion; bounded by α w/D",
            source: "Welleck et al. 2019, sequence level; Li et al. 2020",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let n = (self.n == 0).then(|| Error::Range {
            name: "unlikelihood_repetition.n",
            value: self.n.to_string(),
            range: "a whole number, at least 1",
        });
        not_negative("unlikelihood_repetition.alpha", self.alpha)
            .into_iter()
            .chain(n)
            .chain(share("unlikelihood_repetition.context_weight", self.context_weight))
            .collect()
    }
}

impl TokenLoss for UnlikelihoodRepetition {
    fn needs(&self) -> Needs {
        Needs {
            log1m_p: true,
            ..Needs::default()
        }
    }

    fn weights(&self, prompt: &[i64], completion: &[i64]) -> Option<Vec<f64>> {
        let (mut own, mut of_prompt) = (vec![0.0; completion.len()], vec![0.0; completion.len()]);
        // A size of zero is refused by `check`; here it marks nothing.
        if self.n > 0 {
            let known: HashSet<&[i64]> = prompt.windows(self.n).collect();
            let mut seen = HashSet::new();
            let looked_at = (completion.len() + usize::from(self.last_ngram)).saturating_sub(self.n);
            for (start, ngram) in completion.windows(self.n).take(looked_at).enumerate() {
                if known.contains(ngram) {
                    of_prompt[start..start + self.n].fill(1.0);
                }
                if !seen.insert(ngram) {
                    own[start..start + self.n].fill(1.0);
                }
            }
        }
        let beta = self.context_weight;
        let weights = own.iter().zip(of_prompt).map(|(own, p)| (1.0 - beta) * own + beta * p);
        Some(weights.collect())
    }

    fn rows_trained(&self, counts: &TokenCounts) -> f64 {
        counts.total()
    }

    fn hint(&self) -> &'static str {
        "give `unlikelihood_repetition` at least one completion that is not empty"
    }

    fn value(
        &self,
        stats: &TokenStats,
        rows: &TokenRows,
        counts: &TokenCounts,
        _: Option<&Tensor>,
    ) -> Result<LossValue> {
        let weight = marks::weights(rows, &stats.logp)?;
        let unlikelihood = wanted("stats.log1m_p", &stats.log1m_p)?.f_neg()?;
        let repeats = rows.label.f_eq(0)?.f_logical_and(&weight.f_gt(0.0)?)?;
        let count = match self.divide_by {
            DivideBy::Weights => counts.negative_weight,
            DivideBy::Tokens => counts.negative,
        };
        let push = Part::mean("ul_loss", &unlikelihood.f_mul(&weight)?, &repeats, count)?;
        LossValue::from_parts(&[(1.0, likelihood(stats, rows, counts)?), (self.alpha, push)], rows)
    }

    fn samples() -> Vec<Self> {
        vec![
            UnlikelihoodRepetition::parlai(1.0, 2, 0.25),
            UnlikelihoodRepetition::original(0.5, 1),
            UnlikelihoodRepetition {
                divide_by: DivideBy::Tokens,
                ..UnlikelihoodRepetition::parlai(1.0, 1, 1.0)
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::TokenOp;
    use crate::token::Marks;

    fn weights(loss: UnlikelihoodRepetition, prompt: &[i64], completion: &[i64]) -> Vec<f64> {
        loss.marks(prompt, completion).unwrap().weights.unwrap()
    }

    #[test]
    fn all_tokens_of_a_repeated_ngram_are_marked_but_not_of_its_first_time() {
        let own = |n, completion: &[i64]| weights(UnlikelihoodRepetition::parlai(1.0, n, 0.0), &[], completion);
        assert_eq!(own(2, &[5, 6, 5, 6, 5, 7]), [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]);
        assert_eq!(own(3, &[3, 3, 3, 3, 3]), [0.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(own(1, &[4, 5, 4]), [0.0, 0.0, 1.0]);
        assert_eq!(own(4, &[4, 4, 4]), [0.0; 3]);
        assert_eq!(own(3, &[]), [0.0; 0]);
        assert_eq!(own(0, &[4, 4]), [0.0; 2], "refused by `check`, no panic here");
    }

    #[test]
    fn the_last_ngram_is_looked_at_or_not() {
        let mut loss = UnlikelihoodRepetition::original(1.0, 4);
        let completion = [2, 3, 4, 5, 2, 3, 4, 5];
        assert_eq!(weights(loss, &[], &completion), [0.0; 8]);
        loss.last_ngram = true;
        assert_eq!(
            weights(loss, &[], &completion),
            [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
        );
        for n in 3..6 {
            assert_eq!(
                weights(UnlikelihoodRepetition::original(1.0, n), &[], &[7; 3]),
                [0.0; 3]
            );
        }
    }

    #[test]
    fn repeats_of_the_prompt_have_their_share_of_the_weight() {
        let loss = UnlikelihoodRepetition::parlai(1.0, 2, 0.25);
        // `5 6` is in the prompt, `6 5` only in the completion.
        assert_eq!(weights(loss, &[9, 5, 6], &[5, 6, 5, 6, 8]), [0.25, 0.25, 1.0, 1.0, 0.0]);
        assert_eq!(weights(loss, &[5], &[5, 6, 8]), [0.0; 3]);
    }

    /// Positive, negative and unlabelled rows with given weights; both denominators.
    #[test]
    fn weights_and_denominators_are_as_the_formula_says() {
        let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0])
            .view([1, 4])
            .repeat([5, 1]);
        let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
        let targets = Tensor::from_slice(&[0i64, 1, 2, 0, 1]);
        let (ce_first, ce_second) = (0.4401896985611953, 1.4401896985611953);
        // −ln(1 − p) of tokens 0 and 1.
        let (first, second) = (1.032583734116815, 0.27034367900490963);
        for (divide_by, weights, denominator) in [
            (DivideBy::Weights, [0.25, 0.125, 0.0], 0.375),
            (DivideBy::Tokens, [0.25, 0.125, 0.0], 3.0),
            (DivideBy::Weights, [0.0; 3], 1.0),
            (DivideBy::Tokens, [0.0; 3], 3.0),
        ] {
            let loss = UnlikelihoodRepetition {
                divide_by,
                ..UnlikelihoodRepetition::parlai(0.5, 1, 0.0)
            };
            let marks = |weights: &[f64]| Marks {
                weights: Some(weights.to_vec()),
                candidates: None,
            };
            // The weights of others than negatives mean nothing.
            let [a, b, c] = weights;
            let rows = TokenRows::new(&[0, 1, 1, 1, 2], &[false; 5], &[1, 0, -1], Device::Cpu)
                .unwrap()
                .with_marks([&marks(&[9.0]), &marks(&[b, c, a]), &marks(&[9.0])])
                .unwrap();
            let op = TokenOp::new(&logits, &identity, &targets, &loss.needs()).unwrap();
            let stats = op.forward().unwrap();
            let value = loss
                .evaluate(&stats, &rows, &TokenCounts::of(&rows).unwrap(), None)
                .unwrap();
            let expected = (ce_first + ce_second) / 2.0 + 0.5 * (a * first + b * second) / denominator;
            assert!((value.total.double_value(&[]) - expected).abs() < 1e-9, "{divide_by:?}");
            let names: Vec<&str> = value.terms.iter().map(|(name, _)| *name).collect();
            if a > 0.0 || divide_by == DivideBy::Tokens {
                assert_eq!(names, ["ce_loss", "ul_loss"]);
            } else {
                assert_eq!(names, ["ce_loss"], "no weight, no mean");
            }
            value.total.backward();
            let pull = Vec::<f64>::try_from(stats.log1m_p.unwrap().grad()).unwrap();
            for (pull, weight) in pull.iter().zip([0.0, b, c, a, 0.0]) {
                assert!((pull + 0.5 * weight / denominator).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn ranges_are_checked_and_what_a_manifest_leaves_out_is_the_dialogue_code() {
        let of = |text: &str| serde_json::from_str::<UnlikelihoodRepetition>(text).unwrap();
        let wrong = of(r#"{"alpha": -1.0, "n": 0, "context_weight": 1.5}"#);
        let texts: Vec<String> = wrong.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "`unlikelihood_repetition.alpha` is -1, expected a finite number, at least 0",
                "`unlikelihood_repetition.n` is 0, expected a whole number, at least 1",
                "`unlikelihood_repetition.context_weight` is 1.5, expected a number from 0 to 1",
            ]
        );
        let least = of(r#"{"alpha": 0.0, "n": 1, "context_weight": 0.25}"#);
        assert!(least.check().is_ok());
        assert_eq!(least, UnlikelihoodRepetition::parlai(0.0, 1, 0.25));
        let original = r#"{"alpha": 1.0, "n": 4, "context_weight": 0.0, "divide_by": "tokens", "last_ngram": false}"#;
        assert_eq!(of(original), UnlikelihoodRepetition::original(1.0, 4));
    }

    /// Whatever a token of no weight has, here a probability of one: it is taken out, not multiplied by zero.
    #[test]
    fn a_token_without_weight_is_out_whatever_its_probability() {
        let column = |values: &[f64]| Tensor::from_slice(values).set_requires_grad(true);
        let mut stats = TokenStats::new(
            Tensor::from_slice(&[0i64, 0]),
            column(&[0.0, -1.0]),
            Tensor::from_slice(&[true, false]),
        );
        stats.log1m_p = Some(column(&[f64::NEG_INFINITY, -0.5]));
        let marks = Marks {
            weights: Some(vec![0.0, 0.5]),
            candidates: None,
        };
        let rows = TokenRows::new(&[0, 0], &[false; 2], &[0], Device::Cpu).unwrap();
        let rows = rows.with_marks([&marks]).unwrap();
        let counts = TokenCounts::of(&rows).unwrap();
        let loss = UnlikelihoodRepetition::parlai(1.0, 1, 0.0);
        let value = loss.evaluate(&stats, &rows, &counts, None).unwrap();
        assert!((value.total.double_value(&[]) - 0.5).abs() < 1e-15);
        value.total.backward();
        let pull = Vec::<f64>::try_from(stats.log1m_p.unwrap().grad()).unwrap();
        assert_eq!(pull, [0.0, -1.0]);
    }

    #[test]
    fn counts_without_the_weights_are_an_error_and_rounding_is_not() {
        let logits = Tensor::zeros([1, 4], (Kind::Double, Device::Cpu));
        let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
        let loss = UnlikelihoodRepetition::parlai(1.0, 1, 0.0);
        let marks = Marks {
            weights: Some(vec![0.5]),
            candidates: None,
        };
        for (label, weighed) in [(1i8, 0), (0, 1), (-1, 2)] {
            let rows = TokenRows::new(&[0], &[false], &[label], Device::Cpu).unwrap();
            let rows = rows.with_marks([&marks]).unwrap();
            let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[0i64]), &loss.needs()).unwrap();
            let stats = op.forward().unwrap();
            let evaluate = |weight: f64| {
                let labels = [1i8, 0, -1];
                let counts = TokenCounts::count([(label, false)]).with_weights([(labels[weighed], weight)]);
                loss.evaluate(&stats, &rows, &counts, None)
            };
            for short in [0.0, 0.5 * (1.0 - 1e-6)] {
                let error = evaluate(short).unwrap_err().to_string();
                assert!(error.starts_with("counts: expected sizes of the whole batch, at least"));
            }
            assert!(evaluate(0.5 * (1.0 - 1e-14)).is_ok());
        }
    }

    #[test]
    fn rows_without_weights_are_an_error() {
        let loss = UnlikelihoodRepetition::original(1.0, 2);
        let rows = TokenRows::new(&[0], &[false], &[0], Device::Cpu).unwrap();
        let logits = Tensor::zeros([1, 4], (Kind::Double, Device::Cpu));
        let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
        let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[0i64]), &loss.needs()).unwrap();
        let counts = TokenCounts::of(&rows).unwrap();
        let error = loss.evaluate(&op.forward().unwrap(), &rows, &counts, None).unwrap_err();
        assert!(error.to_string().starts_with("rows.weight: expected the weights"));
    }
}
