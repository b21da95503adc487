//! A program starts itself anew for its memory's sake, once.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::env;
use std::process::{Command, exit};

use unsay_model::memory::restart_with_settings;

/// Tells this test that it is the program.
const PROGRAM: &str = "UNSAY_TEST_PROGRAM";
const ALLOCATOR: &str = "GLIBC_TUNABLES";
const PROGRAMS: [&str; 2] = ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"];
const RESTARTED: &str = "UNSAY_RESTARTED";

/// Newer versions of glibc take the allocator's settings out of the environment of programs with capabilities of their own,
/// which were started anew for ever. What the user has set stays.
#[test]
fn a_program_starts_itself_anew_once_and_keeps_what_is_set() {
    if env::var_os(PROGRAM).is_some() {
        restart_with_settings();
        let number = |name| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        // Programs of all threads, as many for each core as for one thread.
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as i32;
        let programs = number(PROGRAMS[0]) / cores + number(PROGRAMS[1]);
        exit(programs + i32::from(env::var_os(ALLOCATOR).is_some()));
    }
    let ended = |set: &[(&str, &str)]| {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(env::args_os().skip(1)).env(PROGRAM, "1");
        command.env_remove(ALLOCATOR).env_remove(RESTARTED);
        command.env_remove(PROGRAMS[0]).env_remove(PROGRAMS[1]);
        command.envs(set.iter().copied());
        command.output().unwrap().status.code()
    };
    assert_eq!(ended(&[]), Some(65), "started anew with all settings");
    assert_eq!(ended(&[(PROGRAMS[1], "10")]), Some(43), "with what is not set");
    assert_eq!(ended(&[(RESTARTED, "1")]), Some(0), "not again");
}
