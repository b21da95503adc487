//! Fetched datasets and models on disk: whole or absent, and checked each time they are asked for.

use std::fmt::Write as _;
use std::path::Path;

use super::File;
use crate::atomic;
use crate::error::{Error, Place, Result};
use crate::hash;

/// Holds the SHA-256 of every file as it was fetched, in the form of `sha256sum`.
const SUMS: &str = "SHA256SUMS";

/// Refuses a file whose digest is not the expected one.
pub(super) fn check_file(path: &Path, expected: &str, advice: String) -> Result<()> {
    let got = hash::file(path)?;
    if got == expected {
        return Ok(());
    }
    let (path, expected) = (path.to_path_buf(), expected.to_owned());
    Err(Error::Digest {
        path,
        kind: "SHA-256",
        expected,
        got,
        advice,
    })
}

/// Checks every file of a dataset or model in the cache.
///
/// The recorded digest decides; where a commit stands for the content, the digest noted after the
/// commit was checked.
pub(super) fn check(folder: &Path, files: &[File]) -> Result<()> {
    let sums_path = folder.join(SUMS);
    let advice = || format!("remove the folder `{}` to fetch it again", folder.display());
    let sums = std::fs::read_to_string(&sums_path).map_err(Error::io("read", &sums_path))?;
    for file in files {
        let noted = sums
            .lines()
            .filter_map(|l| l.split_once("  "))
            .find(|(_, n)| *n == file.name);
        let Some(expected) = file.sha256.or(noted.map(|(sum, _)| sum)) else {
            let expected = format!("a line for `{}`", file.name);
            let got = format!("none\nhint: {}", advice());
            return Err(Place::file(&sums_path).malformed(expected, got));
        };
        check_file(&folder.join(file.name), expected, advice())?;
    }
    Ok(())
}

/// Makes `folder` appear with all files in it, or not at all.
///
/// `fetch` gets a temporary folder to work in and the folder for the files; what it cannot get, it
/// says in words. When another process makes the same folder first, that one stays.
pub(super) fn fill(
    folder: &Path,
    files: &[File],
    fetch: impl FnOnce(&Path, &Path) -> Result<std::result::Result<(), String>>,
) -> Result<std::result::Result<(), String>> {
    let cache = folder.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(cache).map_err(Error::io("create", cache))?;
    let temporary = tempfile::Builder::new()
        .prefix(".fetch-")
        .tempdir_in(cache)
        .map_err(Error::io("write into", cache))?;
    let into = temporary.path().join("files");
    std::fs::create_dir(&into).map_err(Error::io("create", &into))?;
    if let Err(why) = fetch(temporary.path(), &into)? {
        return Ok(Err(why));
    }
    let mut sums = String::new();
    for file in files {
        let path = into.join(file.name);
        let sum = hash::file(&path)?;
        if let Some(expected) = file.sha256 {
            check_file(&path, expected, String::new())?;
        }
        let opened = std::fs::File::open(&path).map_err(Error::io("read", &path))?;
        opened.sync_all().map_err(Error::io("write", &path))?;
        // Writing into a `String` cannot fail.
        let _ = writeln!(sums, "{sum}  {}", file.name);
    }
    atomic::write(&into.join(SUMS), |w| w.write_all(sums.as_bytes()))?;
    match std::fs::rename(&into, folder) {
        Ok(()) => atomic::sync_folder(cache).map(Ok),
        Err(_) if folder.exists() => check(folder, files).map(Ok),
        Err(e) => Err(Error::io("create", folder)(e)),
    }
}
