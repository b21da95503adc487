//! Workers that are made up, for tests of what the driver makes of answers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::worker::{PATIENCE, Programs};

/// What a made-up worker answers, whatever it is asked to load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fake {
    /// Seconds of each of its steps.
    pub(crate) secs: f64,
    /// The sum of its weights.
    pub(crate) sum: f64,
    /// The checksum of its data.
    pub(crate) checksum: u64,
    /// The kind of its products.
    pub(crate) compute: &'static str,
    /// The loss of each step.
    pub(crate) loss: f64,
    /// Branches of a shell's `case` over its task, taken when it is to load. Theirs is told its task when it starts, ours is not.
    pub(crate) by_task: &'static str,
}

impl Fake {
    /// Steps of half a second.
    pub(crate) const OURS: Self = Self {
        secs: 0.5,
        sum: 1.0,
        checksum: 7,
        compute: "float32",
        loss: 9.0,
        by_task: "",
    };

    /// The same work in one and a half times the time.
    pub(crate) const THEIRS: Self = Self {
        secs: 0.75,
        ..Self::OURS
    };

    /// Writes it as a program, which adds a line to `order` beside it whenever it is asked to run.
    fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let Self {
            secs,
            sum,
            checksum,
            compute,
            loss,
            by_task,
        } = self;
        let order = folder.join("order");
        let script = format!(
            r#"#!/bin/sh
echo '{{"is":"hello","threads":2,"versions":{{}},"libtorch":"x","rss_mib":100}}'
loss={loss}
while read -r line; do
    case "$line" in
    *'"load"'*)
        case "$2" in
            {by_task}
        esac
        echo '{{"is":"loaded","weights":{{"n":9,"sum":{sum},"abs":10.0}},"data":{{"tokens":8,"targets":4,"checksum":{checksum}}},"compute":"{compute}"}}'
        ;;
    *'"run"'*)
        n=$(printf '%s' "$line" | tr -dc 0-9)
        printf '{name} %s\n' "$n" >> '{order}'
        secs= tokens= losses= comma=
        for _ in $(seq "$n"); do
            secs="$secs${{comma}}{secs}" tokens="$tokens${{comma}}1024" losses="$losses${{comma}}$loss" comma=,
        done
        echo '{{"is":"ran","secs":['"$secs"'],"cpu_secs":1,"tokens":['"$tokens"'],"values":{{"loss":['"$losses"']}},"rss_mib":1,"peak_mib":300}}'
        ;;
    *) exit 0 ;;
    esac
done
"#,
            order = order.display()
        );
        let path = folder.join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

/// Two made-up workers in a folder.
pub(crate) fn programs(folder: &Path, ours: &Fake, theirs: &Fake) -> Programs {
    Programs {
        ours: ours.write(folder, "ours"),
        python: theirs.write(folder, "theirs"),
        peers: PathBuf::from("peers"),
        threads: 2,
        patience: PATIENCE,
    }
}
