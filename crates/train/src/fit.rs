//! The training loop: an iterator that makes one update and gives one record at a time.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use unsay_data::Mixture;

use crate::checkpoint::{Best, RunFolder};
use crate::error::{Error, Result};
use crate::examples::{Place, hex};
use crate::objective::{Draws, LogicalBatch, Objective, Outcome};
use crate::optim::{AdamW, clip_scale, grad_norm, non_finite_gradients};
use crate::reading::{NotFinite, Reading};
use crate::record::{Metrics, StepRecord, read_steps};
use crate::settings::Settings;

/// A training run that continues where its folder says it stopped.
///
/// Every call of `next` makes one update: gradients of a logical batch, the guard against values that are not
/// finite, clipping, AdamW. It validates, keeps the best weights and writes checkpoints when they are due. The
/// caller looks at the records, and stops by not asking for more; [`Fit::save`] first writes a checkpoint at
/// any step. A run that was stopped and opened again gives the same records and weights, byte for byte, as one
/// that was not. After an error the iterator ends, and the folder holds the last checkpoint.
#[derive(Debug)]
pub struct Fit<O> {
    objective: O,
    settings: Settings,
    seed: u64,
    mixture: Mixture,
    optimizer: AdamW,
    folder: RunFolder,
    step: u64,
    best: Option<Best>,
    failed: bool,
}

impl<O: Objective> Fit<O> {
    /// Starts a run in a folder, or continues the one that is there.
    ///
    /// A checkpoint made with other settings, seed, examples, loss or parameter shapes is refused; that the
    /// starting weights are the same is for the caller to see to.
    pub fn open(objective: O, settings: &Settings, seed: u64, folder: &Path) -> Result<Self> {
        let problems = settings.check();
        if !problems.is_empty() {
            return Err(Error::Settings(problems));
        }
        let mut objective = objective.configure(settings)?;
        let sources = objective.examples().sources();
        let sizes: Vec<usize> = sources.iter().map(|source| source.encoded.len()).collect();
        let weights: Vec<f64> = sources.iter().map(|source| source.weight).collect();
        let mixture = Mixture::new(&sizes, &weights, settings.batch, seed)?;
        let mut optimizer = AdamW::new(objective.params(), settings.betas, settings.eps, settings.weight_decay)?;
        let (folder, resumed) = RunFolder::open(folder, &settings_hash(&objective, settings, seed))?;
        let (mut step, mut best) = (0, None);
        if let Some(resumed) = resumed {
            objective.restore(&resumed.weights)?;
            optimizer.load(&resumed.optimizer)?;
            (step, best) = (resumed.state.step, resumed.state.best);
        }
        Ok(Self {
            objective,
            settings: settings.clone(),
            seed,
            mixture,
            optimizer,
            folder,
            step,
            best,
            failed: false,
        })
    }

    /// Updates made so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The settings of the run.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The objective with the model as it is now.
    pub fn objective(&self) -> &O {
        &self.objective
    }

    /// Gives the objective and its model back.
    pub fn into_objective(self) -> O {
        self.objective
    }

    /// The step with the lowest validation loss so far; the earliest of equals.
    pub fn best(&self) -> Option<&Best> {
        self.best.as_ref()
    }

    /// The folder with the best weights so far.
    pub fn best_folder(&self) -> Option<PathBuf> {
        self.best.as_ref().map(|best| self.folder.best(best.step))
    }

    /// The folder of the last checkpoint, which holds its weights.
    pub fn last_folder(&self) -> Option<PathBuf> {
        self.folder.last()
    }

    /// The records of all steps so far, those from before a resume included.
    pub fn records(&self) -> Result<Vec<StepRecord>> {
        read_steps(self.folder.log.path())
    }

    /// Writes a checkpoint now.
    pub fn save(&mut self) -> Result<()> {
        if self.failed {
            return Err(Error::Data("a run that failed has no state to save".into()));
        }
        let (objective, optimizer) = (&self.objective, &self.optimizer);
        self.folder
            .save_checkpoint(self.step, self.best.as_ref(), |folder, file| {
                objective.save(folder)?;
                optimizer.save(file)
            })
    }

