use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::{Dataset, File, Loaded, Origin, Places, Upstream, chitchat, diasafety};
use super::{find, fingerprint, list, load};
use crate::error::Result;
use crate::hash;
use crate::record::{Example, Label};

/// Static text, as the catalog wants it.
pub(super) fn fixed(text: impl Into<String>) -> &'static str {
    text.into().leak()
}

pub(super) fn files(files: Vec<File>) -> &'static [File] {
    files.leak()
}

pub(super) fn places(mirror: Option<&Path>, cache: &Path) -> Places {
    Places {
        mirror: mirror.map(PathBuf::from),
        cache: Some(cache.to_path_buf()),
        environment: Vec::new(),
    }
}

/// The error as text, with the folder of the test left out.
fn refused(result: Result<Loaded>, folder: &Path) -> String {
    let text = result.unwrap_err().to_string();
    text.replace(&format!("{}/", folder.display()), "")
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=test", "-c", "user.email=test@localhost"])
        .args(arguments)
        .env_remove("GIT_DIR")
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

const TRAIN: &str = r#"[
  {"context": "a\r\nb", "response": "yes ", "category": "x", "label": "Safe"},
  {"context": "c", "response": " ", "category": "x", "label": "Safe"},
  {"context": "d", "response": "no", "category": "x", "label": "Unsafe"}
]"#;
const VALID: &str = r#"[{"context": "d", "response": "so", "category": "x", "label": "Safe"}]"#;
const TEST: &str = r#"[{"context": "e", "response": "ha", "category": "x", "label": "Unsafe"}]"#;

fn write_published(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for (name, text) in [("train.json", TRAIN), ("val.json", VALID), ("test.json", TEST)] {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

/// A git repository with a small DiaSafety, and the dataset that lives there.
fn repository(folder: &Path) -> Dataset {
    let work = folder.join("work");
    write_published(&work.join("DiaSafety_dataset"));
    git(&work, &["init", "--quiet"]);
    git(&work, &["add", "."]);
    git(&work, &["commit", "--quiet", "-m", "data"]);
    let commit = git(&work, &["rev-parse", "HEAD"]);
    std::fs::write(work.join("later"), "").unwrap();
    git(&work, &["add", "."]);
    git(&work, &["commit", "--quiet", "-m", "more"]);
    git(folder, &["clone", "--quiet", "--bare", "work", "bare"]);
    Dataset {
        upstream: Upstream::Git {
            url: fixed(format!("file://{}", folder.join("bare").display())),
            commit: fixed(commit),
            folder: "DiaSafety_dataset",
        },
        version: "1",
        ..diasafety::DATASET
    }
}

fn summary(examples: &[Example]) -> Vec<(&str, &str, &str, Label, bool)> {
    let fields = |e: &'static Example| (&*e.id, &*e.prompt, &*e.completion, e.label, e.seen_prompt);
    examples.to_vec().leak().iter().map(fields).collect()
}

fn assert_small_diasafety(loaded: &Loaded) {
    use Label::{Negative, Positive};
    assert_eq!(
        summary(&loaded.splits.train),
        [
            ("train:1", "a b", "yes", Positive, true),
            ("train:3", "d", "no", Negative, true)
        ]
    );
    assert_eq!(summary(&loaded.splits.valid), [("valid:1", "d", "so", Positive, true)]);
    assert_eq!(summary(&loaded.splits.test), [("test:1", "e", "ha", Negative, false)]);
    assert_eq!(loaded.dropped, 1);
}

#[test]
fn the_catalog_is_complete() {
    assert_eq!(
        list().iter().map(|d| d.name).collect::<Vec<_>>(),
        ["diasafety", "chitchat"]
    );
    for dataset in list() {
        assert!(!dataset.what.is_empty() && !dataset.source.is_empty());
        assert!(!dataset.licence.is_empty());
        let digests = dataset.mirror.iter().map(|f| f.sha256.unwrap());
        assert!(digests.map(str::len).all(|n| n == 64));
        assert_eq!(fingerprint(dataset.name).unwrap().len(), 64);
    }
    assert_ne!(fingerprint("diasafety").unwrap(), fingerprint("chitchat").unwrap());
    let newer = Dataset {
        converter: 2,
        ..diasafety::DATASET
    };
    assert_ne!(newer.fingerprint(), diasafety::DATASET.fingerprint());
    assert_eq!(
        find("dia-safety").unwrap_err().to_string(),
        "expected a dataset of the catalog (`diasafety`, `chitchat`), got `dia-safety`\n\
         hint: did you mean `diasafety`?"
    );
}

#[test]
fn a_git_source_is_fetched_once_and_checked_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = repository(folder.path());
    let places = places(None, &folder.path().join("cache/data"));
    let cached = folder.path().join("cache/data/diasafety-1");

    let loaded = dataset.load(&places).unwrap();
    assert_eq!(loaded.origin, Origin::Source(cached.clone()));
    assert_small_diasafety(&loaded);

    std::fs::remove_dir_all(folder.path().join("bare")).unwrap();
    let loaded = dataset.load(&places).unwrap();
    assert_eq!(loaded.origin, Origin::Cache(cached.clone()));
    assert_small_diasafety(&loaded);
    let left: Vec<_> = std::fs::read_dir(folder.path().join("cache/data")).unwrap().collect();
    assert_eq!(left.len(), 1);

    let before = hash::file(&cached.join("val.json")).unwrap();
    std::fs::write(cached.join("val.json"), VALID.replace("so", "no")).unwrap();
    let after = hash::file(&cached.join("val.json")).unwrap();
    assert_eq!(
        refused(dataset.load(&places), folder.path()),
        format!(
            "`cache/data/diasafety-1/val.json`: expected SHA-256 {before}, got {after}\n\
             hint: remove the folder `cache/data/diasafety-1` to fetch it again"
        )
    );
}

#[test]
fn two_that_fetch_at_once_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = repository(folder.path());
    let places = places(None, &folder.path().join("cache"));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| dataset.load(&places))).collect();
        for thread in threads {
            assert_small_diasafety(&thread.join().unwrap().unwrap());
        }
    });
    assert_eq!(std::fs::read_dir(folder.path().join("cache")).unwrap().count(), 1);
}

