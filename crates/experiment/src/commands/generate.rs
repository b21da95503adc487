//! `unsay generate`.

use std::fmt::Write as _;
use std::io::BufRead;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use unsay_data::{Example, Label, Message, Tokenizer};
use unsay_model::{Decoder, Listener, Sampling};
use unsay_rl::{RolloutSettings, rollout};

use super::named::{ModelPlace, Named, refuse};
use super::voice::Voice;
use super::{Prepared, Usage, open, prepare};
use crate::cli::{GenerateArgs, ManifestArgs};
use crate::output::speak;
use crate::plan::{Checkpoint, Point, Step};
use crate::steps::Models;
use crate::store::Store;

/// Completes prompts with the final models of the arms of a manifest, or with any model.
pub fn generate(args: &GenerateArgs) -> Result<ExitCode> {
    match Named::find(&args.what)? {
        Named::Manifest(manifest) => {
            let given = [&args.model.given()[..], &args.sampling.given(), &[("--raw", args.raw)]].concat();
            refuse(&given, "a manifest", "it says itself how its models speak")?;
            arms(args, manifest)
        }
        Named::Model(place) => {
            let a = &args.arms;
            let given = [
                ("--arms", !a.arms.is_empty()),
                ("--seed", a.seed.is_some()),
                ("--profile", a.profile.is_some()),
                ("--set", !a.set.is_empty()),
                ("--runs", a.runs.is_some()),
            ];
            refuse(&given, "a model", "give a manifest to compare its arms")?;
            model(args, &place)
        }
    }
}

