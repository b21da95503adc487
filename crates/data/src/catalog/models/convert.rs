//! Runs the script that makes a Hugging Face folder of a GGUF file, with packages that are there for that
//! run alone.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use super::super::fetch::{Tried, command, failed, run};
use super::Model;
use crate::error::{Error, Result};

/// Expands the weights; its usage is at its top.
pub(super) const SCRIPT: &str = include_str!("gguf_to_hf.py");

/// What the script needs. `gguf` reads the file and expands the weights; the two others are what it imports.
/// The expanded weights have a recorded digest, so the versions decide only whether the script runs.
pub(super) const PACKAGES: &[&str] = &[
    "gguf==0.19.0",
    "numpy==2.2.6; python_version < \"3.11\"",
    "numpy==2.4.6; python_version >= \"3.11\"",
    "pyyaml==6.0.3",
];

/// Makes the folder `into` of a GGUF file.
///
/// The packages are installed into `temporary`, which goes when the folder is made: nothing of the user's
/// Python is changed, and nothing of it is used but the interpreter and pip.
pub(super) fn convert(
    model: &Model,
    gguf: &Path,
    temporary: &Path,
    into: &Path,
    environment: &[(OsString, OsString)],
    say: &mut dyn FnMut(&str),
) -> Result<Tried> {
    let mut names: Vec<&str> = model.packages.iter().filter_map(|p| p.split("==").next()).collect();
    names.dedup();
    say(&format!("getting {} for this once", names.join(", ")));
    let packages = temporary.join("packages");
    let quiet = ["--quiet", "--no-deps", "--no-input", "--only-binary=:all:"];
    let installed = run(
        command("python3", environment)
            .args(["-m", "pip", "install"])
            .args(quiet)
            .args([
                "--disable-pip-version-check",
                "--no-warn-script-location",
                "--retries=2",
            ])
            .arg("--target")
            .arg(&packages)
            .args(model.packages),
        "python3 -m pip install",
    );
    if installed.is_err() {
        return Ok(installed);
    }
    // A folder of its own, because Python imports from the folder of a script before all others.
    let folder = temporary.join("script");
    fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
    let script = folder.join("gguf_to_hf.py");
    fs::write(&script, model.script).map_err(Error::io("write", &script))?;
    // A file instead of a pipe: nobody reads a second pipe while the first one is read.
    let complaints = folder.join("complaints");
    let stderr = fs::File::create(&complaints).map_err(Error::io("create", &complaints))?;
    let sha256 = model.gguf.sha256.unwrap_or_default();
    let provenance = format!("{}, file {}, SHA-256 {sha256}", model.source, model.gguf.name);
    let shown = "python3 gguf_to_hf.py";
    let spawned = command("python3", environment)
        .arg(&script)
        .arg(gguf)
        .arg(into)
        .args([model.name, &provenance])
        .env("PYTHONPATH", &packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn();
    let mut running = match spawned {
        Ok(running) => running,
        Err(e) => return Ok(Err(format!("`{shown}` did not start: {e}"))),
    };
    if let Some(told) = running.stdout.take() {
        // A line that cannot be read is progress that is not shown; whether it worked, the exit says.
        BufReader::new(told)
            .lines()
            .map_while(std::io::Result::ok)
            .for_each(|line| say(&line));
    }
    let status = running.wait().map_err(Error::io("run", &script))?;
    if status.success() {
        return Ok(Ok(()));
    }
    let said = fs::read(&complaints).map_err(Error::io("read", &complaints))?;
    Ok(Err(failed(shown, &String::from_utf8_lossy(&said))))
}
