//! From one value per token to one number.

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::counts::{Counts, counts};
use crate::{CompletionRows, Error, LossValue, Result};

/// How the values of tokens become one number: what a long completion weighs against a short one.
///
/// `L = Σ_i Σ_t w_i ℓ_it` with, for a completion of `n_i` of the batch's `n` tokens, one of `B` completions:
///
/// | here | `w_i` | elsewhere |
/// |---|---|---|
/// | `token_mean` | `1/n` | TRL `bnpo` (per device) and `dapo` (global); verl `token-mean`; OpenRLHF with token-level loss |
/// | `sequence_mean` | `1/(B n_i)` | TRL `grpo`; verl `seq-mean-token-mean`; OpenRLHF without token-level loss |
/// | `sequence_sum` | `1/B` | verl `seq-mean-token-sum` |
/// | `fixed_length` | `1/(B length)` | TRL `dr_grpo`; verl `seq-mean-token-sum-norm` has `1/length`, without `B` |
///
/// `n` and `B` are of the whole batch, [`PolicyCounts`], so parts of a batch add up.
///
/// **Reference**: Z. Shao et al., "DeepSeekMath: Pushing the limits of mathematical reasoning in open language models",
/// 2024, eq. 3 (sequence mean); Q. Yu et al., "DAPO: An open-source LLM reinforcement learning system at scale", 2025,
/// eq. 12 (token mean); Z. Liu et al., "Understanding R1-Zero-like training: A critical perspective", 2025, §3.2 (sums).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Aggregate {
    /// The mean over all tokens: a long completion weighs more.
    TokenMean,
    /// The mean over completions of the mean over their tokens: all completions weigh alike, and a token of a long one less.
    SequenceMean,
    /// The mean over completions of the sum over their tokens: the gradient of the policy as it is.
    SequenceSum,
    /// As [`Aggregate::SequenceSum`], divided by a length that no completion changes.
    FixedLength {
        /// At least 1; the largest length that is sampled.
        length: usize,
    },
}

impl fmt::Display for Aggregate {
    /// As the manifest spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Aggregate::TokenMean => f.write_str("token_mean"),
            Aggregate::SequenceMean => f.write_str("sequence_mean"),
            Aggregate::SequenceSum => f.write_str("sequence_sum"),
            Aggregate::FixedLength { length } => write!(f, "{{ fixed_length: {{ length: {length} }} }}"),
        }
    }
}

impl Aggregate {
    /// The parameter outside its range, if any.
    pub fn problem(&self) -> Option<Error> {
        matches!(self, Aggregate::FixedLength { length: 0 }).then(|| Error::Range {
            name: "aggregate.fixed_length.length",
            value: "0".to_owned(),
            range: "a whole number, at least 1",
        })
    }

    /// `[N]` what each row's value is multiplied with.
    fn weights(&self, rows: &CompletionRows, counts: &PolicyCounts, kind: Kind) -> Result<Tensor> {
        let one = Tensor::f_ones([rows.n_completions() as i64], (kind, rows.device()))?;
        let each = match self {
            Aggregate::TokenMean => one.f_div_scalar(counts.tokens)?,
            Aggregate::SequenceMean => one.f_div(&rows.tokens(kind)?)?.f_div_scalar(counts.completions)?,
            Aggregate::SequenceSum => one.f_div_scalar(counts.completions)?,
            Aggregate::FixedLength { length } => one.f_div_scalar(counts.completions * *length as f64)?,
        };
        rows.spread(&each)
    }

    /// What a loss returns from the value of every row `[N]` and its terms.
    pub(super) fn reduce(
        &self,
        values: &Tensor,
        rows: &CompletionRows,
        counts: &PolicyCounts,
        terms: Vec<(&'static str, Tensor)>,
    ) -> Result<LossValue> {
        let weighted = values.f_mul(&self.weights(rows, counts, values.f_kind()?)?)?;
        let each = rows.sums(&weighted)?;
        Ok(LossValue {
            total: each.f_sum(None)?,
            per_example: each.f_detach()?,
            terms,
        })
    }
}

/// Sizes of the **whole** batch of completions, over all its micro-batches: what the objective divides by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PolicyCounts {
    /// Tokens of completions.
    pub tokens: f64,
    /// Completions.
    pub completions: f64,
}

