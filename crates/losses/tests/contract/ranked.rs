//! The ranked family: a unit is a prompt with some samples, one negative, and a completion to retain.

use unsay_losses::paired::Logps;
use unsay_losses::ranked::{Batch, Loss, Objective, RankedCounts};
use unsay_losses::{Card, Error, LossValue, Result, Retain};

use crate::batch::{self, Part};
use crate::subject::{Given, Head, Missing, Setting, Subject};

/// Every sample of every registered loss, with everything that can be put around it.
pub fn subjects() -> Vec<Subject> {
    let subject = |objective: Objective| Subject {
        family: "ranked",
        name: objective.loss.name(),
        text: format!("{objective:?}"),
        setting: Box::new(objective),
    };
    let mut all = Vec::new();
    for loss in Loss::samples() {
        let plain = Objective::from(loss);
        all.push(subject(plain.clone()));
        let logps = Logps::Mean;
        all.push(subject(Objective { logps, ..plain.clone() }));
        let retain = Retain { nll: 0.5, kl: 0.3 };
        all.push(subject(Objective { retain, ..plain }));
    }
    all
}

/// The form that the manifest tests use.
pub fn setting(loss: Loss) -> Box<dyn Setting> {
    Box::new(Objective::from(loss))
}

/// The numbers of samples of each prompt here.
fn samples(part: &Part<'_>) -> Vec<usize> {
    part.units
        .iter()
        .map(|&unit| part.batch.units[unit].len() - 2)
        .collect()
}

impl Setting for Objective {
    fn card(&self) -> Card {
        self.loss.card()
    }

    fn problems(&self) -> Vec<Error> {
        Objective::problems(self)
    }

    /// One or two samples, the negative, a completion to retain.
    fn roles(&self, unit: usize) -> Vec<i8> {
        match unit % 2 {
            0 => vec![1, 0, -1],
            _ => vec![1, 1, 0, -1],
        }
    }

    fn order(&self, batch: &batch::Batch, units: &[usize]) -> Vec<usize> {
        let mut order = Vec::new();
        for role in [1, 0, -1] {
            for &unit in units {
                let members = batch.units[unit].iter().copied();
                order.extend(members.filter(|&completion| batch.completions[completion].role == role));
            }
        }
        order
    }

    fn heads(&self) -> Vec<Head> {
        vec![Head::first(self.needs())]
    }

    fn asks_for(&self) -> Vec<Missing> {
        self.uses_reference()
            .then_some(Missing::Reference)
            .into_iter()
            .collect()
    }

    /// The prompts, then the completions to retain.
    fn per_unit(&self, part: &Part<'_>, examples: &[f64]) -> Vec<f64> {
        assert_eq!(examples.len(), 2 * part.units.len());
        let (prompts, retained) = examples.split_at(part.units.len());
        prompts.iter().zip(retained).map(|(a, b)| a + b).collect()
    }

    fn evaluate(&self, given: &Given<'_>) -> Result<LossValue> {
        let part = given.part;
        let whole = given.counts(self, |part| RankedCounts::of(&part.completion_rows(), &samples(part)))?;
        let counts = RankedCounts {
            prompts: (given.count)(whole.prompts),
            retained_tokens: (given.count)(whole.retained_tokens),
        };
        let reference = part.per_row(&part.batch.reference);
        let batch = Batch {
            stats: &given.stats[0],
            rows: &part.completion_rows(),
            n_samples: &samples(part),
            reference: given.unless(Missing::Reference, &reference),
        };
        Objective::evaluate(self, &batch, &counts)
    }
}
