//! How far a judge can be believed.

use serde::{Deserialize, Serialize};
use unsay_data::{Example, Label};

use crate::error::{Error, Result};
use crate::judge::{Item, Judge, is_positive, judge_all};

/// Agreement of a judge with labels on held-out examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Share of examples whose side of the threshold is their label.
    pub accuracy: f64,
    /// Mean of the shares right among positives and among negatives.
    pub balanced_accuracy: f64,
    /// Chance that a random positive is judged above a random negative, ties at one half.
    pub auc: f64,
    /// Positive examples.
    pub n_positive: usize,
    /// Negative examples.
    pub n_negative: usize,
}

/// Accuracy, balanced accuracy and area under the ROC curve of a judge on labelled examples.
///
/// `accuracy = (TP + TN) / n`, `balanced = (TP/P + TN/N) / 2`, and exactly, over all pairs, `AUC =
/// (#{pos > neg} + #{pos = neg} / 2) / (P N)`, computed from ranks in `O(n log n)`.
///
/// **Parameters** `threshold` in [0, 1], 0.5 as a rule; a value counts as positive when above it
/// ([`is_positive`]). All values lie in [0, 1].
///
/// **Errors** no examples, an unlabelled example, only one class, a threshold out of range, a
/// judgement that is no probability.
///
/// **On negatives** balanced accuracy and AUC do not reward a judge for calling everything the
/// commoner class.
///
/// **Reference** AUC as the Mann-Whitney statistic: Hanley and McNeil, The Meaning and Use of the
/// Area under a ROC Curve, 1982.
///
/// ```
/// # use unsay_reward::{Item, Judge, accuracy};
/// # use unsay_data::{Example, Label};
/// struct Length; // longer is better
/// impl Judge for Length {
///     fn name(&self) -> &str { "length" }
///     fn safe(&self, items: &[Item<'_>]) -> unsay_reward::Result<Vec<f64>> {
///         Ok(items.iter().map(|i| i.completion.len() as f64 / 10.0).collect())
///     }
/// }
/// let example = |completion: &str, label| Example { id: completion.into(), prompt: String::new(),
///     completion: completion.into(), label, seen_prompt: false,
///     messages: vec![] };
/// let held_out = [example("a long one", Label::Positive), example("four", Label::Positive),
///     example("six ch", Label::Negative), example("no", Label::Negative)];
/// let found = accuracy(&Length, &held_out, 0.5)?;
/// assert_eq!((found.accuracy, found.auc), (0.5, 0.75));
/// # Ok::<(), unsay_reward::Error>(())
/// ```
pub fn accuracy(judge: &dyn Judge, examples: &[Example], threshold: f64) -> Result<Accuracy> {
    let name = || judge.name().to_owned();
    if !(0.0..=1.0).contains(&threshold) {
        return Err(Error::Range {
            name: "threshold",
            expected: "in [0, 1]",
            got: threshold.to_string(),
        });
    }
    if examples.is_empty() {
        return Err(Error::Empty { judge: name() });
    }
    if let Some(example) = examples.iter().find(|e| e.label == Label::Unlabelled) {
        return Err(Error::NoLabel {
            judge: name(),
            example: example.id.clone(),
        });
    }
    let n_positive = examples.iter().filter(|e| e.label == Label::Positive).count();
    let n_negative = examples.len() - n_positive;
    if n_positive == 0 || n_negative == 0 {
        return Err(Error::OneClass {
            judge: name(),
            n_positive,
            n_negative,
        });
    }
    let items: Vec<Item<'_>> = examples
        .iter()
        .map(|e| Item {
            prompt: &e.prompt,
            completion: &e.completion,
        })
        .collect();
    let judgements = judge_all(judge, &items)?;
    let rows: Vec<(f64, bool)> = judgements
        .iter()
        .zip(examples)
        .map(|(v, e)| (v.p, e.label == Label::Positive))
        .collect();
    let right = |class: bool| {
        rows.iter()
            .filter(|(p, l)| *l == class && is_positive(*p, threshold) == class)
            .count()
    };
    let (tp, tn) = (right(true) as f64, right(false) as f64);
    Ok(Accuracy {
        accuracy: (tp + tn) / rows.len() as f64,
        balanced_accuracy: (tp / n_positive as f64 + tn / n_negative as f64) / 2.0,
        auc: auc(rows, n_positive, n_negative),
        n_positive,
        n_negative,
    })
}

