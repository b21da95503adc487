//! `unsay report`.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::ReportArgs;
use crate::output::print;
use crate::results;

/// Remakes figures and page from the tables.
pub fn report(args: &ReportArgs) -> Result<ExitCode> {
    let files = results::remake(&args.results)?;
    print(&format!(
        "{} files written in {}\n",
        files.len(),
        args.results.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}
