//! Layout, degenerate input and errors of all figures.

#[path = "../../tests/sample/mod.rs"]
mod sample;

use std::fs;

use super::drawing::{Drawing, Shape, Text};
use super::{FigureSpec, render, render_all};
use crate::select::Metric;
use crate::tables::Tables;

fn drawings(tables: &Tables, arms: &[String]) -> Vec<(String, Drawing)> {
    let figures = sample::figures();
    assert_eq!(figures.len(), 5, "one of each kind");
    (figures.iter())
        .map(|spec| (spec.name().to_owned(), spec.draw(tables, arms).unwrap().0))
        .collect()
}

fn texts(drawing: &Drawing) -> Vec<&Text> {
    let texts = drawing.shapes.iter().filter_map(|shape| match shape {
        Shape::Text(text) => Some(text),
        _ => None,
    });
    texts.collect()
}

fn check_layout(name: &str, drawing: &Drawing) {
    let texts = texts(drawing);
    assert!(texts.len() > 5, "{name}: only {} texts", texts.len());
    for (i, text) in texts.iter().enumerate() {
        let [left, top, right, bottom] = text.bounds();
        let inside = left >= 0.0 && top >= 0.0 && right <= drawing.width && bottom <= drawing.height;
        assert!(inside, "{name}: `{}` leaves the page", text.text);
        for other in &texts[..i] {
            let [l, t, r, b] = other.bounds();
            let apart = right <= l || r <= left || bottom <= t || b <= top;
            assert!(apart, "{name}: `{}` overlaps `{}`", text.text, other.text);
        }
    }
    for shape in &drawing.shapes {
        let points = match shape {
            Shape::Line { points, .. } | Shape::Polygon { points, .. } => points.clone(),
            Shape::Circle { centre, .. } => vec![*centre],
            Shape::Text(_) => continue,
        };
        for (x, y) in points {
            assert!(x.is_finite() && y.is_finite(), "{name}: {shape:?}");
            assert!(
                (-9.0..=drawing.width + 9.0).contains(&x),
                "{name}: {shape:?} leaves the page"
            );
            assert!(
                (-9.0..=drawing.height + 9.0).contains(&y),
                "{name}: {shape:?} leaves the page"
            );
        }
    }
}

#[test]
fn no_text_overlaps_another_or_leaves_the_page() {
    for seeds in [1, 2, 3, 5] {
        for (name, drawing) in drawings(&sample::tables(seeds), &sample::arms()) {
            check_layout(&name, &drawing);
        }
    }
}

#[test]
fn many_arms_with_long_and_strange_names_still_fit() {
    let mut tables = Tables::default();
    let plain = sample::tables(2);
    let mut arms = Vec::new();
    for i in 0..11 {
        let old = &sample::arms()[i % 4];
        let name = match i {
            3 => "<a> & \"b\"\u{7} ist ein sehr langer Name für einen Arm".to_owned(),
            4 => "名前".to_owned(),
            _ => format!("{old}_with_a_long_name_{i}"),
        };
        let rename = |arm: &mut String| name.clone_into(arm);
        tables
            .runs
            .extend(plain.runs.iter().filter(|row| &row.arm == old).cloned().map(|mut row| {
                rename(&mut row.arm);
                row
            }));
        tables.steps.extend(
            plain
                .steps
                .iter()
                .filter(|row| &row.arm == old)
                .cloned()
                .map(|mut row| {
                    rename(&mut row.arm);
                    row
                }),
        );
        tables.scores.extend(
            plain
                .scores
                .iter()
                .filter(|row| &row.arm == old)
                .cloned()
                .map(|mut row| {
                    rename(&mut row.arm);
                    row
                }),
        );
        arms.push(name);
    }
    for (name, drawing) in drawings(&tables, &arms) {
        check_layout(&name, &drawing);
    }
    let dir = tempfile::tempdir().unwrap();
    render(&sample::figures()[0], &tables, &arms, dir.path()).unwrap();
    let svg = fs::read_to_string(dir.path().join("f1_safety.svg")).unwrap();
    assert!(svg.contains("&lt;a&gt; &amp; &quot;b&quot;") && !svg.contains('\u{7}'));
}

