//! The leaves that training updates.

use std::collections::HashMap;

use tch::Tensor;

use crate::{Error, Result};

/// Named leaf tensors in the model's order, each collecting gradients. A tied output embedding is one
/// tensor under one name (`model.embed_tokens.weight`).
#[derive(Debug)]
pub struct Params {
    entries: Vec<(String, Tensor)>,
    index: HashMap<String, usize>,
}

impl Params {
    /// Takes tensors over; each becomes a leaf that requires a gradient.
    pub(crate) fn new(entries: Vec<(String, Tensor)>) -> Result<Self> {
        let mut index = HashMap::with_capacity(entries.len());
        for (i, (name, tensor)) in entries.iter().enumerate() {
            if index.insert(name.clone(), i).is_some() {
                return Err(Error::input(
                    "parameter names",
                    "distinct names",
                    format!("`{name}` twice"),
                ));
            }
            let _ = tensor.f_set_requires_grad(true)?;
        }
        Ok(Self { entries, index })
    }

    /// Names and tensors in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|(n, t)| (n.as_str(), t))
    }

    /// The tensor of a name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).map(|&i| &self.entries[i].1)
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
        self.entries.iter().map(|(_, t)| t.numel()).sum()
    }

    /// Sets every gradient that exists to zero; one that was never made stays undefined.
    pub fn zero_grad(&self) -> Result<()> {
        for (_, tensor) in &self.entries {
            let mut grad = tensor.f_grad()?;
            if grad.defined() {
                let _ = grad.f_detach_()?.f_zero_()?;
            }
        }
        Ok(())
    }

    /// A handle on the same tensor, for the module that computes with it.
    pub(crate) fn shared(&self, name: &str) -> Result<Tensor> {
        match self.get(name) {
            Some(tensor) => Ok(tensor.shallow_clone()),
            None => Err(Error::input("parameters", format!("`{name}`"), "no such tensor")),
        }
    }
}
