//! Products with weights that oneDNN has laid out for its own kernels.
//!
//! libtorch has them (`mkldnn::_linear_pointwise`), but as operators without a function of their own in its C++ interface or in
//! the bindings; see [`crate::operators`].

use tch::{CModule, Device, Kind, Tensor};

use crate::{Result, operators};

/// `pack` lays a matrix [out, in] out, `forward` multiplies [N, in] with it, `biased` adds `[out]` as well. Calling it costs 1.7
/// microseconds, the operator 10 beside its arithmetic; with [N, out] added by itself 4 more, where a sum of its own takes 1.
const METHODS: &str = "\
def pack(self: __torch__.Packed, w: Tensor) -> Tensor:
  return ops.mkldnn._reorder_linear_weight(w)
def forward(self: __torch__.Packed, x: Tensor, w: Tensor) -> Tensor:
  none = annotate(List[Optional[number]], [])
  return ops.mkldnn._linear_pointwise(x, w, None, \"none\", none, \"\")
def biased(self: __torch__.Packed, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
  none = annotate(List[Optional[number]], [])
  return ops.mkldnn._linear_pointwise(x, w, b, \"none\", none, \"\")
";

/// Lays weights out and multiplies with them.
#[derive(Debug)]
pub(super) struct Packer(CModule);

/// A matrix in oneDNN's own layout.
#[derive(Debug)]
pub(super) struct Packed(Tensor);

impl Packer {
    /// Where packing is possible and pays: on a processor, in a build of libtorch that has oneDNN, for what its kernels
    /// multiply there. It costs what four tokens of one row save.
    pub(super) fn find(kind: Kind, device: Device) -> Option<Self> {
        if device != Device::Cpu || !matches!(kind, Kind::Float | Kind::BFloat16) {
            return None;
        }
        // An operator that is missing, or refuses the processor, says so here; plain products do the same work.
        let packer = Self(operators::module("Packed", METHODS).ok()?);
        let one = Tensor::f_ones([1, 1], (kind, device)).ok()?;
        let packed = packer.pack(&one).ok()?;
        drop(packer.multiply(&one, &packed, None).ok()?);
        Some(packer)
    }

    pub(super) fn pack(&self, weight: &Tensor) -> Result<Packed> {
        Ok(Packed(self.0.method_ts("pack", &[weight])?))
    }

    /// x [N, in] → [N, out].
    pub(super) fn multiply(&self, x: &Tensor, weight: &Packed, bias: Option<&Tensor>) -> Result<Tensor> {
        Ok(match bias {
            Some(bias) => self.0.method_ts("biased", &[x, &weight.0, bias])?,
            None => self.0.forward_ts(&[x, &weight.0])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_products_are_the_plain_ones() {
        let _guard = tch::no_grad_guard();
        tch::set_num_threads(1);
        assert!(Packer::find(Kind::Double, Device::Cpu).is_none());
        // Of the largest number; two roundings in bf16.
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 0.01)] {
            // bf16 only where the processor multiplies it.
            let Some(packer) = Packer::find(kind, Device::Cpu) else {
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
                let packed = packer.pack(&w).unwrap();
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
