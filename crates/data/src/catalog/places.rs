//! Where datasets and models are looked for on this machine.

use std::ffi::OsString;
use std::path::PathBuf;

/// The folders in which datasets and models are looked for.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// A folder with one folder per dataset or model, never written to.
    pub mirror: Option<PathBuf>,
    /// The folder into which datasets and models are fetched.
    pub cache: Option<PathBuf>,
    /// Variables set for the commands that fetch, beside those of this process.
    pub(super) environment: Vec<(OsString, OsString)>,
}

impl Places {
    /// The mirror named by `UNSAY_DATA_MIRROR`, and `unsay/data` in the user's cache folder
    /// (`XDG_CACHE_HOME`, or `.cache` in the home folder).
    pub fn from_environment() -> Self {
        Self::from_variables(|name| std::env::var_os(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let folder = |name| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let user = folder("XDG_CACHE_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| folder("HOME").map(|home| home.join(".cache")));
        Self {
            mirror: folder("UNSAY_DATA_MIRROR"),
            cache: user.map(|cache| cache.join("unsay").join("data")),
            environment: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Places;
    use std::path::Path;

    #[test]
    fn the_folders_follow_the_environment() {
        let places = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Places::from_variables(move |name| set.iter().find(|(k, _)| k == name).map(|(_, v)| v.into()))
        };
        let home = places(&[("HOME", "/home/ada")]);
        assert_eq!(home.cache.as_deref(), Some(Path::new("/home/ada/.cache/unsay/data")));
        assert_eq!(home.mirror, None);
        let set = places(&[
            ("HOME", "/home/ada"),
            ("XDG_CACHE_HOME", "/big"),
            ("UNSAY_DATA_MIRROR", "mirror"),
        ]);
        assert_eq!(set.cache.as_deref(), Some(Path::new("/big/unsay/data")));
        assert_eq!(set.mirror.as_deref(), Some(Path::new("mirror")));
        let odd = places(&[
            ("HOME", "/h"),
            ("XDG_CACHE_HOME", "relative"),
            ("UNSAY_DATA_MIRROR", ""),
        ]);
        assert_eq!(odd.cache.as_deref(), Some(Path::new("/h/.cache/unsay/data")));
        assert_eq!(odd.mirror, None);
        assert_eq!(places(&[]).cache, None);
    }
}
