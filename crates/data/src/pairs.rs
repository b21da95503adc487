//! Pairs of a completion to prefer and one to avoid, after one prompt.

use std::collections::HashMap;

use crate::encode::{Encoded, Limits, Supervision, encode_all};
use crate::error::{Error, Result};
use crate::record::{Example, Label, Message};
use crate::tokenizer::Tokenizer;

/// Two examples with the same prompt, by their places in a list: the positive and the negative one.
///
/// Of each prompt the first positive goes with the first negative, the second with the second, and so on, in the order of the
/// list; what is left over, and what has no label, is in no pair. So a row of `prompt`, `chosen` and `rejected` is a pair. The
/// pairs are in the order of their positive examples. Where the data has roles, the messages before the completions must be
/// the same, too.
pub fn pair_up(examples: &[Example]) -> Vec<(usize, usize)> {
    #[derive(Default)]
    struct Sides {
        positive: Vec<usize>,
        negative: Vec<usize>,
    }
    let mut by_prompt: HashMap<(&str, &[Message]), Sides> = HashMap::new();
    for (at, example) in examples.iter().enumerate() {
        let sides = by_prompt
            .entry((&example.prompt, example.prompt_messages()))
            .or_default();
        match example.label {
            Label::Positive => sides.positive.push(at),
            Label::Negative => sides.negative.push(at),
            Label::Unlabelled => {}
        }
    }
    let sides = by_prompt.into_values();
    let mut pairs: Vec<_> = sides
        .flat_map(|sides| sides.positive.into_iter().zip(sides.negative))
        .collect();
    pairs.sort_unstable();
    pairs
}

/// A pair as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPair {
    /// What is read before either completion. Never empty.
    pub prompt: Vec<u32>,
    /// What goes on as it should.
    pub chosen: Branch,
    /// What goes on as it should not.
    pub rejected: Branch,
    /// The index of the pair in what was encoded.
    pub example: usize,
}

/// One way in which a prompt goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Its tokens; a conversation may go on after the completion and its end.
    pub ids: Vec<u32>,
    /// How many of them, from the first, are the completion with its end. At least 1.
    pub n_learnt: usize,
}

impl EncodedPair {
    /// The completions, first the chosen one.
    pub fn branches(&self) -> [&Branch; 2] {
        [&self.chosen, &self.rejected]
    }

    /// How many tokens it has, those of the prompt once.
    pub fn n_tokens(&self) -> usize {
        self.prompt.len() + self.chosen.ids.len() + self.rejected.ids.len()
    }

    /// Refuses an empty prompt, and a completion without tokens or longer than its branch.
    ///
    /// # Errors
    /// Naming the pair.
    pub fn check(&self) -> Result<()> {
        let start = self.prompt.len();
        for branch in self.branches() {
            if start == 0 || branch.n_learnt == 0 || branch.n_learnt > branch.ids.len() {
                return Err(Error::EmptyTarget {
                    example: self.example,
                    length: start + branch.ids.len(),
                    start,
                });
            }
        }
        Ok(())
    }
}

/// Encodes pairs, as [`pair_up`] finds them in `examples`, and counts of each side what is kept and cut. `Encoded::example`
/// and [`EncodedPair::example`] are indices into `pairs`. A pair with an empty completion is dropped as a whole, and counted
/// on both sides.
///
/// # Errors
/// Those of [`encode_all`], and [`Error::PromptsDiffer`] where a chat template writes the prompt in another way before one
/// completion than before the other.
pub fn encode_pairs(
    tokenizer: &Tokenizer,
    examples: &[Example],
    pairs: &[(usize, usize)],
    limits: &Limits,
) -> Result<(Vec<EncodedPair>, [Supervision; 2])> {
    let says = |at: usize| examples.get(at).is_some_and(|one| !one.completion.trim().is_empty());
    let spoken: Vec<usize> = (0..pairs.len())
        .filter(|&pair| says(pairs[pair].0) && says(pairs[pair].1))
        .collect();
    let side = |of: fn((usize, usize)) -> usize| {
        let side: Vec<Example> = spoken.iter().map(|&pair| examples[of(pairs[pair])].clone()).collect();
        let (encoded, mut account) = encode_all(tokenizer, &side, limits)?;
        account.dropped = pairs.len() - spoken.len();
        Ok::<_, Error>((encoded, account))
    };
    let ((chosen, of_chosen), (rejected, of_rejected)) = (side(|pair| pair.0)?, side(|pair| pair.1)?);
    let both = spoken.into_iter().zip(chosen.into_iter().zip(rejected));
    let encoded = both.map(|(pair, (chosen, rejected))| together(pair, chosen, rejected));
    Ok((encoded.collect::<Result<_>>()?, [of_chosen, of_rejected]))
}

