//! A program starts itself anew for its memory's sake, once.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::env;
use std::process::{Command, exit};

use unsay_model::memory::restart_with_kept_pages;

/// Tells this test that it is the program.
const PROGRAM: &str = "UNSAY_TEST_PROGRAM";
const SETTINGS: &str = "GLIBC_TUNABLES";
const RESTARTED: &str = "UNSAY_RESTARTED";

/// Newer versions of glibc take the settings out of the environment of a program with capabilities of its own, which was
/// started anew for ever.
#[test]
fn a_program_whose_settings_are_taken_away_is_not_started_anew_again() {
    if env::var_os(PROGRAM).is_some() {
        restart_with_kept_pages();
        exit(if env::var_os(SETTINGS).is_some() { 10 } else { 11 });
    }
    let ended = |restarted: Option<&str>| {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(env::args_os().skip(1)).env(PROGRAM, "1");
        command.env_remove(SETTINGS).env_remove(RESTARTED);
        command.envs(restarted.map(|value| (RESTARTED, value)));
        command.output().unwrap().status.code()
    };
    assert_eq!(ended(None), Some(10), "started anew with the settings");
    assert_eq!(ended(Some("1")), Some(11), "without them, but not again");
}
