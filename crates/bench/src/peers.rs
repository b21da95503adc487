//! `unsay-bench peers`: one case after the other. What a case comes to, or why it comes to nothing, is kept before the next begins.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cases::{self, Case};
use crate::driver::{self, Options};
use crate::growth::{self, Growth};
use crate::outcome::{Failure, Outcome};
use crate::protocol::Hello;
use crate::results::{Environment, Results};
use crate::say;
use crate::whole::{self, Whole};

/// The case that is no comparison.
const GROWTH: (&str, &str) = ("growth", "our speed and memory up to 1,000,000 training tokens, 6.84M");

/// What can be chosen, in the order of the table.
pub(crate) enum Chosen {
    Case(Box<Case>),
    Whole(Whole),
    Growth,
}

impl Chosen {
    fn all() -> Vec<Self> {
        let cases = cases::all().into_iter().map(|case| Self::Case(Box::new(case)));
        let whole = whole::CASES.into_iter().map(Self::Whole);
        cases.chain(whole).chain([Self::Growth]).collect()
    }

    /// Its name on the command line and in results.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Case(case) => &case.name,
            Self::Whole(whole) => whole.name,
            Self::Growth => GROWTH.0,
        }
    }

    /// What it is, in a few words.
    pub(crate) fn about(&self) -> String {
        match self {
            Self::Case(case) => case.about(),
            Self::Whole(whole) => whole.about.to_owned(),
            Self::Growth => GROWTH.1.to_owned(),
        }
    }
}

/// The cases of these names, and all where there are none.
///
/// # Errors
/// A name that is none.
pub(crate) fn chosen(only: &[String]) -> Result<Vec<Chosen>> {
    let all = Chosen::all();
    for name in only {
        if !all.iter().any(|case| matches(name, case.name())) {
            bail!("no case `{name}`\nhint: `--list` shows them");
        }
    }
    let wanted = |case: &Chosen| only.is_empty() || only.iter().any(|name| matches(name, case.name()));
    Ok(all.into_iter().filter(wanted).collect())
}

fn matches(wanted: &str, name: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => wanted == name,
    }
}

/// What a case came to.
enum Measured {
    Case(Outcome),
    Growth(Vec<Growth>),
}

impl Chosen {
    fn measure(&self, options: &Options) -> Result<(Measured, Vec<Hello>)> {
        Ok(match self {
            Self::Case(case) => {
                let (outcome, hellos) = driver::run(case, options, &mut |line| drop(say(&format!("  {line}"))))?;
                (Measured::Case(outcome), hellos)
            }
            Self::Whole(whole) => (Measured::Case((whole.run)(options)?), Vec::new()),
            Self::Growth => {
                let (grown, hello) = grow(options)?;
                (Measured::Growth(grown), vec![hello])
            }
        })
    }
}

/// Measures cases; each is kept in the folder before the next begins. A case that fails is kept as one that did, and the rest
/// goes on.
///
/// # Errors
/// When all are done, the names of those that failed. At once, a folder that cannot be written or was measured elsewhere.
pub(crate) fn run(chosen: &[Chosen], options: &Options, folder: Option<&Path>) -> Result<()> {
    let order: Vec<String> = Chosen::all().iter().map(|case| case.name().to_owned()).collect();
    let keep = |hellos: &[Hello], put: &mut dyn FnMut(&mut Results)| -> Result<()> {
        let Some(folder) = folder else { return Ok(()) };
        let mut here = Environment::here(options.programs.threads);
        here.add(hellos)?;
        let mut results = Results::open(folder, here)?;
        put(&mut results);
        results.write(folder)
    };
    let mut failed = Vec::new();
    for case in chosen {
        say(&format!("{}: {}", case.name(), case.about()))?;
        match case.measure(options) {
            Ok((Measured::Case(outcome), hellos)) => {
                keep(&hellos, &mut |results| results.put(outcome.clone(), &order))?;
                show(&outcome)?;
            }
            Ok((Measured::Growth(grown), hellos)) => {
                keep(&hellos, &mut |results| {
                    results.put_growth(grown.clone(), GROWTH.0, &order)
                })?;
                grown.iter().try_for_each(show_growth)?;
            }
            Err(error) => {
                let whole = format!("{error:#}");
                let failure = Failure {
                    name: case.name().to_owned(),
                    about: case.about(),
                    commit: options.commit.clone(),
                    // What follows is for whoever waits for it: it may hold folders of this machine.
                    why: whole.lines().next().unwrap_or_default().to_owned(),
                };
                say(&format!("  failed: {whole}"))?;
                keep(&[], &mut |results| results.fail(failure.clone(), &order))?;
                failed.push(format!("`{}`", case.name()));
            }
        }
    }
    if !failed.is_empty() {
        bail!(
            "{} of {} cases failed: {}",
            failed.len(),
            chosen.len(),
            failed.join(", ")
        );
    }
    Ok(())
}

fn grow(options: &Options) -> Result<(Vec<Growth>, Hello)> {
    let all = cases::all();
    let (mut grown, mut said) = (Vec::new(), None);
    for case in all.iter().filter(|case| growth::CASES.contains(&case.name.as_str())) {
        let (growth, hello) = growth::run(case, options, options.growth_tokens)?;
        grown.push(growth);
        said = Some(hello);
    }
    Ok((grown, said.context("no case to train on")?))
}

