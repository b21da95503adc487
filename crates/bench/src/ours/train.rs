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
pub(super) struct Training<O> {
    pub(super) fit: Fit<O>,
    pub(super) loaded: Loaded,
    /// Tokens of a step, where the record counts otherwise than the other side.
    pub(super) tokens: Option<u64>,
}

impl<O: Objective> Job for Training<O> {
    fn loaded(&self) -> Loaded {
        self.loaded.clone()
    }

    fn step(&mut self) -> Result<Made> {
        let record = self.fit.next().context("the run has ended")??;
        let counted = record.metric("num_tokens").context("a record without `num_tokens`")?;
        Ok(Made {
            tokens: self.tokens.unwrap_or(counted as u64),
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
        weights: weights(decoder.params())?,
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
    let fit = begin(objective, work)?;
    Ok(Box::new(Training {
        fit,
        loaded,
        tokens: None,
    }))
}

/// Opens a run that never ends by itself.
pub(super) fn begin<O: Objective>(objective: O, work: &Work) -> Result<Fit<O>> {
    let settings = Settings {
        precision: precision(&work.way)?,
        ..Settings::new(1 << 40, work.batch, work.number("lr")?)
    };
    Ok(Fit::open(objective, &settings, SEED, &work.scratch.join("run"))?)
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
