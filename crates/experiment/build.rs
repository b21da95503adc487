//! Links libtorch as the other crates do, and notes the commit that this is built from, so that every step can say
//! which code made it.

#[path = "../../build/libtorch.rs"]
mod libtorch;

use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let out = Command::new("git")
        .args(arguments)
        .output()
        .ok()
        .filter(|out| out.status.success())?;
    Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn main() {
    libtorch::main();
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let changed = git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        "..",
        "../../Cargo.toml",
        "../../build",
    ])
    .is_some_and(|files| !files.is_empty());
    println!(
        "cargo:rustc-env=UNSAY_COMMIT={commit}{}",
        if changed { "+changes" } else { "" }
    );
    // The commit is that of the last build that had anything to do: moving HEAD, or changing a crate, is such a thing.
    for file in ["HEAD", "logs/HEAD", "index"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    println!("cargo:rerun-if-changed=..");
}
