//! `unsay plan`.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;

use super::{Usage, prepare};
use crate::cli::RunArgs;
use crate::output::print;
use crate::store::Store;

/// Shows the steps in order, with their state in the store.
pub fn plan(args: &RunArgs) -> Result<ExitCode> {
    let device = unsay_model::device::parse(&args.device.device).map_err(|e| Usage(e.to_string()))?;
    let p = prepare(&args.question, device)?;
    let store = Store::view(&args.question.runs.join("store"));
    let mut out = format!("{} / {}: {}\n", p.question.name, p.profile, p.question.question);
    let mut cached = 0;
    for (i, step) in p.plan.steps.iter().enumerate() {
        let state = if store.has(step) {
            cached += 1;
            "cached"
        } else if store.begun(step) {
            "begun"
        } else {
            "to run"
        };
        let inputs: Vec<String> = step.inputs.iter().map(|(_, i)| (i + 1).to_string()).collect();
        let _ = writeln!(
            out,
            "{:>4}  {state:<7} {}  {:<60} {}",
            i + 1,
            step.key,
            step.title,
            inputs.join(" ")
        );
    }
    let _ = writeln!(
        out,
        "{} steps, {cached} cached (last column: the steps each one reads)",
        p.plan.steps.len()
    );
    print(&out)?;
    Ok(ExitCode::SUCCESS)
}