counts!(PolicyCounts { tokens, completions });

impl PolicyCounts {
    /// Counts one micro-batch.
    pub fn of(rows: &CompletionRows) -> Self {
        PolicyCounts {
            tokens: rows.n_rows() as f64,
            completions: rows.n_completions() as f64,
        }
    }

    /// That they can be those of a batch which these rows are part of.
    pub(super) fn check(&self, rows: &CompletionRows) -> Result<()> {
        self.check_covers(&PolicyCounts::of(rows))
    }

    /// The mean over the tokens of the whole batch of one value per row, for the log.
    pub(super) fn token_mean(&self, per_row: &Tensor) -> Result<Tensor> {
        Ok(per_row.f_detach()?.f_sum(None)?.f_div_scalar(self.tokens)?)
    }

    /// The share of the tokens of the whole batch, for the log, in a floating-point kind.
    pub(super) fn share(&self, mask: &Tensor, kind: Kind) -> Result<Tensor> {
        self.token_mean(&mask.f_to_kind(kind)?)
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn each_aggregate_divides_by_its_own_counts_of_the_whole_batch() {
        let rows = CompletionRows::new(&[2, 1], Device::Cpu).unwrap();
        let values = Tensor::from_slice(&[1.0f64, 3.0, 5.0]).set_requires_grad(true);
        let counts = PolicyCounts {
            tokens: 10.0,
            completions: 4.0,
        };
        let cases = [
            (Aggregate::TokenMean, [0.4, 0.5], [0.1, 0.1, 0.1]),
            (Aggregate::SequenceMean, [0.5, 1.25], [0.125, 0.125, 0.25]),
            (Aggregate::SequenceSum, [1.0, 1.25], [0.25, 0.25, 0.25]),
            (Aggregate::FixedLength { length: 5 }, [0.2, 0.25], [0.05, 0.05, 0.05]),
        ];
        for (aggregate, each, slopes) in cases {
            let value = aggregate.reduce(&values, &rows, &counts, Vec::new()).unwrap();
            value.total.backward();
            let near = |t: &Tensor, expected: &[f64]| {
                let ours = Vec::<f64>::try_from(t).unwrap();
                ours.len() == expected.len() && ours.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15)
            };
            assert!(near(&value.per_example, &each), "{aggregate:?}");
            assert!((value.total.double_value(&[]) - each[0] - each[1]).abs() < 1e-15);
            assert!(near(&values.grad(), &slopes), "{aggregate:?}");
            let _ = values.grad().zero_();
        }
    }

    #[test]
    fn counts_add_up_and_must_hold_their_part() {
        let rows = CompletionRows::new(&[2, 1], Device::Cpu).unwrap();
        let own = PolicyCounts::of(&rows);
        assert_eq!((own.tokens, own.completions), (3.0, 2.0));
        let mut twice: PolicyCounts = [own, own].into_iter().sum();
        assert_eq!((twice.tokens, twice.completions), (6.0, 4.0));
        twice += own;
        assert_eq!((twice.tokens, twice.completions), (9.0, 6.0));
        assert!(own.check(&rows).is_ok() && twice.check(&rows).is_ok());
        for (tokens, completions) in [
            (2.9, 2.0),
            (3.0, 1.9),
            (f64::NAN, 2.0),
            (3.0, f64::NAN),
            (f64::INFINITY, 2.0),
        ] {
            let counts = PolicyCounts { tokens, completions };
            let text = counts.check(&rows).unwrap_err().to_string();
            assert!(
                text.starts_with("counts: expected sizes of the whole batch, at least this part's"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_fixed_length_of_zero_is_refused() {
        let problem = |length| Aggregate::FixedLength { length }.problem().map(|p| p.to_string());
        assert_eq!(
            problem(0).unwrap(),
            "`aggregate.fixed_length.length` is 0, expected a whole number, at least 1"
        );
        assert!(problem(1).is_none() && Aggregate::TokenMean.problem().is_none());
        let text = r#"{"fixed_length":{"length":6}}"#;
        let parsed: Aggregate = serde_json::from_str(text).unwrap();
        assert_eq!(parsed, Aggregate::FixedLength { length: 6 });
        assert_eq!(
            serde_json::from_str::<Aggregate>("\"sequence_mean\"").unwrap(),
            Aggregate::SequenceMean
        );
    }
}