fn show_growth(growth: &Growth) -> Result<()> {
    say(&format!("  {}", growth.about))?;
    for point in &growth.points {
        say(&format!(
            "  {:>8} tokens: {:>6.0} tok/s  resident {:.0} MiB, peak {:.0} MiB",
            point.tokens, point.tokens_per_sec, point.rss_mib, point.peak_mib
        ))?;
    }
    let speed = growth.speed;
    say(&format!(
        "  late / early: speed {:.3} [{:.3}, {:.3}], memory {:.3}",
        speed.value,
        speed.low,
        speed.high,
        growth.memory()
    ))
}

fn show(outcome: &Outcome) -> Result<()> {
    for limit in &outcome.limits {
        let (value, most) = (limit.value.value, limit.at_most);
        let met = if value <= most { "met" } else { "not met" };
        say(&format!("  {}: {value:.3}, goal at most {most}: {met}", limit.what))?;
    }
    for cost in &outcome.sides {
        let above = cost.peak_above_mib;
        let above = above.map_or(String::new(), |mib| format!(", {mib:.0} above libraries"));
        let busy = cost.cpu_secs.map_or(String::new(), |secs| format!("  cpu {secs:.4} s"));
        say(&format!(
            "  {:<7} {:<18} {:>9.4} s [{:.4}, {:.4}]{busy}  {:>7.0} tok/s  peak {:.0} MiB{above}",
            cost.who, cost.way, cost.secs.value, cost.secs.low, cost.secs.high, cost.tokens_per_sec, cost.peak_mib
        ))?;
    }
    for ratio in &outcome.ratios {
        let above = ratio.memory_above;
        let above = above.map_or(String::new(), |share| format!(", above libraries {share:.2}"));
        let goal = ratio.goal.map_or(String::new(), |goal| {
            format!(
                "  goal {goal}: {}",
                if ratio.ratio.value >= goal { "met" } else { "not met" }
            )
        });
        say(&format!(
            "  {} / {}: {:.2} [{:.2}, {:.2}] n={}  memory {:.2}{above}{goal}",
            ratio.ours, ratio.theirs, ratio.ratio.value, ratio.ratio.low, ratio.ratio.high, ratio.ratio.n, ratio.memory
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fake::{Fake, programs};

    /// A worker that could not load, that died or hung, or whose loss was another, ended the whole run.
    #[test]
    fn a_case_that_fails_is_named_and_the_rest_is_measured() {
        let folder = tempfile::tempdir().unwrap();
        let failing = Fake {
            by_task: r#"
                cringe) loss=9.01 ;;
                dpo) echo '{"is":"failed","why":"no | room"}'; exit 0 ;;
                reward) echo 'much memory' >&2; kill -9 $$ ;;
                greedy) exec sleep 1000 ;;"#,
            ..Fake::THEIRS
        };
        let options = |theirs: &Fake, patience: u64| {
            let mut programs = programs(folder.path(), &Fake::OURS, theirs);
            programs.patience = Duration::from_secs(patience);
            Options {
                programs,
                cache: folder.path().to_owned(),
                rounds: Some(3),
                commit: "abc".to_owned(),
                alone: None,
                growth_tokens: 0,
            }
        };
        let named = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            chosen(&names).unwrap()
        };
        let results = folder.path().join("results");
        let kept = || Results::open(&results, Environment::here(2)).unwrap();
        let cases = named(&[
            "sft_64_fp32",
            "cringe_64_fp32",
            "dpo_64_fp32",
            "reward_64_fp32",
            "sample_32_fp32",
        ]);
        let error = run(&cases, &options(&failing, 600), Some(&results)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "3 of 5 cases failed: `cringe_64_fp32`, `dpo_64_fp32`, `reward_64_fp32`"
        );
        // Only this one is waited for in vain; how fast the others answer does not matter.
        let hangs = named(&["generate_1_fp32"]);
        assert!(run(&hangs, &options(&failing, 3), Some(&results)).is_err());
        let found = kept();
        let measured: Vec<&str> = found.cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(measured, ["sft_64_fp32", "sample_32_fp32"]);
        let expected = [
            "`loss` of step 1 differs: unsay fp32 has 9, python fp32 has 9.01",
            "worker python fp32: no | room",
            "worker python fp32: ended without an answer (signal: 9 (SIGKILL))",
            "worker python fp32: no answer within 3 s, ended",
        ];
        assert_eq!(found.failed.len(), expected.len());
        for (failure, expected) in found.failed.iter().zip(expected) {
            assert_eq!(failure.why, expected);
        }
        let page = std::fs::read_to_string(results.join("peers.md")).unwrap();
        let row = "| failed at abc: worker python fp32: no \\| room |";
        assert!(page.contains(row), "{page}");
        // What is measured the next time has not failed any more.
        run(
            &named(&["cringe_64_fp32"]),
            &options(&Fake::THEIRS, 600),
            Some(&results),
        )
        .unwrap();
        assert_eq!((kept().cases.len(), kept().failed.len()), (3, 3));
    }
}
