//! A loss over several completions per prompt and what can be put around it.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Groups, Loss, RankedCounts};
use crate::completions::wanted_reference;
use crate::counts::Counts;
use crate::error::first;
use crate::paired::Logps;
use crate::{CompletionRows, Completions, Error, LossValue, Needs, Result, Retain, TokenStats};

/// A loss over several completions per prompt with everything around it: the manifest form of training on groups.
///
/// `L = (1/P) Σ ℓ(prompt) +` the terms of [`Retain`] on the completions after the negatives, with `ℓ` the loss and
/// `P` the prompts of the whole batch.
///
/// ```
/// use unsay_losses::ranked::Objective;
///
/// let text = r#"{ "loss": { "d2o": { "alpha": 0.1, "beta": 0.1 } }, "logps": "mean", "retain": { "kl": 0.1 } }"#;
/// let objective: Objective = serde_json::from_str(text).unwrap();
/// assert!(objective.problems().is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// The value of one prompt.
    pub loss: Loss,
    /// How token log-probabilities become that of a completion: `sum` or `mean`.
    #[serde(default)]
    pub logps: Logps,
    /// What holds the model to the completions after the negatives.
    #[serde(default)]
    pub retain: Retain,
}

/// One micro-batch of prompts on its way through an [`Objective`].
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Of the rows of all samples, prompt by prompt, then of the negatives in the order of the prompts, then of the
    /// completions to retain, if any.
    pub stats: &'a TokenStats,
    /// The completions that the rows belong to.
    pub rows: &'a CompletionRows,
    /// How many samples each prompt has.
    pub n_samples: &'a [usize],
    /// `[N]` the log-probability of every row under the reference of its kind, where the loss has references: `π⁻` for
    /// samples, `π⁺` for negatives; those of retained completions are not read.
    pub reference: Option<&'a Tensor>,
}

impl From<Loss> for Objective {
    /// The loss alone.
    fn from(loss: Loss) -> Self {
        Objective {
            loss,
            logps: Logps::Sum,
            retain: Retain::default(),
        }
    }
}

impl Objective {
    /// Every parameter outside its range and every part that does not go with the loss.
    pub fn problems(&self) -> Vec<Error> {
        let mut problems = self.loss.problems();
        if !matches!(self.logps, Logps::Sum | Logps::Mean) {
            problems.push(Error::Range {
                name: "logps",
                value: self.logps.to_string(),
                range: "`sum` or `mean`, as there is no pair whose shorter completion could be the measure",
            });
        }
        problems.extend(self.retain.problems());
        problems
    }

    /// Whether the references' log-probabilities are needed.
    pub fn uses_reference(&self) -> bool {
        self.loss.uses_reference()
    }

    /// What it reads from the op.
    pub fn needs(&self) -> Needs {
        self.retain.needs()
    }

    /// The completions of a micro-batch by prompt.
    ///
    /// **Errors**: [`Error::Input`] when the parts do not fit together or one is missing, [`Error::Empty`] without
    /// prompts.
    pub fn groups(&self, batch: &Batch<'_>) -> Result<Groups> {
        let reference = wanted_reference(self.uses_reference(), batch.reference)?;
        let mut completions = Completions::of(batch.stats, batch.rows, reference, None)?;
        if self.logps == Logps::Mean {
            completions = completions.per_token()?;
        }
        Groups::split(&completions, batch.n_samples)
    }

