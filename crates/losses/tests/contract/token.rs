//! The token family: a unit is one completion, positive, negative or unlabelled.

use tch::{Device, Tensor};
use unsay_losses::token::{Loss, Marks};
use unsay_losses::{Card, Error, Fused, LossValue, Result, TokenCounts, TokenOp, TokenRows, TokenStats};

use crate::batch::{Completion, Part};
use crate::subject::{Given, Head, Missing, SAMPLED_TOKEN, Setting, Subject};

/// Every sample of every registered loss.
pub fn subjects() -> Vec<Subject> {
    let subject = |loss: Loss| Subject {
        family: "token",
        name: loss.name(),
        text: format!("{loss:?}"),
        setting: Box::new(loss),
    };
    Loss::samples().into_iter().map(subject).collect()
}

/// Whose token each row is.
pub fn rows(part: &Part<'_>) -> TokenRows {
    let (mut example, mut is_eos) = (Vec::new(), Vec::new());
    for completion in part.members() {
        let place = part.place(completion.unit) as i64;
        for row in 0..completion.length {
            example.push(place);
            is_eos.push(row + 1 == completion.length);
        }
    }
    let roles: Vec<i8> = part.units.iter().map(|&u| part.batch.completions[u].role).collect();
    TokenRows::new(&example, &is_eos, &roles, Device::Cpu).unwrap()
}

/// The form that the manifest tests use.
pub fn setting(loss: Loss) -> Box<dyn Setting> {
    Box::new(loss)
}

impl Setting for Loss {
    fn card(&self) -> Card {
        (**self).card()
    }

    fn problems(&self) -> Vec<Error> {
        (**self).problems()
    }

    fn roles(&self, unit: usize) -> Vec<i8> {
        vec![[1, 0, -1][unit % 3]]
    }

    fn heads(&self) -> Vec<Head> {
        vec![Head::first(self.needs())]
    }

    fn candidates(&self, part: &Part<'_>) -> Option<Tensor> {
        marked(self, part).candidates
    }

    fn asks_for(&self) -> Vec<Missing> {
        let draws = (self.draws_per_row() > 0).then_some(Missing::Draws);
        let marks = self.marks(&[0], &[0]).map(|_| Missing::Marks);
        draws.into_iter().chain(marks).collect()
    }

    fn detaches(&self) -> Option<&'static str> {
        let detaches = matches!(self, Loss::Cringe(cringe) if cringe.detach_positives);
        detaches.then_some(SAMPLED_TOKEN)
    }

    fn evaluate(&self, given: &Given<'_>) -> Result<LossValue> {
        let (rows, counts, draws) = inputs(self, given)?;
        let stats = &given.stats[0];
        let Some(still) = given.still else {
            return (**self).evaluate(stats, &rows, &counts, draws.as_ref());
        };
        // The tokens that are drawn from, and their logits.
        let stats = TokenStats {
            target_logit: copy(&stats.target_logit),
            top_logits: copy(&still[0].top_logits),
            top_ids: copy(&still[0].top_ids),
            ..TokenStats::new(
                stats.targets.shallow_clone(),
                stats.logp.shallow_clone(),
                stats.correct.shallow_clone(),
            )
        };
        (**self).evaluate(&stats, &rows, &counts, draws.as_ref())
    }

    fn fused(&self, op: &TokenOp, given: &Given<'_>) -> Option<Result<Fused>> {
        let fused = |(rows, counts, draws): Inputs| op.fused_loss(&**self, &rows, &counts, draws.as_ref());
        Some(inputs(self, given).and_then(fused))
    }
}

/// The same column.
pub fn copy(column: &Option<Tensor>) -> Option<Tensor> {
    column.as_ref().map(Tensor::shallow_clone)
}

/// The rows with what the loss reads from the text.
fn marked(loss: &Loss, part: &Part<'_>) -> TokenRows {
    let text = |completion: &Completion| {
        let targets = &part.batch.targets[completion.start..completion.start + completion.length];
        loss.marks(&completion.prompt, targets)
    };
    let marks: Vec<Marks> = part.members().filter_map(text).collect();
    match loss.problems().is_empty() {
        true => rows(part).with_marks(&marks).unwrap(),
        false => rows(part),
    }
}

type Inputs = (TokenRows, TokenCounts, Option<Tensor>);

fn inputs(loss: &Loss, given: &Given<'_>) -> Result<Inputs> {
    let whole = given.counts(loss, |part| TokenCounts::of(&marked(loss, part)))?;
    let counts = TokenCounts {
        positive: (given.count)(whole.positive),
        negative: (given.count)(whole.negative),
        unlabelled: (given.count)(whole.unlabelled),
        ..whole
    };
    let own = given.unless(Missing::Marks, marked(loss, given.part));
    let draws = given.part.per_row(&given.part.batch.draws).unsqueeze(1);
    Ok((
        own.unwrap_or_else(|| rows(given.part)),
        counts,
        given.unless(Missing::Draws, draws),
    ))
}
