//! The leaves that training updates.

use std::collections::HashMap;

use tch::{Device, Tensor};

use crate::low_rank::Adapter;
use crate::{Error, Result};

/// One tensor of a model.
#[derive(Debug)]
pub struct Param {
    name: String,
    value: Tensor,
    trainable: bool,
}

impl Param {
    /// Its name in the model's folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The leaf that the model computes with, and that collects the gradient.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Whether an optimiser updates it.
    pub fn trainable(&self) -> bool {
        self.trainable
    }
}

/// Named leaf tensors in the model's order. A tied output embedding is one tensor under one name (that of the
/// input embedding).
#[derive(Debug)]
pub struct Params {
    entries: Vec<Param>,
    index: HashMap<String, usize>,
    adapter: Option<Adapter>,
}

impl Params {
    /// Takes tensors over; each becomes a leaf that requires a gradient.
    pub(crate) fn new(entries: Vec<(String, Tensor)>) -> Result<Self> {
        let mut params = Self {
            entries: Vec::with_capacity(entries.len()),
            index: HashMap::with_capacity(entries.len()),
            adapter: None,
        };
        entries
            .into_iter()
            .try_for_each(|(name, value)| params.push(name, value, true))?;
        Ok(params)
    }

    /// Takes one more tensor over.
    fn push(&mut self, name: String, value: Tensor, trainable: bool) -> Result<()> {
        if self.index.insert(name.clone(), self.entries.len()).is_some() {
            return Err(Error::input(
                "parameter names",
                "distinct names",
                format!("`{name}` twice"),
            ));
        }
        let _ = value.f_set_requires_grad(trainable)?;
        self.entries.push(Param { name, value, trainable });
        Ok(())
    }

    /// What is known of the adapter among the tensors, where there is one.
    pub(crate) fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// Takes the tensors of an adapter over, after all others.
    pub(crate) fn attach(&mut self, adapter: Adapter, tensors: Vec<(String, Tensor)>) -> Result<()> {
        let device = self.entries.first().map_or(Device::Cpu, |p| p.value.device());
        let moved = tensors
            .into_iter()
            .map(|(name, value)| Ok((name, value.f_to(device)?)))
            .collect::<Result<Vec<_>>>()?;
        moved
            .into_iter()
            .try_for_each(|(name, value)| self.push(name, value, true))?;
        self.adapter = Some(adapter);
        Ok(())
    }

    /// Drops the tensors of the adapter; they stand last.
    pub(crate) fn detach(&mut self) {
        let Some(adapter) = self.adapter.take() else { return };
        self.entries.truncate(self.entries.len() - 2 * adapter.modules.len());
        let kept = self.entries.len();
        self.index.retain(|_, place| *place < kept);
    }

    /// Names and tensors in order, trained or not.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|p| (p.name.as_str(), &p.value))
    }

    /// What an optimiser updates, in order.
    pub fn trainable(&self) -> impl Iterator<Item = &Param> {
        self.entries.iter().filter(|p| p.trainable)
    }

    /// Makes exactly those tensors trainable whose name `wanted` accepts; the others collect no gradient.
    pub fn train_only(&mut self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        for param in &mut self.entries {
            param.trainable = wanted(&param.name);
            let _ = param.value.f_set_requires_grad(param.trainable)?;
        }
        Ok(())
    }

    /// The tensor of a name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).map(|&i| &self.entries[i].value)
    }

    /// How many tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many numbers in all.
    pub fn numel(&self) -> usize {
        self.entries.iter().map(|p| p.value.numel()).sum()
    }

    /// Sets every gradient that exists to zero; one that was never made stays undefined.
    pub fn zero_grad(&self) -> Result<()> {
        for param in &self.entries {
            let mut grad = param.value.f_grad()?;
            if grad.defined() {
                let _ = grad.f_detach_()?.f_zero_()?;
            }
        }
        Ok(())
    }

    /// The tensor of a name that must exist.
    pub(crate) fn known(&self, name: &str) -> Result<&Tensor> {
        self.get(name)
            .ok_or_else(|| Error::input("parameters", format!("`{name}`"), "no such tensor"))
    }

    /// A handle on the same tensor, for the module that computes with it.
    pub(crate) fn shared(&self, name: &str) -> Result<Tensor> {
        self.find(name)
            .ok_or_else(|| Error::input("parameters", format!("`{name}`"), "no such tensor"))
    }

    /// The same where the tensor need not exist.
    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        self.get(name).map(Tensor::shallow_clone)
    }
}
