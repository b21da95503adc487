//! Build script shared by every crate that links libtorch: checks its version, so that a wrong one is
//! refused by name instead of by a page of linker errors, and adds its folder to the run path of
//! binaries, tests, benches and doctests, so that nothing has to be exported to run them.

#![allow(
    clippy::print_stdout,
    unreachable_pub,
    missing_docs,
    reason = "the protocol between build scripts and cargo"
)]

use std::path::{Path, PathBuf};

/// The libtorch that `tch` 0.24.0 is written for.
const WANTED: &str = "2.11.0";

pub fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=../../build/libtorch.rs");
    let Some(root) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        return;
    };
    let lib = root.join("lib");
    if !lib.is_dir() {
        panic!(
            "libtorch {WANTED} wanted, none found at `{}`; hint: run ./setup.sh",
            root.display()
        );
    }
    match version(&root) {
        Some(found) if found == WANTED => {}
        Some(found) => panic!("libtorch {WANTED} wanted, {found} found at `{}`", root.display()),
        None => panic!("libtorch {WANTED} wanted, no version found at `{}`", root.display()),
    }
    let lib = lib.canonicalize().unwrap_or(lib);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}

/// The version of a libtorch folder: `build-version` in the C++ archives, `version.py` in the Python
/// package. A local suffix such as `+cpu` is left off.
fn version(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string(root.join("build-version"))
        .or_else(|_| {
            let py = std::fs::read_to_string(root.join("version.py"))?;
            let line = py.lines().find(|l| l.starts_with("__version__")).unwrap_or_default();
            std::io::Result::Ok(line.split('\'').nth(1).unwrap_or_default().to_owned())
        })
        .ok()?;
    let version = text.trim().split('+').next()?.to_owned();
    (!version.is_empty()).then_some(version)
}
