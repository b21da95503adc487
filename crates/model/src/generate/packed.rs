//! Products with weights that a library has laid out for its own kernels: oneDNN, or fbgemm with numbers of 16 bits.
//!
//! libtorch has them (`mkldnn::_linear_pointwise`, `quantized::linear_dynamic_fp16`), but as operators without a function of
//! their own in its C++ interface or in the bindings; see [`crate::operators`].

use tch::{CModule, Device, IValue, Kind, Tensor};

use crate::{Error, Result, operators};

/// `pack` lays a matrix [out, in] out, `forward` multiplies [N, in] with it, `biased` adds `[out]` as well. Calling it costs 1.7
/// microseconds, the operator 10 beside its arithmetic; with [N, out] added by itself 4 more, where a sum of its own takes 1.
const ONE_DNN: &str = "\
def pack(self: __torch__.Packed, w: Tensor) -> Tensor:
  return ops.mkldnn._reorder_linear_weight(w)
def forward(self: __torch__.Packed, x: Tensor, w: Tensor) -> Tensor:
  none = annotate(List[Optional[number]], [])
  return ops.mkldnn._linear_pointwise(x, w, None, \"none\", none, \"\")
def biased(self: __torch__.Packed, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
  none = annotate(List[Optional[number]], [])
  return ops.mkldnn._linear_pointwise(x, w, b, \"none\", none, \"\")
";

/// The same for f32 states and weights that are kept in f16, without a bias. A product of one row takes less than half of
/// oneDNN's time in bf16.
const HALVES: &str = "\
def pack(self: __torch__.Packed, w: Tensor) -> __torch__.torch.classes.quantized.LinearPackedParamsBase:
  return ops.quantized.linear_prepack_fp16(w, None)
def forward(self: __torch__.Packed, x: Tensor, w: __torch__.torch.classes.quantized.LinearPackedParamsBase) -> Tensor:
  return ops.quantized.linear_dynamic_fp16(x, w)
";

/// Lays weights out and multiplies with them.
#[derive(Debug)]
pub(super) struct Packer {
    module: CModule,
    form: Form,
}

/// What weights become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A layout of oneDNN's, in their own kind.
    OneDnn,
    /// bf16 weights as f16, for states in f32. A bf16 number has 8 bits where f16 has 11, so from 2⁻¹⁷ to 65504 it stays
    /// what it is; smaller ones are off by 2⁻²⁵ at most, larger ones are not packed.
    Halves,
}

/// The largest number of f16.
const LARGEST_HALF: f64 = 65504.0;

/// A matrix in a library's own layout.
#[derive(Debug)]
pub(super) enum Packed {
    OneDnn(Tensor),
    Halves(IValue),
}

impl Packer {
    /// Where packing is possible and pays: on a processor, in a build of libtorch that has the library, for what its kernels
    /// multiply there. It costs what four tokens of one row save.
    pub(super) fn find(form: Form, kind: Kind, device: Device) -> Option<Self> {
        let (name, states) = match (form, kind) {
            (Form::OneDnn, Kind::Float | Kind::BFloat16) => (ONE_DNN, kind),
            (Form::Halves, Kind::BFloat16) => (HALVES, Kind::Float),
            _ => return None,
        };
        if device != Device::Cpu {
            return None;
        }
        // An operator that is missing, or refuses the processor, says so here; plain products do the same work.
        let module = operators::module("Packed", name).ok()?;
        let packer = Self { module, form };
        let one = |kind| Tensor::f_ones([1, 1], (kind, device)).ok();
        let packed = packer.pack(&one(kind)?).ok()??;
        drop(packer.multiply(&one(states)?, &packed, None).ok()?);
        Some(packer)
    }

    /// A matrix [out, in] laid out; `None` where its numbers do not fit.
    pub(super) fn pack(&self, weight: &Tensor) -> Result<Option<Packed>> {
        Ok(Some(match self.form {
            Form::OneDnn => Packed::OneDnn(self.module.method_ts("pack", &[weight])?),
            Form::Halves => {
                if weight.f_abs()?.f_max()?.f_double_value(&[])? > LARGEST_HALF {
                    return Ok(None);
                }
                let wide = IValue::Tensor(weight.f_to_kind(Kind::Float)?);
                Packed::Halves(self.module.method_is("pack", &[&wide])?)
            }
        }))
    }

    /// x [N, in] → [N, out].
    pub(super) fn multiply(&self, x: &Tensor, weight: &Packed, bias: Option<&Tensor>) -> Result<Tensor> {
        match weight {
            Packed::OneDnn(weight) => Ok(match bias {
                Some(bias) => self.module.method_ts("biased", &[x, weight, bias])?,
                None => self.module.forward_ts(&[x, weight])?,
            }),
            Packed::Halves(weight) => {
                let x = IValue::Tensor(x.shallow_clone());
                let IValue::Tensor(mut product) = self.module.forward_is(&[&x, weight])? else {
                    return Err(Error::input("packed product", "a tensor", "another value"));
                };
                Ok(match bias {
                    Some(bias) => product.f_add_(bias)?,
                    None => product,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_products_are_the_plain_ones() {
        let _guard = tch::no_grad_guard();
        tch::set_num_threads(1);
        for form in [Form::OneDnn, Form::Halves] {
            assert!(Packer::find(form, Kind::Double, Device::Cpu).is_none());
        }
        // Of the largest number; two roundings in bf16.
        for (form, kind, tolerance) in [
            (Form::OneDnn, Kind::Float, 1e-6),
            (Form::OneDnn, Kind::BFloat16, 0.01),
            (Form::Halves, Kind::BFloat16, 1e-6),
        ] {
            // bf16 only where the processor multiplies it.
            let Some(packer) = Packer::find(form, kind, Device::Cpu) else {
                assert_eq!(kind, Kind::BFloat16);
                continue;
            };
            let of = |n: i64, shape: [i64; 2]| {
                let numbers = Tensor::arange(shape[0] * shape[1] + n, (Kind::Float, Device::Cpu)).sin();
                numbers.narrow(0, n, shape[0] * shape[1]).view(shape).to_kind(kind)
            };
            for (rows, n_in, n_out) in [(1, 5, 3), (8, 24, 40), (33, 64, 17)] {
                let (x, w, y) = (of(1, [rows, n_in]), of(2, [n_out, n_in]), of(3, [rows, n_out]));
                let bias = y.get(0);
                let packed = packer.pack(&w).unwrap().unwrap();
                let (x, bias) = match form {
                    Form::OneDnn => (x, bias),
                    Form::Halves => (x.to_kind(Kind::Float), bias.to_kind(Kind::Float)),
                };
                let double = |t: &Tensor| t.to_kind(Kind::Double);
                let plain = double(&x).linear(&double(&w), None::<&Tensor>);
                for (found, expected) in [
                    (packer.multiply(&x, &packed, None).unwrap(), plain.shallow_clone()),
                    (
                        packer.multiply(&x, &packed, Some(&bias)).unwrap(),
                        &plain + double(&bias),
                    ),
                ] {
                    let difference = (found - &expected).abs().max() / expected.abs().max();
                    let difference = difference.double_value(&[]);
                    assert!(
                        difference < tolerance,
                        "{kind:?} [{rows}, {n_in}] to {n_out}: {difference}"
                    );
                }
            }
        }
    }
}
