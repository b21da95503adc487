//! What a process costs: memory and processor time, as the system counts them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// A process that is ended when it is dropped.
#[derive(Debug)]
pub(crate) struct Owned(pub(crate) Child);

impl Owned {
    /// Ends it, whatever it does, and waits for that.
    pub(crate) fn end(&mut self) {
        // One that has ended already is an error that says so.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.end();
    }
}

/// A line of `/proc/<process>/status` that is in KiB, in MiB. `process` is a number or `self`.
pub(crate) fn status_mib(process: &str, name: &str) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`, which Linux has"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    Ok(kib.with_context(|| format!("`{path}` has no `{name}` in kB"))? / 1024.0)
}

/// Seconds that this process has kept processors busy, its threads included.
pub(crate) fn cpu_secs() -> Result<f64> {
    let path = "/proc/self/stat";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"))?;
    // User and system time in hundredths of a second, twelve and thirteen words after the name.
    let words = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    let ticks: Option<f64> = words.take(2).map(|word| word.parse::<f64>().ok()).sum();
    Ok(ticks.with_context(|| format!("`{path}` has no times"))? / 100.0)
}

/// The `libtorch_cpu` that is mapped into this process.
pub(crate) fn libtorch() -> Result<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").context("cannot read `/proc/self/maps`")?;
    let found = maps.lines().find_map(|line| {
        let path = line.split_whitespace().last()?;
        path.rsplit('/')
            .next()?
            .starts_with("libtorch_cpu.")
            .then(|| PathBuf::from(path))
    });
    found.context("no libtorch_cpu in this process")
}

/// SHA-256 of a file, read in pieces.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_time_and_a_libtorch() {
        assert_eq!(tch::Tensor::from(2_i64).int64_value(&[]), 2);
        let (now, most) = (
            status_mib("self", "VmRSS").unwrap(),
            status_mib("self", "VmHWM").unwrap(),
        );
        assert!(now > 1.0 && most >= now);
        assert!(status_mib("self", "VmNothing").is_err());
        assert!(cpu_secs().unwrap() >= 0.0);
        assert!(libtorch().unwrap().is_file());
    }

    #[test]
    fn sums_are_those_of_the_standard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&path).unwrap(), expected);
    }
}
