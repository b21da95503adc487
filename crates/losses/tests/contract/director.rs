//! The director family: a unit is one completion, as in the token family, read by two heads.

use unsay_losses::director::{DirectorCounts, Loss};
use unsay_losses::{Card, Error, LossValue, Result, TokenCounts};

use crate::subject::{Given, Head, Pushed, Setting, Subject, Table};
use crate::token::rows;

/// A loss with one of the two forms of the second head.
struct TwoHeads {
    loss: Loss,
    second: Table,
}

/// Every sample of every registered loss, with a second head of its own and with a shared one.
pub fn subjects() -> Vec<Subject> {
    let subject = |loss: &Loss, second: Table| Subject {
        family: "director",
        name: loss.name(),
        text: format!("{loss:?}, {second:?}"),
        setting: Box::new(TwoHeads {
            loss: loss.clone(),
            second,
        }),
    };
    let both = |loss: &Loss| [Table::Second, Table::Shared].map(|second| subject(loss, second));
    Loss::samples().iter().flat_map(both).collect()
}

/// The form that the manifest tests use.
pub fn setting(loss: Loss) -> Box<dyn Setting> {
    let second = Table::Second;
    Box::new(TwoHeads { loss, second })
}

impl Setting for TwoHeads {
    fn card(&self) -> Card {
        self.loss.card()
    }

    fn problems(&self) -> Vec<Error> {
        self.loss.problems()
    }

    fn roles(&self, unit: usize) -> Vec<i8> {
        vec![[1, 0, -1][unit % 3]]
    }

    fn heads(&self) -> Vec<Head> {
        let second = Head {
            needs: self.loss.classifier_needs(),
            table: self.second,
        };
        vec![Head::first(self.loss.generator_needs()), second]
    }

    fn pushes(&self) -> Pushed {
        Pushed::Judgement
    }

    fn evaluate(&self, given: &Given<'_>) -> Result<LossValue> {
        let whole = given.counts(self, |part| DirectorCounts::of(&rows(part)))?;
        let counts = DirectorCounts {
            examples: (given.count)(whole.examples),
            tokens: TokenCounts {
                positive: (given.count)(whole.tokens.positive),
                negative: (given.count)(whole.tokens.negative),
                unlabelled: (given.count)(whole.tokens.unlabelled),
                ..whole.tokens
            },
        };
        self.loss
            .evaluate(&given.stats[0], &given.stats[1], &rows(given.part), &counts)
    }
}