#[test]
fn a_dataset_found_nowhere_is_one_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut dataset = repository(folder.path());
    let url = fixed(format!("file://{}/gone", folder.path().display()));
    let Upstream::Git { commit, .. } = dataset.upstream else {
        panic!("not git")
    };
    dataset.upstream = Upstream::Git {
        url,
        commit,
        folder: "x",
    };
    let mirror = folder.path().join("mirror");
    let cache = folder.path().join("cache");
    let message = refused(dataset.load(&places(Some(&mirror), &cache)), folder.path());
    let start = format!(
        "dataset `diasafety` was found nowhere\n  \
           mirror: `mirror/diasafety/train.jsonl.gz` does not exist\n  \
           cache: `cache/diasafety-1` does not exist\n  \
           source: `git fetch file://gone {commit}` failed: "
    );
    assert!(message.starts_with(&start), "{message}");
    let end = "\nhint: connect to the network once, or set UNSAY_DATA_MIRROR to a folder that \
               holds `diasafety`";
    assert!(message.ends_with(end), "{message}");
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0);

    let message = refused(dataset.load(&Places::default()), folder.path());
    assert!(message.contains("\n  mirror: UNSAY_DATA_MIRROR is not set\n  cache: no folder"));
}

#[test]
fn a_commit_that_is_not_there_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut dataset = repository(folder.path());
    let Upstream::Git { url, .. } = dataset.upstream else {
        panic!("not git")
    };
    let commit = "5106a041b1c7e36f30e02a97c44897a7f2057278";
    dataset.upstream = Upstream::Git {
        url,
        commit,
        folder: "DiaSafety_dataset",
    };
    let message = refused(dataset.load(&places(None, &folder.path().join("c"))), folder.path());
    assert!(
        message.contains("was found nowhere") && message.contains(commit),
        "{message}"
    );
}