/// Sets every value of every table.
fn with_values(mut tables: Tables, value: impl Fn(usize) -> f64) -> Tables {
    tables
        .runs
        .iter_mut()
        .enumerate()
        .for_each(|(i, row)| row.value = value(i));
    tables
        .steps
        .iter_mut()
        .enumerate()
        .for_each(|(i, row)| row.value = value(i));
    tables
        .scores
        .iter_mut()
        .enumerate()
        .for_each(|(i, row)| row.value = value(i));
    // Judges are the same for all arms.
    tables.runs.retain(|row| !row.metric.ends_with("accuracy"));
    let accuracies = sample::tables(1)
        .runs
        .into_iter()
        .filter(|row| row.metric.ends_with("accuracy"));
    tables.runs.extend(accuracies);
    tables
}

/// A name and the value of each row.
type Kind = (&'static str, fn(usize) -> f64);

#[test]
fn degenerate_values_are_drawn_without_panic() {
    let kinds: [Kind; 9] = [
        ("all zero", |_| 0.0),
        ("all one", |_| 1.0),
        ("all NaN", |_| f64::NAN),
        ("all infinite", |_| f64::INFINITY),
        ("some NaN", |i| if i % 3 == 0 { f64::NAN } else { 0.5 }),
        ("beyond the bounds", |i| if i % 2 == 0 { -3.0 } else { 40.0 }),
        ("huge", |i| if i % 2 == 0 { f64::MAX } else { f64::MIN }),
        ("large", |i| if i % 2 == 0 { 1e299 } else { -1e299 }),
        ("tiny", |i| 1e-310 * i as f64),
    ];
    for (kind, value) in kinds {
        for seeds in [1, 3] {
            let tables = with_values(sample::tables(seeds), value);
            for (name, drawing) in drawings(&tables, &sample::arms()) {
                check_layout(&format!("{name} of {kind}"), &drawing);
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let tables = with_values(sample::tables(2), value);
        let dots = &sample::figures()[3];
        assert_eq!(
            render(dots, &tables, &sample::arms(), dir.path()).unwrap().len(),
            2,
            "{kind}"
        );
    }
}

#[test]
fn a_single_step_and_a_single_iteration_are_drawn() {
    let mut tables = sample::tables(1);
    tables.steps.retain(|row| row.step == 10 && row.phase == "train");
    tables.scores.retain(|row| row.iteration.is_none_or(|i| i == 1));
    for (name, drawing) in drawings(&tables, &sample::arms()) {
        check_layout(&name, &drawing);
    }
}

#[test]
fn values_that_are_not_shown_are_named() {
    let mut tables = sample::tables(3);
    tables.runs.retain(|row| !(row.arm == "cringe" && row.metric == "f1"));
    tables.runs.iter_mut().find(|row| row.metric == "f1").unwrap().value = f64::NAN;
    let (drawing, _) = sample::figures()[0].draw(&tables, &sample::arms()).unwrap();
    let all: String = texts(&drawing).iter().map(|text| format!("{} ", text.text)).collect();
    assert!(all.contains("Not measured, so not shown: cringe."), "{all}");
    assert!(all.contains("1 values are not finite"), "{all}");
}

#[test]
fn one_seed_is_said_to_have_no_interval() {
    let (drawing, _) = sample::figures()[0].draw(&sample::tables(1), &sample::arms()).unwrap();
    let all: String = texts(&drawing).iter().map(|text| format!("{} ", text.text)).collect();
    assert!(
        all.contains("No bars: an interval over seeds needs two seeds or more."),
        "{all}"
    );
    assert!(all.contains("means of 1 seed on 500 examples"), "{all}");
}

#[test]
fn both_files_are_written_alike_each_time() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut tables = sample::tables(3);
    let figures = &sample::figures()[..1];
    let written = render_all(figures, &tables, &sample::arms(), one.path()).unwrap();
    tables.runs.reverse();
    render_all(figures, &tables, &sample::arms(), two.path()).unwrap();
    assert_eq!(written.len(), 2);
    for path in &written {
        let other = two.path().join(path.file_name().unwrap());
        assert_eq!(fs::read(path).unwrap(), fs::read(other).unwrap(), "{}", path.display());
    }
    let svg = fs::read_to_string(&written[0]).unwrap();
    assert!(
        svg.contains("Quality against safety") && svg.contains("<text"),
        "text stays text"
    );
    let decoder = png::Decoder::new(fs::File::open(&written[1]).unwrap());
    let reader = decoder.read_info().unwrap();
    let width = format!("width=\"{}\"", reader.info().width / 2);
    assert!(svg.contains(&width), "PNG has two pixels per CSS pixel");
}

#[test]
fn what_is_missing_is_an_error_that_lists_what_is_there() {
    let tables = sample::tables(1);
    let dir = tempfile::tempdir().unwrap();
    let message = |spec: &FigureSpec, arms: &[String]| render(spec, &tables, arms, dir.path()).unwrap_err().to_string();

    let mut figures = sample::figures();
    if let FigureSpec::Tradeoff(figure) = &mut figures[0] {
        figure.x = Metric::new("f2", "benign");
    }
    let missing = message(&figures[0], &[]);
    assert!(
        missing.contains("figure `f1_safety` needs f2 on benign at best"),
        "{missing}"
    );
    assert!(missing.contains("`f1 on benign at best`"), "{missing}");
    if let FigureSpec::PerIteration(figure) = &mut figures[1] {
        figure.metric.metric = "nothing".to_owned();
    }
    assert!(message(&figures[1], &[]).contains("the scores table lacks; it has: `safe_oracle_each on test at best`"));
    if let FigureSpec::Curves(figure) = &mut figures[2] {
        figure.phases = vec!["warmup".to_owned()];
    }
    assert!(message(&figures[2], &[]).contains("`loss in train`"));
    if let FigureSpec::Dots(figure) = &mut figures[3] {
        figure.metrics[1].judge = Some("nobody".to_owned());
    }
    assert!(message(&figures[3], &[]).contains("the accuracy `nobody`"));
    let arm = message(&sample::figures()[0], &["dpo".to_owned()]);
    assert!(
        arm.contains("names arm `dpo`") && arm.contains("`cringe_iterative`"),
        "{arm}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing half-drawn");
}

#[test]
fn bad_specs_are_refused() {
    let check = |edit: fn(&mut FigureSpec)| {
        let mut spec = sample::figures().remove(0);
        edit(&mut spec);
        spec.check().unwrap_err().to_string()
    };
    let name = check(|spec| {
        if let FigureSpec::Tradeoff(figure) = spec {
            figure.name = "../up".to_owned();
        }
    });
    assert!(name.contains("lower-case letters"), "{name}");
    let bounds = check(|spec| {
        if let FigureSpec::Tradeoff(figure) = spec {
            figure.x.bounds = Some((1.0, 0.0));
        }
    });
    assert!(bounds.contains("rising order, got [1, 0]"), "{bounds}");
    let same = [sample::figures().remove(0), sample::figures().remove(0)];
    let dir = tempfile::tempdir().unwrap();
    let twice = render_all(&same, &sample::tables(1), &[], dir.path())
        .unwrap_err()
        .to_string();
    assert!(twice.contains("two figures have this name"), "{twice}");
}

#[test]
fn specs_read_from_maps_and_refuse_unknown_keys() {
    let text = r#"{"tradeoff": {"name": "a", "x": {"metric": "f1", "subset": "benign"},
        "y": {"metric": "safe", "subset": "test", "bounds": [0, 1], "checkpoint": "last"}}}"#;
    let spec: FigureSpec = serde_json::from_str(text).unwrap();
    let FigureSpec::Tradeoff(figure) = &spec else {
        panic!("{spec:?}")
    };
    assert_eq!(figure.y.bounds, Some((0.0, 1.0)));
    assert_eq!(figure.x, Metric::new("f1", "benign"));
    let again: FigureSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
    assert_eq!(again, spec);
    for wrong in [
        text.replace("checkpoint", "chekpoint"),
        text.replace("tradeoff", "scatter"),
        text.replace("\"name\"", "\"file\""),
    ] {
        assert!(serde_json::from_str::<FigureSpec>(&wrong).is_err(), "{wrong}");
    }
}
