//! The real binary from a manifest to figures: what it writes, what it says, what it does not do twice.
#![allow(clippy::unwrap_used, reason = "a test: a panic is the report")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::{ARMS, Desk, STEPS, TINY, begun, checkpoint, copy, files, finished, names, same_tables, signal, until};

const MANIFEST: &str = "tiny.yaml";
const RESULTS: &str = "results/tiny/small";

/// Steps of a plan by state.
fn plan(desk: &Desk, options: &[&str]) -> Vec<(String, String)> {
    let out = desk.unsay(&[&["plan", MANIFEST], options].concat()).ok();
    let (steps, last): (Vec<&str>, Vec<&str>) = out.lines().skip(1).partition(|l| !l.contains("last column"));
    let row = |line: &&str| {
        let title = line[40..].chars().take(60).collect::<String>().trim_end().to_owned();
        (line[6..13].trim().to_owned(), title)
    };
    let steps: Vec<_> = steps.iter().map(row).collect();
    let cached = steps.iter().filter(|(state, _)| state == "cached").count();
    assert_eq!(last.len(), 1);
    assert!(
        last[0].starts_with(&format!("{} steps, {cached} cached", steps.len())),
        "{}",
        last[0]
    );
    steps
}

fn to_run(steps: &[(String, String)]) -> Vec<&str> {
    steps
        .iter()
        .filter(|(state, _)| state == "to run")
        .map(|(_, title)| title.as_str())
        .collect()
}

/// One finished run serves every look at it; the others must end with its bytes.
#[test]
fn one_manifest_in_all_ways_gives_the_same_tables() {
    let desk = Desk::with(MANIFEST, TINY);
    let said = desk.unsay(&["check", MANIFEST]).ok();
    assert_eq!(
        said,
        format!("tiny.yaml: profile small: 5 arms, 2 seeds, {STEPS} steps\n")
    );
    let before = plan(&desk, &[]);
    assert_eq!((before.len(), to_run(&before).len()), (STEPS, STEPS));
    assert_eq!(desk.names(), [MANIFEST], "looking writes nothing");

    let said = desk.unsay(&["run", MANIFEST, "--workers", "2"]).ok();
    assert!(
        said.starts_with("38 steps in ") && said.ends_with("results: results/tiny/small/README.md\n"),
        "{said}"
    );
    assert_eq!(finished(&desk.store()).len(), STEPS);
    assert!(begun(&desk.store()).is_empty());
    let results = desk.path(RESULTS);
    whole_results(&results);

    nothing_runs_twice(&desk, &results);
    report_needs_the_tables_alone(&results);
    models_speak_side_by_side(&desk);
    a_changed_arm_runs_alone(&desk);
    other_workers_same_bytes(&results);
    interrupted_and_continued_same_bytes(&results);
}

fn whole_results(results: &Path) {
    let figures = [
        "f1_against_safety",
        "held_out_replies",
        "judges",
        "safety_per_iteration",
        "training_curves",
    ];
    let drawn: Vec<String> = figures
        .iter()
        .flat_map(|f| [format!("{f}.png"), format!("{f}.svg")])
        .collect();
    assert_eq!(names(&results.join("figures")), drawn);
    assert_eq!(
        names(results),
        [
            "README.md",
            "about.json",
            "figures",
            "runs.parquet",
            "scores.parquet",
            "steps.parquet"
        ]
    );
    let page = fs::read_to_string(results.join("README.md")).unwrap();
    for arm in ARMS {
        assert!(page.contains(&format!("`{arm}`")), "the page names {arm}");
        assert_eq!(
            page.matches(&format!("\n| {arm} | ")).count(),
            if arm == "mle" { 3 } else { 5 },
            "{arm}\n{page}"
        );
    }
    for wanted in [
        "Seeds: 0, 1",
        "**Content warning.**",
        "## Made with",
        "my brother is allergic",
    ] {
        assert!(page.contains(wanted), "{wanted}\n{page}");
    }
    for figure in figures {
        assert!(page.contains(&format!("(figures/{figure}.svg)")), "{figure}");
        let svg = fs::read_to_string(results.join(format!("figures/{figure}.svg"))).unwrap();
        assert!(svg.trim_end().ends_with("</svg>"), "{figure}");
    }
}