#[test]
fn a_mirror_with_other_content_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = folder.path().join("diasafety");
    std::fs::create_dir(&mirror).unwrap();
    for file in diasafety::DATASET.mirror {
        std::fs::write(mirror.join(file.name), "other").unwrap();
    }
    let places = places(Some(folder.path()), &folder.path().join("cache"));
    assert_eq!(
        refused(load("diasafety", &places), folder.path()),
        "`diasafety/train.jsonl.gz`: expected SHA-256 \
         f597ef82a2c36f0f646b47e38e95fe7c7fc5d595e27aed73b0780d183e4171fb, got \
         d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa\n\
         hint: restore the file, or set UNSAY_DATA_MIRROR to another folder"
    );
}

#[test]
fn a_published_file_of_another_form_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    write_published(folder.path());
    let bad = TEST.replace("Unsafe", "Dangerous");
    std::fs::write(folder.path().join("test.json"), bad).unwrap();
    let read = (diasafety::DATASET.read)(folder.path(), super::Form::Published);
    let message = read.unwrap_err().to_string();
    assert!(message.contains("test.json:1:"), "{message}");
    assert!(message.contains("unknown variant `Dangerous`"), "{message}");
}

fn conversations(n: usize) -> String {
    let one = |i: usize| {
        format!(
            r#""c{i}": {{"messages": [
                [{{"text": "hi {i}", "sender": "a", "timestamp": "t"}}],
                [{{"text": "hello", "sender": "b"}}, {{"text": "you?", "sender": "b"}}]
            ], "start": "t"}}"#
        )
    };
    format!("{{{}}}", (0..n).map(one).collect::<Vec<_>>().join(","))
}

/// Whether packages can be fetched and installed at all on this machine.
pub(super) fn pip_is_there() -> bool {
    let found = Command::new("python3").args(["-m", "pip", "--version"]).output();
    let there = found.is_ok_and(|o| o.status.success());
    if !there {
        println!("skipped: python3 with pip is not installed");
    }
    there
}

/// Builds version 1.0 of a Python package of one folder with one file, into `links`; gives the wheel's path.
pub(super) fn wheel(links: &Path, package: &str, file: &str, content: &[u8]) -> PathBuf {
    let tree = tempfile::tempdir().unwrap();
    let info = format!("{package}-1.0.dist-info");
    for folder in [package, &info] {
        std::fs::create_dir(tree.path().join(folder)).unwrap();
    }
    let metadata = format!(
        "Metadata-Version: 2.1\nName: {}\nVersion: 1.0\n",
        package.replace('_', "-")
    );
    let about = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    for (name, text) in [("METADATA", &*metadata), ("WHEEL", about), ("RECORD", "")] {
        std::fs::write(tree.path().join(&info).join(name), text).unwrap();
    }
    std::fs::write(tree.path().join(package).join(file), content).unwrap();
    std::fs::create_dir_all(links).unwrap();
    let path = links.join(format!("{package}-1.0-py3-none-any.whl"));
    let zipped = Command::new("python3")
        .args(["-m", "zipfile", "-c"])
        .arg(&path)
        .args([package, &info])
        .current_dir(tree.path())
        .status()
        .unwrap();
    assert!(zipped.success());
    path
}

/// What makes pip look into a folder instead of the network.
pub(super) fn only_from(links: &Path) -> Vec<(OsString, OsString)> {
    vec![
        ("PIP_NO_INDEX".into(), "1".into()),
        ("PIP_FIND_LINKS".into(), links.as_os_str().to_owned()),
        ("PIP_CONFIG_FILE".into(), "/dev/null".into()),
    ]
}

