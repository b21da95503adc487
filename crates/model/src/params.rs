//! The leaves that training updates.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::low_rank::Adapter;
use crate::{Error, Result};

/// One tensor of a model.
#[derive(Debug)]
pub struct Param {
    name: String,
    value: Tensor,
    master: Option<Tensor>,
    /// Gradients of earlier micro-batches, only beside a master.
    sum: RefCell<Option<Tensor>>,
    emptied: Arc<Emptied>,
    trainable: bool,
}

/// Which gradient of a leaf is zero everywhere: that very tensor, as long as nobody has written to it since. Whoever adds to
/// it first may write instead, which spares reading the zeros.
#[derive(Debug, Default)]
pub(crate) struct Emptied(Mutex<Option<(Tensor, i64)>>);

impl Emptied {
    /// It has just been set to zero.
    pub(crate) fn note(&self, gradient: &Tensor) -> Result<()> {
        let version = gradient.f_internal_version()?;
        *self.noted() = Some((gradient.shallow_clone(), version));
        Ok(())
    }

    /// Whether it is zero for certain.
    pub(crate) fn holds(&self, gradient: &Tensor) -> Result<bool> {
        Ok(match &*self.noted() {
            // libtorch counts what is written to a tensor, by autograd or otherwise.
            Some((noted, version)) => {
                noted.data_ptr() == gradient.data_ptr() && gradient.f_internal_version()? == *version
            }
            None => false,
        })
    }

    fn forget(&self) {
        *self.noted() = None;
    }

    fn noted(&self) -> MutexGuard<'_, Option<(Tensor, i64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Param {
    /// Its name in the model's folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The leaf that the model computes with, and that collects the gradient of one pass.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The f32 weights of which the leaf is the rounded copy: in bf16, and not of what lies below an adapter. An
    /// optimiser updates those of what is trained and then rounds them into the leaf ([`Param::rounded`], [`Param::round`]).
    pub fn master(&self) -> Option<&Tensor> {
        self.master.as_ref()
    }

    /// What is updated, saved and hashed: the master where there is one, the leaf otherwise.
    pub fn full(&self) -> &Tensor {
        self.master.as_ref().unwrap_or(&self.value)
    }

    /// Whether an optimiser updates it.
    pub fn trainable(&self) -> bool {
        self.trainable
    }

    /// The gradient so far, all micro-batches together; `None` where nothing has reached it. In f32 once
    /// [`Params::sum_gradients`] has been called on a narrow leaf, otherwise in the leaf's kind.
    pub fn gradient(&self) -> Result<Option<Tensor>> {
        if self.sum.borrow().is_some() {
            self.sum_gradient()?;
        }
        let sum = self.sum.borrow().as_ref().map(Tensor::shallow_clone);
        let own = self.value.f_grad()?;
        Ok(sum.or_else(|| own.defined().then_some(own)))
    }

    /// The leaf where it is the rounded copy of a master, for whoever updates the master.
    pub fn rounded(&self) -> Option<&Tensor> {
        self.master.as_ref().map(|_| &self.value)
    }

    /// To be called by whoever has set the gradient to zero ([`Param::gradient`]), before anything is added to it: the next pass
    /// may then write where it would add.
    pub fn note_zero_gradient(&self) -> Result<()> {
        match self.value.f_grad()? {
            gradient if gradient.defined() => self.emptied.note(&gradient),
            _ => Ok(()),
        }
    }

    /// Makes the leaf the rounded copy of its master again.
    pub fn round(&self) -> Result<()> {
        if let Some(master) = &self.master {
            tch::no_grad(|| self.value.shallow_clone().f_copy_(master))?;
        }
        Ok(())
    }

    /// Replaces the weights, keeping the leaf and its kind.
    fn assign(&self, value: &Tensor) -> Result<()> {
        let (expected, got) = (self.value.size(), value.size());
        if expected != got {
            let what = format!("shape of `{}`", self.name);
            return Err(Error::input(what, format!("{expected:?}"), format!("{got:?}")));
        }
        tch::no_grad(|| self.full().shallow_clone().f_copy_(value))?;
        self.round()
    }

    /// Moves the leaf's gradient into the sum.
    fn sum_gradient(&self) -> Result<()> {
        let mut grad = self.value.f_grad()?;
        if self.master.is_none() || !grad.defined() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let mut sum = self.sum.borrow_mut();
        *sum = Some(match sum.take() {
            Some(mut sum) => sum.f_add_(&grad)?,
            None => grad.f_to_kind(Kind::Float)?,
        });
        let _ = grad.f_detach_()?.f_zero_()?;
        self.emptied.note(&grad)
    }

    fn zero_grad(&self) -> Result<()> {
        let sum = self.sum.borrow().as_ref().map(Tensor::shallow_clone);
        for mut gradient in [Some(self.value.f_grad()?), sum].into_iter().flatten() {
            if gradient.defined() {
                let _ = gradient.f_detach_()?.f_zero_()?;
            }
        }
        self.note_zero_gradient()
    }

    fn set_trainable(&mut self, trainable: bool) -> Result<()> {
        self.trainable = trainable;
        let _ = self.value.f_set_requires_grad(trainable)?;
        // What was trained before keeps its master, or it would lose what rounding takes.
        if trainable && self.master.is_none() && self.value.f_kind()? == Kind::BFloat16 {
            self.master = Some(self.value.f_detach()?.f_to_kind(Kind::Float)?);
        }
        Ok(())
    }