fn nothing_runs_twice(desk: &Desk, results: &Path) {
    let after = plan(desk, &[]);
    assert_eq!((after.len(), to_run(&after).len()), (STEPS, 0));
    let (store, first) = (files(&desk.store()), files(results));
    let again = desk.unsay(&["run", MANIFEST]);
    assert!(
        again.err.contains("38 of 38 steps are in the store already"),
        "{}",
        again.err
    );
    again.ok();
    assert!(
        files(&desk.store()) == store,
        "the store of a run that had nothing to do"
    );
    assert!(files(results) == first, "results of a run that had nothing to do");
}

fn report_needs_the_tables_alone(results: &Path) {
    let elsewhere = Desk::empty();
    let copied = elsewhere.path("copied");
    copy(results, &copied);
    fs::remove_dir_all(copied.join("figures")).unwrap();
    fs::remove_file(copied.join("README.md")).unwrap();
    let said = elsewhere.unsay(&["report", "copied"]).ok();
    assert_eq!(said, "11 files written in copied\n");
    assert!(files(&copied) == files(results), "remade from the tables");
}

fn models_speak_side_by_side(desk: &Desk) {
    let speak = |more: &[&str]| {
        let arms = [
            "generate",
            MANIFEST,
            "--arms",
            "cringe_iterative,base",
            "--prompt",
            "are nuts safe ?\\nfor me ?",
        ];
        desk.unsay(&[&arms, more].concat()).ok()
    };
    let said = speak(&[]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["> are nuts safe ?", "> for me ?"]);
    assert!(
        lines[2].starts_with("cringe_iterative: ") && said.contains("\n            base: "),
        "{said}"
    );
    assert_eq!(said, speak(&[]), "the same draws");
    assert_ne!(said, speak(&["--sample-seed", "1"]));
    assert_ne!(said, speak(&["--seed", "1"]), "another model");
    assert_eq!(speak(&["--greedy"]), speak(&["--greedy", "--sample-seed", "1"]));
    assert_eq!(speak(&["-n", "3"]).matches("cringe_iterative: ").count(), 3);

    let mut from_input = desk.command(&["generate", MANIFEST, "--arms", "mle,cringe"]);
    desk.write("prompts", "hello there\n\nare nuts safe ?\n");
    let answer = common::Ran::of(from_input.stdin(fs::File::open(desk.path("prompts")).unwrap())).ok();
    assert_eq!(
        (answer.matches("> ").count(), answer.matches("cringe: ").count()),
        (2, 2),
        "{answer}"
    );

    let err = desk
        .unsay(&["generate", MANIFEST, "--arms", "mle,ccringe", "--prompt", "x"])
        .fails(2);
    assert!(
        err.contains("no arm `ccringe`") && err.contains("cringe_iterative"),
        "{err}"
    );
    let err = desk
        .unsay(&["generate", MANIFEST, "--arms", "mle", "--seed", "7", "--prompt", "x"])
        .fails(2);
    assert!(err.contains("no seed 7") && err.contains("[0, 1]"), "{err}");
    let err = desk
        .unsay(&["generate", MANIFEST, "--arms", "mle", "--runs", "none", "--prompt", "x"])
        .fails(1);
    assert!(
        err.contains("`train mle, seed 0` is not in the store") && err.contains("hint: unsay run"),
        "{err}"
    );
}

