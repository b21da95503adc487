//! In which kind a model computes, and whether that pays.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::{Error, Result};

/// The kind of numbers that states and products have, in manifests a map of one key: `{ fp32: {} }` or
/// `{ bf16: {} }`.
///
/// Whatever the precision, trained weights are kept and updated in f32 ([`crate::Param::master`]), sums (norms,
/// softmax, log-sum-exp, gradients of several micro-batches) are taken in f32, and saved models are f32.
///
/// ```
/// use unsay_model::Precision;
///
/// let precision: Precision = serde_json::from_str(r#"{ "bf16": {} }"#).unwrap();
/// assert_eq!(precision, Precision::Bf16 { even_if_slower: false });
/// assert_eq!(Precision::default(), Precision::Fp32 {});
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Precision {
    /// Everything in f32; models in f64, which only tests have, stay as they are.
    Fp32 {},
    /// States and products in bf16: 8 bits of mantissa, the range of f32.
    Bf16 {
        /// Compute in bf16 on processors without instructions for it, too, where it takes longer than f32.
        #[serde(default)]
        even_if_slower: bool,
    },
}

impl Default for Precision {
    fn default() -> Self {
        Self::Fp32 {}
    }
}

impl Precision {
    /// Whether this is what a manifest gets that does not say.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The kind that products are computed in.
    pub fn kind(self) -> Kind {
        match self {
            Self::Fp32 {} => Kind::Float,
            Self::Bf16 { .. } => Kind::BFloat16,
        }
    }

    /// Refuses bf16 where it is known to be slower than f32.
    ///
    /// A processor is worth it with AMX bf16, AVX-512 bf16 or Arm's bf16. A CUDA device is believed to be: its
    /// compute capability (8.0 or higher is needed) cannot be asked for through the bindings.
    ///
    /// **Errors**: [`Error::Device`] naming the instructions that are missing.
    pub fn check(self, device: Device) -> Result<()> {
        let slow = matches!(self, Self::Bf16 { even_if_slower: false }) && device == Device::Cpu;
        match slow && !Processor::here().has_bf16() {
            false => Ok(()),
            true => Err(Error::Device(TOO_SLOW.to_owned())),
        }
    }
}

const TOO_SLOW: &str = "precision `bf16`: slower than fp32 on this processor, which has none of AMX bf16, AVX-512 bf16 \
                        and Arm bf16\nhint: leave `precision` out for fp32, or set `even_if_slower: true`";

/// What a processor can do with bf16.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Processor {
    amd: bool,
    avx512f: bool,
    amx_bf16: bool,
    avx512_bf16: bool,
    arm_bf16: bool,
}

impl Processor {
    /// The one that this runs on.
    pub(crate) fn here() -> Self {
        // Linux also says whether it lets programs use the registers of AMX.
        match std::fs::read_to_string("/proc/cpuinfo") {
            Ok(text) => Self::listed(&text),
            Err(_) => Self::asked(),
        }
    }

    /// The first processor of a listing in the form of Linux's `/proc/cpuinfo`.
    fn listed(text: &str) -> Self {
        let flags = |name: &str| {
            let line = text
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim() == name);
            line.map(|(_, flags)| flags.split_whitespace().collect::<Vec<_>>())
                .unwrap_or_default()
        };
        let (x86, arm) = (flags("flags"), flags("Features"));
        Self {
            amd: text
                .lines()
                .any(|line| line.starts_with("vendor_id") && line.ends_with("AuthenticAMD")),
            avx512f: x86.contains(&"avx512f"),
            amx_bf16: x86.contains(&"amx_bf16"),
            avx512_bf16: x86.contains(&"avx512_bf16"),
            arm_bf16: arm.contains(&"bf16"),
        }
    }

    /// What the processor itself says, on systems that list nothing.
    fn asked() -> Self {
        Self {
            #[cfg(target_arch = "x86_64")]
            avx512_bf16: std::arch::is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            avx512f: std::arch::is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "aarch64")]
            arm_bf16: std::arch::is_aarch64_feature_detected!("bf16"),
            ..Self::default()
        }
    }

    fn has_bf16(self) -> bool {
        self.amx_bf16 || self.avx512_bf16 || self.arm_bf16
    }

    pub(crate) fn is_amd_with_avx512(self) -> bool {
        self.amd && self.avx512f
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_told_by_their_flags() {
        let listed = |text: &str| Processor::listed(text);
        let none = Processor::default();
        let old =
            "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f avx512_vnni\nbogomips : 4000\n";
        assert!(listed(old).avx512f && !listed(old).has_bf16() && !listed(old).is_amd_with_avx512());
        assert!(listed(&old.replace("GenuineIntel", "AuthenticAMD")).is_amd_with_avx512());
        assert!(!listed("vendor_id : AuthenticAMD\nflags : avx2 fma").is_amd_with_avx512());
        assert_eq!(listed(""), none);
        // A flag of another name, or in another line, is not it.
        assert_eq!(
            listed("flags : avx512_bf16x\nmodel name : amx_bf16\nbugs : avx512_bf16"),
            none
        );
        let avx = listed("flags\t\t: fpu avx512_bf16 avx512f\n");
        assert!(avx.avx512_bf16 && !avx.amx_bf16 && avx.has_bf16());
        let amx = listed("processor : 0\nflags : amx_bf16 amx_tile\n\nprocessor : 1\nflags : fpu\n");
        assert!(amx.amx_bf16 && amx.has_bf16());
        let arm = listed("Features\t: fp asimd bf16 i8mm\n");
        assert!(arm.arm_bf16 && arm.has_bf16());
        assert!(!none.has_bf16());
    }

    #[test]
    fn bf16_is_refused_with_a_reason_unless_asked_for() {
        let bf16 = Precision::Bf16 { even_if_slower: false };
        match (Processor::here().has_bf16(), bf16.check(Device::Cpu)) {
            (true, found) => found.unwrap(),
            (false, found) => {
                let error = found.unwrap_err().to_string();
                assert!(error.contains("AMX") && error.contains("hint: "), "{error}");
            }
        }
        Precision::Bf16 { even_if_slower: true }.check(Device::Cpu).unwrap();
        Precision::default().check(Device::Cpu).unwrap();
        bf16.check(Device::Cuda(0)).unwrap();
    }

    #[test]
    fn manifests_write_one_key() {
        let read = |text: &str| serde_json::from_str::<Precision>(text);
        assert_eq!(
            read(r#"{"bf16": {"even_if_slower": true}}"#).unwrap(),
            Precision::Bf16 { even_if_slower: true }
        );
        assert_eq!(read(r#"{"fp32": {}}"#).unwrap(), Precision::default());
        assert!(read(r#"{"bf16": {"faster": true}}"#).is_err());
        assert!(read(r#"{"fp16": {}}"#).is_err());
        assert_eq!(serde_json::to_string(&Precision::default()).unwrap(), r#"{"fp32":{}}"#);
        assert!(Precision::Fp32 {}.is_default() && !(Precision::Bf16 { even_if_slower: false }).is_default());
    }
}
