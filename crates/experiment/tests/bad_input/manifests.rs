//! Broken manifests: each is the tiny one with one place spoilt.

mod cases;
mod each_value;

use super::common::{Desk, TINY};
use cases::CASES;

/// Line and column of a text, both from 1.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at];
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (before.matches('\n').count() + 1, column)
}

/// Runs a broken manifest: exit code 2, nothing but the manifest is there afterwards.
fn refused(manifest: impl AsRef<[u8]>) -> String {
    let desk = Desk::empty();
    desk.write("m.yaml", manifest);
    let err = desk.unsay(&["run", "m.yaml"]).fails(2);
    assert_eq!(desk.names(), ["m.yaml"], "{err}");
    assert_eq!(
        desk.unsay(&["check", "m.yaml"]).fails(2),
        err,
        "check says what run says"
    );
    assert!(err.trim_end().ends_with("nothing was run"), "{err}");
    err
}

#[test]
fn every_mistake_is_shown_with_its_place() {
    for case in CASES {
        let mut text = TINY.to_owned();
        let mut from = usize::MAX;
        for (old, new) in case.edits {
            let at = text
                .find(old)
                .unwrap_or_else(|| panic!("{}: `{old}` is not in the manifest", case.what));
            from = from.min(at);
            text.replace_range(at..at + old.len(), new);
        }
        let err = refused(&text);
        for says in case.says {
            assert!(err.contains(says), "{}: `{says}` is not in\n{err}", case.what);
        }
        for at in case.at {
            let found = text[from..].find(at).map(|i| from + i).or_else(|| text.find(at));
            let (line, column) = place(&text, found.unwrap_or_else(|| panic!("{}: `{at}`", case.what)));
            let wanted = format!("--> m.yaml:{line}:{column}\n");
            assert!(err.contains(&wanted), "{}: `{wanted}` is not in\n{err}", case.what);
        }
        assert!(
            err.lines().all(|l| l.chars().count() < 180),
            "{}: a long line\n{err}",
            case.what
        );
    }
    assert_eq!(CASES.len(), 52);
}

/// Files that are no manifests at all: name, content, what is said, where.
#[test]
fn what_is_no_manifest_is_refused() {
    let mut bad_utf8 = TINY.as_bytes().to_vec();
    let at = TINY.find("whole pipeline run").unwrap();
    bad_utf8[at] = 0xff;
    let (line, column) = place(TINY, at);
    let bomb: String = (1..9).fold("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, i| {
        let items = vec![format!("*a{}", i - 1); 9].join(", ");
        format!("{text}a{i}: &a{i} [{items}]\n")
    });
    let cases: Vec<(&str, Vec<u8>, String, &str)> = vec![
        ("empty", b"".to_vec(), "m.yaml\n".into(), "the manifest is empty"),
        (
            "only comments",
            b"# nothing yet\n".to_vec(),
            "m.yaml\n".into(),
            "a manifest is a mapping of keys",
        ),
        (
            "a list",
            b"- a\n- b\n".to_vec(),
            "m.yaml\n".into(),
            "a manifest is a mapping of keys",
        ),
        (
            "a word",
            b"hello".to_vec(),
            "m.yaml\n".into(),
            "a manifest is a mapping of keys",
        ),
        (
            "no profiles",
            b"name: x\n".to_vec(),
            "m.yaml\n".into(),
            "missing key `profiles`",
        ),
        (
            "a list of profiles",
            b"name: x\nprofiles: [a]\n".to_vec(),
            "m.yaml:2:11\n".into(),
            "`profiles` maps names",
        ),
        (
            "profiles without one",
            b"name: x\nprofiles: {}\n".to_vec(),
            "m.yaml:2:11\n".into(),
            "`profiles` maps names",
        ),
        (
            "bad UTF-8",
            bad_utf8,
            format!("m.yaml:{line}:{column}\n"),
            "not UTF-8 text",
        ),
        (
            "alias bomb",
            bomb.into_bytes(),
            "m.yaml:2:10\n".into(),
            "aliases are not used",
        ),
        (
            "deep lists",
            ["a: ", &"[".repeat(5000)].concat().into_bytes(),
            "m.yaml:1:".into(),
            "error: ",
        ),
        (
            "deep maps",
            (0..200)
                .map(|i| format!("{}k:\n", " ".repeat(i)))
                .collect::<String>()
                .into_bytes(),
            "m.yaml:6".into(),
            "nested deeper than 64 levels",
        ),
        (
            "too large",
            [TINY, &"# comment\n".repeat(120_000)].concat().into_bytes(),
            "m.yaml\n".into(),
            "at most 1048576 bytes",
        ),
        ("binary", (0..=255).collect(), "m.yaml:".into(), "not UTF-8 text"),
    ];
    assert_eq!(cases.len(), 13);
    for (what, content, at, says) in cases {
        let err = refused(content);
        assert!(
            err.contains(&format!("--> {at}")) && err.contains(says),
            "{what}\n{err}"
        );
        assert!(err.len() < 1000, "{what}: {} bytes of error", err.len());
    }
}