fn a_changed_arm_runs_alone(desk: &Desk) {
    let steps = plan(desk, &["--set", "arms.cringe.train.loss.cringe.k=7"]);
    let expected: BTreeSet<String> = [0, 1]
        .iter()
        .flat_map(|seed| {
            let own = format!("cringe, seed {seed}");
            [
                format!("train {own}"),
                format!("evaluate {own}, best"),
                format!("evaluate {own}, last"),
            ]
        })
        .collect();
    assert_eq!(
        to_run(&steps).into_iter().map(str::to_owned).collect::<BTreeSet<_>>(),
        expected
    );
    // The first training of the iterative arm was that of the plain one; now the plain one has its own.
    assert_eq!(steps.len(), STEPS + expected.len());
    assert_eq!(
        to_run(&plan(desk, &["--set", "arms.cringe_iterative.iterate.loss.cringe.k=7"])).len(),
        2 * 7
    );
    // What is measured is no part of what is trained, and a figure is no part of either.
    assert_eq!(
        to_run(&plan(desk, &["--set", "evaluate.prompts=15"])).len(),
        2 * (1 + 3 * 2 + 2)
    );
    assert_eq!(to_run(&plan(desk, &["--set", "figures=[]"])).len(), 0);
    assert_eq!(
        to_run(&plan(desk, &["--set", "seeds=[0, 1, 2]"])).len(),
        (STEPS - 4) / 2
    );
}

fn other_workers_same_bytes(results: &Path) {
    let desk = Desk::with(MANIFEST, TINY);
    desk.unsay(&[
        "run",
        MANIFEST,
        "--workers",
        "1",
        "--runs",
        "elsewhere",
        "--results",
        "out",
    ])
    .ok();
    same_tables(&desk.path("out"), results);
    assert_eq!(
        desk.names(),
        ["elsewhere", "out", MANIFEST],
        "nothing but what was asked for"
    );
}

/// Interrupted in the middle of a training; a writing that a kill cut off may lie about and is cleared away.
fn interrupted_and_continued_same_bytes(results: &Path) {
    let desk = Desk::with(MANIFEST, TINY);
    let store = desk.store();
    let mut run = desk.start(&["run", MANIFEST]);
    until(&mut run, "a checkpoint", || checkpoint(&store).is_some());
    signal(&run, "INT");
    assert_eq!(run.wait().unwrap().code(), Some(1));
    let said = desk.read("said");
    assert!(
        said.contains("stopped; everything so far is saved. To go on, give the same command again."),
        "{said}"
    );
    let done = finished(&store).len();
    assert!((4..STEPS).contains(&done), "{done}");
    assert!(files(&desk.path("results")).is_empty(), "no results of half a run");
    let left = begun(&store).remove(0);
    fs::write(left.join(".unsay-cut-off.partial"), "half").unwrap();
    fs::create_dir_all(left.join("last.tmp")).unwrap();
    assert_eq!(
        plan(&desk, &[]).iter().filter(|(state, _)| state == "begun").count(),
        begun(&store).len()
    );

    desk.unsay(&["run", MANIFEST]).ok();
    assert_eq!(finished(&store).len(), STEPS);
    assert!(begun(&store).is_empty());
    same_tables(&desk.path(RESULTS), results);
}

/// Found by this test's first run: the empty file of kept replies was refused, and the run with it.
#[test]
fn a_round_that_keeps_no_replies_is_an_outcome() {
    let desk = Desk::with(MANIFEST, TINY);
    let set = [
        "seeds=[0]",
        "arms={ only: { iterate: { loss: { nll: {} }, iterations: 2 } } }",
        "table.baseline=only",
        "iterate.prompts=1",
        "figures=[]",
    ];
    let mut args = vec!["run", MANIFEST, "--results", "out"];
    args.extend(set.iter().flat_map(|s| ["--set", s]));
    let ran = desk.unsay(&args);
    assert!(ran.err.contains("`own-1` has no replies to train on"), "{}", ran.err);
    ran.ok();
    assert!(desk.read("out/README.md").contains("With overrides: `seeds=[0]`"));
}

