//! Training: [`Fit`] as every experiment runs it, with records, guard, clipping and AdamW.

use anyhow::{Context, Result};
use tch::Device;
use unsay_data::{Encoded, Label, Span};
use unsay_losses::token::{Cringe, Loss, Nll};
use unsay_model::Decoder;
use unsay_train::{Examples, Fit, LanguageObjective, Objective, Settings, Source};

use super::{Job, Made, compute, data, precision, weights};
use crate::material::{Labelled, Material, SEED};
use crate::protocol::{Loaded, Task, Work};

/// A run that is asked for one update at a time.
struct Training<O> {
    fit: Fit<O>,
    loaded: Loaded,
}

impl<O: Objective> Job for Training<O> {
    fn loaded(&self) -> Loaded {
        self.loaded.clone()
    }

    fn step(&mut self) -> Result<Made> {
        let record = self.fit.next().context("the run has ended")??;
        let tokens = record.metric("num_tokens").context("a record without `num_tokens`")?;
        Ok(Made {
            tokens: tokens as u64,
            values: record.metrics.into_iter().collect(),
            ids: Vec::new(),
        })
    }
}

/// Likelihood or CRINGE on labelled examples.
pub(super) fn language(work: &Work) -> Result<Box<dyn Job>> {
    let material = Material::read(&work.data)?;
    let precision = precision(&work.way)?;
    let decoder = Decoder::load(&work.model, Device::Cpu)?;
    let first = material.batches.first().context("no batches")?;
    let rows: Vec<&[u32]> = first.iter().map(|&at| material.examples[at].ids.as_slice()).collect();
    let learnt = |&at: &usize| material.examples[at].ids.len() - material.examples[at].prompt;
    let loaded = Loaded {
        weights: weights(&decoder)?,
        data: data(&rows, first.iter().map(learnt).sum()),
        compute: compute(precision),
    };
    let loss = match work.task {
        Task::Cringe => Loss::Cringe(Cringe::new(work.number("alpha")?, work.number("k")? as usize)),
        _ => Loss::Nll(Nll::default()),
    };
    let train = source(&material.examples);
    let valid = source(&material.examples[..2]);
    let objective = LanguageObjective::new(decoder, loss, Examples::new(vec![train], valid)?)?;
    let settings = Settings {
        precision,
        // A run of this length never ends by itself.
        ..Settings::new(1 << 40, work.batch, work.number("lr")?)
    };
    let fit = Fit::open(objective, &settings, SEED, &work.scratch.join("run"))?;
    Ok(Box::new(Training { fit, loaded }))
}

fn source(examples: &[Labelled]) -> Source {
    let encoded = |(example, one): (usize, &Labelled)| Encoded {
        ids: one.ids.clone(),
        spans: vec![Span {
            start: one.prompt,
            end: one.ids.len(),
            ended: false,
        }],
        label: if one.positive { Label::Positive } else { Label::Negative },
        example,
    };
    Source {
        encoded: examples.iter().enumerate().map(encoded).collect(),
        ids: Vec::new(),
        weight: 1.0,
    }
}
