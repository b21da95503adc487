//! The one place where states meet a weight matrix.

use tch::Tensor;

use crate::{Params, Result};

/// How a weight matrix lies in its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// [out, in].
    OutIn,
    /// [in, out].
    InOut,
}

/// A linear map of the last axis: x · Wᵀ + b.
#[derive(Debug)]
pub(crate) struct Linear {
    /// In its layout.
    weight: Tensor,
    layout: Layout,
    /// `[out]`.
    bias: Option<Tensor>,
}

impl Linear {
    /// The map whose weight is the parameter `{module}.weight`; its bias is `{module}.bias`, where there is one.
    pub(crate) fn new(params: &Params, module: &str, layout: Layout) -> Result<Self> {
        Ok(Self {
            weight: params.shared(&format!("{module}.weight"))?,
            layout,
            bias: params.find(&format!("{module}.bias")),
        })
    }

    /// x [.., in] → [.., out].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.layout {
            Layout::OutIn => Ok(x.f_linear(&self.weight, self.bias.as_ref())?),
            Layout::InOut => Ok(x.f_linear(&self.weight.f_tr()?, self.bias.as_ref())?),
        }
    }
}

/// x · wᵀ.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(x.f_linear(weight, None::<&Tensor>)?)
}
