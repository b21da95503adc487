//! What a training sees: its sets of encoded examples, counted, and the states that were made of them.

use anyhow::{Context, Result, bail};
use rand::RngCore;
use serde::Serialize;
use unsay_data::{
    Encoded, EncodedPair, Example, Label, Limits, Supervision, Tokenizer, encode_all, encode_pairs, pair_up, stream,
};
use unsay_train::{Examples, PrefixStates, ReferenceLogps, Sample, Source};

use super::Work;
use super::rollout::{REPLIES, SelectionFile};
use super::{reference, states};
use crate::manifest::question::{LimitsBlock, MixtureBlock};
use crate::plan::Which;
use crate::store::write_atomic;

/// What the training sees, counted before its first step.
const SUPERVISION: &str = "supervision.json";
/// The set that chooses the best weights.
const VALIDATION: &str = "validation";

/// The sources of a training by name, and its validation set.
pub(super) struct Sets<E = Encoded> {
    sources: Vec<(String, Source<E>)>,
    valid: Source<E>,
    seen: Vec<(String, Supervision)>,
}

impl Sets {
    /// Unfiltered text.
    pub(super) fn of_pretraining(work: &Work<'_>, limits: &LimitsBlock) -> Result<Self> {
        let tokenizer = work.tokenizer()?;
        let mut encoder = Encoder::new(&tokenizer, limits);
        let train = encoder.source("pretraining", &work.examples("pretraining", "train")?, 1.0)?;
        let valid = encoder.source("pretraining, validation", &work.examples("pretraining", "valid")?, 1.0)?;
        Ok(encoder.sets(vec![("pretraining".to_owned(), train)], valid))
    }

    /// The data that all arms share.
    pub(super) fn of_arms(work: &Work<'_>, limits: &LimitsBlock, mixture: &MixtureBlock) -> Result<Self> {
        let tokenizer = work.tokenizer()?;
        let mut encoder = Encoder::new(&tokenizer, limits);
        let mut sources = Vec::new();
        let mut valid = Vec::new();
        for (role, weight) in [("dialogue", mixture.dialogue), ("feedback", mixture.feedback)] {
            if weight > 0.0 {
                sources.push((
                    role.to_owned(),
                    encoder.source(role, &work.examples(role, "train")?, weight)?,
                ));
                valid.extend(work.examples(role, "valid")?);
            }
        }
        sources.extend(encoder.own(work, mixture.own)?);
        let valid = encoder.source(VALIDATION, &valid, 1.0)?;
        Ok(encoder.sets(sources, valid))
    }

    /// The half of the labelled prompts that a classifier learns from.
    pub(super) fn of_classifier(work: &Work<'_>, limits: &LimitsBlock, which: Which) -> Result<Self> {
        let tokenizer = work.tokenizer()?;
        let mut encoder = Encoder::new(&tokenizer, limits);
        let mut half = labelled(work, "train")?;
        half.retain(|e| half_of(&e.prompt) == which);
        let name = format!("half {}", which.name().to_uppercase());
        let train = encoder.source(&name, &half, 1.0)?;
        let valid = encoder.source(VALIDATION, &labelled(work, "valid")?, 1.0)?;
        Ok(encoder.sets(vec![(name, train)], valid))
    }

    /// The states of every set, where steps of the plan made them.
    pub(super) fn states(&self, work: &Work<'_>) -> Result<Option<Vec<PrefixStates>>> {
        if work.step.input(states::ROLE).is_none() {
            return Ok(None);
        }
        let open = |(name, encoded): (&str, &[Encoded])| {
            let dir = match name.strip_prefix("own-") {
                Some(_) => work.input(&states::role_of_own(name))?,
                None => work.input(states::ROLE)?,
            };
            let file = states::file(&dir, name);
            PrefixStates::open(&file, encoded).with_context(|| super::unreadable(&dir))
        };
        self.named().map(open).collect::<Result<_>>().map(Some)
    }
}

impl Sets<EncodedPair> {
    /// The pairs of safe and unsafe replies to one prompt.
    pub(super) fn of_pairs(work: &Work<'_>, limits: &LimitsBlock) -> Result<Self> {
        let tokenizer = work.tokenizer()?;
        let mut encoder = Encoder::new(&tokenizer, limits);
        let train = encoder.pairs("feedback", "train", &work.examples("feedback", "train")?)?;
        let valid = encoder.pairs(VALIDATION, "valid", &work.examples("feedback", "valid")?)?;
        Ok(encoder.sets(vec![("feedback".to_owned(), train)], valid))
    }

    /// The log-probabilities of every set under the reference, where a step of the plan made them.
    pub(super) fn reference(&self, work: &Work<'_>) -> Result<Option<Vec<ReferenceLogps>>> {
        if work.step.input(reference::ROLE).is_none() {
            return Ok(None);
        }
        let dir = work.input(reference::ROLE)?;
        let open = |(name, pairs): (&str, &[EncodedPair])| {
            ReferenceLogps::open(&reference::file(&dir, name), pairs).with_context(|| super::unreadable(&dir))
        };
        self.named().map(open).collect::<Result<_>>().map(Some)
    }
}

impl<E: Sample> Sets<E> {
    /// The sets by name, the validation set last.
    pub(super) fn named(&self) -> impl Iterator<Item = (&str, &[E])> {
        let sources = self.sources.iter().map(|(name, source)| (name.as_str(), source));
        sources
            .chain([(VALIDATION, &self.valid)])
            .map(|(name, source)| (name, source.encoded.as_slice()))
    }

    /// The same as values.
    pub(super) fn into_named(self) -> Vec<(String, Vec<E>)> {
        let sources = self.sources.into_iter();
        sources
            .chain([(VALIDATION.to_owned(), self.valid)])
            .map(|(name, source)| (name, source.encoded))
            .collect()
    }