    /// The value on one micro-batch, divided by counts of the whole batch. Its examples are the prompts and then the
    /// retained completions.
    ///
    /// Terms for the log, means over prompts: `reward_samples`, `reward_negative`, `reward_margin` and
    /// `reward_accuracy` (the samples strictly above the negative), `log_ratio_samples` and `log_ratio_negative` to
    /// the references, `logp_samples` and `logp_negative` (sums per completion); those of samples are means over the
    /// samples of a prompt. Where they are part of the objective, `retain_nll` and `retain_kl`, means over tokens of
    /// retained completions.
    ///
    /// **Errors**: [`Error::Range`] for a parameter outside its range or a part that does not go with the loss;
    /// [`Error::Input`] when the parts of the batch do not fit together or one is missing; [`Error::Empty`] without
    /// prompts.
    pub fn evaluate(&self, batch: &Batch<'_>, counts: &RankedCounts) -> Result<LossValue> {
        first(self.problems())?;
        counts.check_covers(&RankedCounts::of(batch.rows, batch.n_samples)?)?;
        let groups = self.groups(batch)?;
        let mut values = self.loss.values(&groups)?.f_div_scalar(counts.prompts)?;
        let mut terms = self.terms(batch, &groups, counts)?;
        let first = groups.samples.n() + groups.negatives.n();
        let b = batch.rows.n_completions() as i64;
        let kept = Tensor::f_arange(b, (tch::Kind::Int64, values.device()))?.f_ge(first)?;
        let retained = self
            .retain
            .evaluate(batch.stats, batch.rows, &kept, counts.retained_tokens)?;
        let others = match &retained.values {
            Some(values) => values.f_narrow(0, first, b - first)?,
            None => values.f_new_zeros([b - first], (values.f_kind()?, values.device()))?,
        };
        values = Tensor::f_cat(&[values, others], 0)?;
        terms.extend(retained.terms);
        Ok(LossValue {
            total: values.f_sum(None)?,
            per_example: values.f_detach()?,
            terms,
        })
    }

