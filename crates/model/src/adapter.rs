//! An adapter on a whole model: put on, trained, switched off, written, read and merged.

use std::path::Path;

use rand::Rng;
use tch::{Kind, Tensor, no_grad, no_grad_guard};

use crate::arch::Spec;
use crate::classifier::SCORE;
use crate::low_rank::{Adapter, PREFIX};
use crate::peft::{self, Task};
use crate::trunk::Trunk;
use crate::{Decoder, Error, LoraConfig, Params, Result, SequenceClassifier, init};

impl Decoder {
    /// Puts a new adapter on and freezes everything else. A is uniform in ±1/√in from `rng`, module after module, and B is
    /// zero: until B is trained the model computes what it did before. The tensors are in [`Params`] under PEFT's names,
    /// `base_model.model.{module}.lora_A.weight` [r, in] and `….lora_B.weight` [out, r].
    ///
    /// **Errors**: for a setting out of range, a name or block that the model does not have, and a second adapter.
    pub fn add_lora(&mut self, config: &LoraConfig, rng: &mut impl Rng) -> Result<()> {
        let adapter = new(&self.params, &self.trunk, config)?;
        let tensors = begin(&adapter, &self.trunk, rng, kind(&self.params)?)?;
        self.attach(adapter, tensors)
    }

    /// Puts on an adapter from a folder in PEFT's layout (`adapter_config.json` and `adapter_model.safetensors`) and freezes
    /// everything else. Gives notes on what the folder says that has no effect here.
    ///
    /// **Errors**: for settings that mean other maths, tensors that do not fit, and a second adapter.
    pub fn load_adapter(&mut self, dir: &Path) -> Result<Vec<String>> {
        let read = peft::read(dir, Task::CausalLm, &self.trunk.linear)?;
        let adapter = new(&self.params, &self.trunk, &read.config)?;
        let tensors = read.tensors(&adapter, None, kind(&self.params)?)?;
        self.attach(adapter, tensors)?;
        Ok(read.notes)
    }

    /// Writes the adapter in PEFT's layout, for `base_name`: the folder or public name of the model it belongs on. Each file
    /// is replaced whole or not at all.
    pub fn save_adapter(&self, dir: &Path, base_name: &str) -> Result<()> {
        peft::write(dir, Task::CausalLm, present(&self.params)?, &self.params, base_name)
    }

    /// The adapter's settings, where there is one.
    pub fn adapter(&self) -> Option<&LoraConfig> {
        self.params.adapter().map(|a| &a.config)
    }

    /// Adds the adapter into the weights, `W + s B A` computed in f64 and rounded once, and takes it off; every tensor is
    /// trainable again. Without an adapter this is an error.
    pub fn merge_adapter(&mut self) -> Result<()> {
        merge(&mut self.params)?;
        self.trunk.readapt(&self.params)
    }

    /// Runs `f` on the same weights with the adapter off: the reference of the policy that the adapter makes. No gradient is
    /// collected meanwhile. The adapter is on again afterwards, also when `f` fails or panics.
    ///
    /// **Errors**: those of `f`; without an adapter, as the model would be its own reference.
    pub fn without_adapter<R, E: From<Error>>(&self, f: impl FnOnce(&Self) -> Result<R, E>) -> Result<R, E> {
        let _off = present(&self.params)?.strength.off();
        let _no_grad = no_grad_guard();
        f(self)
    }

    fn attach(&mut self, adapter: Adapter, tensors: Vec<(String, Tensor)>) -> Result<()> {
        self.params.attach(adapter, tensors)?;
        self.params.train_only(|name| name.starts_with(PREFIX))?;
        self.trunk.readapt(&self.params)
    }
}

/// The same as for a [`Decoder`]; the score is trained with the adapter, and stored and read with it.
impl SequenceClassifier {
    /// Puts a new adapter on and freezes everything else but the score; see [`Decoder::add_lora`].
    pub fn add_lora(&mut self, config: &LoraConfig, rng: &mut impl Rng) -> Result<()> {
        let adapter = new(&self.params, &self.trunk, config)?;
        let tensors = begin(&adapter, &self.trunk, rng, kind(&self.params)?)?;
        self.attach(adapter, tensors)
    }

