//! What trains a critic.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::surrogate::column;
use super::{Aggregate, PolicyCounts};
use crate::error::positive;
use crate::{Card, CompletionRows, Described, Error, LossValue, Result};

/// The squared error of a critic, clipped around what it said when the completions were sampled.
///
/// `ℓ = ½ max((V − R)², (clip(V, V_old − c, V_old + c) − R)²)` per token; without `clip`, `½ (V − R)²`.
///
/// **Shapes**: see [`ValueBatch`].
///
/// **Parameters**: `clip` `c` (none), finite and above 0.
///
/// **Errors**: [`Error::Range`] for `clip`; otherwise those of [`ValueLoss::evaluate`].
///
/// **On negatives**: none; a low return draws its value down by the distance, without a bound.
///
/// **Reference**: S. Huang, M. Noukhovitch, A. Hosseini, K. Rasul, W. Wang, L. Tunstall, "The N+ implementation details of
/// RLHF with PPO: A case study on TL;DR summarization", 2024; clipping as in the code released with J. Schulman et al.,
/// "Proximal policy optimization algorithms", 2017.
///
/// **Differs from the paper**: no. The half is part of the loss here, as in most released code; TRL's `vf_coef` of 0.1
/// multiplies it.
///
/// ```
/// use tch::{Device, Tensor};
/// use unsay_losses::CompletionRows;
/// use unsay_losses::policy::{Aggregate, PolicyCounts, ValueBatch, ValueLoss};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let rows = CompletionRows::new(&[1], Device::Cpu)?;
/// let one = |x: f64| Tensor::from_slice(&[x]);
/// let batch = ValueBatch { values: &one(1.0), old: Some(&one(0.0)), returns: &one(2.0), rows: &rows };
/// let loss = ValueLoss { clip: Some(0.2) };
/// let value = loss.evaluate(&batch, Aggregate::TokenMean, &PolicyCounts::of(&rows))?;
/// assert!((value.total.double_value(&[]) - 1.62).abs() < 1e-12); // (0.2 - 2)^2 / 2, larger than 1/2
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueLoss {
    /// How far a value may move from the old one before it is held; finite, above 0; published runs use 0.2.
    #[serde(default)]
    pub clip: Option<f64>,
}

/// One micro-batch of what a critic says of sampled completions.
#[derive(Debug, Clone, Copy)]
pub struct ValueBatch<'a> {
    /// `[N]` the critic's value before every row's token, with its graph.
    pub values: &'a Tensor,
    /// `[N]` what it said when the completions were sampled, where the loss clips; a constant.
    pub old: Option<&'a Tensor>,
    /// `[N]` what turned out; a constant.
    pub returns: &'a Tensor,
    /// The completions that the rows belong to. They may have one row more than those of the policy, where a reward
    /// stands after the last token.
    pub rows: &'a CompletionRows,
}

impl Described for ValueLoss {
    fn card(&self) -> Card {
        Card {
            name: "value",
            summary: "squared error of a critic, clipped around its old value",
            formula: "½ max((V − R)², (clip(V, V_old − c, V_old + c) − R)²)",
            on_negatives: "a low return draws the value down; unbounded",
            source: "Huang et al. 2024",
        }
    }

    fn problems(&self) -> Vec<Error> {
        self.clip
            .and_then(|clip| positive("value.clip", clip))
            .into_iter()
            .collect()
    }
}

