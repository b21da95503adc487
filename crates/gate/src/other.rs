//! The gate's program of another commit.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

fn run(command: &mut Command, what: &str) -> Result<String> {
    let said = command.output().with_context(|| format!("{what}: cannot start"))?;
    if !said.status.success() {
        let error = String::from_utf8_lossy(&said.stderr);
        let lines: Vec<&str> = error.trim().lines().collect();
        bail!("{what}: {}", lines[lines.len().saturating_sub(5)..].join("\n"));
    }
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// The user's folder for what can be made again.
fn cache() -> Result<PathBuf> {
    let folder = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: no place to build the other commit")?;
    Ok(folder.join("unsay/gate"))
}

/// Builds the gate of a commit in a working tree and a target folder of the user's cache, and says where the program is.
///
/// # Errors
/// A name that git does not know, a commit without a gate, and what the build complains about.
pub(crate) fn build(revision: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let git = |arguments: &[&str], what: &str| run(Command::new("git").arg("-C").arg(&root).args(arguments), what);
    let commit = git(
        &[
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            &format!("{revision}^{{commit}}"),
        ],
        &format!("`{revision}` is no commit of this repository"),
    )?;
    if git(&["cat-file", "-e", &format!("{commit}:crates/gate/src/main.rs")], "").is_err() {
        bail!("commit `{revision}` has no gate to measure with; hint: name a later one");
    }
    let cache = cache()?;
    let tree = cache.join(&commit[..12]);
    if !tree.join("Cargo.toml").is_file() {
        std::fs::create_dir_all(&cache)?;
        git(&["worktree", "prune"], "git worktree prune")?;
        let place = tree.to_string_lossy().into_owned();
        git(
            &["worktree", "add", "--force", "--detach", &place, &commit],
            "git worktree add",
        )?;
    }
    let target = cache.join("target");
    let mut build = Command::new("cargo");
    build
        .args(["build", "--locked", "-p", "unsay-gate"])
        .current_dir(&tree)
        .env("CARGO_TARGET_DIR", &target);
    if std::env::var_os("LIBTORCH").is_none() {
        build.env("LIBTORCH", root.join(".libtorch/torch"));
    }
    let status = build.status().context("cargo: cannot start")?;
    if !status.success() {
        bail!("commit `{revision}` does not build: {status}");
    }
    // The next commit is built in the same folder.
    let program = cache.join(format!("unsay-gate-{}", &commit[..12]));
    std::fs::copy(target.join("debug/unsay-gate"), &program)?;
    Ok(program)
}
