//! Log-probabilities of held-out replies, apart for positive and negative ones.

use unsay_data::Label;

use super::{Evaluator, Scorer};
use crate::error::Result;
use crate::evaluation::{Direction, Evaluation, Series};
use crate::likelihood::{Likelihood, check};

pub(super) const EVALUATOR: Evaluator = Evaluator {
    name: "logps",
    summary: "log-probability of held-out positive and negative replies, sum and mean per token",
    series: &[
        Series {
            name: "logps_positive_sum",
            direction: Direction::Higher,
        },
        Series {
            name: "logps_positive_mean",
            direction: Direction::Higher,
        },
        Series {
            name: "logps_negative_sum",
            direction: Direction::Lower,
        },
        Series {
            name: "logps_negative_mean",
            direction: Direction::Lower,
        },
    ],
    corpus: &[],
    scorer: Scorer::Likelihoods(scores),
};

/// Log-probability of each labelled completion: its sum over tokens and its mean per token.
///
/// `logps_<label>_sum = sum of log p(token)` over the completion, end-of-sequence included, and
/// `logps_<label>_mean` the same over the number of tokens; `<label>` is `positive` or `negative`.
/// Corpus values: plain means over examples of each.
///
/// **Parameters** finite log-probabilities of at least one token each; values are at most 0.
///
/// **Errors** no likelihoods, a repeated id, a log-probability that is not finite. Unlabelled
/// completions are excluded and listed.
///
/// **On negatives** the mean on negatives should fall in training while that on positives holds;
/// both falling together means the model forgets instead of learning what not to say.
///
/// **Reference** ours, after the log-probability curves of Adolphs et al., The CRINGE Loss, 2022,
/// and Rafailov et al., Direct Preference Optimization, 2023.
///
/// ```
/// # use unsay_eval::{Likelihood, evaluators::logps};
/// # use unsay_data::Label;
/// let row = |id: &str, label, logp| Likelihood { example: id.into(), label, logp, n_tokens: 4 };
/// let out = logps::scores(&[row("1", Label::Positive, -2.0), row("2", Label::Negative, -8.0)])?;
/// assert_eq!(out.value("logps_positive_mean"), Some(-0.5));
/// assert_eq!(out.value("logps_negative_sum"), Some(-8.0));
/// # Ok::<(), unsay_eval::Error>(())
/// ```
pub fn scores(likelihoods: &[Likelihood]) -> Result<Evaluation> {
    check(EVALUATOR.name, likelihoods)?;
    let mut out = Evaluation::default();
    for row in likelihoods {
        let (sum, mean) = match row.label {
            Label::Positive => ("logps_positive_sum", "logps_positive_mean"),
            Label::Negative => ("logps_negative_sum", "logps_negative_mean"),
            Label::Unlabelled => {
                out.excluded.push(row.example.clone());
                continue;
            }
        };
        out.push(sum, &row.example, row.logp);
        out.push(mean, &row.example, row.logp / row.n_tokens as f64);
    }
    for series in EVALUATOR.series {
        out.push_mean(series.name);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_without_examples_has_no_value() {
        let row = |id: &str, label, logp, n_tokens| Likelihood {
            example: id.into(),
            label,
            logp,
            n_tokens,
        };
        let rows = [
            row("1", Label::Negative, -6.0, 2),
            row("2", Label::Unlabelled, -1.0, 1),
            row("3", Label::Negative, -5.0, 5),
        ];
        let out = scores(&rows).unwrap();
        assert_eq!(out.value("logps_positive_sum"), None);
        assert_eq!(out.value("logps_negative_sum"), Some(-5.5));
        // mean over examples of (-3, -1), not over tokens
        assert_eq!(out.value("logps_negative_mean"), Some(-2.0));
        assert_eq!(out.excluded, ["2"]);
    }
}
