//! A disk that is full, or a file that may grow no further: a clear error, nothing half-written, and with room again
//! the run goes on to the same tables.

use std::process::Command;

use super::common::{Desk, Ran, checkpoint, copy, files, finished, same_tables};
use super::data::desk;

/// Runs unsay with the file size limit of the shell, in blocks of 1024 bytes.
fn limited(desk: &Desk, blocks: u32, args: &[&str]) -> Ran {
    let script = format!("ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let mut command = desk.program("bash");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_unsay")]).args(args);
    Ran::of(&mut command)
}

#[test]
fn a_file_that_may_not_grow_fails_the_write_and_nothing_else() {
    let undisturbed = desk();
    undisturbed.unsay(&["run", "m.yaml", "--results", "out"]).ok();
    let desk = desk();
    let args = ["run", "m.yaml", "--results", "out", "--workers", "1"];
    let mut seen = Vec::new();
    for blocks in [2, 8, 16, 40] {
        let ran = limited(&desk, blocks, &args);
        if ran.code == Some(0) {
            break;
        }
        let err = ran.fails(1);
        assert!(err.contains("File too large") && err.contains("runs/store/"), "{err}");
        seen.push(finished(&desk.store()).len());
        assert!(files(&desk.path("out")).is_empty(), "{err}");
    }
    assert!(
        seen.len() >= 3 && seen.is_sorted() && seen.first() < seen.last(),
        "{seen:?}"
    );
    desk.unsay(&args).ok();
    same_tables(&desk.path("out"), &undisturbed.path("out"));
}

/// Does all in a shell whose disk is a small one in memory; what is to be looked at is copied out of it.
const ON_A_SMALL_DISK: &str = r#"
set -u
mount -t tmpfs -o size="$1" none disk || exit 77
run() { "$0" run m.yaml --runs disk/runs --results disk/out --workers 1; }
run >/dev/null 2>full.err
echo $? >full.code
cp -r disk/. full
mount -o remount,size=64m disk
run >/dev/null 2>again.err
echo $? >again.code
cp -r disk/. again
"#;

#[test]
fn on_a_full_disk_a_run_stops_clearly_and_goes_on_with_room() {
    let can = Command::new("unshare")
        .args(["-rm", "mount", "-t", "tmpfs", "none", "/mnt"])
        .output();
    if !can.as_ref().is_ok_and(|o| o.status.success()) {
        println!("skipped: this machine does not let a test mount a small disk ({can:?})");
        return;
    }
    let undisturbed = desk();
    undisturbed.unsay(&["run", "m.yaml", "--results", "out"]).ok();
    let need: usize = files(&undisturbed.path("runs")).values().map(Vec::len).sum();
    let mut seen = Vec::new();
    // The last one is full when the results are written.
    for share in [0.1, 0.3, 0.6, 1.0] {
        let desk = desk();
        for folder in ["disk", "full", "again"] {
            std::fs::create_dir(desk.path(folder)).unwrap();
        }
        let kib = (need as f64 * share / 1024.0) as usize;
        let mut shell = desk.program("unshare");
        shell.args([
            "-rm",
            "bash",
            "-c",
            ON_A_SMALL_DISK,
            env!("CARGO_BIN_EXE_unsay"),
            &format!("{kib}k"),
        ]);
        Ran::of(&mut shell).ok();
        let err = desk.read("full.err");
        assert_eq!(desk.read("full.code"), "1\n", "{kib} KiB\n{err}");
        assert!(
            err.contains("error: ") && err.contains("No space left on device"),
            "{kib} KiB\n{err}"
        );
        assert!(err.contains("`disk/") && !err.contains("panicked"), "{err}");
        seen.push(finished(&desk.path("full/runs/store")).len());
        let results = files(&desk.path("full/out"));
        assert!(
            !results.keys().any(|n| n.ends_with(".partial") || n.ends_with(".tmp")),
            "{:?}",
            results.keys()
        );
        assert_eq!(desk.read("again.code"), "0\n", "{}", desk.read("again.err"));
        finished(&desk.path("again/runs/store"));
        same_tables(&desk.path("again/out"), &undisturbed.path("out"));
    }
    assert!(seen.is_sorted() && seen.first() < seen.last(), "{seen:?}");
}

/// A disk may fill while a checkpoint is written: the one before it stays.
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    let desk = desk();
    let long = [
        "run",
        "m.yaml",
        "--results",
        "out",
        "--workers",
        "1",
        "--set",
        "base.train.train.steps=100000",
    ];
    // Weights and moments fit; the log of the steps outgrows the limit some checkpoints later.
    let err = limited(&desk, 64, &long).fails(1);
    assert!(
        err.contains("File too large") && err.contains("base model, seed 0"),
        "{err}"
    );
    let before = checkpoint(&desk.store()).unwrap();
    let copied = Desk::empty();
    copy(&before, &copied.path("checkpoint"));
    let err = limited(&desk, 64, &long).fails(1);
    assert!(err.contains("File too large"), "{err}");
    assert!(
        files(&checkpoint(&desk.store()).unwrap()) == files(&copied.path("checkpoint")),
        "the checkpoint before"
    );
}
