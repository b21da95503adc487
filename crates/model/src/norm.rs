//! Norms over the last axis.

use tch::{Kind, Tensor};

use crate::{Params, Result};

/// A norm with its weights, each `[D]`.
#[derive(Debug)]
pub(crate) enum Norm {
    /// x · w / rms(x).
    Rms {
        weight: Tensor,
        /// Added to the mean square.
        eps: f64,
        /// Whether the quotient is computed in f32 whatever the kind of x.
        in_f32: bool,
    },
    /// (x - mean(x)) · w / std(x) + b.
    Layer {
        weight: Tensor,
        bias: Tensor,
        /// Added to the variance.
        eps: f64,
    },
}

impl Norm {
    /// An RMS norm whose weight is the parameter `{module}.weight`.
    pub(crate) fn rms(params: &Params, module: &str, eps: f64) -> Result<Self> {
        Ok(Self::Rms {
            weight: params.shared(&format!("{module}.weight"))?,
            eps,
            in_f32: false,
        })
    }

    /// A layer norm whose weights are the parameters `{module}.weight` and `{module}.bias`.
    pub(crate) fn layer(params: &Params, module: &str, eps: f64) -> Result<Self> {
        Ok(Self::Layer {
            weight: params.shared(&format!("{module}.weight"))?,
            bias: params.shared(&format!("{module}.bias"))?,
            eps,
        })
    }

    /// Computes an RMS norm's quotient in f32, as transformers does even for f64. Layer norms keep their kind
    /// there and here.
    pub(crate) fn round_to_f32(&mut self) {
        if let Self::Rms { in_f32, .. } = self {
            *in_f32 = true;
        }
    }

    /// x [.., D] → [.., D].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms {
                weight,
                eps,
                in_f32: false,
            } => Ok(x.f_rms_norm(weight.size(), Some(weight), *eps)?),
            Self::Rms { weight, eps, .. } => {
                // Step by step: the fused kernel sums in another order, and f32 shows that.
                let narrow = x.f_to_kind(Kind::Float)?;
                let mean = narrow
                    .f_pow_tensor_scalar(2)?
                    .f_mean_dim([-1].as_slice(), true, Kind::Float)?;
                let quotient = narrow.f_mul(&mean.f_add_scalar(*eps)?.f_rsqrt()?)?;
                Ok(weight.f_mul(&quotient.f_to_kind(x.f_kind()?)?)?)
            }
            Self::Layer { weight, bias, eps } => {
                Ok(x.f_layer_norm(weight.size(), Some(weight), Some(bias), *eps, false)?)
            }
        }
    }
}
