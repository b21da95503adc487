//! Files that appear whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Writes a file beside its destination, brings it to disk and renames it into place.
///
/// A reader sees the old content or the new, never a part; two writers do not disturb each other.
pub(crate) fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".unsay-").suffix(".partial");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder).map_err(Error::io("write", path))?;
    let mut writer = BufWriter::new(temporary);
    fill(&mut writer).map_err(Error::io("write", path))?;
    let temporary = writer
        .into_inner()
        .map_err(|e| Error::io("write", path)(e.into_error()))?;
    temporary.as_file().sync_all().map_err(Error::io("write", path))?;
    temporary.persist(path).map_err(|e| Error::io("write", path)(e.error))?;
    sync_folder(folder)
}

/// Brings the names in a folder to disk, after a rename into it.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        let opened = File::open(folder).map_err(Error::io("open", folder))?;
        opened.sync_all().map_err(Error::io("write", folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::write;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write(&path, |w| w.write_all(b"old")).unwrap();
        let failed = write(&path, |w| {
            w.write_all(b"ne")?;
            Err(std::io::Error::other("disk full"))
        });
        let message = failed.unwrap_err().to_string();
        assert!(message.starts_with("could not write `"), "{message}");
        assert!(message.ends_with("a.txt`: disk full"), "{message}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
