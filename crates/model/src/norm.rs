//! Norms over the last axis.

use tch::{Kind, Tensor};

use crate::linear::gradient_of;
use crate::logps::wide;
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

    /// x [.., D] → [.., D]. Sums are taken in f32 or wider; an RMS norm rounds a narrow quotient before it meets the
    /// weight, as transformers does.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms {
                weight,
                eps,
                in_f32: false,
            } if x.f_kind()? == Kind::BFloat16 => {
                let quotient = x.f_rms_norm(weight.size(), None::<&Tensor>, *eps)?;
                Ok(quotient.f_mul(weight)?)
            }
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

impl Norm {
    /// Whether [`Norm::backward`] can take its way back.
    pub(crate) fn goes_back(&self) -> bool {
        matches!(self, Self::Rms { in_f32: false, .. })
    }

    /// From the gradient of what came out to that of x, both [.., D]; adds that of the weight. `None` where the way back is
    /// left to autograd.
    ///
    /// With q = x / rms(x): the gradient of w is Σ g q over the rows, that of x is (g w - q mean(g w q)) / rms(x). In f32 or
    /// wider, and rounded at the end.
    pub(crate) fn backward(&self, x: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let Self::Rms {
            weight,
            eps,
            in_f32: false,
        } = self
        else {
            return Ok(None);
        };
        let (kind, width) = (x.f_kind()?, weight.numel() as i64);
        let flat = |tensor: &Tensor| wide(tensor.f_reshape([-1, width])?);
        let (mut states, mut gradient, own) = (flat(x)?, flat(gradient)?, wide(weight.f_detach()?)?);
        // Widened they are copies, whose memory serves for what is made of them.
        let copied = !matches!(kind, Kind::Float | Kind::Double);
        let mut length = states.f_norm_scalaropt_dim(2.0, [-1].as_slice(), true)?;
        let rms = length
            .f_square_()?
            .f_div_scalar_(width as f64)?
            .f_add_scalar_(*eps)?
            .f_sqrt_()?;
        let quotient = match copied {
            true => states.f_div_(&rms)?,
            false => states.f_div(&rms)?,
        };
        let product = gradient.f_mul(&quotient)?;
        if let Some(mut into) = gradient_of(weight)? {
            let sum = product.f_sum_dim_intlist([0i64].as_slice(), false, None)?;
            let _ = into.f_add_(&sum.f_to_kind(into.f_kind()?)?)?;
        }
        let mean = product.f_mv(&own)?.f_div_scalar_(-(width as f64))?.f_unsqueeze(1)?;
        let mut found = match copied {
            true => gradient.f_mul_(&own)?,
            false => gradient.f_mul(&own)?,
        };
        let found = found.f_addcmul_(&quotient, &mean)?.f_div_(&rms)?;
        Ok(Some(found.f_to_kind(kind)?.f_view(x.size().as_slice())?))
    }
}

/// A norm for states that no gradient goes through, in fewer calls.
#[derive(Debug)]
pub(crate) enum LeanNorm {
    /// x · w / rms(x) as x · (w √D) / hypot(‖x‖, √(eps D)).
    Rms {
        /// w √D.
        weight: Tensor,
        /// √(eps D).
        least: Tensor,
    },
    /// x / rms(x) in f32, rounded to the kind of x before it meets the weight.
    Narrow {
        /// w.
        weight: Tensor,
        /// √(eps D).
        least: Tensor,
        /// 1/√D.
        unit: f64,
    },
    /// Computed as for gradients.
    Same(Norm),
}

impl Norm {
    /// The same norm with weights in a kind: handles on them where they have it.
    fn of_kind(&self, kind: Kind) -> Result<Self> {
        Ok(match self {
            Self::Rms { weight, eps, in_f32 } => Self::Rms {
                weight: weight.f_to_kind(kind)?,
                eps: *eps,
                in_f32: *in_f32,
            },
            Self::Layer { weight, bias, eps } => Self::Layer {
                weight: weight.f_to_kind(kind)?,
                bias: bias.f_to_kind(kind)?,
                eps: *eps,
            },
        })
    }

    /// For states in a kind; the weights are widened where they are narrower.
    pub(crate) fn lean(&self, kind: Kind) -> Result<LeanNorm> {
        match self {
            Self::Rms {
                weight,
                eps,
                in_f32: false,
            } => {
                let width = weight.numel() as f64;
                let least = Tensor::f_from_slice(&[(eps * width).sqrt()])?.f_to(weight.device())?;
                let weight = weight.f_to_kind(kind)?;
                Ok(match kind {
                    Kind::BFloat16 => LeanNorm::Narrow {
                        weight,
                        least: least.f_to_kind(Kind::Float)?,
                        unit: width.sqrt().recip(),
                    },
                    kind => LeanNorm::Rms {
                        weight: weight.f_mul_scalar(width.sqrt())?,
                        least: least.f_to_kind(kind)?,
                    },
                })
            }
            _ => Ok(LeanNorm::Same(self.of_kind(kind)?)),
        }
    }
}

impl LeanNorm {
    /// x [N, D] → [N, D].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms { weight, least } => {
                let length = x.f_norm_scalaropt_dim(2.0, [-1].as_slice(), true)?;
                Ok(x.f_div(&length.f_hypot(least)?)?.f_mul_(weight)?)
            }
            Self::Narrow { weight, least, unit } => {
                let length = x.f_norm_scalaropt_dim_dtype(2.0, [-1].as_slice(), true, Kind::Float)?;
                let rms = length.f_hypot(least)?.f_mul_scalar_(*unit)?;
                Ok(x.f_div(&rms)?.f_to_kind(x.f_kind()?)?.f_mul_(weight)?)
            }
            Self::Same(norm) => norm.forward(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both forms of each norm, and of an RMS norm's kinds.
    #[test]
    fn lean_norms_are_the_norms() {
        let kinds = [(Kind::Double, 1e-14), (Kind::Float, 1e-6), (Kind::BFloat16, 0.02)];
        let x = Tensor::arange(60, (Kind::Double, tch::Device::Cpu)).view([3, 20]).sin() * 3.0;
        for (kind, tolerance) in kinds {
            let (x, weight) = (x.to_kind(kind), x.get(0).cos().to_kind(kind));
            let rms = |in_f32| Norm::Rms {
                weight: weight.shallow_clone(),
                eps: 0.5,
                in_f32,
            };
            let layer = Norm::Layer {
                weight: weight.shallow_clone(),
                bias: weight.shallow_clone(),
                eps: 0.5,
            };
            for (norm, lean) in [(rms(false), true), (rms(true), false), (layer, false)] {
                let own = norm.lean(kind).unwrap();
                assert_eq!(matches!(own, LeanNorm::Same(_)), !lean, "{norm:?}");
                let difference = (own.forward(&x).unwrap() - norm.forward(&x).unwrap()).abs().max();
                assert!(
                    difference.double_value(&[]) <= tolerance,
                    "{norm:?} in {kind:?}: {difference}"
                );
            }
        }
    }
}