impl ValueLoss {
    /// The value on one micro-batch, aggregated as in [`Objective::evaluate`](super::Objective::evaluate), by counts of the
    /// rows of the whole batch.
    ///
    /// Terms for the log, means over the rows of the whole batch: `value_error`, the squared error without clipping;
    /// `value_clip_fraction` where the loss clips (a row counts where clipping made its value strictly larger).
    ///
    /// **Errors**: [`Error::Range`] for a parameter outside its range; [`Error::Input`] when the parts of the batch do not
    /// fit together or one is missing.
    pub fn evaluate(&self, batch: &ValueBatch<'_>, aggregate: Aggregate, counts: &PolicyCounts) -> Result<LossValue> {
        if let Some(problem) = self.problems().into_iter().chain(aggregate.problem()).next() {
            return Err(problem);
        }
        counts.check(batch.rows)?;
        let kind = column("values", batch.values, batch.rows)?;
        let constant = |what, tensor: &Tensor| -> Result<Tensor> {
            column(what, tensor, batch.rows)?;
            Ok(tensor.f_detach()?.f_to_kind(kind)?)
        };
        let returns = constant("returns", batch.returns)?;
        let free = batch.values.f_sub(&returns)?.f_square()?;
        let mut terms = vec![("value_error", counts.token_mean(&free)?)];
        let mut values = free.shallow_clone();
        if let Some(clip) = self.clip {
            let expected = "the old value of every row, as the loss clips";
            let old = batch.old.ok_or_else(|| Error::input("old", expected, "none"))?;
            let old = constant("old", old)?;
            let (low, high) = (old.f_sub_scalar(clip)?, old.f_add_scalar(clip)?);
            let held = batch.values.f_clamp_tensor(Some(low), Some(high))?;
            let held = held.f_sub(&returns)?.f_square()?;
            terms.push(("value_clip_fraction", counts.share(&held.f_gt_tensor(&free)?, kind)?));
            values = values.f_maximum(&held)?;
        }
        aggregate.reduce(&values.f_mul_scalar(0.5)?, batch.rows, counts, terms)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn tensor(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    /// Total, gradient and terms over one completion that is a third of the whole batch.
    fn run(loss: ValueLoss, values: &[f64], old: &[f64], returns: &[f64]) -> (f64, Vec<f64>, Vec<(&'static str, f64)>) {
        let rows = CompletionRows::new(&[values.len()], Device::Cpu).unwrap();
        let (values, old, returns) = (tensor(values), tensor(old), tensor(returns));
        let batch = ValueBatch {
            values: &values,
            old: Some(&old),
            returns: &returns,
            rows: &rows,
        };
        let own = PolicyCounts::of(&rows);
        let counts = [own; 3].into_iter().sum();
        let value = loss.evaluate(&batch, Aggregate::TokenMean, &counts).unwrap();
        value.total.backward();
        assert!(!old.grad().defined() && !returns.grad().defined(), "constants");
        let terms = value.terms.iter().map(|(name, t)| (*name, t.double_value(&[]) * 3.0));
        let each = value.per_example.sum(Kind::Double).double_value(&[]);
        assert!((each - value.total.double_value(&[])).abs() < 1e-12 * each.abs());
        let slopes = Vec::<f64>::try_from(values.grad() * (3.0 * counts.tokens / 3.0)).unwrap();
        (each * 3.0, slopes, terms.collect())
    }

    #[test]
    fn the_worse_of_both_errors_counts() {
        // Old value 0, so values are held in ±0.5: untouched; held and worse; held and better, on either side.
        let (values, returns) = ([0.25, 1.0, 1.0, -1.0, -1.0], [1.0, 2.0, 0.0, -2.0, 0.0]);
        let (total, slopes, terms) = run(ValueLoss { clip: Some(0.5) }, &values, &[0.0; 5], &returns);
        // Squares: .5625; max(1, 2.25); max(1, .25); likewise.
        assert!(
            (total - (0.5625 + 2.25 + 1.0 + 2.25 + 1.0) / 10.0).abs() < 1e-12,
            "{total}"
        );
        let expected = [-0.75, 0.0, 1.0, 0.0, -1.0];
        assert!(
            slopes.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12),
            "{slopes:?}"
        );
        assert_eq!(terms[1].0, "value_clip_fraction");
        assert!((terms[1].1 - 0.4).abs() < 1e-12);
        assert!(terms[0].0 == "value_error" && (terms[0].1 - 4.5625 / 5.0).abs() < 1e-12);
    }

    #[test]
    fn without_clipping_it_is_half_the_squared_error() {
        let (total, slopes, terms) = run(ValueLoss { clip: None }, &[1.0, 1e4], &[0.0; 2], &[3.0, -1e4]);
        assert!((total - (4.0 + 4e8) / 4.0).abs() < 1e-6);
        assert!((slopes[0] + 2.0).abs() < 1e-12 && (slopes[1] - 2e4).abs() < 1e-9);
        assert_eq!(terms.len(), 1);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let rows = CompletionRows::new(&[2], Device::Cpu).unwrap();
        let (two, three) = (tensor(&[0.0; 2]), tensor(&[0.0; 3]));
        let own = PolicyCounts::of(&rows);
        let text = |clip, values, old, returns, aggregate, counts| {
            let batch = ValueBatch {
                values,
                old,
                returns,
                rows: &rows,
            };
            let error = ValueLoss { clip }.evaluate(&batch, aggregate, counts).unwrap_err();
            error.to_string()
        };
        let mean = Aggregate::TokenMean;
        let expected = |what: &str| format!("{what}: expected [2], floating point, on Cpu, got [3] of Double on Cpu");
        assert_eq!(text(None, &three, None, &two, mean, &own), expected("values"));
        assert_eq!(text(None, &two, None, &three, mean, &own), expected("returns"));
        assert_eq!(text(Some(0.1), &two, Some(&three), &two, mean, &own), expected("old"));
        assert_eq!(
            text(Some(0.1), &two, None, &two, mean, &own),
            "old: expected the old value of every row, as the loss clips, got none"
        );
        assert_eq!(
            text(Some(0.0), &two, None, &two, mean, &own),
            "`value.clip` is 0, expected a finite number above 0"
        );
        let fixed = Aggregate::FixedLength { length: 0 };
        assert!(text(None, &two, None, &two, fixed, &own).starts_with("`aggregate.fixed_length.length` is 0"));
        let few = PolicyCounts { tokens: 1.0, ..own };
        assert!(text(None, &two, None, &two, mean, &few).starts_with("counts: expected"));
    }

    #[test]
    fn the_card_and_the_manifest_form() {
        let loss: ValueLoss = serde_json::from_str(r#"{ "clip": 0.2 }"#).unwrap();
        assert_eq!((loss, loss.name()), (ValueLoss { clip: Some(0.2) }, "value"));
        assert!(loss.check().is_ok() && ValueLoss::default().check().is_ok());
        assert_eq!(serde_json::from_str::<ValueLoss>("{}").unwrap(), ValueLoss::default());
    }
}
