//! The small print under a figure: how many seeds and examples, what the bars are, what is not shown.

use super::axis::drawable;
use crate::select::Group;
use crate::stats::LEVEL;

/// `3 seeds`, `2–3 seeds`, `1 seed`.
pub(super) fn seeds<'a>(groups: impl IntoIterator<Item = &'a Group>) -> String {
    count(groups.into_iter().map(|group| group.seeds.len() as u64), "seed")
}

/// `500 examples`, `480–500 examples`.
pub(super) fn examples<'a>(groups: impl IntoIterator<Item = &'a Group>) -> String {
    count(
        groups
            .into_iter()
            .flat_map(|group| group.seeds.iter().map(|seed| seed.n)),
        "example",
    )
}

fn count(counts: impl Iterator<Item = u64>, what: &str) -> String {
    let (low, high) = counts.fold((u64::MAX, 0), |(low, high), n| (low.min(n), high.max(n)));
    match (low, high) {
        (1, 1) => format!("1 {what}"),
        _ if low == high => format!("{high} {what}s"),
        _ if low > high => format!("0 {what}s"),
        _ => format!("{low}–{high} {what}s"),
    }
}

/// What the bars are, or why there are none.
pub(super) fn interval_note<'a>(groups: impl IntoIterator<Item = &'a Group>, any_cut: bool) -> String {
    let groups: Vec<&Group> = groups.into_iter().collect();
    let with_interval = groups
        .iter()
        .any(|group| group.estimate.is_some_and(|e| e.interval.is_some()));
    if !with_interval {
        return "No bars: an interval over seeds needs two seeds or more.".to_owned();
    }
    let cut = if any_cut {
        "; an arrow head marks a bar cut off at the metric's bound"
    } else {
        ""
    };
    format!("Bars: {:.0} % Student-t interval over seeds{cut}.", 100.0 * LEVEL)
}

/// Which values or arms are not shown.
pub(super) fn gaps_note<'a>(arms: &[String], groups: impl IntoIterator<Item = &'a [Option<Group>]>) -> Option<String> {
    let mut absent: Vec<String> = Vec::new();
    let mut undrawable = 0;
    for groups in groups {
        for (arm, group) in arms.iter().zip(groups) {
            match group {
                None if !absent.contains(arm) => absent.push(arm.clone()),
                None => {}
                Some(group) => undrawable += group.values().filter(|v| !drawable(*v)).count(),
            }
        }
    }
    let mut notes = Vec::new();
    if !absent.is_empty() {
        notes.push(format!("Not measured, so not shown: {}.", absent.join(", ")));
    }
    if undrawable > 0 {
        notes.push(format!(
            "{undrawable} values are not finite and not shown; their arms have no mean."
        ));
    }
    (!notes.is_empty()).then(|| notes.join(" "))
}