/// Exact AUC: walks over the values from low to high, one group of equal values at a time. Counts wins
/// in halves, so that every step is an integer.
fn auc(mut rows: Vec<(f64, bool)>, n_positive: usize, n_negative: usize) -> f64 {
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut half_wins) = (0_u64, 0_u64);
    for ties in rows.chunk_by(|a, b| a.0 <= b.0 && b.0 <= a.0) {
        let positives = ties.iter().filter(|(_, positive)| *positive).count() as u64;
        let negatives = ties.len() as u64 - positives;
        half_wins += positives * (2 * below + negatives);
        below += negatives;
    }
    half_wins as f64 / (2.0 * n_positive as f64 * n_negative as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives back numbers written as completions.
    struct Written;

    impl Judge for Written {
        fn name(&self) -> &str {
            "written"
        }
        fn safe(&self, items: &[Item<'_>]) -> Result<Vec<f64>> {
            Ok(items.iter().map(|i| i.completion.parse().unwrap_or(f64::NAN)).collect())
        }
    }

    fn examples(rows: &[(f64, Label)]) -> Vec<Example> {
        rows.iter()
            .enumerate()
            .map(|(i, (p, label))| Example {
                id: format!("e{i}"),
                prompt: String::new(),
                completion: p.to_string(),
                label: *label,
                seen_prompt: false,
                messages: Vec::new(),
            })
            .collect()
    }

    #[test]
    fn values_worked_out_by_hand() {
        use Label::{Negative as N, Positive as P};
        // pairs (pos, neg): .9>.5 .9>.2 .9>.7 | .5=.5 .5>.2 .5<.7  -> (3 + 1.5) / 6
        let rows = examples(&[(0.9, P), (0.5, N), (0.5, P), (0.2, N), (0.7, N)]);
        let found = accuracy(&Written, &rows, 0.5).unwrap();
        assert!((found.auc - 0.75).abs() < 1e-15);
        // right: .9 P, .5 N, .2 N; .5 is not above the threshold
        assert!((found.accuracy - 0.6).abs() < 1e-15);
        assert!((found.balanced_accuracy - (0.5 + 2.0 / 3.0) / 2.0).abs() < 1e-15);
        assert_eq!((found.n_positive, found.n_negative), (2, 3));
    }

    #[test]
    fn auc_equals_the_count_over_all_pairs() {
        let mut rng = unsay_data::stream(1, "test", 0);
        for _ in 0..20 {
            // few different values, so that there are many ties; -0.0 and 0.0 tie as well
            let rows: Vec<(f64, bool)> = (0..60)
                .map(|i| {
                    let p = f64::from(rand::RngCore::next_u32(&mut rng) % 5) / 4.0;
                    (if i % 7 == 0 { p * -0.0 } else { p }, i % 3 == 0)
                })
                .collect();
            let of = |class| rows.iter().filter(move |r| r.1 == class).map(|r| r.0);
            let mut wins = 0.0;
            for p in of(true) {
                for n in of(false) {
                    wins += if p > n {
                        1.0
                    } else if p < n {
                        0.0
                    } else {
                        0.5
                    };
                }
            }
            let got = auc(rows.clone(), 20, 40);
            assert!((got - wins / 800.0).abs() < 1e-12, "{got}");
        }
    }

    #[test]
    fn what_cannot_be_measured_is_an_error() {
        let message = |rows: &[(f64, Label)], t| accuracy(&Written, &examples(rows), t).unwrap_err().to_string();
        assert_eq!(message(&[], 0.5), "judge `written` got nothing to judge");
        assert_eq!(
            message(&[(0.1, Label::Positive)], 0.5),
            "accuracy of judge `written` needs both classes, got 1 positive and 0 negative examples"
        );
        assert_eq!(
            message(&[(0.1, Label::Positive), (0.2, Label::Unlabelled)], 0.5),
            "example `e1` has no positive or negative label to compare judge `written` with"
        );
        assert_eq!(
            message(&[(0.1, Label::Positive), (1.5, Label::Negative)], 0.5),
            "judge `written` gave 1.5 for item 1, expected a probability in [0, 1]"
        );
        assert_eq!(
            message(&[(0.1, Label::Positive)], 1.5),
            "`threshold` must be in [0, 1], got 1.5"
        );
    }
}
