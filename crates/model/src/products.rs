//! Which library multiplies the matrices of whole sequences.

use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::linear::Total;
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
    /// oneDNN, on the processor: f32 in tensors of its own. bf16 is handed to it by libtorch in any case, and only filled up.
    OneDnn,
}

/// Fewer rows are not worth the copies, and oneDNN rounds a row of up to 64 by how many there are.
const FEWEST_ROWS: i64 = 128;

/// Nor are narrower states: 256 rows of 64 take twice as long with the copies (1024 take two thirds).
const NARROWEST: i64 = 128;

/// oneDNN compiles a program for each shape that it meets, and keeps a thousand of them of half a megabyte and more. Batches
/// of real data differ in their numbers of rows, so they are filled up with zeros to one of 16 numbers between two powers of
/// two: 2 % more work on average, 6 % at most. That holds for bf16 as well, whose products libtorch hands to it itself.
fn filled_rows(rows: i64) -> i64 {
    filled_up(rows, 16)
}

/// The next of `steps` numbers between two powers of two.
pub(crate) fn filled_up(n: i64, steps: u64) -> i64 {
    let step = (n.max(1) as u64 / steps + 1).next_power_of_two() / 2;
    (n as u64).next_multiple_of(step.max(1)) as i64
}

impl Products {
    /// The faster one for states of so many numbers of a kind on a device. Depends on nothing else but the processor.
    pub fn fastest(kind: Kind, device: Device, width: i64) -> Self {
        let faster = || kind == Kind::BFloat16 || (width >= NARROWEST && Processor::here().is_amd_with_avx512());
        match Self::OneDnn.applies(kind, device) && faster() {
            true => Self::OneDnn,
            false => Self::Blas,
        }
    }

    /// How many rows it is handed in place of so many, where that differs.
    pub fn rows(self) -> Option<fn(i64) -> i64> {
        match self {
            Self::Blas => None,
            Self::OneDnn => Some(filled_rows),
        }
    }

    /// Whether it can multiply such numbers.
    pub(crate) fn applies(self, kind: Kind, device: Device) -> bool {
        let known = matches!(kind, Kind::Float | Kind::BFloat16) && device == Device::Cpu;
        self == Self::Blas || (known && tch::utils::has_mkldnn())
    }
}

/// What enters one linear map or several.
#[derive(Debug)]
pub(crate) struct Input {
    /// [.., in].
    pub(crate) states: Tensor,
    /// The same [rows, in] where oneDNN multiplies, with rows of zeros below: bf16 on the processor as it is, f32 packed.
    filled: Option<Tensor>,
}

impl Input {
    /// States [.., in] for maps by `products`.
    pub(crate) fn new(states: &Tensor, products: Products) -> Result<Self> {
        let width = states.size().last().copied().unwrap_or(0).max(1);
        let narrow = states.f_kind()? == Kind::BFloat16 && states.device() == Device::Cpu;
        let packs = products == Products::OneDnn && !narrow;
        let fills = (packs || narrow) && states.numel() as i64 / width >= FEWEST_ROWS;
        Ok(Self {
            filled: match fills {
                true => Some(fill(&states.f_reshape([-1, width])?, packs)?),
                false => None,
            },
            states: states.shallow_clone(),
        })
    }

    /// x · Wᵀ + b, [.., out], with the weight [out, in].
    pub(crate) fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let Some(filled) = &self.filled else {
            return Ok(self.states.f_linear(weight, bias)?);
        };
        let mut size = self.states.size();
        if let Some(last) = size.last_mut() {
            *last = weight.size2()?.0;
        }
        let product = match filled.is_mkldnn() {
            true => filled.f_mkldnn_linear(weight, bias)?.f_to_dense(None, false)?,
            false => filled.f_linear(weight, bias)?,
        };
        Ok(product.f_narrow(0, 0, self.n_rows())?.f_view(size.as_slice())?)
    }

    fn n_rows(&self) -> i64 {
        let size = self.states.size();
        size.split_last().map_or(1, |(_, before)| before.iter().product())
    }

    /// [rows, in].
    pub(crate) fn flat(&self) -> Result<Tensor> {
        let width = self.states.size().last().copied().unwrap_or(0);
        Ok(self.states.f_reshape([-1, width])?)
    }

    /// The gradient [rows, in] of what entered a map of this weight [out, in], from that of its output [rows, out]; adds
    /// that of the weight `into` [out, in].
    pub(crate) fn backward(&self, weight: &Tensor, gradient: &Tensor, into: Option<Total>) -> Result<Tensor> {
        let (entered, gradient) = match &self.filled {
            Some(filled) if filled.is_mkldnn() => return self.packed_backward(filled, weight, gradient, into),
            Some(filled) => (filled.shallow_clone(), fill(gradient, false)?),
            None => (self.flat()?, gradient.shallow_clone()),
        };
        if let Some(into) = into {
            into.add_product(&gradient.f_tr()?, &entered)?;
        }
        Ok(gradient.f_mm(weight)?.f_narrow(0, 0, self.n_rows())?)
    }

    fn packed_backward(
        &self,
        packed: &Tensor,
        weight: &Tensor,
        gradient: &Tensor,
        into: Option<Total>,
    ) -> Result<Tensor> {
        let gradient = fill(gradient, true)?;
        if let Some(into) = into {
            into.add(&packed.f_mkldnn_linear_backward_weights(&gradient, weight, false)?.0)?;
        }
        let found = Tensor::f_mkldnn_linear_backward_input(packed.size(), &gradient, weight)?;
        Ok(found.f_to_dense(None, false)?.f_narrow(0, 0, self.n_rows())?)
    }
}

/// A matrix [rows, ..] with rows of zeros below, packed where it is not libtorch that hands it on.
fn fill(matrix: &Tensor, packs: bool) -> Result<Tensor> {
    let rows = matrix.size2()?.0;
    let filled = match filled_rows(rows) - rows {
        0 => matrix.shallow_clone(),
        more => matrix.f_constant_pad_nd([0, 0, 0, more])?,
    };
    match packs {
        true => Ok(filled.f_to_mkldnn(None)?),
        false => Ok(filled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn onednn_meets_few_numbers_of_rows_and_little_more_work() {
        let (mut met, mut more, n) = (std::collections::HashSet::new(), 0.0, 4096 - 128);
        for rows in 128..4096 {
            let filled = filled_rows(rows);
            assert!(
                rows <= filled && (filled - rows) as f64 <= rows as f64 / 16.0,
                "{rows} {filled}"
            );
            met.insert(filled);
            more += (filled - rows) as f64 / rows as f64 / f64::from(n);
        }
        assert!(met.len() <= 5 * 16 + 1 && more < 0.025, "{} {more}", met.len());
        assert_eq!([0, 1, 16, 17, 127, 4096].map(filled_rows), [0, 1, 16, 17, 128, 4096]);
        let few = |n| filled_up(n, 4);
        assert_eq!([0, 3, 7, 9, 64, 65, 127, 513].map(few), [0, 3, 7, 10, 64, 80, 128, 640]);
    }
}
