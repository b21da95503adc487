//! Which files of a model folder may be opened: regular files of the folder itself, or what a Hub cache links
//! to. A link that leads elsewhere could make a folder from the network read any file of the machine.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use crate::{Error, Result};

/// The path of a file in a model folder. A file that is not there is left to whoever opens it; a name with a
/// folder in it, a link out of the folder, and what is no regular file are errors.
pub fn file_in(dir: &Path, name: &str) -> Result<PathBuf> {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(only)), None) if only == name);
    if !plain || name.contains(['/', '\\', '\0']) {
        return Err(Error::weights(
            dir,
            format!("expected the name of a file in this folder, got `{name}`"),
        ));
    }
    let path = dir.join(name);
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(path),
        Err(error) => return Err(Error::io("look at", &path)(error)),
        Ok(found) if found.is_symlink() => check_link(dir, &path)?,
        Ok(_) => {}
    }
    let found = fs::metadata(&path).map_err(Error::io("look at", &path))?;
    if !found.is_file() {
        let what = if found.is_dir() { "a folder" } else { "something else" };
        return Err(Error::weights(&path, format!("expected a file, found {what}")));
    }
    Ok(path)
}

fn check_link(dir: &Path, path: &Path) -> Result<()> {
    let target = fs::canonicalize(path).map_err(Error::io("follow", path))?;
    let root = fs::canonicalize(dir).map_err(Error::io("follow", dir))?;
    let link = fs::read_link(path).map_err(Error::io("follow", path))?;
    if target.starts_with(&root) || is_blob(&root, &link, &target) {
        return Ok(());
    }
    Err(Error::weights(
        path,
        format!(
            "a link that leads out of its folder, to `{}`\nhint: copy the folder with `cp -rL`",
            target.display()
        ),
    ))
}

/// The form of the Hub's own cache: `<repository>/snapshots/<revision>/<file>` is a link to
/// `../../blobs/<name>`.
fn is_blob(root: &Path, link: &Path, target: &Path) -> bool {
    let Some(snapshots) = root.parent().filter(|p| p.file_name() == Some(OsStr::new("snapshots"))) else {
        return false;
    };
    let (Some(repository), Some(name)) = (snapshots.parent(), link.file_name()) else {
        return false;
    };
    let written = Path::new("../../blobs").join(name);
    link == written && target == repository.join("blobs").join(name)
}
