//! Scores and what people said about them.

use std::fmt;

use tch::{Kind, Tensor};

use crate::counts::counts;
use crate::{Error, Result};

/// Which kind of answers people gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feedback {
    /// A label for every score.
    Labels,
    /// Which of two is better.
    Pairs,
    /// Which of `K` is best.
    Choices,
}

impl fmt::Display for Feedback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Feedback::Labels => "labels",
            Feedback::Pairs => "pairs",
            Feedback::Choices => "choices",
        })
    }
}

/// `B` answers and the scores of what they are about.
#[derive(Debug, Clone, Copy)]
pub enum Scores<'a> {
    /// A label for every score.
    Labels {
        /// `[B]` scores, as logits, with their graph.
        score: &'a Tensor,
        /// `[B]` in `[0, 1]`.
        target: &'a Tensor,
    },
    /// Which of two is better.
    Pairs {
        /// `[B]` scores of what was chosen, with their graph.
        chosen: &'a Tensor,
        /// `[B]` scores of what was not, in the same order, with their graph.
        rejected: &'a Tensor,
        /// `[B]` by how much the chosen one should lead, where people also said how much better it is.
        margin: Option<&'a Tensor>,
    },
    /// Which of `K` is best.
    Choices {
        /// `[B, K]` scores, with their graph.
        scores: &'a Tensor,
        /// `[B]` which of them was chosen, `i64` in `0..K`.
        best: &'a Tensor,
    },
}

/// Chosen and rejected scores, and the margins between them.
type Pairs<'a> = (&'a Tensor, &'a Tensor, Option<&'a Tensor>);

impl<'a> Scores<'a> {
    /// Which kind of answers they are.
    pub fn feedback(&self) -> Feedback {
        match self {
            Scores::Labels { .. } => Feedback::Labels,
            Scores::Pairs { .. } => Feedback::Pairs,
            Scores::Choices { .. } => Feedback::Choices,
        }
    }

    /// How many answers there are.
    pub fn n(&self) -> i64 {
        let scores = match self {
            Scores::Labels { score, .. } => score,
            Scores::Pairs { chosen, .. } => chosen,
            Scores::Choices { scores, .. } => scores,
        };
        scores.size().first().copied().unwrap_or(0)
    }

    /// The scores and their labels.
    pub(super) fn labels(&self) -> Result<(&'a Tensor, &'a Tensor)> {
        match self {
            Scores::Labels { score, target } => Ok((score, target)),
            _ => Err(self.unlike(Feedback::Labels)),
        }
    }

