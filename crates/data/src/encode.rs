//! From examples to token ids: layout, truncation, and the account of what is learnt from.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, percent};
use crate::record::{Example, Label};
use crate::tokenizer::Tokenizer;

/// The longest prompt and completion, in tokens of text: special tokens come on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// A longer prompt loses its beginning. At least 1.
    pub max_prompt: usize,
    /// A longer completion loses its end, and with it the end-of-sequence token. At least 1.
    pub max_completion: usize,
}

impl Limits {
    /// Refuses limits that leave no text.
    ///
    /// # Errors
    /// When a limit is 0.
    pub fn check(&self) -> Result<()> {
        for (setting, value) in [("max_prompt", self.max_prompt), ("max_completion", self.max_completion)] {
            if value == 0 {
                let expected = "at least 1 token";
                return Err(Error::Range {
                    setting,
                    expected,
                    got: value.to_string(),
                });
            }
        }
        Ok(())
    }

    /// The length of the longest sequence under these limits, special tokens included.
    pub fn width(&self) -> usize {
        self.max_prompt + self.max_completion + 3
    }
}

/// One example as token ids: `[bos] prompt [sep] completion [eos]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The whole sequence. A completion that was cut has no end-of-sequence token.
    pub ids: Vec<u32>,
    /// The index in `ids` of the first token of the completion.
    pub completion_start: usize,
    /// The label of the example.
    pub label: Label,
    /// The index of the example in what was encoded.
    pub example: usize,
}

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

/// The ids a model reads before it writes a completion: `[bos] prompt [sep]`.
///
/// # Errors
/// When a limit is 0 or the tokenizer refuses the text.
pub fn encode_prompt(tokenizer: &Tokenizer, prompt: &str, limits: &Limits) -> Result<Vec<u32>> {
    limits.check()?;
    Ok(prompt_ids(tokenizer, prompt, limits)?.0)
}

/// The ids of a prompt, and how many tokens were cut.
fn prompt_ids(tokenizer: &Tokenizer, prompt: &str, limits: &Limits) -> Result<(Vec<u32>, usize)> {
    let text = tokenizer.encode(prompt)?;
    let cut = text.len().saturating_sub(limits.max_prompt);
    let mut ids = Vec::with_capacity(text.len() - cut + 2);
    ids.push(Tokenizer::BOS);
    ids.extend_from_slice(&text[cut..]);
    ids.push(Tokenizer::SEP);
    Ok((ids, cut))
}

/// Encodes examples in order and counts what is kept, cut and dropped.
///
/// # Errors
/// When a limit is 0 or the tokenizer refuses a text. That nothing is left, or too little, is
/// for [`Supervision::check`] to say.
pub fn encode_all(tokenizer: &Tokenizer, examples: &[Example], limits: &Limits) -> Result<(Vec<Encoded>, Supervision)> {
    limits.check()?;
    let mut all = Vec::with_capacity(examples.len());
    let mut account = Supervision::default();
    for (index, example) in examples.iter().enumerate() {
        if example.completion.trim().is_empty() {
            account.dropped += 1;
            continue;
        }
        let (mut ids, cut_prompt) = prompt_ids(tokenizer, &example.prompt, limits)?;
        let completion_start = ids.len();
        let completion = tokenizer.encode(&example.completion)?;
        let cut_completion = completion.len().saturating_sub(limits.max_completion);
        ids.extend_from_slice(&completion[..completion.len() - cut_completion]);
        if cut_completion == 0 {
            ids.push(Tokenizer::EOS);
        }
        account.tokens_cut_prompt += cut_prompt;
        account.tokens_cut_completion += cut_completion;
        account.examples_cut += usize::from(cut_prompt + cut_completion > 0);
        account.keep(example.label, ids.len() - completion_start);
        all.push(Encoded {
            ids,
            completion_start,
            label: example.label,
            example: index,
        });
    }
    Ok((all, account))
}

