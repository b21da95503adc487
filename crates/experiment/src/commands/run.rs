//! `unsay run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use super::{Prepared, Usage, open, prepare};
use crate::cli::RunArgs;
use crate::output::print;
use crate::results;
use crate::run::{self, Ended, Job, stop::Stop};
use crate::store::Store;

/// Runs what is missing, then writes the results.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    unsay_model::memory::restart_with_settings();
    let device = open(&args.device)?;
    let p = prepare(&args.question, device)?;
    let folder = results_folder(args, &p)?;
    let stop = Stop::on_signals()?;
    let store = Store::open(&args.question.runs.join("store"))?;
    // A folder that cannot be made is better known before the work than after it.
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the results folder `{}`", folder.display()))?;
    let begun = Instant::now();
    let workers = args.workers.map_or_else(
        || std::thread::available_parallelism().map_or(1, usize::from),
        usize::from,
    );
    let job = Job {
        plan: &p.plan,
        store: &store,
        device,
        stop: &stop,
    };
    match run::run(job, workers)? {
        Ended::Complete => {
            let overrides: Vec<String> = args.question.set.iter().map(|o| o.text.clone()).collect();
            results::write(&p, &store, &folder, &overrides)?;
            print(&format!(
                "{} steps in {:.0} s; results: {}\n",
                p.plan.steps.len(),
                begun.elapsed().as_secs_f64(),
                folder.join("README.md").display()
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Ended::Stopped => {
            print("stopped; everything so far is saved. To go on, give the same command again.\n")?;
            Ok(ExitCode::from(1))
        }
    }
}

/// `results/NAME/PROFILE`, or what the user says; with overrides the user has to say.
fn results_folder(args: &RunArgs, p: &Prepared) -> Result<PathBuf> {
    match &args.results {
        Some(folder) => Ok(folder.clone()),
        None if args.question.set.is_empty() => Ok(results::folder(p)),
        None => Err(Usage(
            "with --set, say where the results go: --results FOLDER (those of the manifest as it stands are kept)"
                .into(),
        )
        .into()),
    }
}