    /// The scores of both sides and the margins.
    pub(super) fn pairs(&self) -> Result<Pairs<'a>> {
        let Scores::Pairs {
            chosen,
            rejected,
            margin,
        } = *self
        else {
            return Err(self.unlike(Feedback::Pairs));
        };
        floating("chosen", chosen, 1)?;
        for (what, other) in [("rejected", Some(rejected)), ("margin", margin)] {
            let Some(other) = other else { continue };
            if other.size() != chosen.size() || other.device() != chosen.device() {
                return Err(Error::input(
                    what,
                    format!("{:?} on {:?}, as `chosen`", chosen.size(), chosen.device()),
                    format!("{:?} on {:?}", other.size(), other.device()),
                ));
            }
        }
        if let Some(margin) = margin
            && margin.f_isfinite()?.f_all()?.int64_value(&[]) != 1
        {
            return Err(Error::input("margin", "finite numbers", "others among them"));
        }
        Ok((chosen, rejected, margin))
    }

    /// The scores `[B, K]` and which of each row was chosen, `[B, 1]`.
    pub(super) fn choices(&self) -> Result<(&'a Tensor, Tensor)> {
        let Scores::Choices { scores, best } = *self else {
            return Err(self.unlike(Feedback::Choices));
        };
        let size = floating("scores", scores, 2)?;
        let (b, k) = (size[0], size[1]);
        if k < 2 {
            return Err(Error::input("scores", "[B, K] with at least two to choose from", k));
        }
        if best.size() != [b] || best.f_kind()? != Kind::Int64 || best.device() != scores.device() {
            return Err(Error::input(
                "best",
                format!("[{b}] of Int64 on {:?}", scores.device()),
                format!("{:?} of {:?} on {:?}", best.size(), best.f_kind()?, best.device()),
            ));
        }
        let (low, high) = (best.f_min()?.int64_value(&[]), best.f_max()?.int64_value(&[]));
        if low < 0 || high >= k {
            return Err(Error::input(
                "best",
                format!("numbers in 0..{k}"),
                if low < 0 { low } else { high },
            ));
        }
        Ok((scores, best.f_unsqueeze(1)?))
    }

    /// What is logged, see [`ScoreLoss::evaluate`](super::ScoreLoss::evaluate); the parts have been checked.
    pub(super) fn terms(&self, counts: &ScoreCounts) -> Result<Vec<(&'static str, Tensor)>> {
        let mean = |t: &Tensor| -> Result<Tensor> { Ok(t.f_detach()?.f_sum(None)?.f_div_scalar(counts.answers)?) };
        let (right, chosen, rejected) = match *self {
            Scores::Labels { score, target } => {
                let agree = score.f_gt(0.0)?.f_eq_tensor(&target.f_gt(0.5)?)?;
                let agree = agree.f_to_kind(score.f_kind()?)?;
                return Ok(vec![("accuracy", mean(&agree)?), ("score", mean(score)?)]);
            }
            Scores::Pairs { chosen, rejected, .. } => (
                chosen.f_gt_tensor(rejected)?,
                chosen.shallow_clone(),
                rejected.shallow_clone(),
            ),
            Scores::Choices { scores, best } => {
                let best = best.f_unsqueeze(1)?;
                let others = (scores.size()[1] - 1) as f64;
                let chosen = scores.f_gather(1, &best, false)?.f_squeeze_dim(1)?;
                let largest = scores
                    .f_scatter_value(1, &best, f64::NEG_INFINITY)?
                    .f_amax([-1i64].as_slice(), false)?;
                let sum = scores
                    .f_scatter_value(1, &best, 0.0)?
                    .f_sum_dim_intlist([-1i64].as_slice(), false, None)?;
                (chosen.f_gt_tensor(&largest)?, chosen, sum.f_div_scalar(others)?)
            }
        };
        Ok(vec![
            ("accuracy", mean(&right.f_to_kind(chosen.f_kind()?)?)?),
            ("score_chosen", mean(&chosen)?),
            ("score_rejected", mean(&rejected)?),
            ("score_margin", mean(&chosen.f_sub(&rejected)?)?),
        ])
    }

    fn unlike(&self, wanted: Feedback) -> Error {
        Error::input("scores", wanted, self.feedback())
    }
}

/// The size of scores of so many dimensions, of which there is at least one.
fn floating(what: &'static str, scores: &Tensor, dimensions: usize) -> Result<Vec<i64>> {
    let size = scores.size();
    if size.len() != dimensions || !scores.is_floating_point() {
        return Err(Error::input(
            what,
            format!("{dimensions} dimensions, floating point"),
            format!("{size:?} of {:?}", scores.f_kind()?),
        ));
    }
    if size[0] == 0 {
        return Err(Error::Empty {
            what: "the batch of scores",
        });
    }
    Ok(size)
}

/// Size of the **whole** batch of answers, over all its micro-batches: what the losses divide by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ScoreCounts {
    /// Answers: labels, pairs or choices.
    pub answers: f64,
}

counts!(ScoreCounts { answers });

