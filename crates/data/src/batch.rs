//! Padded batches, and the one place where states are paired with the tokens they predict.

use crate::encode::Encoded;
use crate::error::{Error, Result};
use crate::record::Label;

/// Some encoded examples as one padded array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `n_examples` rows of `width`, padded on the right.
    pub ids: Vec<i64>,
    /// The number of rows (B).
    pub n_examples: usize,
    /// The length of the longest row (T).
    pub width: usize,
    /// The number of real tokens of each row.
    pub lengths: Vec<i64>,
    /// The tokens to predict: those of the spans.
    pub rows: TargetRows,
    /// Per row: 1 positive, 0 negative, -1 unlabelled.
    pub labels: Vec<i8>,
    /// Per row: the index of its example in what was encoded.
    pub examples: Vec<usize>,
}

/// One entry per token of a span, in row order: who predicts it and what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetRows {
    /// The index in the flattened B × T states of the state that predicts the token.
    pub position: Vec<i64>,
    /// The token.
    pub target: Vec<i64>,
    /// The row of the batch it belongs to.
    pub example: Vec<i64>,
    /// True for the end token of a span.
    pub is_eos: Vec<bool>,
}

impl Batch {
    /// Pads examples to one width and lists their completion tokens.
    ///
    /// # Errors
    /// When there is no example, or one whose spans do not lie in it one after the other.
    pub fn new(encoded: &[&Encoded]) -> Result<Self> {
        let width = encoded.iter().map(|e| e.ids.len()).max().ok_or(Error::EmptyBatch)?;
        let mut batch = Self {
            // Any id does: nothing looks past the length of a row.
            ids: vec![0; encoded.len() * width],
            n_examples: encoded.len(),
            width,
            lengths: Vec::with_capacity(encoded.len()),
            rows: TargetRows::default(),
            labels: Vec::with_capacity(encoded.len()),
            examples: Vec::with_capacity(encoded.len()),
        };
        for (row, one) in encoded.iter().enumerate() {
            one.check()?;
            let begin = row * width;
            for (slot, &id) in batch.ids[begin..].iter_mut().zip(&one.ids) {
                *slot = i64::from(id);
            }
            for span in &one.spans {
                for at in span.start..span.end {
                    // The state at one position predicts the token at the next.
                    batch.rows.position.push((begin + at - 1) as i64);
                    batch.rows.target.push(i64::from(one.ids[at]));
                    batch.rows.example.push(row as i64);
                    batch.rows.is_eos.push(span.ended && at + 1 == span.end);
                }
            }
            batch.lengths.push(one.ids.len() as i64);
            batch.labels.push(match one.label {
                Label::Positive => 1,
                Label::Negative => 0,
                Label::Unlabelled => -1,
            });
            batch.examples.push(one.example);
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::{Batch, Encoded, Label};
    use crate::encode::Span;
    use crate::tokenizer::Tokenizer;

    fn encoded(ids: &[u32], completion_start: usize, label: Label, example: usize) -> Encoded {
        Encoded {
            ids: ids.to_vec(),
            spans: vec![Span {
                start: completion_start,
                end: ids.len(),
                ended: ids.last() == Some(&Tokenizer::EOS),
            }],
            label,
            example,
        }
    }

    #[test]
    fn each_completion_token_is_predicted_by_the_state_before_it() {
        let whole = encoded(&[1, 10, 11, 2, 20, 21, 3], 4, Label::Negative, 7);
        let cut = encoded(&[1, 2, 30], 2, Label::Unlabelled, 5);
        let batch = Batch::new(&[&whole, &cut]).unwrap();
        assert_eq!(batch.ids, [1, 10, 11, 2, 20, 21, 3, 1, 2, 30, 0, 0, 0, 0]);
        assert_eq!((batch.n_examples, batch.width), (2, 7));
        assert_eq!(batch.lengths, [7, 3]);
        assert_eq!(batch.labels, [0, -1]);
        assert_eq!(batch.examples, [7, 5]);
        assert_eq!(batch.rows.position, [3, 4, 5, 8]);
        assert_eq!(batch.rows.target, [20, 21, 3, 30]);
        assert_eq!(batch.rows.example, [0, 0, 0, 1]);
        assert_eq!(batch.rows.is_eos, [false, false, true, false]);
        for (position, target) in batch.rows.position.iter().zip(&batch.rows.target) {
            assert_eq!(batch.ids[*position as usize + 1], *target);
            assert_ne!(*target, i64::from(Tokenizer::PAD));
        }
    }

    #[test]
    fn nothing_to_learn_from_is_an_error() {
        let error = Batch::new(&[]).unwrap_err().to_string();
        assert_eq!(error, "batch: expected at least one example, got none");
        for (ids, start) in [(&[1, 2][..], 2), (&[3][..], 0), (&[][..], 0)] {
            let empty = encoded(ids, start, Label::Positive, 9);
            let error = Batch::new(&[&empty]).unwrap_err().to_string();
            assert!(
                error.starts_with("batch: expected a completion inside example 9"),
                "{error}"
            );
        }
    }
}
