//! How this process holds its memory.

/// Where glibc reads the settings of its allocator, at the start of a process and never again.
const VARIABLE: &str = "GLIBC_TUNABLES";

/// Says that a program was started anew already. Newer versions of glibc take [`VARIABLE`] out of the environment of programs
/// with the rights of another user or with capabilities of their own, which would otherwise start anew for ever.
const RESTARTED: &str = "UNSAY_RESTARTED";

/// Memory comes in large pages, is taken from one growing piece however large the tensor, and is kept for the next
/// tensor instead of being handed back.
const SETTINGS: &str = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776";

/// The variable of the environment, and its value, under which a process that trains on the processor spends least
/// time on pages: as they are, glibc's settings hand the memory of every large tensor back, and each step begins with
/// pages that the system has to clear. `None` where there is no glibc, or where the variable is set already.
///
/// For whoever starts a process; this one is restarted by [`restart_with_kept_pages`].
pub fn kept_pages() -> Option<(&'static str, &'static str)> {
    let applies = cfg!(all(target_os = "linux", target_env = "gnu")) && std::env::var_os(VARIABLE).is_none();
    applies.then_some((VARIABLE, SETTINGS))
}

/// Whether that is not a program but the loader (`ld-linux-x86-64.so.2 unsay run …`), to which the arguments would be others.
#[cfg(unix)]
fn is_loader(program: &std::path::Path) -> bool {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("ld-") || name.starts_with("ld.so") || name.starts_with("ld64.so")
}

/// Starts this program anew in this very process with the same arguments and [`kept_pages`]. Returns where there is
/// nothing to set, where it was started anew before, and where the system does not let it: nothing but time depends on it.
pub fn restart_with_kept_pages() {
    #[cfg(unix)]
    if let (Some((name, value)), Ok(program)) = (kept_pages(), std::env::current_exe())
        && std::env::var_os(RESTARTED).is_none()
        && !is_loader(&program)
    {
        use std::os::unix::process::CommandExt;

        let mut arguments = std::env::args_os();
        let first = arguments.next().unwrap_or_else(|| program.clone().into_os_string());
        let mut command = std::process::Command::new(program);
        // Comes back only where it failed.
        let _ = command
            .env(name, value)
            .env(RESTARTED, "1")
            .arg0(first)
            .args(arguments)
            .exec();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_the_loader_was_asked_for_is_not_restarted() {
        for loader in [
            "/lib64/ld-linux-x86-64.so.2",
            "/lib/ld-2.31.so",
            "/usr/bin/ld.so",
            "/lib64/ld64.so.2",
        ] {
            assert!(is_loader(loader.as_ref()), "{loader}");
        }
        for program in ["/usr/bin/unsay", "/opt/ld/unsay", "/tmp/unsay (deleted)"] {
            assert!(!is_loader(program.as_ref()), "{program}");
        }
    }
}