    /// Puts on an adapter from a folder in PEFT's layout and replaces the score by that of the folder; see
    /// [`Decoder::load_adapter`].
    pub fn load_adapter(&mut self, dir: &Path) -> Result<Vec<String>> {
        let read = peft::read(dir, Task::SequenceClassification, &self.trunk.linear)?;
        let adapter = new(&self.params, &self.trunk, &read.config)?;
        let score = self.params.shared(SCORE)?;
        let (labels, width) = score.size2()?;
        let own = Spec::matrix(format!("{PREFIX}{SCORE}"), labels as usize, width as usize);
        let mut tensors = read.tensors(&adapter, Some(own), kind(&self.params)?)?;
        let replacement = tensors.pop().map(|(_, tensor)| tensor);
        self.attach(adapter, tensors)?;
        if let Some(replacement) = replacement {
            no_grad(|| score.shallow_clone().f_copy_(&replacement))?;
        }
        Ok(read.notes)
    }

    /// Writes adapter and score in PEFT's layout; see [`Decoder::save_adapter`].
    pub fn save_adapter(&self, dir: &Path, base_name: &str) -> Result<()> {
        let task = Task::SequenceClassification;
        peft::write(dir, task, present(&self.params)?, &self.params, base_name)
    }

    /// The adapter's settings, where there is one.
    pub fn adapter(&self) -> Option<&LoraConfig> {
        self.params.adapter().map(|a| &a.config)
    }

    /// Adds the adapter into the weights and takes it off; see [`Decoder::merge_adapter`].
    pub fn merge_adapter(&mut self) -> Result<()> {
        merge(&mut self.params)?;
        self.trunk.readapt(&self.params)
    }

    fn attach(&mut self, adapter: Adapter, tensors: Vec<(String, Tensor)>) -> Result<()> {
        self.params.attach(adapter, tensors)?;
        self.params
            .train_only(|name| name.starts_with(PREFIX) || name == SCORE)?;
        self.trunk.readapt(&self.params)
    }
}

/// A second adapter is refused before anything is made or read.
fn new(params: &Params, trunk: &Trunk, lora: &LoraConfig) -> Result<Adapter> {
    if let Some(first) = params.adapter() {
        let got = format!("one of rank {}\nhint: merge the first one", first.config.r);
        return Err(Error::input("adapter to put on", "a model without an adapter", got));
    }
    lora.check()?;
    let modules = lora.targets(&trunk.linear, trunk.n_blocks())?;
    Ok(Adapter::new(lora, modules.into_iter().cloned().collect()))
}

/// The tensors of a new adapter.
fn begin(adapter: &Adapter, trunk: &Trunk, rng: &mut impl Rng, kind: Kind) -> Result<Vec<(String, Tensor)>> {
    let make = |spec: Spec| {
        let tensor = init::initial(&trunk.config, &spec, rng, kind)?;
        Ok((spec.name, tensor))
    };
    adapter.tensors().into_iter().map(make).collect()
}

fn present(params: &Params) -> Result<&Adapter> {
    params
        .adapter()
        .ok_or_else(|| Error::input("adapter", "a model with an adapter", "one without"))
}

/// Adapters are held in the kind of the weights, but never below f32, as PEFT holds them.
fn kind(params: &Params) -> Result<Kind> {
    let first = params.iter().next().map(|(_, t)| t.f_kind()).transpose()?;
    Ok(match first {
        Some(Kind::Double) => Kind::Double,
        _ => Kind::Float,
    })
}

fn merge(params: &mut Params) -> Result<()> {
    let adapter = present(params)?;
    let mut merged = Vec::new();
    for module in &adapter.modules {
        let weight = params.known(&format!("{}.weight", module.module))?;
        let kind = weight.f_kind()?;
        if !matches!(kind, Kind::Float | Kind::Double) {
            let got = format!("{kind:?}\nhint: load model and adapter in f32 to merge them");
            return Err(Error::input("weights to merge an adapter into", "Float or Double", got));
        }
        let change = adapter.change(params, module)?;
        let sum = no_grad(|| weight.f_to_kind(Kind::Double)?.f_add(&change)?.f_to_kind(kind))?;
        merged.push((weight.shallow_clone(), sum));
    }
    // All sums exist before the first weight changes.
    for (mut weight, sum) in merged {
        no_grad(|| weight.f_copy_(&sum))?;
    }
    params.detach();
    params.train_only(|_| true)
}
