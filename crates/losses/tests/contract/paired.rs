//! The paired family: a unit is a chosen and a rejected completion; the rows are those of all chosen ones, then those
//! of all rejected ones.

use tch::Tensor;
use unsay_losses::paired::{Batch, Divergence, Logps, Loss, Objective, PairCounts, Weighting};
use unsay_losses::{Baseline, Card, CompletionRows, Error, LossValue, Result, TokenStats};

use crate::batch;
use crate::plain::numbers;
use crate::subject::{Given, Head, Missing, SAMPLED_TOKEN, Setting, Subject, firsts};
use crate::token::copy;

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

/// The moved stats, with what is detached where it was: drawn tokens, gate and weights.
fn held(objective: &Objective, given: &Given<'_>, still: &TokenStats) -> Result<TokenStats> {
    let (now, rows) = (&given.stats[0], given.part.completion_rows());
    let mut logp = now.logp.detach();
    let mut top = now;
    if let Loss::PairwiseCringe(loss) = &objective.loss {
        if loss.detach_positives {
            top = still;
        }
        if !loss.gate_gradient {
            logp = &logp + margins_moved(objective, given, &rows, still)?;
        }
    }
    // The weights are made of the difference of these two.
    let collision = still
        .collision
        .as_ref()
        .map(|before| before + (&logp - still.logp.detach()));
    Ok(TokenStats {
        target_logit: copy(&now.target_logit),
        top_logits: copy(&top.top_logits),
        top_ids: copy(&top.top_ids),
        collision,
        ..TokenStats::new(
            now.targets.shallow_clone(),
            logp.set_requires_grad(true),
            now.correct.shallow_clone(),
        )
    })
}

/// `[N]` how far each pair's margin has moved, on the first row of its rejected completion: added there, the margin is what
/// it was. The gate alone reads the log-probability of rejected completions.
fn margins_moved(
    objective: &Objective,
    given: &Given<'_>,
    rows: &CompletionRows,
    still: &TokenStats,
) -> Result<Tensor> {
    let draws = given.part.per_row(&given.part.batch.draws).unsqueeze(1);
    let margin = |stats: &TokenStats| -> Result<Vec<f64>> {
        let pairs = objective.pairs(&Batch {
            stats,
            rows,
            reference: None,
            draws: Some(&draws),
            baseline: None,
        })?;
        Ok(numbers(&(pairs.chosen.logp - pairs.rejected.logp)))
    };
    let (now, before) = (margin(&given.stats[0])?, margin(still)?);
    let (n, lengths) = (now.len(), rows.lengths());
    let mut moved = vec![0.0; given.part.rows.len()];
    for pair in 0..n {
        let first: i64 = lengths[..n + pair].iter().sum();
        let share = match objective.logps {
            Logps::Mean => lengths[n + pair] as f64,
            Logps::Sum | Logps::Ld { .. } => 1.0,
        };
        moved[first as usize] = (now[pair] - before[pair]) * share;
    }
    Ok(Tensor::from_slice(&moved))
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

    fn detaches(&self) -> Option<&'static str> {
        match (self.weighting, &self.loss) {
            (Weighting::Wpo { .. }, Loss::PairwiseCringe(_)) => Some("the weights of the pairs, and the gate"),
            (Weighting::Wpo { .. }, _) => Some("the weights of the pairs"),
            (_, Loss::PairwiseCringe(loss)) if loss.detach_positives => Some(SAMPLED_TOKEN),
            (_, Loss::PairwiseCringe(loss)) if !loss.gate_gradient => Some("the gate of the pair"),
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
        let held = given.still.map(|still| held(self, given, &still[0])).transpose()?;
        let batch = Batch {
            stats: held.as_ref().unwrap_or(&given.stats[0]),
            rows: &part.completion_rows(),
            reference: given.unless(Missing::Reference, &reference),
            draws: given.unless(Missing::Draws, &draws),
            baseline: given.unless(Missing::Baseline, baseline).flatten(),
        };
        Objective::evaluate(self, &batch, &counts)
    }
}
