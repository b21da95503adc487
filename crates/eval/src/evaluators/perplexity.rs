//! Perplexity of given completions, in parts that can be paired.

use super::{Evaluator, Scorer};
use crate::error::Result;
use crate::evaluation::{Aggregate, Direction, Evaluation, Series};
use crate::likelihood::{Likelihood, check};

pub(super) const EVALUATOR: Evaluator = Evaluator {
    name: "perplexity",
    summary: "perplexity of given completions per token; scores are its two sums per example",
    series: &[
        Series {
            name: "perplexity_nll",
            direction: Direction::Lower,
        },
        Series {
            name: "perplexity_tokens",
            direction: Direction::Neither,
        },
    ],
    corpus: &[Series {
        name: "perplexity",
        direction: Direction::Lower,
    }],
    scorer: Scorer::Likelihoods(scores),
};

/// The two sums of perplexity per example, and the corpus value made of them.
///
/// `perplexity = exp(sum of perplexity_nll / sum of perplexity_tokens)`, where `perplexity_nll` is
/// the sum of `-log p` over the completion's tokens, end-of-sequence included, and
/// `perplexity_tokens` their number. A mean of per-example perplexities is another, larger number
/// and is not given; a bootstrap resamples examples and forms the same ratio.
///
/// **Parameters** finite log-probabilities of at least one token each. The value is at least 1, and
/// infinite only past 709 nats a token.
///
/// **Errors** no likelihoods, a repeated id, a log-probability that is not finite.
///
/// **Reference** the usual definition, for instance Jurafsky and Martin, Speech and Language
/// Processing, §3.3.
///
/// **Differs from the paper** per token of the model's own tokenizer, so it does not compare across
/// tokenizers.
///
/// ```
/// # use unsay_eval::{Likelihood, evaluators::perplexity};
/// # use unsay_data::Label;
/// let row = |id: &str, logp, n_tokens| Likelihood { example: id.into(), label: Label::Unlabelled, logp, n_tokens };
/// // four tokens at 1/2 and two at 1/16: exp((4 ln 2 + 8 ln 2) / 6) = 4
/// let ln2 = f64::ln(2.0);
/// let out = perplexity::scores(&[row("1", -4.0 * ln2, 4), row("2", -8.0 * ln2, 2)])?;
/// assert!((out.value("perplexity").unwrap() - 4.0).abs() < 1e-12);
/// # Ok::<(), unsay_eval::Error>(())
/// ```
pub fn scores(likelihoods: &[Likelihood]) -> Result<Evaluation> {
    check(EVALUATOR.name, likelihoods)?;
    let mut out = Evaluation::default();
    let (mut nll, mut n_tokens) = (0.0, 0.0);
    for row in likelihoods {
        out.push("perplexity_nll", &row.example, -row.logp);
        out.push("perplexity_tokens", &row.example, row.n_tokens as f64);
        nll -= row.logp;
        n_tokens += row.n_tokens as f64;
    }
    let value = (nll / n_tokens).exp();
    out.corpus.push(Aggregate {
        name: "perplexity".into(),
        value,
        n: likelihoods.len(),
    });
    out.push_mean("perplexity_nll");
    out.push_mean("perplexity_tokens");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use unsay_data::Label;

    use super::*;
    use crate::error::Error;

    fn row(id: &str, logp: f64, n_tokens: usize) -> Likelihood {
        Likelihood {
            example: id.into(),
            label: Label::Unlabelled,
            logp,
            n_tokens,
        }
    }

    #[test]
    fn the_corpus_value_is_weighted_by_tokens() {
        let out = scores(&[row("1", -3.0, 3), row("2", -5.0, 1)]).unwrap();
        assert!((out.value("perplexity").unwrap() - f64::exp(2.0)).abs() < 1e-12);
        let nll: Vec<f64> = out
            .scores
            .iter()
            .filter(|s| s.evaluator == "perplexity_nll")
            .map(|s| s.value)
            .collect();
        assert_eq!(nll, [3.0, 5.0]);
        assert_eq!(out.scores.len(), 4);
    }

    #[test]
    fn a_log_probability_that_is_not_finite_is_an_error() {
        let error = scores(&[row("1", -3.0, 3), row("2", f64::NAN, 1)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`perplexity` of example `2` is NaN, expected a finite number"
        );
        assert!(matches!(scores(&[]), Err(Error::Empty { .. })));
    }
}
