//! `unsay check`.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::CheckArgs;
use crate::manifest::{Manifest, Mistakes};
use crate::output::print;
use crate::plan::{Place, build};

/// Checks every profile; mistakes that several profiles share are shown once.
pub fn check(args: &CheckArgs) -> Result<ExitCode> {
    let manifest = Manifest::read(&args.manifest)?;
    let mut shown: Vec<String> = Vec::new();
    let mut lines = Vec::new();
    for profile in manifest.profiles() {
        match manifest.resolve(Some(profile), &args.set) {
            Ok((_, question)) => {
                let plan = build::build(&question, Place::default())?;
                lines.push(format!(
                    "{}: profile {profile}: {} arms, {} seeds, {} steps\n",
                    args.manifest.display(),
                    question.arms.len(),
                    question.seeds.len(),
                    plan.steps.len()
                ));
            }
            Err(mistakes) => {
                for text in mistakes.shown {
                    if !shown.contains(&text) {
                        shown.push(text);
                    }
                }
            }
        }
    }
    if !shown.is_empty() {
        return Err(Mistakes { shown }.into());
    }
    print(&lines.concat())?;
    Ok(ExitCode::SUCCESS)
}
