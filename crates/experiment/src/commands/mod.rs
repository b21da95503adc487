//! One file per subcommand.

pub mod chat;
pub mod check;
pub mod export;
pub mod generate;
pub mod list;
pub mod named;
pub mod plan;
pub mod report;
pub mod run;
pub mod voice;

use anyhow::Result;
use tch::Device;

use crate::cli::{DeviceArgs, ManifestArgs};
use crate::manifest::Manifest;
use crate::manifest::question::Question;
use crate::plan::{Place, Plan, build};

/// The command line asks for something that cannot be: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The device of a command line, opened.
pub fn open(device: &DeviceArgs) -> Result<Device> {
    unsay_model::device::parse(&device.device).map_err(|e| Usage(e.to_string()))?;
    Ok(unsay_model::device::open(&device.device)?)
}

/// A manifest read, resolved and planned.
pub struct Prepared {
    /// Name of the profile.
    pub profile: String,
    /// The question.
    pub question: Question,
    /// Its steps.
    pub plan: Plan,
}

/// Reads, checks and plans for a device.
pub fn prepare(args: &ManifestArgs, device: Device) -> Result<Prepared> {
    let manifest = Manifest::read(&args.manifest)?;
    let (profile, question) = manifest.resolve(args.profile.as_deref(), &args.set)?;
    let plan = build::build(&question, Place::of(device))?;
    Ok(Prepared {
        profile,
        question,
        plan,
    })
}
