//! `unsay generate`.

use std::fmt::Write as _;
use std::io::BufRead;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use unsay_data::{Example, Label, Tokenizer};
use unsay_model::{Decoder, Sampling};
use unsay_rl::{RolloutSettings, rollout};

use super::{Prepared, Usage, open, prepare};
use crate::cli::{GenerateArgs, print};
use crate::plan::{Checkpoint, Point};
use crate::steps::Models;
use crate::store::Store;

/// A model of one arm.
struct Voice {
    arm: String,
    decoder: Decoder,
}

/// Completes prompts with the final models of the arms asked for.
pub fn generate(args: &GenerateArgs) -> Result<ExitCode> {
    let device = open(&args.device)?;
    let p = prepare(&args.question, device)?;
    let store = Store::view(&args.question.runs.join("store"));
    let seed = args
        .seed
        .or(p.question.seeds.first().copied())
        .context("the manifest has no seeds")?;
    if !p.question.seeds.contains(&seed) {
        return Err(Usage(format!("no seed {seed} in the manifest; seeds: {:?}", p.question.seeds)).into());
    }
    let models = Models {
        plan: &p.plan,
        store: &store,
        device,
        say: &|_| {},
    };
    let mut voices = Vec::new();
    let mut tokenizer = None;
    for arm in &args.arms {
        let point = point(&p, arm, seed)?;
        let evaluate = &p.plan.steps[point.evaluate];
        let step = |role: &str| {
            evaluate
                .input(role)
                .map(|i| &p.plan.steps[i])
                .context("the plan is incomplete")
        };
        let (model, tokens) = (step("model")?, step("tokenizer")?);
        if !store.has(model) {
            bail!(
                "`{}` is not in the store; hint: unsay run {}",
                model.title,
                args.question.manifest.display()
            );
        }
        voices.push(Voice {
            arm: arm.clone(),
            decoder: models.decoder(model, Checkpoint::Best)?,
        });
        tokenizer = Some(models.tokenizer(tokens)?);
    }
    let tokenizer = tokenizer.context("no arms were named")?;
    let sampling = &p.question.evaluate.sampling;
    let sampling = if args.greedy {
        Sampling::greedy(sampling.max_new_tokens)
    } else {
        sampling.clone()
    };
    let settings = RolloutSettings {
        samples_per_prompt: usize::from(args.n),
        batch: 64,
        sampling,
    };
    match &args.prompt {
        Some(prompt) => speak(
            &p,
            &voices,
            &tokenizer,
            &settings,
            &prompt.replace("\\n", "\n"),
            args.sample_seed,
        )?,
        None => {
            for line in std::io::stdin().lock().lines() {
                let line = line.context("cannot read the prompts")?;
                if !line.trim().is_empty() {
                    speak(
                        &p,
                        &voices,
                        &tokenizer,
                        &settings,
                        &line.replace("\\n", "\n"),
                        args.sample_seed,
                    )?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn point<'a>(p: &'a Prepared, arm: &str, seed: u64) -> Result<&'a Point> {
    p.plan
        .points
        .iter()
        .find(|x| x.arm == arm && x.seed == seed && x.last_iteration && x.checkpoint == Checkpoint::Best)
        .ok_or_else(|| {
            let known: Vec<&str> = p.question.arms.keys().map(String::as_str).collect();
            Usage(format!("no arm `{arm}` in the manifest; arms: {}", known.join(", "))).into()
        })
}

fn speak(
    p: &Prepared,
    voices: &[Voice],
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
    let width = voices.iter().map(|v| v.arm.chars().count()).max().unwrap_or(0);
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
            let _ = writeln!(out, "{:>width$}: {}{cut}", voice.arm, reply.completion.trim());
        }
    }
    print(&out)
}
