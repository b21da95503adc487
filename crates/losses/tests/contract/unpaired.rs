//! The unpaired family: a unit is one completion, desirable or undesirable.

use unsay_losses::unpaired::{Batch, Loss, Objective, UnpairedCounts};
use unsay_losses::{Baseline, Card, Error, LossValue, Result, Retain};

use crate::batch::Part;
use crate::subject::{Given, Head, Missing, Setting, Subject, firsts};

/// Every sample of every registered loss, and the first sample of each with what can hold the model beside it.
pub fn subjects() -> Vec<Subject> {
    let subject = |objective: Objective| Subject {
        family: "unpaired",
        name: objective.loss.name(),
        text: format!("{objective:?}"),
        setting: Box::new(objective),
    };
    let retains = [
        Retain { nll: 0.5, kl: 0.0 },
        Retain { nll: 0.0, kl: 0.7 },
        Retain { nll: 1.0, kl: 0.3 },
    ];
    let samples: Vec<Objective> = Loss::samples().into_iter().map(Objective::from).collect();
    let around = |plain: &Objective| {
        let loss = plain.loss.clone();
        retains.map(|retain| Objective {
            loss: loss.clone(),
            retain,
        })
    };
    let more: Vec<Objective> = firsts(&samples, |o| o.loss.name())
        .into_iter()
        .flat_map(around)
        .collect();
    samples.into_iter().chain(more).map(subject).collect()
}

/// The form that the manifest tests use.
pub fn setting(loss: Loss) -> Box<dyn Setting> {
    Box::new(Objective::from(loss))
}

fn desirable(part: &Part<'_>) -> Vec<bool> {
    part.members().map(|completion| completion.role == 1).collect()
}

impl Setting for Objective {
    fn card(&self) -> Card {
        self.loss.card()
    }

    fn problems(&self) -> Vec<Error> {
        Objective::problems(self)
    }

    fn roles(&self, unit: usize) -> Vec<i8> {
        vec![[1, 0][unit % 2]]
    }

    fn heads(&self) -> Vec<Head> {
        vec![Head::first(self.needs())]
    }

    fn asks_for(&self) -> Vec<Missing> {
        let asks = [
            (self.uses_reference(), Missing::Reference),
            (self.loss.baseline().is_some(), Missing::Baseline),
            (self.loss.takes_weights(), Missing::Weights),
        ];
        asks.into_iter()
            .filter_map(|(asks, what)| asks.then_some(what))
            .collect()
    }

    fn evaluate(&self, given: &Given<'_>) -> Result<LossValue> {
        let part = given.part;
        let whole = given.counts(self, |part| {
            UnpairedCounts::of(&part.completion_rows(), &desirable(part))
        })?;
        let counts = UnpairedCounts {
            desirable: (given.count)(whole.desirable),
            undesirable: (given.count)(whole.undesirable),
            desirable_tokens: (given.count)(whole.desirable_tokens),
        };
        let baseline = self.loss.baseline().map(|baseline| match baseline {
            Baseline::RunningMeanReward => 0.05,
            Baseline::MismatchedKl => 0.2,
        });
        let reference = part.per_row(&part.batch.reference);
        let weights = part.per_completion(&part.batch.advantage).abs();
        let batch = Batch {
            stats: &given.stats[0],
            rows: &part.completion_rows(),
            desirable: &desirable(part),
            reference: given.unless(Missing::Reference, &reference),
            baseline: given.unless(Missing::Baseline, baseline).flatten(),
            weights: given.unless(Missing::Weights, &weights),
        };
        Objective::evaluate(self, &batch, &counts)
    }
}
