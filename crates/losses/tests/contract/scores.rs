//! The score family: a unit is a labelled completion, a pair, or one choice among several; a score is a number per
//! completion, read off its last state.

use tch::Tensor;
use unsay_losses::scores::{Feedback, Loss, ScoreCounts, Scores};
use unsay_losses::{Card, Error, LossValue, Result};

use crate::batch::Part;
use crate::subject::{Given, Head, Pushed, Setting, Subject};

/// A loss, with or without what people may also have said: by how much the chosen one is better.
struct Scored {
    loss: Loss,
    margins: bool,
}

/// Every sample of every registered loss; those over pairs also with margins.
pub fn subjects() -> Vec<Subject> {
    let mut all = Vec::new();
    for loss in Loss::samples() {
        for margins in [false, true] {
            if margins && loss.feedback() != Feedback::Pairs {
                continue;
            }
            all.push(Subject {
                family: "scores",
                name: loss.name(),
                text: format!("{loss:?}, margins {margins}"),
                setting: Box::new(Scored {
                    loss: loss.clone(),
                    margins,
                }),
            });
        }
    }
    all
}

/// The form that the manifest tests use.
pub fn setting(loss: Loss) -> Box<dyn Setting> {
    Box::new(Scored { loss, margins: false })
}

/// `[C]` the numbers of the last rows of the completions.
fn last(part: &Part<'_>, per_row: &Tensor) -> Tensor {
    let ends = part.lengths().into_iter().scan(0, |end, length| {
        *end += length as i64;
        Some(*end - 1)
    });
    per_row.index_select(0, &Tensor::from_slice(&ends.collect::<Vec<i64>>()))
}

impl Setting for Scored {
    fn card(&self) -> Card {
        self.loss.card()
    }

    fn problems(&self) -> Vec<Error> {
        self.loss.problems()
    }

    fn roles(&self, unit: usize) -> Vec<i8> {
        match self.loss.feedback() {
            Feedback::Labels => vec![[1, 0][unit % 2]],
            Feedback::Pairs => vec![1, 0],
            // Another one is the best each time.
            Feedback::Choices => (0..3).map(|place| i8::from(place == unit % 3)).collect(),
        }
    }

    fn heads(&self) -> Vec<Head> {
        Vec::new()
    }

    fn pushes(&self) -> Pushed {
        Pushed::Score
    }

    fn evaluate(&self, given: &Given<'_>) -> Result<LossValue> {
        let part = given.part;
        let n = part.units.len() as i64;
        let scores = last(part, given.scalars);
        let targets = part.constant(part.members().map(|completion| f64::from(completion.role)));
        let table = scores.view([n, -1]);
        let first_of_unit = part.units.iter().map(|&unit| part.batch.units[unit][0]);
        let margin = part.constant(first_of_unit.map(|c| part.batch.advantage[c].abs()));
        let of = |part: &Part<'_>| {
            let answers = part.units.len() as f64;
            Ok(ScoreCounts { answers })
        };
        let counts = ScoreCounts {
            answers: (given.count)(given.counts(self, of)?.answers),
        };
        let evaluate = |scores: Scores<'_>| self.loss.evaluate(&scores, &counts);
        match self.loss.feedback() {
            Feedback::Labels => evaluate(Scores::Labels {
                score: &scores,
                target: &targets,
            }),
            Feedback::Pairs => evaluate(Scores::Pairs {
                chosen: &table.select(1, 0),
                rejected: &table.select(1, 1),
                margin: self.margins.then_some(&margin),
            }),
            Feedback::Choices => evaluate(Scores::Choices {
                scores: &table,
                best: &targets.view([n, -1]).argmax(1, false),
            }),
        }
    }
}