#[test]
fn many_mistakes_are_counted_and_some_shown() {
    let err = refused(TINY.replacen("seeds: [0, 1]", &format!("seeds: [{}x]", "x, ".repeat(499)), 1));
    assert_eq!(err.matches("error: ").count(), 30);
    assert!(err.ends_with("and 470 more\n500 mistakes; nothing was run\n"), "{err}");
}

#[test]
fn a_manifest_that_is_not_there_is_refused() {
    let desk = Desk::empty();
    let err = desk.unsay(&["run", "none.yaml"]).fails(2);
    assert!(
        err.contains("cannot read the manifest") && err.contains("--> none.yaml\n"),
        "{err}"
    );
    let err = desk.unsay(&["run", "."]).fails(2);
    assert!(
        err.contains("cannot read the manifest") && err.contains("--> .\n"),
        "{err}"
    );
    assert!(desk.names().is_empty());
}

#[test]
fn profiles_and_overrides_are_checked() {
    let desk = Desk::with("m.yaml", TINY);
    let cases: [(&[&str], &[&str]); 13] = [
        (
            &["--profile", "smal"],
            &["no profile `smal`", "--> m.yaml:", "hint: profiles here: small"],
        ),
        (
            &["--set", "evaluat.split=valid"],
            &[
                "no key `evaluat` to override",
                "--> --set evaluat.split=valid",
                "did you mean `evaluate`?",
            ],
        ),
        (
            &["--set", "evaluate.spilt=valid"],
            &[
                "unknown key `spilt`",
                "--> --set evaluate.spilt=valid",
                "did you mean `split`?",
            ],
        ),
        (
            &["--set", "evaluate.split.more=1"],
            &["`evaluate.split` holds no keys", "--> --set"],
        ),
        (
            &["--set", "seeds.5=1"],
            &["no item `5` to override", "--> --set seeds.5=1"],
        ),
        (
            &["--set", "profiles.small.samples=[x]"],
            &["no key `profiles` to override"],
        ),
        (
            &["--set", "finetune.train.steps=many"],
            &["expected a whole number from 0", "--> --set finetune.train.steps=many"],
        ),
        (
            &["--set", "finetune.train.steps=0"],
            &["expected at least 1, got 0", "--> --set finetune.train.steps=0"],
        ),
        (&["--set", "finetune.train.lr=.nan"], &["`.nan` is not a finite number"]),
        (
            &["--set", "evaluate.split"],
            &["`evaluate.split` has no `=`; hint: --set key.key=value"],
        ),
        (
            &["--set", "evaluate..split=test"],
            &["`evaluate..split=test` has an empty key"],
        ),
        (&["--set", "seeds=[1"], &["`[1` is not a value"]),
        (
            &["--set", "seeds=[1]"],
            &["with --set, say where the results go: --results FOLDER"],
        ),
    ];
    for (options, says) in cases {
        let err = desk.unsay(&[&["run", "m.yaml"], options].concat()).fails(2);
        for says in says {
            assert!(err.contains(says), "{options:?}: `{says}` is not in\n{err}");
        }
        assert_eq!(desk.names(), ["m.yaml"]);
    }
    let bomb = format!("seeds=[{}]", "[".repeat(3000));
    desk.unsay(&["check", "m.yaml", "--set", &bomb]).fails(2);
}

/// The texts as a user sees them, of a small manifest so that they stay when the tiny one grows.
#[test]
fn error_texts_are_as_they_were() {
    let small = "\
name: small
question: What is said of mistakes?
seeds: [0, one]
arms:
  mle: { train: { loss: { nll: {} } } }
  cringe: { train: { loss: { crinje: { alpha: 1.0, k: 5 } } } }
profiles:
  only:
    base: { train: { vocab_sise: 500 } }
    limits: { max_prompt: many, max_completion: 48, max_cut_share: 0.5, max_dropped_share: 0.0 }
";
    insta::assert_snapshot!("several_mistakes", refused(small));
    insta::assert_snapshot!("duplicate_key", refused(format!("{small}name: again\n")));
    insta::assert_snapshot!("syntax", refused(small.replace("[0, one]", "[0, one")));
    insta::assert_snapshot!("tab", refused(small.replace("    limits", "\tlimits")));
    insta::assert_snapshot!("tag", refused(small.replace("{ crinje: {", "!crinje { x: {")));
    insta::assert_snapshot!("alias", refused(small.replace("[0, one]", "*all")));
    insta::assert_snapshot!("empty", refused(""));
    insta::assert_snapshot!("no_profiles", refused(small.split("profiles:").next().unwrap()));
    let desk = Desk::with("m.yaml", TINY);
    let run = |options: &[&str]| desk.unsay(&[&["run", "m.yaml"], options].concat()).fails(2);
    insta::assert_snapshot!(
        "override",
        run(&["--set", "arms.cringe.train.loss.cringe.alhpa=2", "--set", "sedes=[1]"])
    );
    insta::assert_snapshot!("override_without_results", run(&["--set", "seeds=[1]"]));
}