impl ScoreCounts {
    /// Counts one micro-batch.
    pub fn of(scores: &Scores<'_>) -> Self {
        ScoreCounts {
            answers: scores.n() as f64,
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::scores::{BestChoice, BradleyTerry, Loss, Pointwise, ScoreLoss};

    fn tensor(values: &[f64]) -> Tensor {
        Tensor::from_slice(values)
    }

    fn terms(loss: &dyn ScoreLoss, scores: &Scores<'_>, answers: f64) -> Vec<(&'static str, f64)> {
        let value = loss.evaluate(scores, &ScoreCounts { answers }).unwrap();
        value
            .terms
            .iter()
            .map(|(name, t)| (*name, t.double_value(&[])))
            .collect()
    }

    #[test]
    fn terms_are_means_over_the_answers_of_the_whole_batch_and_a_tie_is_no_agreement() {
        let (chosen, rejected) = (tensor(&[3.0, 1.0, 0.0]), tensor(&[1.0, 1.0, 2.0]));
        let pairs = Scores::Pairs {
            chosen: &chosen,
            rejected: &rejected,
            margin: None,
        };
        let expected = [
            ("accuracy", 0.25),
            ("score_chosen", 1.0),
            ("score_rejected", 1.0),
            ("score_margin", 0.0),
        ];
        assert_eq!(terms(&BradleyTerry { centre: 0.0 }, &pairs, 4.0), expected);

        let (scores, best) = (
            tensor(&[5.0, 1.0, 3.0, 2.0, 2.0, 0.0]).view([2, 3]),
            Tensor::from_slice(&[0i64, 1]),
        );
        let choices = Scores::Choices {
            scores: &scores,
            best: &best,
        };
        let expected = [
            ("accuracy", 0.5),
            ("score_chosen", 3.5),
            ("score_rejected", 1.5),
            ("score_margin", 2.0),
        ];
        assert_eq!(terms(&BestChoice {}, &choices, 2.0), expected);

        let (score, target) = (tensor(&[1.0, 0.0, -2.0, 3.0]), tensor(&[1.0, 1.0, 0.0, 0.5]));
        let labels = Scores::Labels {
            score: &score,
            target: &target,
        };
        assert_eq!(terms(&Pointwise {}, &labels, 4.0), [("accuracy", 0.5), ("score", 0.5)]);
    }

    #[test]
    fn parts_of_a_batch_add_up_in_values_and_gradients() {
        let chosen = tensor(&[0.3, -1.2, 0.8]).set_requires_grad(true);
        let rejected = tensor(&[0.1, 0.4, -2.0]).set_requires_grad(true);
        let loss = BradleyTerry { centre: 0.3 };
        let run = |parts: &[(i64, i64)]| {
            let halves: Vec<_> = parts
                .iter()
                .map(|&(start, n)| (chosen.narrow(0, start, n), rejected.narrow(0, start, n)))
                .collect();
            let scores = |(chosen, rejected): &'_ (Tensor, Tensor)| -> ScoreCounts {
                ScoreCounts::of(&Scores::Pairs {
                    chosen,
                    rejected,
                    margin: None,
                })
            };
            let counts: ScoreCounts = halves.iter().map(scores).sum();
            let mut total = 0.0;
            for (chosen, rejected) in &halves {
                let value = loss
                    .evaluate(
                        &Scores::Pairs {
                            chosen,
                            rejected,
                            margin: None,
                        },
                        &counts,
                    )
                    .unwrap();
                let each: f64 = value.per_example.sum(Kind::Double).double_value(&[]);
                assert!((each - value.total.double_value(&[])).abs() < 1e-15);
                total += each;
                value.total.backward();
            }
            let gradient = Vec::<f64>::try_from(chosen.grad()).unwrap();
            let _ = chosen.grad().zero_();
            (total, gradient)
        };
        let (whole, parts) = (run(&[(0, 3)]), run(&[(0, 1), (1, 2)]));
        assert!((whole.0 - parts.0).abs() < 1e-15);
        assert!(whole.1.iter().zip(&parts.1).all(|(a, b)| (a - b).abs() < 1e-15));
        let mut counts = ScoreCounts { answers: 2.0 };
        counts += ScoreCounts { answers: 3.0 };
        assert_eq!(counts, ScoreCounts { answers: 5.0 });
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (two, three) = (tensor(&[0.0, 0.0]), tensor(&[0.0, 0.0, 0.0]));
        let none = tensor(&[]);
        let text = |loss: &dyn ScoreLoss, scores: &Scores<'_>, answers: f64| {
            loss.evaluate(scores, &ScoreCounts { answers }).unwrap_err().to_string()
        };
        let pairs = |chosen, rejected, margin| Scores::Pairs {
            chosen,
            rejected,
            margin,
        };
        let loss = BradleyTerry { centre: 0.0 };
        let mut checked = 0;
        let mut is = |text: String, expected: &str| {
            assert_eq!(text, expected);
            checked += 1;
        };
        is(
            text(&loss, &pairs(&two, &three, None), 2.0),
            "rejected: expected [2] on Cpu, as `chosen`, got [3] on Cpu",
        );
        is(
            text(&loss, &pairs(&two, &two, Some(&three)), 2.0),
            "margin: expected [2] on Cpu, as `chosen`, got [3] on Cpu",
        );
        is(
            text(&loss, &pairs(&none, &none, None), 2.0),
            "the batch of scores is empty",
        );
        let whole = Tensor::from_slice(&[0i64, 1]);
        is(
            text(&loss, &pairs(&whole, &whole, None), 2.0),
            "chosen: expected 1 dimensions, floating point, got [2] of Int64",
        );
        let margins = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(|bad| tensor(&[0.0, bad]));
        for margin in &margins {
            is(
                text(&loss, &pairs(&two, &two, Some(margin)), 2.0),
                "margin: expected finite numbers, got others among them",
            );
        }
        for answers in ["1", "NaN", "inf"] {
            let counts = ScoreCounts {
                answers: answers.parse().unwrap(),
            };
            is(
                text(&loss, &pairs(&two, &two, None), counts.answers),
                &format!(
                    "counts: expected sizes of the whole batch, at least this part's ScoreCounts {{ answers: 2.0 }}, \
                     got {counts:?}"
                ),
            );
        }
        let table = three.view([1, 3]);
        let choice = |scores, best: &'static [i64]| (scores, Tensor::from_slice(best));
        for ((scores, best), expected) in [
            (choice(&table, &[3]), "best: expected numbers in 0..3, got 3"),
            (choice(&table, &[-1]), "best: expected numbers in 0..3, got -1"),
            (
                choice(&table, &[0, 1]),
                "best: expected [1] of Int64 on Cpu, got [2] of Int64 on Cpu",
            ),
            (
                choice(&three, &[0]),
                "scores: expected 2 dimensions, floating point, got [3] of Double",
            ),
            (
                choice(&two.view([2, 1]), &[0, 0]),
                "scores: expected [B, K] with at least two to choose from, got 1",
            ),
        ] {
            let scores = Scores::Choices { scores, best: &best };
            is(text(&BestChoice {}, &scores, 2.0), expected);
        }
        let pairs = pairs(&two, &two, None);
        is(text(&BestChoice {}, &pairs, 2.0), "scores: expected choices, got pairs");
        is(text(&Pointwise {}, &pairs, 2.0), "scores: expected labels, got pairs");
        let labels = Scores::Labels {
            score: &two,
            target: &two,
        };
        is(text(&loss, &labels, 2.0), "scores: expected pairs, got labels");
        assert_eq!(checked, 18);
        assert!(Loss::samples().iter().all(|loss| loss.check().is_ok()));
        let kinds: Vec<Feedback> = Loss::samples().iter().map(|loss| loss.feedback()).collect();
        assert_eq!(
            kinds,
            [Feedback::Choices, Feedback::Pairs, Feedback::Pairs, Feedback::Labels]
        );
    }
}
