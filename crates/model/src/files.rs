//! Files that are replaced whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Distinguishes the temporary files of threads that write in one folder.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Writes a file through a temporary name beside it: written, synced, renamed, folder synced. A reader
/// sees the old content or the new, never a part; a failure leaves the old content and no temporary file.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let temp = temporary_name(path)?;
    let written = write_and_rename(path, &temp, write);
    if written.is_err() {
        // The error that matters is the first one; the file may not even exist.
        let _ = fs::remove_file(&temp);
    }
    written
}

fn write_and_rename(path: &Path, temp: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(temp)
        .map_err(Error::io("create", temp))?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    write(&mut out).map_err(Error::io("write", temp))?;
    let file = out.into_inner().map_err(|e| Error::io("write", temp)(e.into_error()))?;
    file.sync_all().map_err(Error::io("write", temp))?;
    drop(file);
    fs::rename(temp, path).map_err(Error::io("replace", path))?;
    sync_folder(path)
}

/// The rename itself lasts only once the folder is on disk.
fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(unix) {
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        File::open(folder)
            .and_then(|f| f.sync_all())
            .map_err(Error::io("sync", folder))?;
    }
    Ok(())
}

fn temporary_name(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::input(
            "file to write",
            "a path with a file name",
            format!("`{}`", path.display()),
        ));
    };
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let mut temp = name.to_owned();
    temp.push(format!(".{}-{serial}.partial", process::id()));
    Ok(path.with_file_name(temp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        write_atomic(&path, |out| out.write_all(b"old")).unwrap();
        let failed = write_atomic(&path, |out| {
            out.write_all(b"half")?;
            Err(std::io::Error::other("disk full"))
        });
        assert!(failed.unwrap_err().to_string().contains("disk full"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none").join("x");
        let error = write_atomic(&path, |_| Ok(())).unwrap_err().to_string();
        assert!(error.starts_with("cannot create") && error.contains("none"), "{error}");
    }
}