    /// The same weights in another kind, without gradients; `keep` what they were although it is frozen.
    fn into_kind(self, kind: Kind, keep: bool) -> Result<Self> {
        let full = self.full().f_detach()?;
        let is = full.f_kind()?;
        let (value, master) = match kind {
            _ if self.value.f_kind()? == kind => (self.value, self.master),
            Kind::BFloat16 if is == Kind::Float => (full.f_to_kind(kind)?, (keep || self.trainable).then_some(full)),
            // Models in f64 are wider than what is asked for, and stay.
            Kind::Float if is == Kind::Double => (full, None),
            Kind::Float => (full.f_to_kind(kind)?, None),
            _ => {
                let what = format!("kind of `{}`, to be made {kind:?}", self.name);
                return Err(Error::input(what, "Float", format!("{is:?}")));
            }
        };
        let _ = value.f_set_requires_grad(self.trainable)?;
        self.emptied.forget();
        Ok(Self {
            value,
            master,
            sum: RefCell::new(None),
            ..self
        })
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
    ///
    /// **Errors**: [`Error::Input`] when two have one name.
    pub fn new(entries: Vec<(String, Tensor)>) -> Result<Self> {
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
        let mut param = Param {
            name,
            value,
            master: None,
            sum: RefCell::new(None),
            emptied: Arc::default(),
            trainable,
        };
        param.set_trainable(trainable)?;
        self.entries.push(param);
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

    /// Names and weights in order, trained or not: of each what is saved ([`Param::full`]).
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|p| (p.name.as_str(), p.full()))
    }

    /// All, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Param> {
        self.entries.iter()
    }

    /// All but those of an adapter, in order: the model that the adapter is on.
    pub fn base(&self) -> impl Iterator<Item = &Param> {
        let of_adapter = self.adapter.as_ref().map_or(0, |adapter| 2 * adapter.modules.len());
        self.entries.iter().take(self.entries.len() - of_adapter)
    }

    /// What an optimiser updates, in order.
    pub fn trainable(&self) -> impl Iterator<Item = &Param> {
        self.entries.iter().filter(|p| p.trainable)
    }

    /// Makes exactly those tensors trainable whose name `wanted` accepts; the others collect no gradient.
    pub fn train_only(&mut self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        for param in &mut self.entries {
            let trainable = wanted(&param.name);
            param.set_trainable(trainable)?;
        }
        Ok(())
    }

    /// The weights of a name, as [`Params::iter`] gives them.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).map(|&i| self.entries[i].full())
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
        self.entries.iter().try_for_each(Param::zero_grad)
    }

    /// Adds the gradients of narrow leaves to sums in f32 and sets them to zero, so that nothing is lost when several
    /// micro-batches are added up. To be called after each of them; nothing happens in f32, where libtorch's own sum is
    /// as good.
    pub fn sum_gradients(&self) -> Result<()> {
        self.trainable().try_for_each(Param::sum_gradient)
    }

    /// Replaces the weights by others of the same names and shapes, given in any order; leaves, kinds and what is
    /// trained stay.
    ///
    /// **Errors**: [`Error::Input`] naming the tensor that is missing, unknown or of another shape.
    pub fn assign<'a>(&self, weights: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
        let mut seen = vec![false; self.entries.len()];
        for (name, value) in weights {
            let Some(&at) = self.index.get(name) else {
                return Err(Error::input("parameters", "names of this model's", format!("`{name}`")));
            };
            self.entries[at].assign(value)?;
            seen[at] = true;
        }
        match seen.iter().position(|seen| !seen) {
            None => Ok(()),
            Some(at) => Err(Error::input(
                "parameters",
                format!("`{}`", self.entries[at].name),
                "no such tensor",
            )),
        }
    }

    /// Replaces the weights of one name; leaf and kind stay.
    pub(crate) fn set(&self, name: &str, value: &Tensor) -> Result<()> {
        match self.index.get(name) {
            Some(&at) => self.entries[at].assign(value),
            None => Err(Error::input("parameters", format!("`{name}`"), "no such tensor")),
        }
    }

    /// Makes every leaf the rounded copy of its master again.
    pub(crate) fn round(&self) -> Result<()> {
        self.entries.iter().try_for_each(Param::round)
    }

    /// Whether the leaves have a kind, or are f64 where f32 is asked for.
    pub(crate) fn is_of(&self, kind: Kind) -> Result<bool> {
        let mut kinds = self.entries.iter().map(|param| param.value.f_kind());
        let fits = |is: Kind| is == kind || (is == Kind::Double && kind == Kind::Float);
        Ok(kinds.try_fold(true, |all, is| Ok::<_, tch::TchError>(all && fits(is?)))?)
    }

    /// The same weights to compute with in another kind: f32, or bf16 with f32 masters of what will be saved. That is
    /// everything, or only the adapter where there is one: the weights below it are rounded and have no master.
    pub(crate) fn into_kind(self, kind: Kind) -> Result<Self> {
        let keep = self.adapter.is_none();
        let entries = self.entries.into_iter().map(|param| param.into_kind(kind, keep));
        Ok(Self {
            entries: entries.collect::<Result<_>>()?,
            ..self
        })
    }

    /// The tensor of a name that must exist.
    pub(crate) fn known(&self, name: &str) -> Result<&Tensor> {
        self.get(name)
            .ok_or_else(|| Error::input("parameters", format!("`{name}`"), "no such tensor"))
    }

    /// A handle on the leaf of a name, for the module that computes with it.
    pub(crate) fn shared(&self, name: &str) -> Result<Tensor> {
        self.find(name)
            .ok_or_else(|| Error::input("parameters", format!("`{name}`"), "no such tensor"))
    }

    /// What is known of the gradient of that leaf.
    pub(crate) fn emptied(&self, name: &str) -> Option<Arc<Emptied>> {
        self.index.get(name).map(|&i| Arc::clone(&self.entries[i].emptied))
    }

    /// The same where the tensor need not exist.
    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        self.index.get(name).map(|&i| self.entries[i].value.shallow_clone())
    }
}
