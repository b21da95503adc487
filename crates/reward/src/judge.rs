//! What every judge can do.

use unsay_data::Label;

use crate::error::{Error, Result};

/// A completion in its context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    /// The turns so far, joined by `\n`.
    pub prompt: &'a str,
    /// The completion to judge.
    pub completion: &'a str,
}

/// A judge of completions.
pub trait Judge {
    /// The name in results, for instance `oracle` or `a`.
    fn name(&self) -> &str;

    /// P(positive) in [0, 1] of each item, in input order.
    ///
    /// **Parameters** at least one item; the value of an item does not depend on the others.
    ///
    /// **Errors** no items; what the judge itself runs into.
    ///
    /// **On negatives** a completion that is no reply at all ([`Judge::malformed`]) gets 0, so that
    /// saying nothing never counts as safe.
    fn safe(&self, items: &[Item<'_>]) -> Result<Vec<f64>>;

    /// For each item, true when it is no reply at all, so that its 0 does not mean unsafe.
    ///
    /// **Errors** none here; a judge may have its own. The default calls blank completions
    /// malformed.
    fn malformed(&self, items: &[Item<'_>]) -> Result<Vec<bool>> {
        Ok(items.iter().map(|i| is_blank(i.completion)).collect())
    }
}

/// Whether a completion has nothing to judge.
pub(crate) fn is_blank(completion: &str) -> bool {
    completion.trim().is_empty()
}

/// Whether a judgement counts as positive: `p > threshold`, as a logit above 0 does at 0.5.
///
/// ```
/// assert!(unsay_reward::is_positive(0.51, 0.5));
/// assert!(!unsay_reward::is_positive(0.5, 0.5));
/// ```
pub fn is_positive(p: f64, threshold: f64) -> bool {
    p > threshold
}

/// What a judge says of one item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    /// P(positive) in [0, 1].
    pub p: f64,
    /// True when the item is no reply at all.
    pub malformed: bool,
}

impl Judgement {
    /// The side of the threshold as a label; unlabelled when there was no reply to judge.
    pub fn label(&self, threshold: f64) -> Label {
        match (self.malformed, is_positive(self.p, threshold)) {
            (true, _) => Label::Unlabelled,
            (false, true) => Label::Positive,
            (false, false) => Label::Negative,
        }
    }
}

/// Everything a judge says of each item, in input order; what callers should use.
///
/// **Errors** no items, an error of the judge, a value that is no probability, and a number of values
/// other than that of the items.
pub fn judge_all(judge: &dyn Judge, items: &[Item<'_>]) -> Result<Vec<Judgement>> {
    let (values, malformed) = (judge.safe(items)?, judge.malformed(items)?);
    check_count(judge.name(), items.len(), malformed.len())?;
    check_values(judge.name(), items.len(), &values)?;
    Ok(values
        .into_iter()
        .zip(malformed)
        .map(|(p, malformed)| Judgement { p, malformed })
        .collect())
}

/// An error unless `values` are one probability per item.
fn check_values(judge: &str, n_items: usize, values: &[f64]) -> Result<()> {
    check_count(judge, n_items, values.len())?;
    match values.iter().position(|p| !(0.0..=1.0).contains(p)) {
        Some(item) => Err(Error::NotProbability {
            judge: judge.to_owned(),
            item,
            got: values[item],
        }),
        None => Ok(()),
    }
}

fn check_count(judge: &str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(Error::Count {
            judge: judge.to_owned(),
            expected,
            got,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers the first item only when asked what is malformed.
    struct Lazy;

    impl Judge for Lazy {
        fn name(&self) -> &str {
            "lazy"
        }
        fn safe(&self, items: &[Item<'_>]) -> Result<Vec<f64>> {
            Ok(vec![0.7; items.len()])
        }
        fn malformed(&self, _: &[Item<'_>]) -> Result<Vec<bool>> {
            Ok(vec![false])
        }
    }

    #[test]
    fn every_item_gets_an_answer() {
        let item = Item {
            prompt: "",
            completion: "hi",
        };
        assert_eq!(
            judge_all(&Lazy, &[item]).unwrap(),
            [Judgement {
                p: 0.7,
                malformed: false
            }]
        );
        let error = judge_all(&Lazy, &[item, item]).unwrap_err().to_string();
        assert_eq!(error, "judge `lazy` gave 1 values for 2 items");
    }

    #[test]
    fn a_malformed_reply_has_no_label() {
        let label = |p, malformed| Judgement { p, malformed }.label(0.5);
        assert_eq!(
            [label(0.6, false), label(0.5, false)],
            [Label::Positive, Label::Negative]
        );
        assert_eq!([label(0.6, true), label(0.0, true)], [Label::Unlabelled; 2]);
    }

    #[test]
    fn values_that_are_no_probabilities_are_named() {
        assert!(check_values("a", 2, &[0.0, 1.0]).is_ok());
        let error = check_values("a", 2, &[0.5, f64::NAN]).unwrap_err().to_string();
        assert_eq!(error, "judge `a` gave NaN for item 1, expected a probability in [0, 1]");
        let error = check_values("a", 2, &[0.5]).unwrap_err().to_string();
        assert_eq!(error, "judge `a` gave 1 values for 2 items");
    }
}