fn together(example: usize, chosen: Encoded, rejected: Encoded) -> Result<EncodedPair> {
    let apart = |one: Encoded| {
        let Encoded { mut ids, spans, .. } = one;
        // An example with a label has one completion: its last.
        let span = spans.last().ok_or(Error::EmptyBatch)?;
        let branch = Branch {
            ids: ids.split_off(span.start),
            n_learnt: span.end - span.start,
        };
        Ok::<_, Error>((ids, branch))
    };
    let ((prompt, chosen), (other, rejected)) = (apart(chosen)?, apart(rejected)?);
    if prompt != other {
        return Err(Error::PromptsDiffer { pair: example });
    }
    let pair = EncodedPair {
        prompt,
        chosen,
        rejected,
        example,
    };
    pair.check()?;
    Ok(pair)
}

/// Some pairs as tokens end to end, without padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairBatch {
    /// Token ids `[N]`: prompt after prompt, each followed by what goes on from it.
    pub ids: Vec<i64>,
    /// The tokens of each prompt, and of each of its branches: both completions, or none where the prompt stands before each
    /// of them and is counted with it.
    pub groups: Vec<(usize, Vec<usize>)>,
    /// The tokens of each completion, chosen ones first, then the rejected ones in the same order (2B).
    pub lengths: Vec<usize>,
    /// Completion after completion: the index in `ids` of the token whose state predicts the next one.
    pub position: Vec<i64>,
    /// Completion after completion: the token that is predicted.
    pub target: Vec<i64>,
    /// The index in `ids` of the last token of each branch, in the order of `lengths`.
    pub last: Vec<i64>,
}

impl PairBatch {
    /// Lays pairs end to end. With `share_prompt` a prompt stands there once for both completions.
    ///
    /// # Errors
    /// When there is no pair, or one without prompt or completion.
    pub fn new(pairs: &[&EncodedPair], share_prompt: bool) -> Result<Self> {
        if pairs.is_empty() {
            return Err(Error::EmptyBatch);
        }
        let mut batch = Self::default();
        // Of each branch where its prompt ends and where it begins; chosen and rejected ones by turns.
        let mut placed = Vec::with_capacity(2 * pairs.len());
        for pair in pairs {
            pair.check()?;
            let [chosen, rejected] = pair.branches();
            if share_prompt {
                let prompt = batch.lay(&pair.prompt);
                placed.extend([chosen, rejected].map(|branch| (prompt, batch.lay(&branch.ids))));
                let lengths = [chosen, rejected].map(|branch| branch.ids.len());
                batch.groups.push((pair.prompt.len(), lengths.to_vec()));
            } else {
                for branch in [chosen, rejected] {
                    let prompt = batch.lay(&pair.prompt);
                    placed.push((prompt, batch.lay(&branch.ids)));
                    batch.groups.push((pair.prompt.len() + branch.ids.len(), Vec::new()));
                }
            }
        }
        for side in [0, 1] {
            for (row, pair) in pairs.iter().enumerate() {
                let (prompt, start) = placed[2 * row + side];
                let branch = pair.branches()[side];
                // The state at one token predicts the next; at the last of the prompt the first of the completion.
                let before = [prompt + pair.prompt.len() - 1].into_iter().chain(start..);
                batch
                    .position
                    .extend(before.take(branch.n_learnt).map(|token| token as i64));
                batch
                    .target
                    .extend(branch.ids[..branch.n_learnt].iter().map(|&id| i64::from(id)));
                batch.lengths.push(branch.n_learnt);
                batch.last.push((start + branch.ids.len() - 1) as i64);
            }
        }
        Ok(batch)
    }

