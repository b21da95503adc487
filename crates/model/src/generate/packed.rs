//! Products with weights that oneDNN has laid out for its own kernels.
//!
//! libtorch has them (`mkldnn::_linear_pointwise`), but as operators without a function of their own in its C++ interface or in
//! the bindings. TorchScript calls any operator by name, so a module of three lines is written here, as the archive that
//! libtorch loads, and called like a function.

use tch::{CModule, Device, Kind, Tensor};

use crate::Result;

/// The module: `pack` lays a matrix [out, in] out, `forward` multiplies [N, in] with it, `biased` adds `[out]` as well and
/// `onto` adds [N, out].
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
  def onto(self: __torch__.Packed, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return ops.mkldnn._linear_pointwise(x, y, w, None, \"add\")
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
    pub(super) fn new() -> Result<Self> {
        let files: [(&str, &[u8]); 4] = [
            ("packed/data.pkl", OBJECT),
            ("packed/code/__torch__.py", SOURCE.as_bytes()),
            ("packed/constants.pkl", CONSTANTS),
            ("packed/version", b"3\n"),
        ];
        Ok(Self(CModule::load_data(&mut archive(&files).as_slice())?))
    }

    /// Whether packing pays: on a processor, for what oneDNN multiplies, and in f32 for more than one row.
    pub(super) fn pays(kind: Kind, device: Device, rows: usize) -> bool {
        device == Device::Cpu && (kind == Kind::BFloat16 || kind == Kind::Float && rows > 0)
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

    /// x [N, in] and y [N, out] → y + x Wᵀ.
    pub(super) fn multiply_onto(&self, x: &Tensor, weight: &Packed, y: &Tensor) -> Result<Tensor> {
        Ok(self.0.method_ts("onto", &[x, &weight.0, y])?)
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
