//! Low-rank adapters at work: beside each frozen linear map a product of two thin trained ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::{Kind, Tensor, no_grad};

use crate::arch::{Initial, Spec};
use crate::linear::{Layout, LinearShape, gradient_of};
use crate::{LoraConfig, Params, Result};

/// What PEFT writes before a module's name.
pub(crate) const PREFIX: &str = "base_model.model.";

/// What all adapted maps of a model share.
#[derive(Debug)]
pub(crate) struct Strength {
    scale: f64,
    /// An atomic only so that a model may move to another thread with it.
    on: AtomicBool,
}

impl Strength {
    pub(crate) fn new(scale: f64) -> Arc<Self> {
        let on = AtomicBool::new(true);
        Arc::new(Self { scale, on })
    }

    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// Off until the guard is dropped, also by a panic.
    pub(crate) fn off(self: &Arc<Self>) -> Off {
        Off {
            before: self.on.swap(false, Ordering::Relaxed),
            strength: Arc::clone(self),
        }
    }
}

/// While it lives the adapter adds nothing.
pub(crate) struct Off {
    strength: Arc<Strength>,
    before: bool,
}

impl Drop for Off {
    fn drop(&mut self) {
        self.strength.on.store(self.before, Ordering::Relaxed);
    }
}

/// Handles on the two thin maps beside one linear map.
#[derive(Debug)]
pub(crate) struct LowRank {
    /// [r, in].
    a: Tensor,
    /// [out, r].
    b: Tensor,
    strength: Arc<Strength>,
}

impl LowRank {
    /// The adapter of a module, where the parameters hold one.
    pub(crate) fn find(params: &Params, module: &str) -> Result<Option<Self>> {
        let (a, b) = names(module);
        let (Some(adapter), Some(a)) = (params.adapter(), params.find(&a)) else {
            return Ok(None);
        };
        Ok(Some(Self {
            a,
            b: params.shared(&b)?,
            strength: Arc::clone(&adapter.strength),
        }))
    }

    /// Another handle on the same two maps.
    pub(crate) fn handle(&self) -> Self {
        Self {
            a: self.a.shallow_clone(),
            b: self.b.shallow_clone(),
            strength: Arc::clone(&self.strength),
        }
    }

    /// y + s (x Aᵀ) Bᵀ in the kind of y; the thin maps may be held in a wider kind than the states.
    pub(crate) fn add(&self, x: &Tensor, y: Tensor) -> Result<Tensor> {
        if !self.strength.on.load(Ordering::Relaxed) {
            return Ok(y);
        }
        let x = x.f_to_kind(self.a.f_kind()?)?;
        let thin = x
            .f_linear(&self.a, None::<&Tensor>)?
            .f_mul_scalar(self.strength.scale)?;
        let wide = thin.f_linear(&self.b, None::<&Tensor>)?;
        Ok(y.f_add(&wide.f_to_kind(y.f_kind()?)?)?)
    }
}

impl LowRank {
    /// Adds the gradients of both thin maps that come with that of y [rows, out], and gives what they add to that of x
    /// [rows, in], in its kind; `None` where the adapter is off.
    pub(crate) fn backward(&self, x: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        if !self.strength.on.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let own = self.a.f_kind()?;
        let (wide, gradient) = (x.f_to_kind(own)?, gradient.f_to_kind(own)?);
        let (a, b, scale) = (self.a.f_detach()?, self.b.f_detach()?, self.strength.scale);
        if let Some(mut into) = gradient_of(&self.b)? {
            let thin = wide.f_linear(&a, None::<&Tensor>)?.f_mul_scalar(scale)?;
            let _ = into.f_addmm_(&gradient.f_tr()?, &thin)?;
        }
        let thin = gradient.f_mm(&b)?.f_mul_scalar(scale)?;
        if let Some(mut into) = gradient_of(&self.a)? {
            let _ = into.f_addmm_(&thin.f_tr()?, &wide)?;
        }
        Ok(Some(thin.f_mm(&a)?.f_to_kind(x.f_kind()?)?))
    }
}

/// PEFT's names of a module's A and B.
pub(crate) fn names(module: &str) -> (String, String) {
    let name = |part: &str| format!("{PREFIX}{module}.lora_{part}.weight");
    (name("A"), name("B"))
}

/// Where the adapter of a model is, and how strong.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) config: LoraConfig,
    /// The adapted modules, in the model's order.
    pub(crate) modules: Vec<LinearShape>,
    pub(crate) strength: Arc<Strength>,
}

impl Adapter {
    pub(crate) fn new(config: &LoraConfig, modules: Vec<LinearShape>) -> Self {
        Self {
            config: config.clone(),
            modules,
            strength: Strength::new(config.scale()),
        }
    }

    /// Every tensor, in order, as PEFT begins: A uniform, B zero, so that nothing changes yet.
    pub(crate) fn tensors(&self) -> Vec<Spec> {
        let r = self.config.r as i64;
        let spec = |name, shape: [i64; 2], initial| Spec {
            name,
            shape: shape.to_vec(),
            initial,
        };
        let pair = |l: &LinearShape| {
            let (a, b) = names(&l.module);
            [
                spec(a, [r, l.n_in], Initial::Uniform),
                spec(b, [l.n_out, r], Initial::Zero),
            ]
        };
        self.modules.iter().flat_map(pair).collect()
    }

    /// s B A of one module as its weight is stored, in f64.
    pub(crate) fn change(&self, params: &Params, module: &LinearShape) -> Result<Tensor> {
        let (a, b) = names(&module.module);
        no_grad(|| {
            let double = |name: &str| -> Result<Tensor> { Ok(params.known(name)?.f_to_kind(Kind::Double)?) };
            let product = double(&b)?
                .f_matmul(&double(&a)?)?
                .f_mul_scalar(self.strength.scale())?;
            Ok(match module.layout {
                Layout::OutIn => product,
                Layout::InOut => product.f_tr()?,
            })
        })
    }
}
