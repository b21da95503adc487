//! A model in training: what decoder and classifier have in common for a loop.

use std::path::Path;

use tch::Device;
use unsay_model::{Decoder, Params, Precision, SequenceClassifier, Trunk};

use crate::error::Result;
use crate::examples::Examples;
use crate::pass::Pass;
use crate::prefix_states::PrefixStates;
use crate::settings::Settings;

/// What can be trained: a trunk with something on it.
pub(crate) trait Model: Sized {
    fn trunk(&self) -> &Trunk;
    fn params(&self) -> &Params;
    /// The same model computing in another precision.
    fn computing_in(self, precision: Precision) -> Result<Self>;
    fn is_adapted(&self) -> bool;
    /// Writes the adapter alone: the weights below it are those that the run began with.
    fn write_adapter(&self, folder: &Path, base_name: &str) -> Result<()>;
    fn write(&self, folder: &Path) -> Result<()>;
    fn read_adapter_of(&mut self, folder: &Path) -> Result<()>;
    fn read(&mut self, folder: &Path) -> Result<()>;
}

macro_rules! model {
    ($($model:ident),+) => {
        $(impl Model for $model {
            fn trunk(&self) -> &Trunk {
                self.trunk()
            }

            fn params(&self) -> &Params {
                self.params()
            }

            fn computing_in(self, precision: Precision) -> Result<Self> {
                Ok(self.with_precision(precision)?)
            }

            fn is_adapted(&self) -> bool {
                self.adapter().is_some()
            }

            fn write_adapter(&self, folder: &Path, base_name: &str) -> Result<()> {
                Ok(self.save_adapter(folder, base_name)?)
            }

            fn write(&self, folder: &Path) -> Result<()> {
                Ok(self.save(folder)?)
            }

            fn read_adapter_of(&mut self, folder: &Path) -> Result<()> {
                Ok(self.read_adapter(folder)?)
            }

            fn read(&mut self, folder: &Path) -> Result<()> {
                Ok(self.read_weights(folder)?)
            }
        })+
    };
}

model!(Decoder, SequenceClassifier);

/// A model, how its batches go through it, and what its adapter's folder says it belongs on.
#[derive(Debug)]
pub(crate) struct Learner<M> {
    pub(crate) model: M,
    pub(crate) pass: Pass,
    base_name: String,
}

impl<M: Model> Learner<M> {
    pub(crate) fn new(model: M) -> Self {
        Self {
            model,
            pass: Pass::default(),
            base_name: String::new(),
        }
    }

    /// Names the model that an adapter belongs on.
    pub(crate) fn with_base_name(self, base_name: impl Into<String>) -> Self {
        let base_name = base_name.into();
        Self { base_name, ..self }
    }

    /// Takes files of states, each made of the examples in its place.
    pub(crate) fn with_prefix_states(self, states: Vec<PrefixStates>, examples: &Examples) -> Result<Self> {
        let pass = self.pass.with_prefix_states(states, examples)?;
        Ok(Self { pass, ..self })
    }

    /// Takes over what the settings say of the model.
    pub(crate) fn configured(self, settings: &Settings) -> Result<Self> {
        let model = self.model.computing_in(settings.precision)?;
        let pass = self.pass.configured(settings, model.trunk(), model.params())?;
        Ok(Self { model, pass, ..self })
    }

    pub(crate) fn trunk(&self) -> &Trunk {
        self.model.trunk()
    }

    pub(crate) fn params(&self) -> &Params {
        self.model.params()
    }

    pub(crate) fn device(&self) -> Device {
        self.model.trunk().device()
    }

    /// Adds the gradients of a micro-batch that is not the only one to those before it.
    pub(crate) fn sum_gradients(&self, (train, n_micro_batches): (bool, usize)) -> Result<()> {
        match train && n_micro_batches > 1 {
            true => Ok(self.params().sum_gradients()?),
            false => Ok(()),
        }
    }

    /// Writes what a checkpoint needs of the model: its adapter where it has one, all of it otherwise.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        match self.model.is_adapted() {
            true => self.model.write_adapter(folder, &self.base_name),
            false => self.model.write(folder),
        }
    }

    /// Reads it back.
    pub(crate) fn restore(&mut self, folder: &Path) -> Result<()> {
        match self.model.is_adapted() {
            true => self.model.read_adapter_of(folder),
            false => self.model.read(folder),
        }
    }
}
