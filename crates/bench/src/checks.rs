//! Whether both sides do the same work: seen before any time is taken.

use anyhow::{Result, bail};

use crate::cases::{Case, Comparison};
use crate::driver::Player;
use crate::outcome::Check;
use crate::protocol::Task;

/// How far first losses may be apart, relative to the larger of 1 and theirs.
const NEAR_FP32: f64 = 1e-4;
/// The same where products are rounded to bf16, and each side rounds in places of its own.
const NEAR_BF16: f64 = 2e-2;
/// How far sums over the weights may be apart, relative to the sum of absolute values.
const NEAR_WEIGHTS: f64 = 1e-9;
/// The same where one side holds nothing but bf16.
const NEAR_ROUNDED: f64 = 1e-3;

/// Sees that theirs do what ours does: threads, weights, data, kind, first values, tokens.
pub(crate) fn check(case: &Case, players: &[Player]) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for theirs in players.iter().filter(|player| !player.side.ours) {
        let pair = |ours: &&Player| {
            let said =
                |comparison: &&Comparison| comparison.ours == ours.side.way && comparison.theirs == theirs.side.way;
            ours.side.ours && case.comparisons.iter().any(|comparison| said(&comparison))
        };
        for ours in players.iter().filter(pair) {
            equal(ours, theirs)?;
            if case.task == Task::Greedy {
                checks.push(tokens(ours, theirs)?);
            } else if case.task != Task::Sample {
                checks.extend(values(ours, theirs)?);
            }
        }
    }
    Ok(checks)
}

fn equal(ours: &Player, theirs: &Player) -> Result<()> {
    let (a, b) = (&ours.loaded, &theirs.loaded);
    let (who_a, who_b) = (ours.name(), theirs.name());
    let differ =
        |what: &str, x: String, y: String| -> Result<()> { bail!("{what} differ: {who_a} has {x}, {who_b} has {y}") };
    let (threads_a, threads_b) = (ours.worker.hello.threads, theirs.worker.hello.threads);
    if threads_a != threads_b {
        return differ("threads", threads_a.to_string(), threads_b.to_string());
    }
    if a.data != b.data {
        return differ("tokens", format!("{:?}", a.data), format!("{:?}", b.data));
    }
    if a.compute != b.compute {
        return differ("kinds", a.compute.clone(), b.compute.clone());
    }
    let rounded = theirs.side.way.split('+').next() == Some("bf16");
    let near = if rounded { NEAR_ROUNDED } else { NEAR_WEIGHTS };
    let (x, y) = (a.weights, b.weights);
    let apart = (x.sum - y.sum).abs().max((x.abs - y.abs).abs());
    if x.n != y.n || beyond(apart, near * x.abs) {
        return differ("weights", format!("{x:?}"), format!("{y:?}"));
    }
    Ok(())
}

/// Whether a difference is more than allowed; what is not a number is.
fn beyond(difference: f64, allowed: f64) -> bool {
    difference.partial_cmp(&allowed).is_none_or(|order| order.is_gt())
}

/// The first losses, and whatever else both sides report of them.
fn values(ours: &Player, theirs: &Player) -> Result<Vec<Check>> {
    let fp32 = ours.loaded.compute == "float32";
    let near = if fp32 { NEAR_FP32 } else { NEAR_BF16 };
    let mut checks = Vec::new();
    for (what, theirs_all) in &theirs.first.values {
        let Some(ours_all) = ours.first.values.get(what) else {
            continue;
        };
        // In bf16 the updates differ too; in fp32 the norm of the gradient says that its direction is the same maths.
        for (step, (&x, &y)) in ours_all.iter().zip(theirs_all).enumerate() {
            if step > 0 && !(fp32 && what == "loss") {
                continue;
            }
            if beyond((x - y).abs(), near * y.abs().max(1.0)) {
                let (a, b) = (ours.name(), theirs.name());
                bail!("`{what}` of step {} differs: {a} has {x}, {b} has {y}", step + 1);
            }
            checks.push(Check {
                what: format!("{what}, step {}", step + 1),
                ours_way: ours.side.way.clone(),
                theirs_way: theirs.side.way.clone(),
                ours: x,
                theirs: y,
            });
        }
    }
    if !checks.iter().any(|check| check.what.starts_with("loss")) {
        bail!("{} and {} have no loss to compare", ours.name(), theirs.name());
    }
    Ok(checks)
}

/// How many of the greedy tokens are equal; in fp32 all have to be.
fn tokens(ours: &Player, theirs: &Player) -> Result<Check> {
    let (a, b) = (&ours.first.ids, &theirs.first.ids);
    let total: usize = b.iter().map(Vec::len).sum();
    let equal: usize = a
        .iter()
        .zip(b)
        .map(|(x, y)| x.iter().zip(y).take_while(|(x, y)| x == y).count())
        .sum();
    if total == 0 || a.iter().map(Vec::len).sum::<usize>() != total {
        bail!("{} and {} made different numbers of tokens", ours.name(), theirs.name());
    }
    if ours.loaded.compute == "float32" && equal < total {
        let (a, b) = (ours.name(), theirs.name());
        bail!("{a} and {b} differ after {equal} of {total} greedy tokens");
    }
    Ok(Check {
        what: "equal greedy tokens, up to the first that differs in a row".to_owned(),
        ours_way: ours.side.way.clone(),
        theirs_way: theirs.side.way.clone(),
        ours: equal as f64,
        theirs: total as f64,
    })
}
