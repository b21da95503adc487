//! `peers.md`: the table, made from `peers.json` alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::growth::Point;
use crate::outcome::{Check, Cost, Outcome, Ratio};
use crate::results::{Environment, Results};
use crate::statistics::Median;

/// Characters of a reason on the page; `peers.json` has its whole first line, the run itself printed all of it.
const LONGEST_REASON: usize = 160;

/// The page.
pub(crate) fn of(results: &Results) -> String {
    let mut page = String::from(
        "# Side by side with the Python stack\n\n\
         The same weights, data, precision and threads through this project and through transformers, TRL and plain \
         PyTorch, by turns in one run. What each side does, what is not equal, and how to rerun: \
         [docs/benchmarks.md](../../docs/benchmarks.md). All numbers: [peers.json](peers.json).\n",
    );
    page.push_str(&speed(results));
    page.push_str(&limits(results));
    page.push_str(&growth(results));
    page.push_str(&checks(results));
    page.push_str(&environment(&results.environment, results));
    page
}

fn speed(results: &Results) -> String {
    let mut out = String::from(
        "\n## Speed and memory\n\n\
         Speed: our tokens per second over theirs, the median of the ratios of single turns [interval of the median] (number \
         of turns). Memory: the most that a process ever held, ours / theirs in MiB; in brackets the same beyond what the process \
         held when its libraries were loaded. Ways: *fp32*; *bf16*, ours with weights kept in f32, theirs with nothing but \
         bf16; *autocast*, theirs with weights in f32; *precomputed*, the reference's log-probs made before the first step; \
         *completion_logits*, TRL asked to make no logits of prompts.\n\n\
         | what | unsay | python | speed | goal | | tokens/s, unsay / python | memory, unsay / python | |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for case in &results.cases {
        for ratio in &case.ratios {
            row(&mut out, case, ratio);
        }
    }
    for case in &results.cases {
        for cost in case.sides.iter().filter(|cost| !compared(case, cost)) {
            let _ = writeln!(
                out,
                "| {} | {} | {} | not measured | | | {} | {}{} | |",
                case.about,
                if cost.who == "unsay" { &cost.way } else { "–" },
                if cost.who == "unsay" { "–" } else { &cost.way },
                whole(cost.tokens_per_sec),
                whole(cost.peak_mib),
                cost.peak_above_mib
                    .map_or(String::new(), |mib| format!(" ({})", whole(mib)))
            );
        }
    }
    for failure in &results.failed {
        let (about, commit, why) = (&failure.about, &failure.commit, short(&failure.why));
        let _ = writeln!(out, "| {about} | – | – | failed at {commit}: {why} | | | | | |");
    }
    out
}

/// The beginning of a reason, for a cell of a table.
fn short(why: &str) -> String {
    let line = why.lines().next().unwrap_or_default().replace('|', "\\|");
    match line.char_indices().nth(LONGEST_REASON) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

fn compared(case: &Outcome, cost: &Cost) -> bool {
    let way = |ratio: &Ratio| {
        if cost.who == "unsay" {
            ratio.ours.clone()
        } else {
            ratio.theirs.clone()
        }
    };
    case.ratios.iter().any(|ratio| way(ratio) == cost.way)
}

fn row(out: &mut String, case: &Outcome, ratio: &Ratio) {
    let side = |who: &str, way: &str| case.sides.iter().find(|cost| cost.who == who && cost.way == way);
    let (Some(ours), Some(theirs)) = (side("unsay", &ratio.ours), side("python", &ratio.theirs)) else {
        return;
    };
    let Median {
        value, low, high, n, ..
    } = ratio.ratio;
    let above = ours.peak_above_mib.zip(theirs.peak_above_mib);
    let above = above.map_or(String::new(), |(ours, theirs)| {
        format!(" ({} / {})", whole(ours), whole(theirs))
    });
    let _ = writeln!(
        out,
        "| {} | {} | {} | **{value:.2}** [{low:.2}, {high:.2}] ({n}) | {} | {} | {} / {} | {} / {}{above} | {} |",
        case.about,
        ratio.ours,
        ratio.theirs,
        ratio.goal.map_or(String::new(), |goal| format!("≥ {goal}")),
        ratio.goal.map_or("", |goal| met(value >= goal)),
        speed_of(ours),
        speed_of(theirs),
        whole(ours.peak_mib),
        whole(theirs.peak_mib),
        met(ratio.memory <= 1.0)
    );
}

/// Tokens per second, or seconds where no tokens were counted.
fn speed_of(cost: &Cost) -> String {
    if cost.tokens > 1.0 {
        whole(cost.tokens_per_sec)
    } else {
        format!("{:.2} s", cost.secs.value)
    }
}

fn met(is: bool) -> &'static str {
    if is { "met" } else { "not met" }
}