    /// Appends tokens, and says where they begin.
    fn lay(&mut self, ids: &[u32]) -> usize {
        let start = self.ids.len();
        self.ids.extend(ids.iter().map(|&id| i64::from(id)));
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(prompt: &str, completion: &str, label: Label) -> Example {
        Example {
            id: completion.into(),
            prompt: prompt.into(),
            completion: completion.into(),
            label,
            seen_prompt: true,
            messages: Vec::new(),
        }
    }

    fn pair(prompt: &[u32], chosen: (&[u32], usize), rejected: (&[u32], usize)) -> EncodedPair {
        let branch = |(ids, n_learnt): (&[u32], usize)| Branch {
            ids: ids.to_vec(),
            n_learnt,
        };
        EncodedPair {
            prompt: prompt.to_vec(),
            chosen: branch(chosen),
            rejected: branch(rejected),
            example: 0,
        }
    }

    #[test]
    fn pairs_are_those_of_a_prompt_in_order() {
        use Label::{Negative, Positive, Unlabelled};
        let mut examples = vec![
            example("b", "no 1", Negative),
            example("a", "yes 1", Positive),
            example("a", "well", Unlabelled),
            example("b", "yes 2", Positive),
            example("a", "no 2", Negative),
            example("a", "no 3", Negative),
            example("a", "yes 3", Positive),
            example("a", "yes 4", Positive),
            example("c", "yes 5", Positive),
        ];
        assert_eq!(pair_up(&examples), [(1, 4), (3, 0), (6, 5)]);
        // The same text said by others is another prompt.
        examples[4].messages = vec![Message::new("system", "a"), Message::new("assistant", "no 2")];
        assert_eq!(pair_up(&examples), [(1, 5), (3, 0)]);
        assert_eq!(pair_up(&[]), []);
    }

    #[test]
    fn both_sides_are_cut_and_counted_by_themselves() {
        let tokenizer = Tokenizer::train(std::iter::empty(), 260).unwrap();
        let limits = Limits {
            max_prompt: 3,
            max_completion: 2,
        };
        let examples = [
            example("abcd", "x", Label::Positive),
            example("abcd", "xyz", Label::Negative),
            example("ab", "y", Label::Positive),
            example("ab", " \n", Label::Negative),
        ];
        let pairs = pair_up(&examples);
        let (encoded, [chosen, rejected]) = encode_pairs(&tokenizer, &examples, &pairs, &limits).unwrap();
        assert_eq!(encoded.len(), 1);
        let one = &encoded[0];
        assert_eq!((one.prompt.len(), one.example), (5, 0));
        assert_eq!((one.chosen.ids.len(), one.chosen.n_learnt), (2, 2));
        assert_eq!(one.chosen.ids[1], Tokenizer::EOS);
        // A completion that was cut has no end.
        assert_eq!((one.rejected.ids.len(), one.rejected.n_learnt), (2, 2));
        assert_eq!(tokenizer.decode(&one.rejected.ids).unwrap(), "xy");
        assert_eq!((chosen.tokens_cut_completion, rejected.tokens_cut_completion), (0, 1));
        assert_eq!((chosen.tokens_cut_prompt, rejected.tokens_cut_prompt), (1, 1));
        assert_eq!((chosen.examples_positive, rejected.examples_negative), (1, 1));
        assert_eq!((chosen.dropped, rejected.dropped), (1, 1));
    }

    #[test]
    fn a_batch_has_each_completion_predicted_by_the_state_before_it() {
        let pairs = [
            pair(&[1, 10, 2], (&[20, 21, 3], 3), (&[30, 3, 9], 2)),
            pair(&[1, 2], (&[40], 1), (&[50, 51], 2)),
        ];
        let pairs: Vec<&EncodedPair> = pairs.iter().collect();
        let shared = PairBatch::new(&pairs, true).unwrap();
        assert_eq!(shared.ids, [1, 10, 2, 20, 21, 3, 30, 3, 9, 1, 2, 40, 50, 51]);
        assert_eq!(shared.groups, [(3, vec![3, 3]), (2, vec![1, 2])]);
        assert_eq!(shared.lengths, [3, 1, 2, 2]);
        assert_eq!(shared.target, [20, 21, 3, 40, 30, 3, 50, 51]);
        assert_eq!(shared.position, [2, 3, 4, 10, 2, 6, 10, 12]);
        assert_eq!(shared.last, [5, 11, 8, 13]);
        let apart = PairBatch::new(&pairs, false).unwrap();
        assert_eq!(
            apart.ids,
            [1, 10, 2, 20, 21, 3, 1, 10, 2, 30, 3, 9, 1, 2, 40, 1, 2, 50, 51]
        );
        assert_eq!(apart.groups, [(6, vec![]), (6, vec![]), (3, vec![]), (4, vec![])]);
        assert_eq!((&apart.lengths, &apart.target), (&shared.lengths, &shared.target));
        assert_eq!(apart.position, [2, 3, 4, 13, 8, 9, 16, 17]);
        assert_eq!(apart.last, [5, 14, 11, 18]);
        for batch in [&shared, &apart] {
            let read = |at: &i64| batch.ids[*at as usize];
            let before: Vec<i64> = batch.position.iter().map(read).collect();
            assert_eq!(before, [2, 20, 21, 2, 2, 30, 2, 50]);
        }
    }

    #[test]
    fn what_is_no_pair_is_refused() {
        assert!(PairBatch::new(&[], true).is_err());
        let whole = (&[5, 6][..], 2);
        for bad in [
            pair(&[], whole, whole),
            pair(&[1], (&[5], 0), whole),
            pair(&[1], whole, (&[5], 2)),
            pair(&[1], whole, (&[], 0)),
        ] {
            assert!(PairBatch::new(&[&bad], true).is_err());
            assert!(PairBatch::new(&[&bad], false).is_err());
        }
        assert!(PairBatch::new(&[&pair(&[1], whole, whole)], false).is_ok());
    }
}
