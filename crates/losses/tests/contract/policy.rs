//! The policy family: a unit is a sampled completion with an advantage; and the critic that goes with it.

use unsay_losses::policy::kl::{KlClamp, KlEstimator};
use unsay_losses::policy::{Aggregate, Batch, KlPenalty, Loss, Objective, PolicyCounts, ValueBatch, ValueLoss};
use unsay_losses::{Card, Described, Error, LossValue, Result};

use crate::subject::{Given, Head, Missing, Pushed, Setting, Subject, firsts};

const AGGREGATES: [Aggregate; 4] = [
    Aggregate::TokenMean,
    Aggregate::SequenceMean,
    Aggregate::SequenceSum,
    Aggregate::FixedLength { length: 7 },
];

/// The loss alone, as a mean over completions of means over tokens, which goes with every loss.
fn alone(loss: Loss) -> Objective {
    Objective::new(loss, Aggregate::SequenceMean)
}

/// What can be put around a loss, one at a time.
fn modified(plain: &Objective) -> Vec<Objective> {
    let penalty = |estimator, log_ratio, value| Objective {
        kl: Some(KlPenalty {
            estimator,
            coefficient: 0.3,
            clamp: KlClamp { log_ratio, value },
        }),
        ..plain.clone()
    };
    let aggregates = AGGREGATES.map(|aggregate| Objective {
        aggregate,
        ..plain.clone()
    });
    let others = [
        penalty(KlEstimator::K1, None, None),
        penalty(KlEstimator::K2, None, None),
        penalty(KlEstimator::K3, None, None),
        penalty(KlEstimator::Abs, None, None),
        penalty(KlEstimator::K1WithK2Gradient, None, None),
        penalty(KlEstimator::K3WithK2Gradient, None, None),
        penalty(KlEstimator::K3, Some(20.0), Some(10.0)),
        penalty(KlEstimator::Full, None, None),
        Objective {
            entropy: 0.1,
            ..plain.clone()
        },
    ];
    let fits = |objective: &Objective| objective != plain && objective.problems().is_empty();
    aggregates.into_iter().chain(others).filter(fits).collect()
}

/// Every sample of every registered loss, and the first sample of each with everything that can be put around it; and the
/// loss of a critic.
pub fn subjects() -> Vec<Subject> {
    let subject = |objective: Objective| Subject {
        family: "policy",
        name: objective.loss.name(),
        text: format!("{objective:?}"),
        setting: Box::new(objective),
    };
    let samples: Vec<Objective> = Loss::samples().into_iter().map(alone).collect();
    let firsts = firsts(&samples, |o| o.loss.name());
    let more: Vec<Objective> = firsts.into_iter().flat_map(modified).collect();
    samples.into_iter().chain(more).map(subject).collect()
}

/// The form that the manifest tests use.
pub fn setting(loss: Loss) -> Box<dyn Setting> {
    Box::new(alone(loss))
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
        self.uses_reference()
            .then_some(Missing::Reference)
            .into_iter()
            .collect()
    }

    fn detaches(&self) -> Option<&'static str> {
        matches!(self.loss, Loss::Cispo(_)).then_some("the ratio, a weight")
    }

    fn differentiated(&self) -> Option<Box<dyn Setting>> {
        let kl = self.kl?;
        let with_k2 = [KlEstimator::K1WithK2Gradient, KlEstimator::K3WithK2Gradient];
        with_k2.contains(&kl.estimator).then(|| {
            // The gradient of `k2` is not held.
            let kl = KlPenalty {
                estimator: KlEstimator::K2,
                clamp: KlClamp::default(),
                ..kl
            };
            Box::new(Objective {
                kl: Some(kl),
                ..self.clone()
            }) as Box<dyn Setting>
        })
    }

    fn evaluate(&self, given: &Given<'_>) -> Result<LossValue> {
        let part = given.part;
        let rows = part.completion_rows();
        let reference = part.per_row(&part.batch.reference);
        let old = part.per_row(&part.batch.old);
        // A ratio to what has moved as far is the one from before.
        let old = given.moved().map(|moved| &old + moved).unwrap_or(old);
        let batch = Batch {
            stats: &given.stats[0],
            old: &old,
            advantage: &part.spread(&part.batch.advantage),
            reference: given.unless(Missing::Reference, &reference),
            rows: &rows,
        };
        Objective::evaluate(self, &batch, &counts(self, given)?)
    }
}

fn counts(setting: &dyn Setting, given: &Given<'_>) -> Result<PolicyCounts> {
    let whole = given.counts(setting, |part| Ok(PolicyCounts::of(&part.completion_rows())))?;
    Ok(PolicyCounts {
        tokens: (given.count)(whole.tokens),
        completions: (given.count)(whole.completions),
    })
}

/// The loss of a critic with an aggregate; values are read off the states.
struct Critic {
    loss: ValueLoss,
    aggregate: Aggregate,
}

/// The loss of a critic, which is in no registry: it goes with every loss of this family.
pub fn critics() -> Vec<Subject> {
    let subject = |(clip, aggregate)| {
        let loss = ValueLoss { clip };
        Subject {
            family: "critic",
            name: loss.name(),
            text: format!("{loss:?}, {aggregate:?}"),
            setting: Box::new(Critic { loss, aggregate }),
        }
    };
    let settings = AGGREGATES
        .into_iter()
        .flat_map(|aggregate| [(None, aggregate), (Some(0.2), aggregate)]);
    settings.map(subject).collect()
}

impl Setting for Critic {
    fn card(&self) -> Card {
        self.loss.card()
    }

    fn problems(&self) -> Vec<Error> {
        self.loss.problems()
    }

    /// A low return, then a high one: see [`Batch::returns`](crate::batch::Batch).
    fn roles(&self, unit: usize) -> Vec<i8> {
        vec![[1, 0][unit % 2]]
    }

    fn heads(&self) -> Vec<Head> {
        Vec::new()
    }

    fn pushes(&self) -> Pushed {
        Pushed::Score
    }

    fn asks_for(&self) -> Vec<Missing> {
        self.loss.clip.map(|_| Missing::Old).into_iter().collect()
    }

    fn evaluate(&self, given: &Given<'_>) -> Result<LossValue> {
        let part = given.part;
        let rows = part.completion_rows();
        let old = part.per_row(&part.batch.old_values);
        let batch = ValueBatch {
            values: given.scalars,
            old: given.unless(Missing::Old, &old),
            returns: &part.per_row(&part.batch.returns),
            rows: &rows,
        };
        self.loss.evaluate(&batch, self.aggregate, &counts(self, given)?)
    }
}
