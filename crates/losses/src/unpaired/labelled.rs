//! Completions with their labels, and how many there are of each.

use tch::{Kind, Tensor};

use crate::baseline::wanted_baseline;
use crate::counts::counts;
use crate::value::select;
use crate::{CompletionRows, Completions, Error, Result};

/// `B` completions, each desirable or undesirable.
#[derive(Debug)]
pub struct Labelled {
    /// The completions.
    pub completions: Completions,
    /// `[B]` whether each is desirable, `bool`.
    pub desirable: Tensor,
    /// The whole-batch number that [`UnpairedLoss::baseline`](super::UnpairedLoss::baseline) asks for.
    pub baseline: Option<f64>,
    /// `[B]` weights of the undesirable completions, in the kind of the log-probabilities, no graph; those of desirable
    /// ones are not read.
    pub weights: Option<Tensor>,
}

impl Labelled {
    /// Completions with one label each.
    ///
    /// **Errors**: [`Error::Input`] for another number of labels.
    pub fn new(completions: Completions, desirable: &[bool]) -> Result<Self> {
        if completions.n() != desirable.len() as i64 {
            let expected = format!("{} labels, one for each completion", completions.n());
            return Err(Error::input("desirable", expected, desirable.len()));
        }
        Ok(Labelled {
            desirable: Tensor::f_from_slice(desirable)?.f_to_device(completions.logp.device())?,
            completions,
            baseline: None,
            weights: None,
        })
    }

    /// The same with a weight for every completion `[B]`.
    ///
    /// **Errors**: [`Error::Input`] for another shape, or a weight of an undesirable completion that is negative or not
    /// finite.
    pub fn with_weights(self, weights: &Tensor) -> Result<Self> {
        let logp = &self.completions.logp;
        if weights.size() != logp.size() || weights.device() != logp.device() {
            return Err(Error::input(
                "weights",
                format!("{:?} on {:?}, one for each completion", logp.size(), logp.device()),
                format!("{:?} on {:?}", weights.size(), weights.device()),
            ));
        }
        let weights = self.of_undesirable(&weights.f_detach()?.f_to_kind(logp.f_kind()?)?)?;
        let numbers = Vec::<f64>::try_from(&weights.f_to_kind(Kind::Double)?)?;
        let mut numbers = numbers.into_iter().enumerate();
        if let Some((at, bad)) = numbers.find(|(_, weight)| !(weight.is_finite() && *weight >= 0.0)) {
            let got = format!("{bad} for completion {at}");
            return Err(Error::input("weights", "finite numbers, at least 0", got));
        }
        Ok(Labelled {
            weights: Some(weights),
            ..self
        })
    }

    /// The baseline of a loss that has one.
    pub(crate) fn wanted_baseline(&self) -> Result<f64> {
        wanted_baseline(self.baseline)
    }

    /// `x` `[B]` for desirable completions, `−x` for undesirable ones.
    pub(crate) fn signed(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_where_self(&self.desirable, &x.f_neg()?)?)
    }

    /// `x` `[B]` for undesirable completions, 0 for desirable ones, whatever it holds there.
    pub(crate) fn of_undesirable(&self, x: &Tensor) -> Result<Tensor> {
        select(x, &self.desirable.f_logical_not()?)
    }
}

/// Sizes of the **whole** batch of labelled completions, over all its micro-batches: what the objective divides by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct UnpairedCounts {
    /// Desirable completions.
    pub desirable: f64,
    /// Undesirable completions.
    pub undesirable: f64,
    /// Tokens of desirable completions.
    pub desirable_tokens: f64,
}

counts!(UnpairedCounts {
    desirable,
    undesirable,
    desirable_tokens
});

impl UnpairedCounts {
    /// Counts one micro-batch.
    ///
    /// **Errors**: [`Error::Input`] for another number of labels than completions.
    pub fn of(rows: &CompletionRows, desirable: &[bool]) -> Result<Self> {
        if rows.n_completions() != desirable.len() {
            let expected = format!("{} labels, one for each completion", rows.n_completions());
            return Err(Error::input("desirable", expected, desirable.len()));
        }
        let mut counts = UnpairedCounts::default();
        for (&tokens, &desirable) in rows.lengths().iter().zip(desirable) {
            if desirable {
                counts.desirable += 1.0;
                counts.desirable_tokens += tokens as f64;
            } else {
                counts.undesirable += 1.0;
            }
        }
        Ok(counts)
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn two() -> Labelled {
        let logp = Tensor::from_slice(&[-2.0f64, -3.0]);
        let completions = Completions::from_sums(&logp, None, &(&logp * 0.0 + 1.0)).unwrap();
        Labelled::new(completions, &[true, false]).unwrap()
    }

    #[test]
    fn counts_know_the_labels_and_add_up() {
        let rows = CompletionRows::new(&[2, 5, 4], Device::Cpu).unwrap();
        let counts = UnpairedCounts::of(&rows, &[true, false, true]).unwrap();
        let expected = UnpairedCounts {
            desirable: 2.0,
            undesirable: 1.0,
            desirable_tokens: 6.0,
        };
        assert_eq!(counts, expected);
        let mut sum: UnpairedCounts = [counts, counts].into_iter().sum();
        sum += counts;
        let expected = UnpairedCounts {
            desirable: 6.0,
            undesirable: 3.0,
            desirable_tokens: 18.0,
        };
        assert_eq!(sum, expected);
        assert_eq!(
            UnpairedCounts::of(&rows, &[true]).unwrap_err().to_string(),
            "desirable: expected 3 labels, one for each completion, got 1"
        );
    }

    #[test]
    fn labels_choose_signs_and_sides_even_beside_nan() {
        let labelled = two();
        let x = Tensor::from_slice(&[1.5f64, -4.0]);
        let of = |t: &Tensor| Vec::<f64>::try_from(t).unwrap();
        assert_eq!(of(&labelled.signed(&x).unwrap()), [1.5, 4.0]);
        let nan = Tensor::from_slice(&[f64::NAN, -4.0]);
        assert_eq!(of(&labelled.of_undesirable(&nan).unwrap()), [0.0, -4.0]);
    }

    #[test]
    fn labels_and_weights_that_do_not_fit_are_errors() {
        let completions = two().completions;
        assert_eq!(
            Labelled::new(completions, &[true]).unwrap_err().to_string(),
            "desirable: expected 2 labels, one for each completion, got 1"
        );
        let text = |weights: &[f64]| {
            two()
                .with_weights(&Tensor::from_slice(weights))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            text(&[1.0]),
            "weights: expected [2] on Cpu, one for each completion, got [1] on Cpu"
        );
        assert_eq!(
            text(&[1.0, -0.5]),
            "weights: expected finite numbers, at least 0, got -0.5 for completion 1"
        );
        assert_eq!(
            text(&[1.0, f64::NAN]),
            "weights: expected finite numbers, at least 0, got NaN for completion 1"
        );
        let trained = Tensor::from_slice(&[1.0f64, 2.0]).set_requires_grad(true);
        assert!(!two().with_weights(&trained).unwrap().weights.unwrap().requires_grad());
        // Nobody reads the weight of a desirable completion.
        for weights in [[-1.0, 0.0], [f64::NAN, 2.0]] {
            let labelled = two().with_weights(&Tensor::from_slice(&weights)).unwrap();
            assert_eq!(
                Vec::<f64>::try_from(labelled.weights.unwrap()).unwrap(),
                [0.0, weights[1]]
            );
        }
    }
}
