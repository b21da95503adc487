//! Prompts with several completions, and how many there are.

use tch::Tensor;

use crate::counts::counts;
use crate::{CompletionRows, Completions, Error, Result};

/// `P` prompts, each with some samples and one negative.
#[derive(Debug)]
pub struct Groups {
    /// The `S` samples, one prompt's after the other's.
    pub samples: Completions,
    /// The `P` negatives, in the order of the prompts.
    pub negatives: Completions,
    /// Which samples belong to which prompt, as rows belong to completions.
    prompts: CompletionRows,
}

impl Groups {
    /// From `S + P` completions, and possibly others after them: all samples prompt by prompt, `n_samples` says how many
    /// each prompt has, then the negatives in the order of the prompts.
    ///
    /// **Errors**: [`Error::Empty`] without prompts; [`Error::Input`] for a prompt without samples or too few
    /// completions.
    pub fn split(completions: &Completions, n_samples: &[usize]) -> Result<Self> {
        let (s, p) = sizes(n_samples, completions.n() as usize)?;
        let (s, p) = (s as i64, p as i64);
        Ok(Groups {
            samples: completions.narrow(0, s)?,
            negatives: completions.narrow(s, p)?,
            prompts: CompletionRows::new(n_samples, completions.logp.device())?,
        })
    }

    /// `[P]` means over the samples of each prompt of one value per sample `[S]`; keeps the graph.
    ///
    /// **Errors**: [`Error::Input`] for another number of values.
    pub fn means(&self, per_sample: &Tensor) -> Result<Tensor> {
        let counts = self.prompts.tokens(per_sample.f_kind()?)?;
        Ok(self.prompts.sums(per_sample)?.f_div(&counts)?)
    }

    /// `[P]` and `[P]` the log-ratios to the references: the mean over the samples of each prompt, and of its negative.
    ///
    /// **Errors**: [`Error::Input`] without a reference.
    pub fn log_ratios(&self) -> Result<(Tensor, Tensor)> {
        Ok((self.means(&self.samples.log_ratio()?)?, self.negatives.log_ratio()?))
    }
}

/// The numbers of samples and prompts, where there are enough completions for both.
fn sizes(per_prompt: &[usize], n_completions: usize) -> Result<(usize, usize)> {
    if per_prompt.is_empty() {
        return Err(Error::Empty {
            what: "the batch of prompts",
        });
    }
    if let Some(at) = per_prompt.iter().position(|&n| n == 0) {
        let got = format!("none for prompt {at}");
        return Err(Error::input("n_samples", "at least one for every prompt", got));
    }
    let n_prompts = per_prompt.len();
    // A sum that saturates is above every number of completions too.
    let n_samples = per_prompt.iter().fold(0usize, |sum, &n| sum.saturating_add(n));
    if n_samples.saturating_add(n_prompts) > n_completions {
        let expected = format!("{n_samples} samples and then {n_prompts} negatives, at least");
        return Err(Error::input(
            "completions",
            expected,
            format!("{n_completions} completions"),
        ));
    }
    Ok((n_samples, n_prompts))
}

/// Sizes of the **whole** batch of prompts, over all its micro-batches: what the objective divides by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RankedCounts {
    /// Prompts.
    pub prompts: f64,
    /// Tokens of retained completions, those after the negatives.
    pub retained_tokens: f64,
}

counts!(RankedCounts {
    prompts,
    retained_tokens
});

impl RankedCounts {
    /// Counts one micro-batch: rows of the samples prompt by prompt, then of the negatives, then of retained
    /// completions.
    ///
    /// **Errors**: as [`Groups::split`].
    pub fn of(rows: &CompletionRows, n_samples: &[usize]) -> Result<Self> {
        let (n_samples, n_prompts) = sizes(n_samples, rows.n_completions())?;
        let retained = rows.lengths().iter().skip(n_samples + n_prompts);
        Ok(RankedCounts {
            prompts: n_prompts as f64,
            retained_tokens: retained.sum::<i64>() as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn completions(n: usize) -> Completions {
        let logp = Tensor::arange(n as i64, (Kind::Double, Device::Cpu));
        Completions::from_sums(&logp, Some(&(&logp * 0.5)), &logp.ones_like()).unwrap()
    }

    #[test]
    fn samples_come_first_then_negatives_then_others() {
        let groups = Groups::split(&completions(7), &[3, 1]).unwrap();
        let of = |t: &Tensor| Vec::<f64>::try_from(t).unwrap();
        assert_eq!(of(&groups.samples.logp), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(of(&groups.negatives.logp), [4.0, 5.0]);
        assert_eq!(of(&groups.means(&groups.samples.logp).unwrap()), [1.0, 3.0]);
        let (samples, negatives) = groups.log_ratios().unwrap();
        assert_eq!((of(&samples), of(&negatives)), (vec![0.5, 1.5], vec![2.0, 2.5]));
    }

    #[test]
    fn counts_leave_out_samples_and_negatives_and_add_up() {
        let rows = CompletionRows::new(&[9, 9, 9, 9, 9, 2, 5], Device::Cpu).unwrap();
        let counts = RankedCounts::of(&rows, &[2, 1]).unwrap();
        let expected = RankedCounts {
            prompts: 2.0,
            retained_tokens: 7.0,
        };
        assert_eq!(counts, expected);
        let mut sum: RankedCounts = [counts, counts].into_iter().sum();
        sum += counts;
        let expected = RankedCounts {
            prompts: 6.0,
            retained_tokens: 21.0,
        };
        assert_eq!(sum, expected);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let text = |samples: &[usize], n: usize| {
            let error = Groups::split(&completions(n), samples).unwrap_err().to_string();
            let rows = CompletionRows::new(&vec![1; n], Device::Cpu).unwrap();
            assert_eq!(RankedCounts::of(&rows, samples).unwrap_err().to_string(), error);
            error
        };
        assert_eq!(text(&[], 2), "the batch of prompts is empty");
        assert_eq!(
            text(&[2, 0], 4),
            "n_samples: expected at least one for every prompt, got none for prompt 1"
        );
        assert_eq!(
            text(&[2, 1], 4),
            "completions: expected 3 samples and then 2 negatives, at least, got 4 completions"
        );
        let huge = text(&[usize::MAX, 1], 4);
        assert!(
            huge.ends_with("samples and then 2 negatives, at least, got 4 completions"),
            "{huge}"
        );
        assert!(Groups::split(&completions(5), &[2, 1]).is_ok());
        let groups = Groups::split(&completions(3), &[2]).unwrap();
        assert!(groups.means(&groups.negatives.logp).is_err());
    }
}