/// Builds a Python package around a small Chit Chat and gives the dataset that it holds.
fn package(folder: &Path, text: &str) -> Option<(Dataset, Vec<(OsString, OsString)>)> {
    if !pip_is_there() {
        return None;
    }
    let links = folder.join("links");
    let wheel = wheel(&links, "unsay_test_chat", "dataset.json", text.as_bytes());
    let sha256 = Some(fixed(hash::hex(&Sha256::digest(text))));
    let dataset = Dataset {
        upstream: Upstream::Python {
            requirement: "unsay-test-chat==1.0",
            wheel: "unsay_test_chat-1.0-py3-none-any.whl",
            sha256: fixed(hash::file(&wheel).unwrap()),
            folder: "unsay_test_chat",
        },
        files: files(vec![File {
            name: "dataset.json",
            sha256,
        }]),
        ..chitchat::DATASET
    };
    Some((dataset, only_from(&links)))
}

#[test]
fn a_python_package_is_downloaded_checked_and_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let Some((mut dataset, environment)) = package(folder.path(), &conversations(200)) else {
        return;
    };
    let places = Places {
        environment,
        ..places(None, &folder.path().join("cache"))
    };
    let cached = folder.path().join("cache/chitchat-0.9.0");
    let loaded = dataset.load(&places).unwrap();
    assert_eq!(loaded.origin, Origin::Source(cached.clone()));
    let splits = &loaded.splits;
    assert_eq!(splits.train.len() + splits.valid.len() + splits.test.len(), 200);
    assert!(splits.train.len() > 160, "{}", splits.train.len());
    assert_eq!(splits.train[0].completion, "hello you?");
    assert_eq!(dataset.load(&places).unwrap().origin, Origin::Cache(cached.clone()));

    std::fs::remove_dir_all(&cached).unwrap();
    let Upstream::Python {
        requirement,
        wheel,
        folder: inside,
        ..
    } = dataset.upstream
    else {
        panic!("not a package")
    };
    let other = fixed("0".repeat(64));
    dataset.upstream = Upstream::Python {
        requirement,
        wheel,
        sha256: other,
        folder: inside,
    };
    let message = refused(dataset.load(&places), folder.path());
    assert!(
        message.contains(&format!("expected SHA-256 {other}, got ")),
        "{message}"
    );
    assert!(!cached.exists());

    let requirement = "unsay-test-chat==2.0";
    dataset.upstream = Upstream::Python {
        requirement,
        wheel,
        sha256: other,
        folder: inside,
    };
    let message = refused(dataset.load(&places), folder.path());
    let tried = "source: `python3 -m pip download unsay-test-chat==2.0` failed: ERROR: No matching \
                 distribution found for unsay-test-chat==2.0\n";
    assert!(message.contains(tried), "{message}");
}

/// The folder named by `UNSAY_DATA_MIRROR`, when it holds a dataset.
fn real_mirror(name: &str) -> Option<Places> {
    let mirror = std::env::var_os("UNSAY_DATA_MIRROR").map(PathBuf::from)?;
    mirror.join(name).exists().then(|| Places {
        mirror: Some(mirror),
        ..Places::default()
    })
}

#[test]
fn diasafety_as_published() {
    let Some(places) = real_mirror("diasafety") else {
        println!("skipped: UNSAY_DATA_MIRROR names no folder with diasafety");
        return;
    };
    let Loaded { splits, dropped, .. } = load("diasafety", &places).unwrap();
    let counts = |examples: &[Example]| {
        let of = |label| examples.iter().filter(|e| e.label == label).count();
        (of(Label::Positive), of(Label::Negative))
    };
    assert_eq!(dropped, 3);
    assert_eq!(counts(&splits.train).0 + counts(&splits.train).1, 9015);
    assert_eq!(counts(&splits.valid), (595, 502));
    assert_eq!(counts(&splits.test).0 + counts(&splits.test).1, 1094);
    let seen = |examples: &[Example]| examples.iter().filter(|e| e.seen_prompt).count();
    // One more than the mirror's `context_in_train`: two contexts differ in outer spaces alone.
    assert_eq!((seen(&splits.valid), seen(&splits.test)), (488, 458));
    for example in splits.train.iter().chain(&splits.valid).chain(&splits.test) {
        assert!(!example.prompt.contains('\n') && !example.completion.contains('\n'));
    }
}