/// With a comma at thousands.
fn whole(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn limits(results: &Results) -> String {
    let rows: Vec<String> = results
        .cases
        .iter()
        .flat_map(|case| &case.limits)
        .map(|limit| {
            let Median {
                value, low, high, n, ..
            } = limit.value;
            let met = met(value <= limit.at_most);
            format!(
                "| {} | {value:.3} [{low:.3}, {high:.3}] ({n}) | ≤ {} | {met} |\n",
                limit.what, limit.at_most
            )
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "\n## Limits\n\n| what | unsay | goal | |\n|---|---|---|---|\n{}",
        rows.concat()
    )
}

fn growth(results: &Results) -> String {
    if results.growth.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "\n## As work grows\n\n\
         Trainings of ours in fp32 that go on. Speed is that after the last mark over that of the same training just past the first \
         mark, in a process of its own; the two take turns. Memory is that of the process at the last mark over the first; where \
         lengths are spread, later batches come to be larger than the first ten were.\n\n\
         | training | at tokens | largest batch so far | resident MiB | peak MiB | speed, late / early | memory, late / early | goal: within 10 % |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for growth in &results.growth {
        let list = |value: &dyn Fn(&Point) -> f64| {
            let all: Vec<String> = growth.points.iter().map(|point| whole(value(point))).collect();
            all.join(" / ")
        };
        let Median {
            value, low, high, n, ..
        } = growth.speed;
        let memory = growth.memory();
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {value:.3} [{low:.3}, {high:.3}] ({n}) | {memory:.3} | {} |",
            growth.about,
            list(&|point| point.tokens as f64),
            list(&|point| point.largest_batch as f64),
            list(&|point| point.rss_mib),
            list(&|point| point.peak_mib),
            met(value >= 0.9 && memory <= 1.1)
        );
    }
    out
}

/// One row for each two sides that were held against each other: their first loss, or tokens, and the value that differs most.
fn checks(results: &Results) -> String {
    let mut out = String::from(
        "\n## The same work\n\n\
         Before time is taken both sides have to report the same weights, tokens, threads and kind of products, and values of \
         the first steps that are near each other; otherwise the case fails. Differences are relative where a value is above \
         1; all values are in peers.json.\n\n\
         | case | value | unsay | python | values | largest difference |\n|---|---|---|---|---|---|\n",
    );
    for case in &results.cases {
        let mut rest: Vec<&Check> = case.checks.iter().collect();
        while let Some(first) = rest.first().copied() {
            let (same, others): (Vec<&Check>, Vec<&Check>) = rest
                .into_iter()
                .partition(|one| one.ours_way == first.ours_way && one.theirs_way == first.theirs_way);
            rest = others;
            let shown = same.iter().find(|one| one.what.starts_with("loss")).unwrap_or(&first);
            let worst = same
                .iter()
                .max_by(|a, b| difference(a).total_cmp(&difference(b)))
                .unwrap_or(&first);
            let _ = writeln!(
                out,
                "| {} | {} | {} ({}) | {} ({}) | {} | {:.0e}, {} |",
                case.name,
                shown.what,
                number(shown.ours),
                shown.ours_way,
                number(shown.theirs),
                shown.theirs_way,
                same.len(),
                difference(worst),
                worst.what
            );
        }
    }
    out
}

