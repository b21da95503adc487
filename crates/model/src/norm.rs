//! Norms over the last axis.

use tch::Tensor;

use crate::{Params, Result};

/// A norm with its weights.
#[derive(Debug)]
pub(crate) enum Norm {
    /// x · w / rms(x).
    Rms {
        /// `[D]`.
        weight: Tensor,
        /// Added to the mean square.
        eps: f64,
    },
}

impl Norm {
    /// An RMS norm whose weight is the parameter `{module}.weight`.
    pub(crate) fn rms(params: &Params, module: &str, eps: f64) -> Result<Self> {
        Ok(Self::Rms {
            weight: params.shared(&format!("{module}.weight"))?,
            eps,
        })
    }

    /// x [.., D] → [.., D].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms { weight, eps } => Ok(x.f_rms_norm(weight.size(), Some(weight), *eps)?),
        }
    }
}
