//! How this process holds its memory.

/// Where glibc reads the settings of its allocator, at the start of a process and never again.
const ALLOCATOR: &str = "GLIBC_TUNABLES";

/// Memory comes in large pages, is taken from one growing piece however large the tensor, and is kept for the next
/// tensor instead of being handed back: as they are, glibc's settings hand the memory of every large tensor back, and each
/// step begins with pages that the system has to clear.
const KEPT_PAGES: &str = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776";

/// Where oneDNN reads how many programs it keeps for all threads.
const PROGRAMS: &str = "ONEDNN_PRIMITIVE_CACHE_CAPACITY";
/// Where ideep, through which libtorch calls oneDNN, reads how many it keeps for each thread.
const OWN_PROGRAMS: &str = "LRU_CACHE_CAPACITY";

/// oneDNN compiles a program for each shape of a product, and both keep 1024 of them, with what they need to work in. A
/// training step has some 15; those of the shapes of earlier batches only take memory.
const KEPT_PROGRAMS: usize = 32;

/// Says that a program was started anew already. Newer versions of glibc take [`ALLOCATOR`] out of the environment of programs
/// with the rights of another user or with capabilities of their own, which would otherwise start anew for ever.
const RESTARTED: &str = "UNSAY_RESTARTED";

/// The variables of the environment, and their values, under which a process that trains on the processor spends least
/// time on pages, and no more memory the more shapes its batches had. Without those that are set already, and without
/// the allocator's where there is no glibc.
///
/// For whoever starts a process; this one is restarted by [`restart_with_settings`].
pub fn settings() -> Vec<(&'static str, String)> {
    let glibc = cfg!(all(target_os = "linux", target_env = "gnu"));
    // As many trainings run side by side.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    [
        (ALLOCATOR, KEPT_PAGES.to_owned(), glibc),
        (PROGRAMS, (KEPT_PROGRAMS * cores).to_string(), true),
        (OWN_PROGRAMS, KEPT_PROGRAMS.to_string(), true),
    ]
    .into_iter()
    .filter(|&(name, _, applies)| applies && std::env::var_os(name).is_none())
    .map(|(name, value, _)| (name, value))
    .collect()
}

/// Whether that is not a program but the loader (`ld-linux-x86-64.so.2 unsay run …`), to which the arguments would be others.
#[cfg(unix)]
fn is_loader(program: &std::path::Path) -> bool {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("ld-") || name.starts_with("ld.so") || name.starts_with("ld64.so")
}

/// Starts this program anew in this very process with the same arguments and [`settings`]. Returns where there is nothing to
/// set, where it was started anew before, and where the system does not let it: nothing but time and memory depends on it.
pub fn restart_with_settings() {
    #[cfg(unix)]
    if let (settings, Ok(program)) = (settings(), std::env::current_exe())
        && !settings.is_empty()
        && std::env::var_os(RESTARTED).is_none()
        && !is_loader(&program)
    {
        use std::os::unix::process::CommandExt;

        let mut arguments = std::env::args_os();
        let first = arguments.next().unwrap_or_else(|| program.clone().into_os_string());
        let mut command = std::process::Command::new(program);
        // Comes back only where it failed.
        let _ = command
            .envs(settings)
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