    fn terms(&self, batch: &Batch<'_>, groups: &Groups, counts: &RankedCounts) -> Result<Vec<(&'static str, Tensor)>> {
        let mean = |t: &Tensor| -> Result<Tensor> { Ok(t.f_sum(None)?.f_div_scalar(counts.prompts)?) };
        let (samples, negative) = self.loss.rewards(groups)?;
        let ahead = samples.f_gt_tensor(&negative)?.f_to_kind(samples.f_kind()?)?;
        let mut terms = vec![
            ("reward_samples", mean(&samples)?),
            ("reward_negative", mean(&negative)?),
            ("reward_margin", mean(&samples.f_sub(&negative)?)?),
            ("reward_accuracy", mean(&ahead)?),
        ];
        if self.uses_reference() {
            let (samples, negative) = groups.log_ratios()?;
            terms.push(("log_ratio_samples", mean(&samples.f_detach()?)?));
            terms.push(("log_ratio_negative", mean(&negative.f_detach()?)?));
        }
        let logp = batch.rows.sums(&batch.stats.logp.f_detach()?)?;
        let (s, p) = (groups.samples.n(), groups.negatives.n());
        terms.push(("logp_samples", mean(&groups.means(&logp.f_narrow(0, 0, s)?)?)?));
        terms.push(("logp_negative", mean(&logp.f_narrow(0, s, p)?)?));
        Ok(terms)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::ranked::D2o;

    /// Completions given as numbers per row.
    struct Made {
        n_samples: Vec<usize>,
        lengths: Vec<usize>,
        logp: Vec<f64>,
        reference: Vec<f64>,
        kl: Vec<f64>,
    }

    /// What an objective gives on them.
    struct Outcome {
        value: LossValue,
        gradient: Vec<f64>,
        of_kl: Vec<f64>,
    }

    fn numbers(t: &Tensor) -> Vec<f64> {
        match t.defined() {
            true => Vec::try_from(t.detach()).unwrap(),
            false => Vec::new(),
        }
    }

    fn near(ours: &[f64], expected: &[f64]) -> bool {
        ours.len() == expected.len() && ours.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12)
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    impl Made {
        /// Two prompts with two samples and one, and one completion to retain. Log-ratios: 1 and 3; -2; -5 and 4.
        fn two() -> Made {
            Made {
                n_samples: vec![2, 1],
                lengths: vec![1, 2, 1, 1, 1, 2],
                logp: vec![-1.0, -2.0, -1.0, -4.0, -7.0, -3.0, -0.5, -1.5],
                reference: vec![-2.0, -3.0, -3.0, -2.0, -2.0, -7.0, f64::NAN, f64::NAN],
                kl: vec![0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1, 0.3],
            }
        }

        /// The first prompt of [`Made::two`] alone.
        fn first() -> Made {
            Made {
                n_samples: vec![2],
                lengths: vec![1, 2, 1],
                logp: vec![-1.0, -2.0, -1.0, -7.0],
                reference: vec![-2.0, -3.0, -3.0, -2.0],
                kl: vec![0.9; 4],
            }
        }

        /// The second prompt of [`Made::two`] and the retained completion.
        fn second() -> Made {
            Made {
                n_samples: vec![1],
                lengths: vec![1, 1, 2],
                logp: vec![-4.0, -3.0, -0.5, -1.5],
                reference: vec![-2.0, -7.0, f64::NAN, f64::NAN],
                kl: vec![0.9, 0.9, 0.1, 0.3],
            }
        }

        fn rows(&self) -> CompletionRows {
            CompletionRows::new(&self.lengths, Device::Cpu).unwrap()
        }

        fn counts(&self) -> RankedCounts {
            RankedCounts::of(&self.rows(), &self.n_samples).unwrap()
        }

        fn try_run(&self, objective: &Objective, counts: &RankedCounts, with_reference: bool) -> Result<Outcome> {
            tch::set_num_threads(1);
            let leaf = |x: &[f64]| Tensor::from_slice(x).set_requires_grad(true);
            let n = self.logp.len() as i64;
            let (targets, correct) = (
                Tensor::zeros([n], (Kind::Int64, Device::Cpu)),
                Tensor::zeros([n], (Kind::Bool, Device::Cpu)),
            );
            let mut stats = TokenStats::new(targets, leaf(&self.logp), correct);
            stats.kl = objective.needs().kl.map(|_| leaf(&self.kl));
            let reference = Tensor::from_slice(&self.reference);
            let batch = Batch {
                stats: &stats,
                rows: &self.rows(),
                n_samples: &self.n_samples,
                reference: with_reference.then_some(&reference),
            };
            let value = objective.evaluate(&batch, counts)?;
            value.total.backward();
            Ok(Outcome {
                gradient: numbers(&stats.logp.grad()),
                of_kl: stats.kl.as_ref().map(|kl| numbers(&kl.grad())).unwrap_or_default(),
                value,
            })
        }

        fn run(&self, objective: &Objective, counts: &RankedCounts) -> Outcome {
            self.try_run(objective, counts, true).unwrap()
        }
    }

    fn d2o(logps: Logps, nll: f64, kl: f64) -> Objective {
        Objective {
            loss: Loss::D2o(D2o { alpha: 0.1, beta: 0.3 }),
            logps,
            retain: Retain { nll, kl },
        }
    }

    fn terms(value: &LossValue) -> Vec<(&'static str, f64)> {
        let terms = value.terms.iter();
        terms.map(|(name, term)| (*name, term.double_value(&[]))).collect()
    }

    fn same_terms(value: &LossValue, expected: &[(&'static str, f64)]) {
        let (names, values): (Vec<_>, Vec<_>) = terms(value).into_iter().unzip();
        let (expected_names, expected): (Vec<_>, Vec<_>) = expected.iter().copied().unzip();
        assert_eq!(names, expected_names);
        assert!(near(&values, &expected), "{values:?}");
    }

    #[test]
    fn prompts_and_retained_completions_have_denominators_of_the_whole_batch() {
        let counts = RankedCounts {
            prompts: 4.0,
            retained_tokens: 10.0,
        };
        let ours = Made::two().run(&d2o(Logps::Sum, 0.5, 2.0), &counts);
        // z = 0.3 · 2 + 0.1 · 5 = 1.1 and 0.3 · -2 - 0.1 · 4 = -1; 0.5 · 2/10 + 2 · 0.4/10
        let values = [-sigmoid(1.1).ln() / 4.0, -sigmoid(-1.0).ln() / 4.0, 0.18];
        assert!(near(&numbers(&ours.value.per_example), &values), "{:?}", ours.value);
        let total = ours.value.total.double_value(&[]);
        assert!((total - values.iter().sum::<f64>()).abs() < 1e-12);
        let (a, b) = (sigmoid(-1.1) / 4.0, sigmoid(1.0) / 4.0);
        let slopes = [
            -0.15 * a,
            -0.15 * a,
            -0.15 * a,
            -0.3 * b,
            0.1 * a,
            0.1 * b,
            -0.05,
            -0.05,
        ];
        assert!(near(&ours.gradient, &slopes), "{:?}", ours.gradient);
        assert!(
            near(&ours.of_kl, &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.2]),
            "{:?}",
            ours.of_kl
        );
        let logged = ours.value.terms.iter().map(|(_, term)| term);
        assert!(logged.chain([&ours.value.per_example]).all(|t| !t.requires_grad()));
        same_terms(
            &ours.value,
            &[
                ("reward_samples", 0.0),
                ("reward_negative", -0.025),
                ("reward_margin", 0.025),
                ("reward_accuracy", 0.25),
                ("log_ratio_samples", 0.0),
                ("log_ratio_negative", -0.25),
                ("logp_samples", -1.5),
                ("logp_negative", -2.5),
                ("retain_nll", 0.2),
                ("retain_kl", 0.04),
            ],
        );
    }

    #[test]
    fn means_per_token_are_taken_of_policy_and_references() {
        let made = Made::two();
        let ours = made.run(&d2o(Logps::Mean, 0.0, 0.0), &made.counts());
        // The second sample of the first prompt has two tokens: log-ratios 1 and 3/2.
        let values = [-sigmoid(0.3 * 1.25 + 0.5).ln() / 2.0, -sigmoid(-1.0).ln() / 2.0, 0.0];
        assert!(near(&numbers(&ours.value.per_example), &values), "{:?}", ours.value);
        let shared = sigmoid(-0.875) / 2.0;
        assert!(near(
            &ours.gradient[..3],
            &[-0.15 * shared, -0.075 * shared, -0.075 * shared]
        ));
        let names: Vec<&str> = terms(&ours.value).iter().map(|(name, _)| *name).collect();
        assert_eq!((names.len(), names.last()), (8, Some(&"logp_negative")));
        // Log-probabilities are reported as sums all the same.
        assert!((terms(&ours.value)[6].1 + 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_sample_that_is_no_better_is_not_counted_as_right() {
        let made = Made {
            logp: vec![-1.0, -1.0],
            reference: vec![-1.0, -1.0],
            n_samples: vec![1],
            lengths: vec![1, 1],
            kl: vec![0.0; 2],
        };
        let ours = made.run(&d2o(Logps::Sum, 0.0, 0.0), &made.counts());
        let accuracy = terms(&ours.value)[3];
        assert!(accuracy.0 == "reward_accuracy" && accuracy.1.abs() < 1e-12);
        assert!((ours.value.total.double_value(&[]) - 2f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn micro_batches_add_up() {
        let (whole, parts) = (Made::two(), [Made::first(), Made::second()]);
        let counts = whole.counts();
        assert_eq!(parts.iter().map(Made::counts).sum::<RankedCounts>(), counts);
        for logps in [Logps::Sum, Logps::Mean] {
            let objective = d2o(logps, 0.5, 2.0);
            let whole = whole.run(&objective, &counts);
            let parts = parts.each_ref().map(|part| part.run(&objective, &counts));
            let total: f64 = parts.iter().map(|part| part.value.total.double_value(&[])).sum();
            assert!((total - whole.value.total.double_value(&[])).abs() < 1e-12);
            let per_example = parts.each_ref().map(|part| numbers(&part.value.per_example)).concat();
            assert!(near(&per_example, &numbers(&whole.value.per_example)));
            // Rows of the first prompt are 0, 1, 2 and 4 of the whole batch.
            let order = [0, 1, 2, 4, 3, 5, 6, 7];
            for of in [
                |outcome: &Outcome| outcome.gradient.clone(),
                |outcome: &Outcome| outcome.of_kl.clone(),
            ] {
                let all = of(&whole);
                let expected: Vec<f64> = order.iter().map(|&row| all[row]).collect();
                assert!(near(&parts.each_ref().map(of).concat(), &expected));
            }
            let sums: Vec<(&str, f64)> = (terms(&parts[0].value).into_iter())
                .zip(terms(&parts[1].value))
                .map(|((name, a), (other, b))| {
                    assert_eq!(name, other);
                    (name, a + b)
                })
                .collect();
            same_terms(&whole.value, &sums);
        }
    }

    #[test]
    fn what_is_missing_or_does_not_fit_is_an_error() {
        let (made, objective) = (Made::two(), d2o(Logps::Sum, 0.0, 0.0));
        let error = made.try_run(&objective, &made.counts(), false).err().unwrap();
        assert_eq!(
            error.to_string(),
            "reference: expected the reference's log-probabilities, as the loss compares with it, got none"
        );
        let fine = made.counts();
        for counts in [
            RankedCounts { prompts: 1.0, ..fine },
            RankedCounts {
                retained_tokens: 1.0,
                ..fine
            },
            RankedCounts {
                prompts: f64::NAN,
                ..fine
            },
            RankedCounts {
                retained_tokens: f64::NAN,
                ..fine
            },
            RankedCounts {
                prompts: f64::INFINITY,
                ..fine
            },
            RankedCounts {
                retained_tokens: f64::INFINITY,
                ..fine
            },
        ] {
            let text = made.try_run(&objective, &counts, true).err().unwrap().to_string();
            assert!(
                text.starts_with("counts: expected sizes of the whole batch, at least this part's"),
                "{text}"
            );
        }
        let none = Made {
            n_samples: vec![2, 0],
            ..made
        };
        let error = none.try_run(&objective, &fine, true).err().unwrap();
        assert_eq!(
            error.to_string(),
            "n_samples: expected at least one for every prompt, got none for prompt 1"
        );
    }

    #[test]
    fn parts_that_do_not_go_with_the_loss_are_problems() {
        let text = concat!(
            r#"{"loss": {"d2o": {"alpha": 0.1, "beta": 0.1}}, "#,
            r#""logps": {"ld": {"alpha": 0.5}}, "retain": {"kl": -1.0}}"#
        );
        let objective: Objective = serde_json::from_str(text).unwrap();
        let problems: Vec<String> = objective.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "`logps` is { ld: { alpha: 0.5 } }, expected `sum` or `mean`, as there is no pair whose shorter completion \
                 could be the measure",
                "`retain.kl` is -1, expected a finite number, at least 0",
            ]
        );
        let made = Made::two();
        let error = made.try_run(&objective, &made.counts(), true).err().unwrap();
        assert_eq!(error.to_string(), problems[0]);
        let plain: Objective = serde_json::from_str(r#"{"loss": {"d2o": {"alpha": 0.1, "beta": 0.3}}}"#).unwrap();
        assert_eq!(plain, Objective::from(plain.loss.clone()));
        assert_eq!(plain, d2o(Logps::Sum, 0.0, 0.0));
        assert!(plain.uses_reference() && plain.needs() == Needs::default());
        assert!(d2o(Logps::Sum, 0.0, 1.0).needs().kl.is_some());
    }
}
