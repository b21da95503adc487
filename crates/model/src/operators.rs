//! libtorch's operators that the bindings have no function for.
//!
//! TorchScript calls any operator by its name. So a module of a few lines is written here, as the archive that libtorch
//! loads, and its methods are called like functions.

use tch::CModule;

use crate::Result;

/// An empty tuple, as protocol 2 of Python's pickle.
const CONSTANTS: &[u8] = b"\x80\x02).";

/// A module that holds nothing but `methods`: TorchScript as saved modules have it, each with `self: __torch__.{name}` as its
/// first parameter.
///
/// Whether this build of libtorch has the operators that a method calls, and whether they take what they are given, can show
/// as late as at the first call: whoever uses one tries it, and has another way where it fails.
///
/// **Parameters**: `name` the module's class, a word of ASCII letters.
///
/// **Errors**: libtorch's where it cannot read the methods.
///
/// ```
/// use tch::{IValue, Tensor};
///
/// let methods = "def forward(self: __torch__.Twice, x: Tensor) -> Tensor:\n  return ops.aten.add(x, x, alpha=1)\n";
/// let twice = unsay_model::operators::module("Twice", methods).unwrap();
/// assert_eq!(twice.forward_ts(&[Tensor::from(3_i64)]).unwrap().int64_value(&[]), 6);
/// ```
pub fn module(name: &str, methods: &str) -> Result<CModule> {
    let mut source = format!("class {name}(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n");
    source.extend(methods.lines().map(|line| format!("  {line}\n")));
    // An object of that class whose one field `training` is false.
    let mut object = b"\x80\x02c__torch__\n".to_vec();
    object.extend(name.as_bytes());
    object.extend(b"\n)\x81}X\x08\x00\x00\x00training\x89sb.");
    let files: [(&str, &[u8]); 4] = [
        ("module/data.pkl", &object),
        ("module/code/__torch__.py", source.as_bytes()),
        ("module/constants.pkl", CONSTANTS),
        ("module/version", b"3\n"),
    ];
    Ok(CModule::load_data(&mut archive(&files).as_slice())?)
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
    fn what_libtorch_cannot_read_or_has_not_is_an_error() {
        let method = |call: &str| format!("def forward(self: __torch__.M, x: Tensor) -> Tensor:\n  return {call}\n");
        assert!(module("M", "def forward(").is_err());
        let missing = module("M", &method("ops.aten.no_such_operator(x)"));
        assert!(missing.is_err() || missing.unwrap().forward_ts(&[tch::Tensor::from(1_i64)]).is_err());
    }
}