/// Calls `complete` with the prompt that was given, or with each line of standard input.
fn prompts(args: &GenerateArgs, complete: &mut dyn FnMut(&str) -> Result<()>) -> Result<ExitCode> {
    match &args.prompt {
        Some(prompt) => complete(prompt)?,
        None => {
            for line in std::io::stdin().lock().lines() {
                let line = line.context("cannot read the prompts")?;
                if !line.trim().is_empty() {
                    complete(&line)?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Nobody listens.
struct Silence;

impl Listener for Silence {}

fn model(args: &GenerateArgs, place: &ModelPlace) -> Result<ExitCode> {
    if args.raw && args.model.system.is_some() {
        return Err(Usage("`--system` is not for `--raw`: a text that is continued has no conversation".into()).into());
    }
    let sampling = args.sampling.sampling(args.greedy)?;
    if sampling.beam.is_some() && args.n > 1 {
        return Err(Usage("`-n` is not for `--beams`: a search finds one completion".into()).into());
    }
    let voice = Voice::load(place, &args.model, open(&args.device)?)?;
    let sampling = args.sampling.within(sampling, voice.positions());
    if !voice.tokenizer.is_chat() && args.model.system.is_some() {
        return Err(Usage("`--system` is for models with a chat template, which this one has not".into()).into());
    }
    prompts(args, &mut |prompt| {
        let ids = if args.raw {
            voice.tokenizer.encode_text(prompt)?
        } else {
            let system = args.model.system.iter().map(|text| Message::new("system", text));
            let messages: Vec<Message> = system.chain([Message::new("user", prompt)]).collect();
            voice.conversation(&messages)?
        };
        let replies = voice.speak(
            &ids,
            usize::from(args.n),
            &sampling,
            (args.sample_seed, 0),
            &mut Silence,
        )?;
        let mut out = format!("> {}\n", prompt.replace('\n', "\n> "));
        for reply in replies {
            let _ = writeln!(out, "{}{}", reply.text.trim(), if reply.finished { "" } else { " …" });
        }
        speak(&out)
    })
}

/// A model of one arm.
struct Arm {
    name: String,
    decoder: Decoder,
}

fn arms(args: &GenerateArgs, manifest: std::path::PathBuf) -> Result<ExitCode> {
    let a = &args.arms;
    if a.arms.is_empty() {
        return Err(Usage("a manifest needs `--arms`: which of them to compare".into()).into());
    }
    let device = open(&args.device)?;
    let question = ManifestArgs::of(manifest, a.profile.as_ref(), &a.set, a.runs.as_ref());
    let p = prepare(&question, device)?;
    let store = Store::view(&question.runs.join("store"));
    let seed = seed_of(&p, a.seed)?;
    let models = Models {
        plan: &p.plan,
        store: &store,
        device,
        say: &super::voice::say,
    };
    let mut voices = Vec::new();
    let mut tokenizer = None;
    for arm in &a.arms {
        let (evaluate, model) = ending(&p, &models, &question, (arm, seed, Checkpoint::Best))?;
        voices.push(Arm {
            name: arm.clone(),
            decoder: models
                .decoder(model, Checkpoint::Best)?
                .with_precision(p.question.evaluate.precision)?,
        });
        tokenizer = Some(models.tokenizer(models.input(evaluate, "tokenizer")?)?);
    }
    let tokenizer = tokenizer.context("no arms were named")?;
    let sampling = &p.question.evaluate.sampling;
    let settings = RolloutSettings {
        samples_per_prompt: usize::from(args.n),
        batch: 64,
        sampling: if args.greedy {
            Sampling::greedy(sampling.max_new_tokens)
        } else {
            sampling.clone()
        },
    };
    prompts(args, &mut |prompt| {
        side_by_side(
            &p,
            &voices,
            &tokenizer,
            &settings,
            &prompt.replace("\\n", "\n"),
            args.sample_seed,
        )
    })
}

/// The run seed that is meant: the first where none is named.
pub(super) fn seed_of(p: &Prepared, named: Option<u64>) -> Result<u64> {
    named
        .or(p.question.seeds.first().copied())
        .context("the manifest has no seeds")
}

/// What an arm of a seed ends with: its evaluation, which knows the tokenizer, and its model, which is in the store.
pub(super) fn ending<'a>(
    p: &'a Prepared,
    models: &'a Models<'_>,
    question: &ManifestArgs,
    (arm, seed, checkpoint): (&str, u64, Checkpoint),
) -> Result<(&'a Step, &'a Step)> {
    let evaluate = &p.plan.steps[point(p, arm, seed, checkpoint)?.evaluate];
    let model = models.input(evaluate, "model")?;
    if !models.store.has(model) {
        bail!("`{}` is not in the store; hint: {}", model.title, question.command());
    }
    Ok((evaluate, model))
}

/// The evaluated model that an arm of a seed ends with.
fn point<'a>(p: &'a Prepared, arm: &str, seed: u64, checkpoint: Checkpoint) -> Result<&'a Point> {
    if !p.question.seeds.contains(&seed) {
        return Err(Usage(format!("no seed {seed} in the manifest; seeds: {:?}", p.question.seeds)).into());
    }
    p.plan
        .points
        .iter()
        .find(|x| x.arm == arm && x.seed == seed && x.last_iteration && x.checkpoint == checkpoint)
        .ok_or_else(|| {
            let known: Vec<&str> = p.question.arms.keys().map(String::as_str).collect();
            Usage(format!("no arm `{arm}` in the manifest; arms: {}", known.join(", "))).into()
        })
}

fn side_by_side(
    p: &Prepared,
    voices: &[Arm],
    tokenizer: &Tokenizer,
    settings: &RolloutSettings,
    prompt: &str,
    seed: u64,
) -> Result<()> {
    let example = Example {
        id: "prompt".into(),
        prompt: prompt.to_owned(),
        completion: String::new(),
        label: Label::Unlabelled,
        seen_prompt: false,
        messages: Vec::new(),
    };
    let width = voices.iter().map(|v| v.name.chars().count()).max().unwrap_or(0);
    let mut out = format!("> {}\n", prompt.replace('\n', "\n> "));
    for voice in voices {
        let replies = rollout(
            &voice.decoder,
            tokenizer,
            &p.question.limits.limits(),
            std::slice::from_ref(&example),
            settings,
            seed,
            &mut |_| {},
        )?;
        for reply in replies {
            let cut = if reply.finished { "" } else { " …" };
            let _ = writeln!(out, "{:>width$}: {}{cut}", voice.name, reply.completion.trim());
        }
    }
    speak(&out)
}
