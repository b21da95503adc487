//! The one place where states meet a weight matrix.

use std::sync::Arc;

use tch::Tensor;

use crate::low_rank::LowRank;
use crate::params::Emptied;
use crate::products::Input;
use crate::{Params, Products, Result};

/// How a weight matrix lies in its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// [out, in].
    OutIn,
    /// [in, out].
    InOut,
}

/// A linear map of a block: what it is called and how wide it is.
#[derive(Debug, Clone)]
pub(crate) struct LinearShape {
    pub(crate) module: String,
    /// The block it is in.
    pub(crate) block: usize,
    pub(crate) n_in: i64,
    pub(crate) n_out: i64,
    pub(crate) layout: Layout,
}

/// A linear map of the last axis: x · Wᵀ + b, and what an adapter adds to it.
#[derive(Debug)]
pub(crate) struct Linear {
    module: String,
    /// In its layout.
    weight: Tensor,
    /// What is known of its gradient.
    emptied: Arc<Emptied>,
    layout: Layout,
    /// `[out]`.
    bias: Option<Tensor>,
    low_rank: Option<LowRank>,
}

/// The gradient of a weight, [out, in], with what will be added to it.
pub(crate) struct Total {
    so_far: Tensor,
    is_zero: bool,
}

impl Total {
    /// Adds the product of two matrices.
    pub(crate) fn add_product(mut self, left: &Tensor, right: &Tensor) -> Result<()> {
        let _ = match self.is_zero {
            true => left.f_mm_out(&self.so_far, right)?,
            false => self.so_far.f_addmm_(left, right)?,
        };
        Ok(())
    }

    /// Adds a matrix.
    pub(crate) fn add(mut self, more: &Tensor) -> Result<()> {
        match self.is_zero {
            true => self.so_far.f_copy_(more)?,
            false => drop(self.so_far.f_add_(more)?),
        }
        Ok(())
    }
}

impl Linear {
    /// The map whose weight is the parameter `{module}.weight`; its bias is `{module}.bias`, where there is one.
    pub(crate) fn new(params: &Params, module: &str, layout: Layout) -> Result<Self> {
        let name = format!("{module}.weight");
        Ok(Self {
            module: module.to_owned(),
            weight: params.shared(&name)?,
            emptied: params.emptied(&name).unwrap_or_default(),
            layout,
            bias: params.find(&format!("{module}.bias")),
            low_rank: LowRank::find(params, module)?,
        })
    }

    /// x [.., in] → [.., out].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.of(&Input::new(x, Products::Blas)?)
    }

    /// The same of what may enter other maps, too.
    pub(crate) fn of(&self, x: &Input) -> Result<Tensor> {
        let y = match self.layout {
            Layout::OutIn => x.linear(&self.weight, self.bias.as_ref())?,
            Layout::InOut => x.linear(&self.weight.f_tr()?, self.bias.as_ref())?,
        };
        match &self.low_rank {
            Some(low_rank) => low_rank.add(&x.states, y),
            None => Ok(y),
        }
    }

    /// Adds the gradients of weight, bias and adapter that come with that of the output [.., out] of x, and gives that of x.
    pub(crate) fn backward(&self, x: &Input, gradient: &Tensor) -> Result<Tensor> {
        let weight = match self.layout {
            Layout::OutIn => self.weight.f_detach()?,
            Layout::InOut => self.weight.f_detach()?.f_tr()?,
        };
        let out = weight.size2()?.0;
        let gradient = gradient.f_reshape([-1, out])?;
        let into = self.total()?;
        if let Some(mut bias) = self.bias.as_ref().map(gradient_of).transpose()?.flatten() {
            let _ = bias.f_add_(&gradient.f_sum_dim_intlist([0i64].as_slice(), false, None)?)?;
        }
        let mut found = x.backward(&weight, &gradient, into)?;
        if let Some(low_rank) = &self.low_rank
            && let Some(more) = low_rank.backward(&x.flat()?, &gradient)?
        {
            let _ = found.f_add_(&more)?;
        }
        Ok(found.f_view(x.states.size().as_slice())?)
    }

    /// The gradient of the weight so far; `None` where it is not trained.
    fn total(&self) -> Result<Option<Total>> {
        let is_new = !self.weight.f_grad()?.defined();
        let Some(gradient) = gradient_of(&self.weight)? else {
            return Ok(None);
        };
        if is_new {
            self.emptied.note(&gradient)?;
        }
        Ok(Some(match self.layout {
            Layout::OutIn => Total {
                is_zero: self.emptied.holds(&gradient)?,
                so_far: gradient,
            },
            Layout::InOut => Total {
                so_far: gradient.f_tr()?,
                is_zero: false,
            },
        }))
    }

    /// The weight as [out, in].
    pub(crate) fn weight_out_in(&self) -> Result<Tensor> {
        match self.layout {
            Layout::OutIn => Ok(self.weight.shallow_clone()),
            Layout::InOut => Ok(self.weight.f_tr()?),
        }
    }

    /// `[out]`.
    pub(crate) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// What an adapter adds, while one is on.
    pub(crate) fn low_rank(&self) -> Option<&LowRank> {
        self.low_rank.as_ref()
    }

    /// Takes up the adapter that the parameters hold for it, or drops the one that they no longer hold.
    pub(crate) fn readapt(&mut self, params: &Params) -> Result<()> {
        self.low_rank = LowRank::find(params, &self.module)?;
        Ok(())
    }

    /// What it is, given the number of its block.
    pub(crate) fn shape(&self, block: usize) -> Result<LinearShape> {
        let (n_out, n_in) = match self.layout {
            Layout::OutIn => self.weight.size2()?,
            Layout::InOut => self.weight.f_tr()?.size2()?,
        };
        Ok(LinearShape {
            module: self.module.clone(),
            block,
            n_in,
            n_out,
            layout: self.layout,
        })
    }

    /// [out, in] or, in another layout, how it lies there.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }
}

/// What several maps make of one input.
pub(crate) fn all(maps: &[&Linear], x: &Input) -> Result<Vec<Tensor>> {
    maps.iter().map(|map| map.of(x)).collect()
}

/// [`Linear::backward`] of several maps of one input, given the gradient of each one's output.
pub(crate) fn backward(maps: &[&Linear], x: &Input, gradients: &[Tensor]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (map, gradient) in maps.iter().zip(gradients) {
        let found = map.backward(x, gradient)?;
        sum = Some(match sum {
            Some(mut sum) => sum.f_add_(&found)?,
            None => found,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => Ok(x.states.f_zeros_like()?),
    }
}

/// The gradient that a leaf has collected so far, zeros where it had none; `None` where it is not trained.
pub(crate) fn gradient_of(leaf: &Tensor) -> Result<Option<Tensor>> {
    if !leaf.requires_grad() {
        return Ok(None);
    }
    if !leaf.f_grad()?.defined() {
        // The bindings cannot set a gradient, but this one is zero everywhere.
        let nothing = tch::with_grad(|| leaf.f_narrow(0, 0, 1)?.f_sum(None)?.f_mul_scalar(0.0))?;
        nothing.f_backward()?;
    }
    Ok(Some(leaf.f_grad()?))
}

/// x · wᵀ.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(x.f_linear(weight, None::<&Tensor>)?)
}
