//! The page of a results folder: what was asked, what came out, how to make it again.

use std::fmt::Write as _;

use anyhow::Result;
use unsay_data::stream;
use unsay_report::{FigureSpec, Tables, summary};

use super::about::About;

/// The page as Markdown, from the tables and what the folder says of itself.
pub(super) fn page(about: &About, tables: &Tables) -> Result<String> {
    let mut out = format!(
        "# {}, profile {}\n\n> {}\n\n",
        about.name, about.profile, about.question
    );
    let seeds: Vec<String> = about.seeds.iter().map(u64::to_string).collect();
    let _ = writeln!(
        out,
        "Arms: {}. Seeds: {}. Measured on the {} split. Made by `unsay run`; figures and this page are remade from the \
         tables by `unsay report`. What the columns mean: [docs/results-format.md](../../../docs/results-format.md).\n",
        about
            .arms
            .iter()
            .map(|a| format!("`{a}`"))
            .collect::<Vec<_>>()
            .join(", "),
        seeds.join(", "),
        about.split,
    );
    if !about.overrides.is_empty() {
        let _ = writeln!(
            out,
            "With overrides: {}.\n",
            about
                .overrides
                .iter()
                .map(|o| format!("`{o}`"))
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    out.push_str("## Results\n\n");
    out.push_str(&summary(tables, &about.table, &about.arms, &|purpose| {
        stream(0, purpose, 0)
    })?);
    out.push_str("\n## Figures\n\n");
    for figure in &about.figures {
        let _ = writeln!(out, "![{}](figures/{}.svg)\n", alternative(figure), figure.name());
    }
    if tables.scores.iter().any(|row| row.iteration.is_some()) {
        out.push_str(
            "An iterative arm makes as many updates in every round as the other arms make in all, so its gain over one \
             round is that of its own replies and of more training together.\n\n",
        );
    }
    samples(&mut out, about);
    environment(&mut out, about);
    Ok(out)
}

/// What a reader without the picture is told.
fn alternative(figure: &FigureSpec) -> String {
    figure.name().replace('_', " ")
}

fn samples(out: &mut String, about: &About) {
    if about.samples.is_empty() {
        return;
    }
    out.push_str("## Samples\n\n");
    if let Some(warning) = &about.content_warning {
        let _ = writeln!(out, "**Content warning.** {warning}\n");
    }
    let seed = about.seeds.first().copied().unwrap_or_default();
    let _ = writeln!(
        out,
        "One reply of each arm (seed {seed}, best checkpoint), not picked.\n\n<details><summary>Show</summary>\n"
    );
    for row in &about.samples {
        let _ = writeln!(out, "**{}**\n", escape(&row.prompt));
        out.push_str("| arm | reply |\n|---|---|\n");
        for (arm, reply) in &row.replies {
            let _ = writeln!(out, "| {arm} | {} |", escape(reply));
        }
        out.push('\n');
    }
    out.push_str("</details>\n\n");
}

/// Text of a model in a Markdown table: on one line, and nothing in it is read as markup.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push_str(" / "),
            '|' | '*' | '_' | '`' | '<' | '>' | '[' | ']' | '\\' | '#' | '!' | '~' | '&' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn environment(out: &mut String, about: &About) {
    let e = &about.environment;
    let _ = writeln!(
        out,
        "## Made with\n\nunsay {} at commit `{}`, libtorch {}, {}; {}, {} cores. Steps made at: {}. Seconds of work (steps run side by side; of an interrupted step the last sitting): {}.",
        e.unsay,
        e.commit,
        e.libtorch,
        e.dtype,
        e.processor,
        e.cores,
        about
            .step_commits
            .iter()
            .map(|c| format!("`{c}`"))
            .collect::<Vec<_>>()
            .join(", "),
        about
            .seconds
            .iter()
            .map(|(kind, secs)| format!("{kind} {secs:.0}"))
            .collect::<Vec<_>>()
            .join(", ")
    );
}
