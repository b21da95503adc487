//! Generation: an engine that is kept, as `unsay chat` has it.

use anyhow::Result;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tch::Device;
use unsay_data::stream;
use unsay_model::{Decoder, Engine, Generation, Sampling};

use super::{Job, Made, compute, data, precision, weights};
use crate::material::{Material, SEED};
use crate::protocol::{Loaded, Task, Work};

/// Prompts that are completed again and again.
struct Completions {
    engine: Engine<'static>,
    material: Material,
    sampling: Sampling,
    batch: usize,
    draws: ChaCha8Rng,
    loaded: Loaded,
}

impl Job for Completions {
    fn loaded(&self) -> Loaded {
        self.loaded.clone()
    }

    fn step(&mut self) -> Result<Made> {
        let Self { material, draws, .. } = self;
        let mut draw = |_, _| draws.random::<f32>();
        let made = Generation::on(&self.engine, &self.sampling, &material.ends)
            .batch(self.batch)
            .draws(&mut draw)
            .run(&material.prompts)?;
        // An end token is made like any other.
        let tokens: usize = made.iter().map(|one| one.ids.len() + usize::from(one.finished)).sum();
        Ok(Made {
            tokens: tokens as u64,
            values: [(
                "finished".to_owned(),
                made.iter().filter(|one| one.finished).count() as f64,
            )]
            .into(),
            ids: made.into_iter().map(|one| one.ids).collect(),
        })
    }
}

/// Greedy or sampled completions of all prompts.
pub(super) fn completions(work: &Work) -> Result<Box<dyn Job>> {
    let material = Material::read(&work.data)?;
    let precision = precision(&work.way)?;
    let decoder = Decoder::load(&work.model, Device::Cpu)?;
    let new = work.number("new_tokens")? as usize;
    let rows: Vec<&[u32]> = material.prompts.iter().map(Vec::as_slice).collect();
    let loaded = Loaded {
        weights: weights(decoder.params())?,
        data: data(&rows, rows.len() * new),
        compute: compute(precision),
    };
    let sampling = match work.task {
        Task::Sample => Sampling::new(new),
        _ => Sampling::greedy(new),
    };
    Ok(Box::new(Completions {
        engine: Engine::taking(decoder.with_precision(precision)?)?,
        material,
        sampling,
        batch: work.batch,
        draws: stream(SEED, "bench-draws", 0),
        loaded,
    }))
}
