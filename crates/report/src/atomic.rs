//! Files that are either whole or absent.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `bytes` to `path` so that a crash leaves the old file or the new one, never a part: a temporary file beside it is
/// written, synchronised, then renamed.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(folder) = folder {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let written = File::create(partial).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(source) = written {
        // The half-written file is ours alone; that it cannot be removed either would hide the first cause.
        let _ = fs::remove_file(partial);
        return Err(Error::io("write", partial)(source));
    }
    fs::rename(partial, path).map_err(Error::io("replace", path))?;
    if let Some(folder) = folder {
        // Some file systems cannot synchronise a folder; the file itself is safe by then.
        let _ = File::open(folder).and_then(|opened| opened.sync_all());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_and_leaves_no_partial_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.txt");
        write(&path, b"old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_names_the_file_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"x").unwrap();
        let error = write(&file.join("below.txt"), b"y").unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }
}
