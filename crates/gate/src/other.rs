//! The gate's program of another commit.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::OWN_THREADS;

/// What git tells the programs that it starts itself, such as hooks: of which repository, whatever `-C` says.
const OF_HOOKS: [&str; 4] = ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"];

fn run(command: &mut Command, what: &str) -> Result<String> {
    for name in OF_HOOKS {
        command.env_remove(name);
    }
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
    let git_in = |folder: &Path, arguments: &[&str], what: &str| {
        run(Command::new("git").arg("-C").arg(folder).args(arguments), what)
    };
    let git = |arguments: &[&str], what: &str| git_in(&root, arguments, what);
    let named = format!("{revision}^{{commit}}");
    let commit = git(&["rev-parse", "--verify", "--quiet", "--end-of-options", &named], "");
    let commit = commit.map_err(|error| {
        if error.is::<std::io::Error>() {
            return error.context("git");
        }
        let shallow = git(&["rev-parse", "--is-shallow-repository"], "").is_ok_and(|said| said == "true");
        let hint = if shallow {
            "\nhint: this clone is shallow: `git fetch` it first"
        } else {
            ""
        };
        anyhow!("`{revision}` is no commit of this repository{hint}")
    })?;
    if git(&["cat-file", "-e", &format!("{commit}:crates/gate/src/main.rs")], "").is_err() {
        bail!("commit `{revision}` has no gate to measure with; hint: name a later one");
    }
    let cache = cache()?;
    let tree = cache.join(&commit[..12]);
    // One that was left half made, or changed since, would be measured in place of the commit.
    let is_whole = git_in(&tree, &["rev-parse", "HEAD"], "").is_ok_and(|head| head == commit)
        && git_in(&tree, &["status", "--porcelain"], "").is_ok_and(|changes| changes.is_empty());
    if !is_whole {
        std::fs::create_dir_all(&cache)?;
        if tree.exists() {
            std::fs::remove_dir_all(&tree).with_context(|| format!("cannot remove `{}`", tree.display()))?;
        }
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

/// Those of the paths that another commit's gate does not have.
///
/// # Errors
/// What else its paths complain about.
pub(crate) fn lacks<'a>(program: &Path, names: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut new = Vec::new();
    loop {
        let known: Vec<&str> = names.iter().filter(|name| !new.contains(*name)).copied().collect();
        let mut command = Command::new(program);
        let said = run(
            command.arg("count").args(&known).envs(OWN_THREADS),
            "the other commit's gate",
        );
        let Err(error) = said else { return Ok(new) };
        let text = error.to_string();
        let is_missing = |name: &&&str| text.contains(&format!("no path is called `{name}`"));
        new.push(*known.iter().find(is_missing).ok_or(error)?);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn gate(folder: &Path, script: &str) -> PathBuf {
        let path = folder.join("gate");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A commit could not be compared with while any path was newer than it.
    #[test]
    fn paths_that_another_commit_has_not_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let refuse = r#"shift; for name; do case $name in new/*) echo "error: no path is called \`$name\`" >&2; exit 2;; esac; done"#;
        let program = gate(folder.path(), refuse);
        let new = lacks(&program, &["a/b", "new/a", "c/d", "new/b"]).unwrap();
        assert_eq!(new, ["new/a", "new/b"]);
        assert!(lacks(&program, &["a/b"]).unwrap().is_empty());
        let broken = gate(folder.path(), "echo 'error: no model' >&2; exit 2");
        let error = lacks(&broken, &["a/b"]).unwrap_err().to_string();
        assert_eq!(error, "the other commit's gate: error: no model");
    }

    #[test]
    fn a_name_that_git_does_not_know_is_refused() {
        let error = build("no-such-commit").unwrap_err().to_string();
        assert!(
            error.starts_with("`no-such-commit` is no commit of this repository"),
            "{error}"
        );
    }
}
