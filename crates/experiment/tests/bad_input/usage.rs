//! Command lines that cannot be meant.

use super::common::{Desk, TINY};

#[test]
fn wrong_usage_is_exit_code_2_and_says_what_would_be_right() {
    let desk = Desk::with("m.yaml", TINY);
    let cases: [(&[&str], &[&str]); 10] = [
        (&["run"], &["<MANIFEST>", "Usage: unsay run"]),
        (&["rnu", "m.yaml"], &["unrecognized subcommand 'rnu'"]),
        (&["run", "m.yaml", "--wokers", "2"], &["unexpected argument '--wokers'"]),
        (&["run", "m.yaml", "--workers", "0"], &["0 is not in 1..=1024"]),
        (&["run", "m.yaml", "--workers", "many"], &["invalid value 'many'"]),
        (&["list"], &["<WHAT>"]),
        (
            &["list", "nothing"],
            &["possible values: losses, measures, datasets, models, experiments"],
        ),
        (&["generate", "m.yaml"], &["--arms"]),
        (
            &["generate", "m.yaml", "--arms", "mle", "-n", "0"],
            &["0 is not in 1..=1000"],
        ),
        (&["report"], &["<RESULTS>"]),
    ];
    for (args, says) in cases {
        let err = desk.unsay(args).fails(2);
        for says in says {
            assert!(err.contains(says), "{args:?}: `{says}` is not in\n{err}");
        }
    }
    assert_eq!(desk.unsay(&[]).code, Some(2));
    assert_eq!(desk.names(), ["m.yaml"]);
}

#[test]
fn folders_that_are_not_what_they_should_be_are_named_before_anything_runs() {
    let desk = Desk::with("m.yaml", TINY);
    desk.write("file", "in the way");
    let cases: [(&[&str], &str); 6] = [
        (
            &["run", "m.yaml", "--results", "file"],
            "cannot make the results folder `file`",
        ),
        (
            &["run", "m.yaml", "--results", "file/below"],
            "cannot make the results folder `file/below`",
        ),
        (
            &["run", "m.yaml", "--runs", "file"],
            "cannot make the store `file/store`",
        ),
        (&["report", "nowhere"], "cannot read `nowhere/about.json`"),
        (&["report", "file"], "cannot read `file/about.json`"),
        (&["list", "experiments"], "cannot read the folder `experiments`"),
    ];
    for (args, says) in cases {
        let err = desk.unsay(args).fails(1);
        assert!(
            err.contains(says) && err.contains("because: "),
            "{args:?}: `{says}` is not in\n{err}"
        );
    }
    assert_eq!(desk.read("file"), "in the way");
    assert!(
        super::common::files(&desk.store()).keys().eq(["lock"]),
        "no step was begun"
    );
}
