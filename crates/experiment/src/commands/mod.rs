//! One file per subcommand.

pub mod check;
pub mod generate;
pub mod list;
pub mod plan;
pub mod report;
pub mod run;

use anyhow::Result;

use crate::cli::ManifestArgs;
use crate::manifest::Manifest;
use crate::manifest::question::Question;
use crate::plan::{Plan, build};

/// The command line asks for something that cannot be: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// A manifest read, resolved and planned.
pub struct Prepared {
    /// Name of the profile.
    pub profile: String,
    /// The question.
    pub question: Question,
    /// Its steps.
    pub plan: Plan,
}

/// Reads, checks and plans.
pub fn prepare(args: &ManifestArgs) -> Result<Prepared> {
    let manifest = Manifest::read(&args.manifest)?;
    let (profile, question) = manifest.resolve(args.profile.as_deref(), &args.set)?;
    let plan = build::build(&question)?;
    Ok(Prepared {
        profile,
        question,
        plan,
    })
}