fn difference(check: &Check) -> f64 {
    (check.ours - check.theirs).abs() / check.theirs.abs().max(1.0)
}

fn number(value: f64) -> String {
    if value.fract().abs() < f64::EPSILON {
        whole(value)
    } else {
        format!("{value:.6}")
    }
}

fn environment(environment: &Environment, results: &Results) -> String {
    let mut out = String::from("\n## Where\n\n");
    let bf16 = if environment.bf16.is_empty() {
        "no instructions for bf16".to_owned()
    } else {
        environment.bf16.join(", ")
    };
    let _ = writeln!(
        out,
        "- {}, {} cores, {} GiB; {bf16}; {} threads on either side",
        environment.processor, environment.cores, environment.memory_gib, environment.threads
    );
    let versions = environment
        .versions
        .iter()
        .map(|(name, version)| format!("{name} {version}"));
    let _ = writeln!(out, "- {}", versions.collect::<Vec<_>>().join(", "));
    match &environment.libtorch[..] {
        [] => {}
        [one] => {
            let _ = writeln!(
                out,
                "- both sides load the same libtorch_cpu, byte for byte (SHA-256 {}…)",
                &one[..one.len().min(12)]
            );
        }
        many => {
            let _ = writeln!(out, "- the sides load {} different builds of libtorch_cpu", many.len());
        }
    }
    let mut commits: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for case in &results.cases {
        commits.entry(&case.commit).or_default().push(&case.name);
    }
    for growth in &results.growth {
        let rows = commits.entry(&growth.commit).or_default();
        if rows.last() != Some(&"growth") {
            rows.push("growth");
        }
    }
    // Rows that were measured at different times are not of one run.
    let commits = commits.iter().map(|(commit, cases)| match commits.len() {
        1 => (*commit).to_owned(),
        _ => format!("{commit} ({})", cases.join(", ")),
    });
    let _ = writeln!(
        out,
        "- commit of the project: {}",
        commits.collect::<Vec<_>>().join("; ")
    );
    out.push_str(
        "- `just bench-peers --rounds TURNS --results results/bench`, and `--only NAME` for a row; turns stand in round \
         brackets\n- on a GPU: not measured\n",
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::growth::Growth;
    use crate::outcome::{Failure, Limit};
    use crate::statistics::with_interval;

    fn cost(who: &str, way: &str, secs: f64) -> Cost {
        Cost {
            who: who.to_owned(),
            way: way.to_owned(),
            secs: with_interval(&[secs; 6]),
            turns: vec![secs; 6],
            cpu_secs: Some(secs),
            tokens: 1024.0,
            tokens_per_sec: 1024.0 / secs,
            peak_mib: 1200.0 * secs,
            peak_above_mib: Some(100.0),
        }
    }

    fn results() -> Results {
        let ratio = |goal| Ratio {
            ours: "bf16".to_owned(),
            theirs: "autocast".to_owned(),
            ratio: with_interval(&[1.4; 6]),
            goal,
            memory: 0.5,
            memory_above: Some(1.0),
        };
        let case = Outcome {
            name: "sft_64_bf16".to_owned(),
            about: "SFT step".to_owned(),
            commit: "abc".to_owned(),
            steps: 3,
            rounds: 6,
            sides: vec![cost("unsay", "bf16", 0.1), cost("python", "autocast", 0.14)],
            checks: vec![Check {
                what: "loss, step 1".to_owned(),
                ours_way: "bf16".to_owned(),
                theirs_way: "autocast".to_owned(),
                ours: 9.05,
                theirs: 9.06,
            }],
            ratios: vec![ratio(Some(1.5)), ratio(None)],
            limits: vec![Limit {
                what: "start, s".to_owned(),
                value: with_interval(&[0.9; 6]),
                at_most: 1.0,
            }],
        };
        let point = |tokens, rss_mib| Point {
            tokens,
            largest_batch: 1024,
            tokens_per_sec: 4000.0,
            rss_mib,
            peak_mib: 110.0,
        };
        let growth = Growth {
            about: "SFT step".to_owned(),
            commit: "abc".to_owned(),
            points: vec![point(10_000, 80.0), point(1_000_000, 100.0)],
            speed: with_interval(&[0.99; 6]),
        };
        Results {
            environment: Environment::default(),
            cases: vec![case],
            growth: vec![growth],
            failed: Vec::new(),
        }
    }

    #[test]
    fn rows_say_what_was_wanted_and_whether_it_is_there() {
        let page = of(&results());
        let expected = "| SFT step | bf16 | autocast | **1.40** [1.40, 1.40] (6) | ≥ 1.5 | not met | 10,240 / 7,314 | 120 / 168 (100 / 100) | met |";
        assert!(page.contains(expected), "{page}");
        assert!(
            page.contains("| SFT step | bf16 | autocast | **1.40** [1.40, 1.40] (6) |  |  |"),
            "{page}"
        );
        assert!(
            page.contains("| start, s | 0.900 [0.900, 0.900] (6) | ≤ 1 | met |"),
            "{page}"
        );
        assert!(
            page.contains(
                "| SFT step | 10,000 / 1,000,000 | 1,024 / 1,024 | 80 / 100 | 110 / 110 | 0.990 [0.990, 0.990] (6) | 1.250 | not met |"
            ),
            "{page}"
        );
        assert!(
            page.contains(
                "| sft_64_bf16 | loss, step 1 | 9.050000 (bf16) | 9.060000 (autocast) | 1 | 1e-3, loss, step 1 |"
            ),
            "{page}"
        );
    }

    #[test]
    fn what_failed_has_a_row_with_its_reason_in_short() {
        let mut results = results();
        let failure = |name: &str, why: String| Failure {
            name: name.to_owned(),
            about: format!("{name} step"),
            commit: "def".to_owned(),
            why,
        };
        results.failed = vec![
            failure("DPO", "no a|b\nwhat it wrote last:\nKilled".to_owned()),
            failure("long", "ü".repeat(LONGEST_REASON + 1)),
        ];
        let page = of(&results);
        assert!(page.contains("| SFT step | bf16 |"), "the others stay: {page}");
        assert!(
            page.contains("\n| DPO step | – | – | failed at def: no a\\|b | | | | | |\n"),
            "{page}"
        );
        let cut = format!("failed at def: {}… |", "ü".repeat(LONGEST_REASON));
        assert!(page.contains(&cut), "{page}");
    }

    #[test]
    fn a_side_that_is_alone_is_not_compared() {
        let mut results = results();
        results.cases[0].ratios.clear();
        let page = of(&results);
        assert!(page.contains("| SFT step | – | autocast | not measured |"), "{page}");
    }

    /// A page of several runs said all their commits and not which row was of which.
    #[test]
    fn rows_of_different_commits_are_told_apart() {
        let mut results = results();
        assert!(of(&results).contains("- commit of the project: abc\n"));
        let mut later = results.cases[0].clone();
        later.name = "start".to_owned();
        later.commit = "def".to_owned();
        later.sides[0].peak_above_mib = None;
        later.ratios.truncate(1);
        results.cases.push(later);
        let page = of(&results);
        assert!(
            page.contains("- commit of the project: abc (sft_64_bf16, growth); def (start)\n"),
            "{page}"
        );
        assert!(
            page.contains("| 120 / 168 | met |"),
            "no memory beyond libraries: {page}"
        );
    }

    #[test]
    fn thousands_have_commas() {
        let written: Vec<String> = [0.4, 999.0, 1000.0, 1_234_567.0].map(whole).into();
        assert_eq!(written, ["0", "999", "1,000", "1,234,567"]);
    }
}
