//! Which library multiplies the matrices of whole sequences.

use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::precision::Processor;

/// Who multiplies states and weights.
///
/// libtorch hands f32 products on the processor to MKL, which takes AVX2 on processors that are not Intel's: on an AMD
/// processor with AVX-512 oneDNN, which libtorch holds too, is 1.7 to 2.2 times as fast, the copies into and out of its
/// tensors counted. Both add up in f32; only rounding differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Products {
    /// What libtorch's own products use.
    #[default]
    Blas,
    /// oneDNN. Only for f32 on the processor.
    OneDnn,
}

/// Fewer rows are not worth the copies, and oneDNN rounds a row of up to 64 by how many there are.
const FEWEST_ROWS: i64 = 128;

impl Products {
    /// The faster one for numbers of a kind on a device. Depends on nothing else but the processor.
    pub fn fastest(kind: Kind, device: Device) -> Self {
        match Self::OneDnn.applies(kind, device) && Processor::here().is_amd_with_avx512() {
            true => Self::OneDnn,
            false => Self::Blas,
        }
    }

    /// Whether it can multiply such numbers.
    pub(crate) fn applies(self, kind: Kind, device: Device) -> bool {
        let onednn = || kind == Kind::Float && device == Device::Cpu && tch::utils::has_mkldnn();
        self == Self::Blas || onednn()
    }
}

/// What enters one linear map or several.
#[derive(Debug)]
pub(crate) struct Input {
    /// [.., in].
    pub(crate) states: Tensor,
    /// The same [rows, in] as oneDNN reads it.
    packed: Option<Tensor>,
}

impl Input {
    /// States [.., in] for maps by `products`.
    pub(crate) fn new(states: &Tensor, products: Products) -> Result<Self> {
        let width = states.size().last().copied().unwrap_or(0).max(1);
        let packs = products == Products::OneDnn && states.numel() as i64 / width >= FEWEST_ROWS;
        Ok(Self {
            packed: match packs {
                true => Some(states.f_reshape([-1, width])?.f_to_mkldnn(None)?),
                false => None,
            },
            states: states.shallow_clone(),
        })
    }

    /// x · Wᵀ + b, [.., out], with the weight [out, in].
    pub(crate) fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let Some(packed) = &self.packed else {
            return Ok(self.states.f_linear(weight, bias)?);
        };
        let mut size = self.states.size();
        if let Some(last) = size.last_mut() {
            *last = weight.size2()?.0;
        }
        let product = packed.f_mkldnn_linear(weight, bias)?;
        Ok(product.f_to_dense(None, false)?.f_view(size.as_slice())?)
    }

    /// [rows, in].
    pub(crate) fn flat(&self) -> Result<Tensor> {
        let width = self.states.size().last().copied().unwrap_or(0);
        Ok(self.states.f_reshape([-1, width])?)
    }

    /// The gradient [rows, in] of what entered a map of this weight [out, in], from that of its output [rows, out]; adds
    /// that of the weight `into` [out, in].
    pub(crate) fn backward(&self, weight: &Tensor, gradient: &Tensor, into: Option<Tensor>) -> Result<Tensor> {
        let Some(packed) = &self.packed else {
            if let Some(mut into) = into {
                let _ = into.f_addmm_(&gradient.f_tr()?, &self.flat()?)?;
            }
            return Ok(gradient.f_mm(weight)?);
        };
        let gradient = gradient.f_to_mkldnn(None)?;
        if let Some(mut into) = into {
            let _ = into.f_add_(&packed.f_mkldnn_linear_backward_weights(&gradient, weight, false)?.0)?;
        }
        let found = Tensor::f_mkldnn_linear_backward_input(packed.size(), &gradient, weight)?;
        Ok(found.f_to_dense(None, false)?)
    }
}