impl Supervision {
    fn keep(&mut self, label: Label, n_tokens: usize) {
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
    use super::*;
    use proptest::prelude::*;

    fn bytes() -> Tokenizer {
        Tokenizer::train(std::iter::empty(), 260).unwrap()
    }

    fn example(prompt: &str, completion: &str, label: Label) -> Example {
        Example {
            id: "x".into(),
            prompt: prompt.into(),
            completion: completion.into(),
            label,
            seen_prompt: true,
        }
    }

    #[test]
    fn a_prompt_keeps_its_end_and_a_completion_its_beginning() {
        let tokenizer = bytes();
        let limits = Limits {
            max_prompt: 3,
            max_completion: 2,
        };
        let examples = [
            example("abcdef", "xyz", Label::Negative),
            example("abc", "xy", Label::Positive),
            example("", "x", Label::Unlabelled),
            example("abc", " \n", Label::Positive),
        ];
        let (encoded, account) = encode_all(&tokenizer, &examples, &limits).unwrap();
        let text = |e: &Encoded, r: std::ops::Range<usize>| tokenizer.decode(&e.ids[r]).unwrap();
        assert_eq!(encoded.len(), 3);
        assert_eq!(text(&encoded[0], 0..5), "def");
        assert_eq!(text(&encoded[0], 5..7), "xy");
        assert_eq!(encoded[0].ids.len(), 7);
        assert_eq!(encoded[0].completion_start, 5);
        assert_eq!(encoded[1].ids.len(), 8);
        assert_eq!(encoded[1].ids[7], Tokenizer::EOS);
        assert_eq!(encoded[2].ids[..2], [Tokenizer::BOS, Tokenizer::SEP]);
        assert_eq!(encoded[2].completion_start, 2);
        let expected = Supervision {
            examples: 3,
            examples_positive: 1,
            examples_negative: 1,
            examples_unlabelled: 1,
            dropped: 1,
            tokens_positive: 3,
            tokens_negative: 2,
            tokens_unlabelled: 2,
            tokens_cut_prompt: 3,
            tokens_cut_completion: 1,
            examples_cut: 1,
        };
        assert_eq!(account, expected);
        let prompt = encode_prompt(&tokenizer, "abcdef", &limits).unwrap();
        assert_eq!(prompt, encoded[0].ids[..5]);
    }

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

    #[test]
    fn limits_leave_some_text() {
        let limits = Limits {
            max_prompt: 4,
            max_completion: 0,
        };
        let error = encode_all(&bytes(), &[], &limits).unwrap_err();
        assert_eq!(error.to_string(), "max_completion: expected at least 1 token, got 0");
    }

    proptest! {
        #[test]
        fn truncation_keeps_to_the_limits_and_never_empties(
            prompt in "[a-f ]{0,20}",
            completion in "[a-f]{1,20}",
            max_prompt in 1usize..12,
            max_completion in 1usize..12,
        ) {
            let tokenizer = bytes();
            let limits = Limits { max_prompt, max_completion };
            let examples = [example(&prompt, &completion, Label::Positive)];
            let (encoded, account) = encode_all(&tokenizer, &examples, &limits).unwrap();
            let [one] = encoded.as_slice() else { panic!("expected one example") };
            prop_assert!(one.ids.len() <= limits.width());
            prop_assert_eq!(one.ids[0], Tokenizer::BOS);
            prop_assert_eq!(one.ids[one.completion_start - 1], Tokenizer::SEP);
            let kept_prompt = tokenizer.decode(&one.ids[..one.completion_start]).unwrap();
            let kept = tokenizer.decode(&one.ids[one.completion_start..]).unwrap();
            prop_assert!(prompt.ends_with(&kept_prompt));
            prop_assert!(!kept.is_empty() && completion.starts_with(&kept));
            prop_assert_eq!(kept_prompt.len(), prompt.len().min(max_prompt));
            prop_assert_eq!(kept.len(), completion.len().min(max_completion));
            let ends = one.ids.last() == Some(&Tokenizer::EOS);
            prop_assert_eq!(ends, kept == completion);
            prop_assert_eq!(account.tokens_cut_prompt, prompt.len() - kept_prompt.len());
            prop_assert_eq!(account.tokens_cut_completion, completion.len() - kept.len());
            prop_assert_eq!(account.tokens_positive, kept.len() + usize::from(ends));
        }
    }
}
