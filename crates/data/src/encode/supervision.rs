//! The account of what is learnt from.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, percent};
use crate::record::Label;

/// What there is to learn from, and what was lost on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supervision {
    /// Examples that were kept.
    pub examples: usize,
    /// Kept examples labelled positive.
    pub examples_positive: usize,
    /// Kept examples labelled negative.
    pub examples_negative: usize,
    /// Kept examples without a label.
    pub examples_unlabelled: usize,
    /// Examples left out because their completion is empty.
    pub dropped: usize,
    /// Completion tokens of positive examples, end-of-sequence tokens included.
    pub tokens_positive: usize,
    /// Completion tokens of negative examples, end-of-sequence tokens included.
    pub tokens_negative: usize,
    /// Completion tokens of examples without a label, end-of-sequence tokens included.
    pub tokens_unlabelled: usize,
    /// Tokens cut from the beginnings of prompts.
    pub tokens_cut_prompt: usize,
    /// Tokens cut from the ends of completions, end-of-sequence tokens not counted.
    pub tokens_cut_completion: usize,
    /// Kept examples that lost part of their prompt, their completion or both.
    pub examples_cut: usize,
}

impl Supervision {
    pub(super) fn keep(&mut self, label: Label, n_tokens: usize) {
        self.examples += 1;
        let (examples, tokens) = match label {
            Label::Positive => (&mut self.examples_positive, &mut self.tokens_positive),
            Label::Negative => (&mut self.examples_negative, &mut self.tokens_negative),
            Label::Unlabelled => (&mut self.examples_unlabelled, &mut self.tokens_unlabelled),
        };
        *examples += 1;
        *tokens += n_tokens;
    }

    /// Refuses supervision of which too much was lost.
    ///
    /// # Errors
    /// When no example is left, when more than `max_dropped_share` of all examples were dropped, or
    /// when more than `max_cut_share` of the kept examples were cut. Both shares are from 0 to 1.
    pub fn check(&self, max_dropped_share: f64, max_cut_share: f64) -> Result<()> {
        let shares = [
            ("max_dropped_share", max_dropped_share),
            ("max_cut_share", max_cut_share),
        ];
        for (setting, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                let expected = "a share from 0 to 1";
                return Err(Error::Range {
                    setting,
                    expected,
                    got: share.to_string(),
                });
            }
        }
        if self.examples == 0 {
            return Err(Error::NoExamples { dropped: self.dropped });
        }
        let all = self.examples + self.dropped;
        let too_many = |count: usize, of: usize, share: f64| count as f64 > share * of as f64;
        if too_many(self.dropped, all, max_dropped_share) {
            return Err(Error::Supervision {
                what: "examples dropped for an empty completion",
                allowed: max_dropped_share,
                count: self.dropped,
                of: all,
                hint: "look at the completions of the data",
            });
        }
        if too_many(self.examples_cut, self.examples, max_cut_share) {
            return Err(Error::Supervision {
                what: "examples cut to the token limits",
                allowed: max_cut_share,
                count: self.examples_cut,
                of: self.examples,
                hint: "raise `max_prompt` or `max_completion`",
            });
        }
        Ok(())
    }
}

impl fmt::Display for Supervision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("positive", self.examples_positive, self.tokens_positive),
            ("negative", self.examples_negative, self.tokens_negative),
            ("unlabelled", self.examples_unlabelled, self.tokens_unlabelled),
        ];
        writeln!(f, "{:<12}{:>12}{:>20}", "supervision", "examples", "completion tokens")?;
        for (side, examples, tokens) in rows {
            writeln!(f, "{side:<12}{:>12}{:>20}", grouped(examples), grouped(tokens))?;
        }
        let share = |count: usize, of: usize| percent(count as f64 / of.max(1) as f64);
        writeln!(
            f,
            "{:<12}{:>12}{:>20}  {} prompt and {} completion tokens",
            "cut",
            grouped(self.examples_cut),
            share(self.examples_cut, self.examples),
            grouped(self.tokens_cut_prompt),
            grouped(self.tokens_cut_completion),
        )?;
        write!(
            f,
            "{:<12}{:>12}{:>20}  empty completions",
            "dropped",
            grouped(self.dropped),
            share(self.dropped, self.examples + self.dropped),
        )
    }
}

/// A count with commas between groups of three digits.
fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::Supervision;

    #[test]
    fn the_report_is_aligned() {
        let account = Supervision {
            examples: 9015,
            examples_positive: 4837,
            examples_negative: 4178,
            dropped: 2,
            tokens_positive: 1_234_567,
            tokens_negative: 98_765,
            tokens_cut_prompt: 12_345,
            tokens_cut_completion: 67,
            examples_cut: 345,
            ..Supervision::default()
        };
        let expected = "\
supervision     examples   completion tokens
positive           4,837           1,234,567
negative           4,178              98,765
unlabelled             0                   0
cut                  345                3.8%  12,345 prompt and 67 completion tokens
dropped                2                0.0%  empty completions";
        assert_eq!(account.to_string(), expected);
    }

    #[test]
    fn too_much_lost_is_an_error() {
        let account = Supervision {
            examples: 90,
            dropped: 10,
            examples_cut: 45,
            ..Supervision::default()
        };
        assert!(account.check(0.1, 0.5).is_ok());
        assert_eq!(
            account.check(0.05, 0.5).unwrap_err().to_string(),
            "examples dropped for an empty completion: expected at most 5.0%, got 10.0% \
             (10 of 100 examples)\nhint: look at the completions of the data"
        );
        assert_eq!(
            account.check(0.1, 0.2).unwrap_err().to_string(),
            "examples cut to the token limits: expected at most 20.0%, got 50.0% \
             (45 of 90 examples)\nhint: raise `max_prompt` or `max_completion`"
        );
        assert_eq!(
            account.check(0.1, 1.5).unwrap_err().to_string(),
            "max_cut_share: expected a share from 0 to 1, got 1.5"
        );
        assert!(account.check(f64::NAN, 0.5).is_err());
        let nothing = Supervision {
            dropped: 1,
            ..Supervision::default()
        };
        assert_eq!(
            nothing.check(1.0, 1.0).unwrap_err().to_string(),
            "expected at least one example with a completion, got none (1 dropped)"
        );
    }
}
