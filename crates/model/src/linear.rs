//! The one place where states meet a weight matrix.

use tch::Tensor;

use crate::low_rank::LowRank;
use crate::{Params, Result};

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
    layout: Layout,
    /// `[out]`.
    bias: Option<Tensor>,
    low_rank: Option<LowRank>,
}

impl Linear {
    /// The map whose weight is the parameter `{module}.weight`; its bias is `{module}.bias`, where there is one.
    pub(crate) fn new(params: &Params, module: &str, layout: Layout) -> Result<Self> {
        Ok(Self {
            module: module.to_owned(),
            weight: params.shared(&format!("{module}.weight"))?,
            layout,
            bias: params.find(&format!("{module}.bias")),
            low_rank: LowRank::find(params, module)?,
        })
    }

    /// x [.., in] → [.., out].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match self.layout {
            Layout::OutIn => x.f_linear(&self.weight, self.bias.as_ref())?,
            Layout::InOut => x.f_linear(&self.weight.f_tr()?, self.bias.as_ref())?,
        };
        match &self.low_rank {
            Some(low_rank) => low_rank.add(x, y),
            None => Ok(y),
        }
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

/// x · wᵀ.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(x.f_linear(weight, None::<&Tensor>)?)
}
