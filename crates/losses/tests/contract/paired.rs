//! The paired family: a unit is a chosen and a rejected completion; the rows are those of all chosen ones, then those
//! of all rejected ones.

use unsay_losses::paired::{Batch, Divergence, Logps, Loss, Objective, PairCounts, Weighting};
use unsay_losses::{Baseline, Card, Error, LossValue, Result};

use crate::batch;
use crate::subject::{Given, Head, Missing, SAMPLED_TOKEN, Setting, Subject, firsts};

/// What can be put around a loss, one at a time.
fn modified(plain: &Objective) -> Vec<Objective> {
    let logps = [Logps::Mean, Logps::Ld { alpha: 0.5 }].map(|logps| Objective { logps, ..plain.clone() });
    let divergences =
        [Divergence::ForwardKl, Divergence::Js, Divergence::Alpha { alpha: 0.5 }].map(|divergence| Objective {
            divergence,
            ..plain.clone()
        });
    let weightings = [false, true].map(|clamp| Objective {
        weighting: Weighting::Wpo { clamp },
        ..plain.clone()
    });
    let others = [
        Objective {
            reference_free: true,
            ..plain.clone()
        },
        Objective {
            nll: 0.3,
            ..plain.clone()
        },
    ];
    logps
        .into_iter()
        .chain(divergences)
        .chain(weightings)
        .chain(others)
        .collect()
}

/// Every sample of every registered loss, and the first sample of each with everything that can be put around it.
pub fn subjects() -> Vec<Subject> {
    let subject = |objective: Objective| Subject {
        family: "paired",
        name: objective.loss.name(),
        text: format!("{objective:?}"),
        setting: Box::new(objective),
    };
    let samples: Vec<Objective> = Loss::samples().into_iter().map(Objective::from).collect();
    let more: Vec<Objective> = firsts(&samples, |o| o.loss.name())
        .into_iter()
        .flat_map(modified)
        .filter(|objective| objective.problems().is_empty())
        .collect();
    samples.into_iter().chain(more).map(subject).collect()
}

/// The form that the manifest tests use.
pub fn setting(loss: Loss) -> Box<dyn Setting> {
    Box::new(Objective::from(loss))
}

impl Setting for Objective {
    fn card(&self) -> Card {
        self.loss.card()
    }

    fn problems(&self) -> Vec<Error> {
        Objective::problems(self)
    }

    fn roles(&self, _unit: usize) -> Vec<i8> {
        vec![1, 0]
    }

    fn order(&self, batch: &batch::Batch, units: &[usize]) -> Vec<usize> {
        let side = |place: usize| units.iter().map(move |&unit| batch.units[unit][place]);
        side(0).chain(side(1)).collect()
    }

    fn heads(&self) -> Vec<Head> {
        vec![Head::first(self.needs())]
    }

    fn asks_for(&self) -> Vec<Missing> {
        let asks = [
            (self.uses_reference(), Missing::Reference),
            (self.loss.draws_per_row() > 0, Missing::Draws),
            (self.loss.baseline().is_some(), Missing::Baseline),
        ];
        asks.into_iter()
            .filter_map(|(asks, what)| asks.then_some(what))
            .collect()
    }

    fn couples_units(&self) -> bool {
        self.loss.couples_pairs()
    }

    fn stops_gradients(&self) -> Option<&'static str> {
        match (self.weighting, &self.loss) {
            (Weighting::Wpo { .. }, _) => Some("the weights of the pairs are detached"),
            (_, Loss::PairwiseCringe(loss)) if loss.detach_positives => Some(SAMPLED_TOKEN),
            (_, Loss::PairwiseCringe(loss)) if !loss.gate_gradient => Some("the gate of the pair is detached"),
            _ => None,
        }
    }

    fn evaluate(&self, given: &Given<'_>) -> Result<LossValue> {
        let part = given.part;
        let whole = given.counts(self, |part| Ok(PairCounts::of(&part.completion_rows())))?;
        let counts = PairCounts {
            pairs: (given.count)(whole.pairs),
            chosen_tokens: (given.count)(whole.chosen_tokens),
        };
        let reference = part.per_row(&part.batch.reference);
        let draws = part.per_row(&part.batch.draws).unsqueeze(1);
        let baseline = self.loss.baseline().map(|baseline| match baseline {
            Baseline::RunningMeanReward => 0.05,
            Baseline::MismatchedKl => 0.2,
        });
        let batch = Batch {
            stats: &given.stats[0],
            rows: &part.completion_rows(),
            reference: given.unless(Missing::Reference, &reference),
            draws: given.unless(Missing::Draws, &draws),
            baseline: given.unless(Missing::Baseline, baseline).flatten(),
        };
        Objective::evaluate(self, &batch, &counts)
    }
}
