//! Where tensors live.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tch::{Cuda, Device};

use crate::{Error, Result};

/// The part of libtorch that talks to CUDA.
const LIBRARY: &str = "libtorch_cuda.so";

/// Turns `cpu`, `cuda` or `cuda:N` into a device that works, loading libtorch's CUDA part first where it
/// is asked for.
pub fn open(name: &str) -> Result<Device> {
    let device = parse(name)?;
    let Device::Cuda(index) = device else {
        return Ok(device);
    };
    load_cuda()?;
    let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
    if count == 0 {
        return Err(Error::Device(format!(
            "device `{name}`: no CUDA device was found\nhint: use `cpu`, or check the driver with nvidia-smi"
        )));
    }
    if index >= count {
        return Err(Error::Device(format!(
            "device `{name}`: expected an index below {count}, got {index}"
        )));
    }
    Ok(device)
}

/// Reads the name of a device without touching it.
pub fn parse(name: &str) -> Result<Device> {
    let unknown = || Error::Device(format!("device `{name}`: expected `cpu`, `cuda` or `cuda:N`"));
    match name {
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::Cuda(0)),
        _ => {
            let index = name.strip_prefix("cuda:").ok_or_else(unknown)?;
            // An index is what people write: digits, no sign; libtorch holds it in a byte.
            let digits = !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit());
            let index: u8 = index.parse().map_err(|_| unknown())?;
            if !digits || index > 127 {
                return Err(unknown());
            }
            Ok(Device::Cuda(usize::from(index)))
        }
    }
}

/// Loads libtorch's CUDA part, once. The linker drops it, because nothing refers to it by name; loading it
/// makes it register itself with the rest.
fn load_cuda() -> Result<()> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        let Some(path) = folders().into_iter().map(|f| f.join(LIBRARY)).find(|p| p.is_file()) else {
            return Err(format!(
                "CUDA was asked for, but this libtorch is built for the CPU: no `{LIBRARY}` beside `libtorch_cpu.so`\n\
                 hint: set LIBTORCH to a CUDA build of libtorch 2.11.0, or use `cpu`"
            ));
        };
        load(&path)
    });
    loaded.clone().map_err(Error::Device)
}

#[allow(unsafe_code)]
fn load(path: &Path) -> std::result::Result<(), String> {
    // SAFETY: running the initialisers of this library is what it is loaded for. It is the part of the
    // very libtorch that this process already runs, from the same folder, and is never unloaded.
    match unsafe { libloading::Library::new(path) } {
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => Err(format!(
            "cannot load `{}`: {error}\nhint: install libtorch with all of its CUDA dependencies, or use `cpu`",
            path.display()
        )),
    }
}

/// Where libtorch may lie: the folder this process loaded it from, then the one of `LIBTORCH`.
fn folders() -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Ok(maps) = std::fs::read_to_string("/proc/self/maps") {
        found.extend(loaded_from(&maps));
    }
    if let Some(root) = std::env::var_os("LIBTORCH") {
        found.push(Path::new(&root).join("lib"));
    }
    found
}

/// The folder of `libtorch_cpu.so` in a listing of mapped files.
fn loaded_from(maps: &str) -> Option<PathBuf> {
    let line = maps.lines().find(|l| l.ends_with("/libtorch_cpu.so"))?;
    let path = &line[line.find('/')?..];
    Path::new(path).parent().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_refused() {
        assert_eq!(parse("cpu").unwrap(), Device::Cpu);
        assert_eq!(parse("cuda").unwrap(), Device::Cuda(0));
        assert_eq!(parse("cuda:3").unwrap(), Device::Cuda(3));
        for name in [
            "",
            "CPU",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:x",
            "cuda:128",
            "cuda:99999999999",
            "mps",
        ] {
            let error = parse(name).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{name}`")) && error.contains("cuda:N"),
                "{error}"
            );
        }
    }

    #[test]
    fn libtorch_is_found_where_it_was_loaded_from() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 42    /opt/some where/lib/libtorch_cpu.so\n7f02-7f03 rw-p 0 0:0 0";
        assert_eq!(loaded_from(maps), Some(PathBuf::from("/opt/some where/lib")));
        assert_eq!(loaded_from("7f00-7f01 r-xp 0 0:0 0 [heap]"), None);
        let _ = tch::Tensor::new();
        assert!(folders().first().is_some_and(|f| f.join("libtorch_cpu.so").is_file()));
    }

    #[test]
    fn asking_for_cuda_works_or_says_what_to_do() {
        match open("cuda") {
            Ok(device) => assert_eq!(device, Device::Cuda(0)),
            Err(error) => assert!(error.to_string().contains("hint:"), "{error}"),
        }
    }
}