    /// For the training loop.
    pub(super) fn examples(self) -> Result<Examples<E>> {
        Ok(Examples::new(
            self.sources.into_iter().map(|(_, s)| s).collect(),
            self.valid,
        )?)
    }

    /// Says what will be trained on, before the first step.
    pub(super) fn report(&self, work: &Work<'_>) -> Result<()> {
        #[derive(Serialize)]
        struct Row<'a> {
            source: &'a str,
            #[serde(flatten)]
            supervision: &'a Supervision,
        }
        let rows: Vec<Row<'_>> = self
            .seen
            .iter()
            .map(|(source, supervision)| Row { source, supervision })
            .collect();
        write_atomic(
            &work.dir.join(SUPERVISION),
            serde_json::to_string_pretty(&rows)?.as_bytes(),
        )?;
        let lines: Vec<String> = self
            .seen
            .iter()
            .map(|(what, s)| {
                format!(
                    "    {what:<24} {:>6} examples, tokens +{} -{} ={}; cut {} (-{} tokens), dropped {}",
                    s.examples,
                    s.tokens_positive,
                    s.tokens_negative,
                    s.tokens_unlabelled,
                    s.examples_cut,
                    s.tokens_cut_prompt + s.tokens_cut_completion,
                    s.dropped
                )
            })
            .collect();
        work.meter.say(&format!(
            "  {} sees (+ positive, - negative, = unlabelled):\n{}",
            work.step.title,
            lines.join("\n")
        ));
        Ok(())
    }
}

/// The model's own replies of one round, by the name of their source; none where the round kept none.
pub(super) fn own(work: &Work<'_>, limits: &LimitsBlock) -> Result<Vec<(String, Vec<Encoded>)>> {
    let tokenizer = work.tokenizer()?;
    let sources = Encoder::new(&tokenizer, limits).own(work, 1.0)?;
    Ok(sources
        .into_iter()
        .map(|(name, source)| (name, source.encoded))
        .collect())
}

/// Said of a split in which no prompt has replies of both kinds.
pub fn no_pairs(split: &str) -> String {
    format!(
        "feedback, split `{split}`: expected positive and negative replies to one prompt, got none; hint: arms that train on \
         pairs need them: `prompt`, `chosen`, `rejected`, or labelled replies of which some answer the same prompt"
    )
}

/// Labelled feedback of a split.
pub(super) fn labelled(work: &Work<'_>, split: &str) -> Result<Vec<Example>> {
    let mut examples = work.examples("feedback", split)?;
    examples.retain(|e| e.label != Label::Unlabelled);
    Ok(examples)
}

/// Which classifier sees a prompt. Halves are of prompts, not of examples, so that no context is in both.
fn half_of(prompt: &str) -> Which {
    if stream(0, &format!("classifier half: {prompt}"), 0).next_u32() & 1 == 0 {
        Which::A
    } else {
        Which::B
    }
}

/// Encodes sources and counts what the training will see of them.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    block: &'a LimitsBlock,
    limits: Limits,
    seen: Vec<(String, Supervision)>,
}

impl<'a> Encoder<'a> {
    fn new(tokenizer: &'a Tokenizer, block: &'a LimitsBlock) -> Self {
        Self {
            tokenizer,
            block,
            limits: block.limits(),
            seen: Vec::new(),
        }
    }

    fn source(&mut self, what: &str, examples: &[Example], weight: f64) -> Result<Source> {
        let (encoded, supervision) = encode_all(self.tokenizer, examples, &self.limits)?;
        supervision
            .check(self.block.max_dropped_share, self.block.max_cut_share)
            .with_context(|| format!("examples of `{what}`"))?;
        self.seen.push((what.to_owned(), supervision));
        Ok(Source {
            encoded,
            ids: examples.iter().map(|e| e.id.clone()).collect(),
            weight,
        })
    }

    /// The pairs among the examples of a split.
    fn pairs(&mut self, what: &str, split: &str, examples: &[Example]) -> Result<Source<EncodedPair>> {
        let pairs = pair_up(examples);
        if pairs.is_empty() {
            bail!("{}", no_pairs(split));
        }
        let (encoded, sides) = encode_pairs(self.tokenizer, examples, &pairs, &self.limits)?;
        for (side, account) in ["chosen", "rejected"].into_iter().zip(sides) {
            account
                .check(self.block.max_dropped_share, self.block.max_cut_share)
                .with_context(|| format!("pairs of `{what}`, {side}"))?;
            self.seen.push((format!("{what}, {side}"), account));
        }
        Ok(Source {
            encoded,
            ids: pairs.iter().map(|&(chosen, _)| examples[chosen].id.clone()).collect(),
            weight: 1.0,
        })
    }

    /// The model's own replies of each earlier round.
    fn own(&mut self, work: &Work<'_>, weight: f64) -> Result<Vec<(String, Source)>> {
        let mut sources = Vec::new();
        for (role, _) in work.step.inputs.iter().filter(|(role, _)| role.starts_with("own-")) {
            let dir = work.input(role)?;
            if SelectionFile::read(&dir)?.counts.kept == 0 {
                // A round that found nothing to balance adds nothing; its selection file says why.
                work.meter
                    .say(&format!("  {}: `{role}` has no replies to train on", work.step.title));
            } else {
                let replies = unsay_data::read_examples(dir.join(REPLIES))?;
                sources.push((role.clone(), self.source(role, &replies, weight)?));
            }
        }
        Ok(sources)
    }

    fn sets<E>(self, sources: Vec<(String, Source<E>)>, valid: Source<E>) -> Sets<E> {
        Sets {
            sources,
            valid,
            seen: self.seen,
        }
    }
}