#[test]
fn a_store_serves_one_run_at_a_time() {
    let desk = Desk::with(MANIFEST, TINY);
    let args = [
        "run",
        MANIFEST,
        "--results",
        "out",
        "--set",
        "base.train.train.steps=100000",
    ];
    let mut first = desk.start(&args);
    until(&mut first, "its training", || checkpoint(&desk.store()).is_some());
    let err = desk.unsay(&args).fails(1);
    assert_eq!(
        err,
        "error: another run is working in `runs/store`; hint: wait for it, or give another folder with --runs\n"
    );
    assert_eq!(plan(&desk, &[]).len(), STEPS, "looking is allowed");
    signal(&first, "TERM");
    assert_eq!(first.wait().unwrap().code(), Some(1));
}

#[test]
fn the_page_of_losses_is_the_committed_one() {
    let page = Desk::empty().unsay(&["list", "losses", "--page"]).ok();
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/losses.md")).unwrap();
    let hint = "`unsay list losses --page > docs/losses.md` makes it again";
    assert!(
        page == committed,
        "docs/losses.md is not what the registries say: {hint}"
    );
}

#[test]
fn everything_that_can_be_named_is_listed() {
    let desk = Desk::empty();
    let list = |what: &str| desk.unsay(&["list", what]).ok();
    let losses = list("losses");
    let named: Vec<&str> = losses
        .lines()
        .filter(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let families = unsay_losses::families();
    let registered: Vec<&str> = families
        .iter()
        .flat_map(|f| f.losses.iter().map(|l| l.card.name))
        .collect();
    assert_eq!(named, registered);
    assert!(losses.lines().all(|l| l.split_whitespace().count() > 4), "{losses}");
    let measures = list("measures");
    assert_eq!(measures.matches("gives: ").count(), unsay_eval::registry().len());
    let datasets = list("datasets");
    for dataset in unsay_data::catalog::list() {
        assert!(
            datasets.contains(dataset.name) && datasets.contains(dataset.licence),
            "{datasets}"
        );
    }
    assert!(unsay_data::catalog::list().len() >= 2);
    let models = list("models");
    for model in unsay_data::catalog::models::list() {
        assert!(
            models.contains(model.name) && models.contains(model.licence),
            "{models}"
        );
    }
    assert!(models.contains("smollm2-135m-instruct"), "{models}");
    desk.write("experiments/b.yaml", TINY);
    desk.write("experiments/a.yaml", TINY.replace("  small:\n", "  other:\n"));
    desk.write("experiments/notes.txt", "no manifest");
    let experiments = list("experiments");
    let lines: Vec<&str> = experiments.lines().map(str::trim).collect();
    assert_eq!(lines.len(), 4, "{experiments}");
    assert!(
        lines[0].starts_with("experiments/a.yaml ") && lines[0].ends_with("repeat itself?"),
        "{experiments}"
    );
    assert_eq!((lines[1], lines[3]), ("profiles: other", "profiles: small"));
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let desk = Desk::empty();
    let help = desk.unsay(&["--help"]).ok();
    for wanted in [
        "run",
        "check",
        "plan",
        "report",
        "list",
        "generate",
        "chat",
        "export",
        "Exit codes: 0 done, 1 failed",
        "2 wrong usage",
    ] {
        assert!(help.contains(wanted), "{wanted}\n{help}");
    }
    for command in ["generate", "chat", "export"] {
        insta::assert_snapshot!(format!("help_{command}"), desk.unsay(&[command, "-h"]).ok());
    }
    assert!(desk.unsay(&["--version"]).ok().starts_with("unsay 0."));
}

#[test]
fn every_manifest_of_the_project_is_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
    let manifests: Vec<String> = names(&folder).into_iter().filter(|n| n.ends_with(".yaml")).collect();
    assert!(!manifests.is_empty());
    let desk = Desk::empty();
    for name in manifests {
        fs::copy(folder.join(&name), desk.path(&name)).unwrap();
        let said = desk.unsay(&["check", &name]).ok();
        assert!(
            said.lines().all(|l| l.starts_with(&format!("{name}: profile "))) && !said.is_empty(),
            "{said}"
        );
        let stem = name.trim_end_matches(".yaml");
        assert!(
            desk.read(&name).contains(&format!("\nname: {stem}\n")),
            "{name} is named after its question"
        );
    }
}
