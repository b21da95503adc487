//! Norms over the last axis.

use tch::{Kind, Tensor};

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

    /// x [.., D] → [.., D]. Means are taken in f32 or wider; a narrow x is rounded before it meets the weight, as
    /// Hugging Face does.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms { weight, eps } if x.f_kind()? == Kind::BFloat16 => {
                let x = x.f_rms_norm(weight.size(), None::<&Tensor>, *eps)?;
                Ok(x.f_mul(weight)?)
            }
            Self::Rms { weight, eps } => Ok(x.f_rms_norm(weight.size(), Some(weight), *eps)?),
        }
    }
}
