//! Products with weights that oneDNN has laid out for its own kernels.
//!
//! libtorch has them (`mkldnn::_linear_pointwise`), but as operators without a function of their own in its C++ interface or in
//! the bindings. TorchScript calls any operator by name, so a module of three lines is written here, as the archive that
//! libtorch loads, and called like a function.

use tch::{CModule, Device, Kind, Tensor};

use crate::Result;

/// The module: `pack` lays a matrix [out, in] out, `forward` multiplies [N, in] with it, `biased` adds `[out]` as well. Calling
/// it costs 1.7 microseconds, the operator 10 beside its arithmetic; with [N, out] added by itself 4 more, where a sum of its
/// own takes 1.
const SOURCE: &str = "\
class Packed(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  def pack(self: __torch__.Packed, w: Tensor) -> Tensor:
    return ops.mkldnn._reorder_linear_weight(w)
  def forward(self: __torch__.Packed, x: Tensor, w: Tensor) -> Tensor:
    none = annotate(List[Optional[number]], [])
    return ops.mkldnn._linear_pointwise(x, w, None, \"none\", none, \"\")
  def biased(self: __torch__.Packed, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    none = annotate(List[Optional[number]], [])
    return ops.mkldnn._linear_pointwise(x, w, b, \"none\", none, \"\")
";

/// An object of class `__torch__.Packed` whose one field `training` is false, as protocol 2 of Python's pickle.
const OBJECT: &[u8] = b"\x80\x02c__torch__\nPacked\n)\x81}X\x08\x00\x00\x00training\x89sb.";
/// An empty tuple.
const CONSTANTS: &[u8] = b"\x80\x02).";

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
        let packer = Self::load().ok()?;
        let one = Tensor::f_ones([1, 1], (kind, device)).ok()?;
        let packed = packer.pack(&one).ok()?;
        drop(packer.multiply(&one, &packed, None).ok()?);
        Some(packer)
    }

    fn load() -> Result<Self> {
        let files: [(&str, &[u8]); 4] = [
            ("packed/data.pkl", OBJECT),
            ("packed/code/__torch__.py", SOURCE.as_bytes()),
            ("packed/constants.pkl", CONSTANTS),
            ("packed/version", b"3\n"),
        ];
        Ok(Self(CModule::load_data(&mut archive(&files).as_slice())?))
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

/// A zip file of files that are stored as they are.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let at = bytes.len() as u32;
        // Version 2.0, no flags, stored, 1980-01-01 00:00; then sum, both sizes, length of the name, nothing extra.
        let mut entry = vec![20, 0, 0, 0, 0, 0, 0, 0, 33, 0];
        entry.extend(sum(content).to_le_bytes());
        entry.extend([(content.len() as u32).to_le_bytes(); 2].concat());
        entry.extend((name.len() as u16).to_le_bytes());
        entry.extend([0, 0]);
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&entry);
        bytes.extend(name.as_bytes());
        bytes.extend(*content);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&entry);
        // No comment, first disk, no attributes.
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (at, n) = (bytes.len() as u32, files.len() as u16);
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\x00\x00\x00\x00");
    bytes.extend([n.to_le_bytes(); 2].concat());
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(at.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

/// CRC-32 as in zip files.
fn sum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            (sum >> 1) ^ (0xEDB8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_zip_files() {
        assert_eq!(sum(b"123456789"), 0xCBF4_3926);
        assert_eq!(sum(b""), 0);
    }

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
