//! Bringing what came out of a batch to the host, in one transfer.

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::objective::Outcome;
use crate::record::Metrics;

/// The numbers of an [`Outcome`].
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) loss: f64,
    pub(crate) grad_norm: Option<f64>,
    parts: Vec<(&'static str, f64)>,
    per_example: Vec<f64>,
    counts: Vec<(&'static str, f64)>,
}

/// What is wrong with a reading.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotFinite {
    /// The term or metric; the loss or the gradient's norm only where all of those are finite.
    pub(crate) term: &'static str,
    /// The positions in the batch of the examples it comes from; all where none stands out.
    pub(crate) positions: Vec<usize>,
}

impl Reading {
    /// Reads an outcome and, from a training step, the norm of the gradient.
    pub(crate) fn new(outcome: &Outcome, grad_norm: Option<&Tensor>) -> Result<Self> {
        let named: Vec<&(&str, Tensor)> = outcome.terms.iter().chain(&outcome.metrics).collect();
        let mut scalars = vec![&outcome.loss];
        scalars.extend(named.iter().map(|(_, value)| value));
        scalars.extend(grad_norm);
        let all = Tensor::f_cat(&[&Tensor::f_stack(&scalars, 0)?, &outcome.per_example], 0)?;
        let all = all.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?;
        let mut values = vec![0.0_f64; all.numel()];
        all.f_copy_data(&mut values, all.numel())?;
        let per_example = values.split_off(scalars.len());
        let parts = named.iter().zip(&values[1..]).map(|((name, _), &value)| (*name, value));
        Ok(Self {
            loss: values[0],
            grad_norm: grad_norm.and_then(|_| values.last().copied()),
            parts: parts.collect(),
            per_example,
            counts: outcome.counts.clone(),
        })
    }

    /// The first value that is NaN or infinite.
    pub(crate) fn not_finite(&self) -> Option<NotFinite> {
        let whole = [("loss", Some(self.loss)), ("grad_norm", self.grad_norm)];
        let whole = whole.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let bad = |value: f64| !value.is_finite();
        let example = self.per_example.iter().any(|&value| bad(value));
        let mut named = self.parts.iter().copied().chain(whole);
        let term = named.find(|&(_, value)| bad(value)).map(|(name, _)| name);
        let term = term.or(example.then_some("loss"))?;
        let positions = (0..self.per_example.len()).filter(|&position| !example || bad(self.per_example[position]));
        Some(NotFinite {
            term,
            positions: positions.collect(),
        })
    }

    /// The record's form: loss, terms, metrics, gradient norm, counts.
    pub(crate) fn into_metrics(self) -> Metrics {
        let norm = self.grad_norm.map(|norm| ("grad_norm", norm));
        let all = [("loss", self.loss)]
            .into_iter()
            .chain(self.parts)
            .chain(norm)
            .chain(self.counts);
        all.map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(term: f64, per_example: &[f64]) -> Outcome {
        Outcome {
            loss: Tensor::from(per_example.iter().sum::<f64>()),
            terms: vec![("ce_loss", Tensor::from(term))],
            metrics: vec![("ppl_pos", Tensor::from(2.0))],
            counts: vec![("num_tokens", 7.0)],
            per_example: Tensor::from_slice(per_example),
        }
    }

    fn problem(term: f64, per_example: &[f64], norm: f64) -> Option<NotFinite> {
        Reading::new(&outcome(term, per_example), Some(&Tensor::from(norm)))
            .unwrap()
            .not_finite()
    }

    #[test]
    fn metrics_have_a_fixed_order() {
        let reading = Reading::new(&outcome(1.0, &[0.5, 0.25]), Some(&Tensor::from(3.0))).unwrap();
        assert_eq!(reading.not_finite(), None);
        let metrics = reading.into_metrics();
        let expected = [
            ("loss", 0.75),
            ("ce_loss", 1.0),
            ("ppl_pos", 2.0),
            ("grad_norm", 3.0),
            ("num_tokens", 7.0),
        ];
        assert_eq!(metrics, expected.map(|(name, value)| (name.to_owned(), value)));
        let without = Reading::new(&outcome(1.0, &[0.5]), None).unwrap();
        assert_eq!(without.grad_norm, None);
        assert_eq!(without.into_metrics().len(), 4);
    }

    #[test]
    fn the_most_telling_value_is_named_with_its_examples() {
        let found = |term, per_example: &[f64], norm| problem(term, per_example, norm).map(|p| (p.term, p.positions));
        assert_eq!(
            found(f64::NAN, &[1.0, f64::NAN, f64::INFINITY], 1.0),
            Some(("ce_loss", vec![1, 2]))
        );
        assert_eq!(found(1.0, &[1.0, f64::NAN], f64::NAN), Some(("loss", vec![1])));
        assert_eq!(found(1.0, &[1.0, 2.0], f64::INFINITY), Some(("grad_norm", vec![0, 1])));
        // Opposite infinities could hide in a sum of other terms, not here.
        assert_eq!(
            found(1.0, &[f64::INFINITY, f64::NEG_INFINITY], 1.0),
            Some(("loss", vec![0, 1]))
        );
    }
}