    fn advance(&mut self) -> Result<StepRecord> {
        let update = self.step;
        let step = update + 1;
        let metrics = self.update(update)?;
        self.step = step;
        let due = |every: Option<u64>| step == self.settings.steps || every.is_some_and(|n| step.is_multiple_of(n));
        let (validate, checkpoint) = (due(self.settings.eval_every), due(self.settings.checkpoint_every));
        let valid = if validate { Some(self.validate()?) } else { None };
        let record = StepRecord { step, metrics, valid };
        self.folder.log.append(&record)?;
        if checkpoint {
            self.save()?;
        }
        Ok(record)
    }

    /// One update of the parameters.
    fn update(&mut self, update: u64) -> Result<Metrics> {
        let place = |(source, index)| Place::Train { source, index };
        let batch = LogicalBatch {
            places: self.mixture.batch(update).into_iter().map(place).collect(),
            micro_batch: self.settings.micro_batch(),
            draws: Draws {
                seed: self.seed,
                purpose: "loss-draws",
                position: update,
            },
            train: true,
        };
        let outcome = self.run(&batch, update + 1)?;
        let norm = grad_norm(self.objective.params())?;
        let reading = Reading::new(&outcome, Some(&norm))?;
        self.check(&reading, &batch, update + 1, "")?;
        let scale = match (self.settings.clip, reading.grad_norm) {
            (Some(max_norm), Some(norm)) => clip_scale(norm, max_norm),
            _ => 1.0,
        };
        let lr = self.settings.learning_rate(update);
        self.optimizer.step(self.objective.params(), lr, scale)?;
        let mut metrics = reading.into_metrics();
        metrics.push(("learning_rate".to_owned(), lr));
        Ok(metrics)
    }

    /// The objective on the whole validation set, with the same draws every time. Keeps the best weights.
    fn validate(&mut self) -> Result<Metrics> {
        let batch = LogicalBatch {
            places: self.objective.examples().valid_places(),
            micro_batch: self.settings.micro_batch(),
            draws: Draws {
                seed: self.seed,
                purpose: "valid-draws",
                position: 0,
            },
            train: false,
        };
        let outcome = self.run(&batch, self.step)?;
        let reading = Reading::new(&outcome, None)?;
        self.check(&reading, &batch, self.step, "validation ")?;
        let loss = reading.loss;
        if self.best.as_ref().is_none_or(|best| loss < best.loss) {
            let objective = &self.objective;
            self.folder.save_best(self.step, |folder| objective.save(folder))?;
            self.best = Some(Best { step: self.step, loss });
        }
        Ok(reading.into_metrics())
    }

    fn run(&self, batch: &LogicalBatch, step: u64) -> Result<Outcome> {
        self.objective.run(batch).map_err(|source| Error::Step {
            step,
            source: Box::new(source),
        })
    }

    /// Refuses what is not finite, before it reaches the weights.
    fn check(&self, reading: &Reading, batch: &LogicalBatch, step: u64, what: &str) -> Result<()> {
        let Some(NotFinite { term, positions }) = reading.not_finite() else {
            return Ok(());
        };
        let name = |&position: &usize| self.objective.examples().name(batch.places[position]);
        let examples = positions.iter().map(name).collect();
        let mut term = format!("{what}{term}");
        if term == "grad_norm" {
            let params = non_finite_gradients(self.objective.params())?;
            term = params.first().map_or(term, |name| format!("gradient of {name}"));
        }
        Err(Error::NonFinite { step, term, examples })
    }
}

impl<O: Objective> Iterator for Fit<O> {
    type Item = Result<StepRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.step >= self.settings.steps {
            return None;
        }
        let result = self.advance();
        self.failed = result.is_err();
        Some(result)
    }
}

/// Two runs with the same hash make the same updates from the same weights.
fn settings_hash(objective: &impl Objective, settings: &Settings, seed: u64) -> String {
    let mut params: Vec<String> = objective
        .params()
        .iter()
        .map(|(name, tensor)| format!("{name} {:?}", tensor.size()))
        .collect();
    params.extend(
        objective
            .params()
            .trainable()
            .map(|param| format!("trained {}", param.name())),
    );
    let fingerprint = objective.examples().fingerprint();
    let text = format!(
        "1\n{settings:?}\n{seed}\n{}\n{fingerprint}\n{}",
        objective.describe(),
        params.join("\n")
    );
    hex(&Sha256::digest(text.as_bytes()))
}
