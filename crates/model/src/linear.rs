//! The one place where states meet a weight matrix.

use tch::Tensor;

use crate::lora::LowRank;
use crate::{Params, Result};

/// A linear map of a block: what it is called and how wide it is.
#[derive(Debug, Clone)]
pub(crate) struct LinearShape {
    pub(crate) module: String,
    /// The block it is in.
    pub(crate) layer: usize,
    pub(crate) n_in: i64,
    pub(crate) n_out: i64,
    /// Whether the weight is stored as [in, out].
    pub(crate) in_first: bool,
}

/// A linear map of the last axis: x · Wᵀ + b, and what an adapter adds to it.
#[derive(Debug)]
pub(crate) struct Linear {
    /// [out, in].
    weight: Tensor,
    /// `[out]`.
    bias: Option<Tensor>,
    low_rank: Option<LowRank>,
}

impl Linear {
    /// The map whose weight is the parameter `{module}.weight`; its bias is `{module}.bias`, where there is one.
    pub(crate) fn new(params: &Params, module: &str) -> Result<Self> {
        Ok(Self {
            weight: params.shared(&format!("{module}.weight"))?,
            bias: params.find(&format!("{module}.bias")),
            low_rank: LowRank::find(params, module)?,
        })
    }

    /// x [.., in] → [.., out].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.f_linear(&self.weight, self.bias.as_ref())?;
        match &self.low_rank {
            Some(low_rank) => low_rank.add(x, y),
            None => Ok(y),
        }
    }
}

/// x · wᵀ.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(x.f_linear(weight, None::<&Tensor>)?)
}
