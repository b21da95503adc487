//! The training loop: an iterator that makes one update and gives one record at a time.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use unsay_data::Mixture;

use crate::checkpoint::{Best, RunFolder};
use crate::error::{Error, Result};
use crate::examples::{Place, hex};
use crate::objective::{Draws, LogicalBatch, Objective, Outcome};
use crate::optim::{AdamW, grad_norm, non_finite_gradients, scale_gradients};
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
    pub fn open(mut objective: O, settings: &Settings, seed: u64, folder: &Path) -> Result<Self> {
        let problems = settings.check();
        if !problems.is_empty() {
            return Err(Error::Settings(problems));
        }
        let sources = objective.examples().sources();
        let sizes: Vec<usize> = sources.iter().map(|source| source.encoded.len()).collect();
        let weights: Vec<f64> = sources.iter().map(|source| source.weight).collect();
        let mixture = Mixture::new(&sizes, &weights, settings.batch, seed)?;
        let mut optimizer = AdamW::new(
            objective.params().iter(),
            settings.betas,
            settings.eps,
            settings.weight_decay,
        )?;
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
        let outcome = self.objective.run(&batch)?;
        let norm = grad_norm(self.objective.params().iter())?;
        let mut metrics = self.read(&outcome, Some(&norm), &batch, update + 1, "")?;
        let params = || self.objective.params().iter();
        if let Some(max_norm) = self.settings.clip {
            let norm = metrics
                .iter()
                .find(|(name, _)| name == GRAD_NORM)
                .map_or(0.0, |&(_, value)| value);
            scale_gradients(params(), norm, max_norm)?;
        }
        let lr = self.settings.learning_rate(update);
        self.optimizer.step(params(), lr)?;
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
        let outcome = self.objective.run(&batch)?;
        let metrics = self.read(&outcome, None, &batch, self.step, "validation ")?;
        let loss = metrics[0].1;
        if self.best.as_ref().is_none_or(|best| loss < best.loss) {
            let objective = &self.objective;
            self.folder.save_best(self.step, |folder| objective.save(folder))?;
            self.best = Some(Best { step: self.step, loss });
        }
        Ok(metrics)
    }

    /// Reads everything that came out of a batch in one transfer and refuses what is not finite. The loss is first.
    fn read(
        &self,
        outcome: &Outcome,
        norm: Option<&Tensor>,
        batch: &LogicalBatch,
        step: u64,
        what: &str,
    ) -> Result<Metrics> {
        let mut named = vec![("loss", &outcome.loss)];
        named.extend(
            outcome
                .terms
                .iter()
                .chain(&outcome.metrics)
                .map(|(name, value)| (*name, value)),
        );
        named.extend(norm.map(|norm| (GRAD_NORM, norm)));
        let scalars: Vec<&Tensor> = named.iter().map(|(_, value)| *value).collect();
        let all = Tensor::f_cat(&[&Tensor::f_stack(&scalars, 0)?, &outcome.per_example], 0)?;
        let all = all.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?;
        let mut values = vec![0.0_f64; all.numel()];
        all.f_copy_data(&mut values, all.numel())?;
        let (values, per_example) = values.split_at(named.len());
        // A term says more than the loss, which comes last here.
        let specific = named.iter().zip(values).skip(1).chain(named.iter().zip(values).take(1));
        let broken = specific
            .into_iter()
            .find(|(_, value)| !value.is_finite())
            .map(|((name, _), _)| *name);
        let any_example = per_example.iter().any(|value| !value.is_finite());
        if broken.is_some() || any_example {
            let culprits = batch
                .places
                .iter()
                .zip(per_example)
                .filter(|(_, value)| !any_example || !value.is_finite());
            let examples = culprits
                .map(|(&place, _)| self.objective.examples().name(place))
                .collect();
            let mut term = format!("{what}{}", broken.unwrap_or("per-example loss"));
            if broken == Some(GRAD_NORM) {
                let params = non_finite_gradients(self.objective.params().iter())?;
                term = params.first().map_or(term, |name| format!("gradient of {name}"));
            }
            return Err(Error::NonFinite { step, term, examples });
        }
        let metrics = named
            .iter()
            .zip(values)
            .map(|((name, _), &value)| ((*name).to_owned(), value));
        Ok(metrics
            .chain(outcome.counts.iter().map(|&(name, n)| (name.to_owned(), n)))
            .collect())
    }
}

const GRAD_NORM: &str = "grad_norm";

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
    let params: Vec<String> = objective
        .params()
        .iter()
        .map(|(name, tensor)| format!("{name} {:?}", tensor.size()))
        .collect();
    let fingerprint = objective.examples().fingerprint();
    let text = format!(
        "1\n{settings:?}\n{seed}\n{}\n{fingerprint}\n{}",
        objective.describe(),
        params.join("\n")
    );
    hex(&Sha256::digest(text.as_bytes()))
}
