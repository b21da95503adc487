//! `kill -9` at random moments, continued each time, ends with the tables of a run that nothing disturbed.
//!
//! By default on the tiny manifest, six kills. The same for any manifest, its default profile, from the root of the
//! project:
//!
//! ```text
//! UNSAY_KILL_MANIFEST=experiments/cringe_safety.yaml UNSAY_KILL_TIMES=10 cargo test -p unsay-experiment --test kill
//! ```
//!
//! `UNSAY_KILL_SEED` (a number, 0 by default) moves the moments. The clock only chooses them; nothing that is
//! asserted depends on it.
#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod common;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rand::Rng;
use unsay_data::stream;

use common::{Desk, TINY, begun, finished, same_tables};

const RUN: [&str; 4] = ["run", "manifest.yaml", "--results", "results"];

/// Kills a process after a while; false when it ended by itself before.
fn kill_after(child: &mut Child, wait: Duration) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < wait {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    let killed = child.wait().unwrap();
    if killed.success() {
        return false;
    }
    assert_eq!(killed.code(), None, "ended by the signal, not by itself");
    true
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn manifest() -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    env::var("UNSAY_KILL_MANIFEST").map_or(TINY.to_owned(), |path| {
        let path = root.join(Path::new(&path));
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    })
}

#[test]
fn killed_at_random_moments_and_continued_the_tables_are_the_same() {
    let manifest = manifest();
    kill(number("UNSAY_KILL_TIMES", 6), &|| {
        Desk::with("manifest.yaml", &manifest)
    });
}

/// Adapters on a model from outside, with states that are made once.
#[test]
fn killed_while_it_teaches_a_model_from_outside_the_tables_are_the_same() {
    kill(4, &|| {
        let desk = Desk::with("manifest.yaml", include_str!("fixtures/pretrained.yaml"));
        common::folder::chat_model(&desk.path("base"));
        desk
    });
}

/// Pairs, the reference taken once, and a mean beside the weights.
#[test]
fn killed_while_it_trains_on_pairs_the_tables_are_the_same() {
    kill(4, &|| Desk::with("manifest.yaml", include_str!("fixtures/pairs.yaml")));
}

/// Kills the run on a desk so many times, and compares with one that nothing disturbed.
#[allow(clippy::print_stdout, reason = "shown when it fails, or when it is asked for")]
fn kill(times: u64, desk_of: &dyn Fn() -> Desk) {
    let undisturbed = desk_of();
    let clock = Instant::now();
    let status = undisturbed.start(&RUN).wait().unwrap();
    assert!(status.success(), "{}", undisturbed.read("said"));
    let whole = clock.elapsed();
    let steps = finished(&undisturbed.store()).len();
    println!("undisturbed: {steps} steps in {:.1} s", whole.as_secs_f64());

    let mut draws = stream(number("UNSAY_KILL_SEED", 0), "kill", 0);
    let mut desk = desk_of();
    let (mut landed, mut inside, mut lost) = (0, 0, 0);
    while landed < times {
        let wait = whole.mul_f64(draws.random_range(0.0..1.6 / (times + 1) as f64));
        if !kill_after(&mut desk.start(&RUN), wait) {
            // It was done before all kills came: that counts as one more continued run, and the next one starts afresh.
            same_tables(&desk.path("results"), &undisturbed.path("results"));
            desk = desk_of();
            continue;
        }
        landed += 1;
        let (done, open) = (finished(&desk.store()).len(), begun(&desk.store()).len());
        println!(
            "kill {landed} after {:.2} s: {done} steps finished, {open} begun",
            wait.as_secs_f64()
        );
        inside += u64::from(open > 0);
        lost += open;
    }
    assert_eq!(landed, times);
    assert!(
        inside > 0 && lost > 0,
        "no kill came in the middle of a step; try another UNSAY_KILL_SEED"
    );
    let status = desk.start(&RUN).wait().unwrap();
    assert!(status.success(), "{}", desk.read("said"));
    assert_eq!(finished(&desk.store()).len(), steps);
    assert!(begun(&desk.store()).is_empty());
    same_tables(&desk.path("results"), &undisturbed.path("results"));
}
