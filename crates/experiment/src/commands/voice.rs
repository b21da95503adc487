//! A model with its tokenizer, ready to be spoken to.

use anyhow::Result;
use tch::Device;
use unsay_data::catalog::{Places, models};
use unsay_data::{Limits, Message, Tokenizer, encode_chat, encode_prompt};
use unsay_model::{Beam, Decoder, EarlyStopping, Engine, Generation, Listener, Precision, Sampling};
use unsay_rl::Draws;

use super::Usage;
use super::named::ModelPlace;
use crate::cli::{ModelArgs, PrecisionName, SamplingArgs};

/// Longest prompt, in tokens: the model's positions bound it, and say so.
const ANY_LENGTH: usize = 1 << 22;
/// Completions made at once.
const BATCH: usize = 16;

/// A model that speaks.
pub struct Voice {
    /// The model, laid out once for all replies.
    engine: Engine<'static>,
    /// How many weights it has.
    pub n_weights: usize,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

/// One reply.
pub struct Reply {
    /// Its text.
    pub text: String,
    /// Whether the model ended it itself.
    pub finished: bool,
}

impl Voice {
    /// Loads a model, with an adapter if one is given.
    pub fn load(place: &ModelPlace, args: &ModelArgs, device: Device) -> Result<Self> {
        let precision = match args.precision {
            None | Some(PrecisionName::Fp32) => Precision::Fp32 {},
            Some(PrecisionName::Bf16) => Precision::Bf16 { even_if_slower: false },
            Some(PrecisionName::Bf16EvenIfSlower) => Precision::Bf16 { even_if_slower: true },
        };
        let folder = match place {
            ModelPlace::Folder(folder) => folder.clone(),
            ModelPlace::Catalog(name) => models::locate(name, &Places::from_environment(), &mut say)?,
        };
        let tokenizer = Tokenizer::from_folder(&folder)?;
        let mut decoder = Decoder::load(&folder, device)?;
        tokenizer.check_fits(decoder.config().vocab_size)?;
        if let Some(adapter) = &args.adapter {
            decoder.load_adapter(adapter)?.iter().for_each(|note| say(note));
        }
        let decoder = decoder.with_precision(precision)?;
        Ok(Self {
            n_weights: decoder.params().numel(),
            engine: Engine::taking(decoder)?,
            tokenizer,
        })
    }

    /// Tokens that the model can read and write in all.
    pub fn positions(&self) -> usize {
        self.engine.config().max_position_embeddings
    }

    /// What the model reads before it answers a conversation.
    pub fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>> {
        if self.tokenizer.is_chat() {
            return Ok(encode_chat(&self.tokenizer, messages, ANY_LENGTH)?);
        }
        let turns: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
        let limits = Limits {
            max_prompt: ANY_LENGTH,
            max_completion: 1,
        };
        Ok(encode_prompt(&self.tokenizer, &turns.join("\n"), &limits)?)
    }

    /// Replies to a prompt that is given as ids, `n` of them; the draws are those of a prompt at `position`.
    pub fn speak(
        &self,
        prompt: &[u32],
        n: usize,
        sampling: &Sampling,
        (seed, position): (u64, usize),
        listener: &mut dyn Listener,
    ) -> Result<Vec<Reply>> {
        let prompts = vec![prompt.to_vec(); n];
        let mut draws: Vec<Draws> = (0..n).map(|sample| Draws::new(seed, position, sample)).collect();
        let mut draw = |row: usize, step: usize| draws[row].at(step);
        let ends = self.tokenizer.ends();
        let request = Generation::on(&self.engine, sampling, ends)
            .batch(BATCH)
            .draws(&mut draw);
        let made = request.listener(listener).run(&prompts)?;
        let reply = |one: unsay_model::Generated| {
            Ok(Reply {
                text: self.tokenizer.decode(&one.ids)?,
                finished: one.finished,
            })
        };
        made.into_iter().map(reply).collect()
    }
}

/// Said while a model is fetched and made.
pub fn say(line: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

impl SamplingArgs {
    /// What the options say, and what they leave out.
    pub fn sampling(&self, greedy: bool) -> Result<Sampling> {
        const TEMPERATURE: f64 = 0.7;
        const TOP_P: f64 = 0.9;
        const LONGEST: usize = 256;
        let least = Sampling::new(self.max_new_tokens.unwrap_or(LONGEST));
        if self.length_penalty.is_some() && self.beams.is_none() {
            return Err(Usage("`--length-penalty` is for `--beams`".into()).into());
        }
        let beam = self.beams.map(|size| Beam {
            size,
            length_penalty: self.length_penalty.unwrap_or(1.0),
            early_stopping: EarlyStopping::default(),
        });
        let (temperature, top_p) = if greedy || beam.is_some() {
            (self.temperature.unwrap_or(least.temperature), self.top_p)
        } else {
            (
                self.temperature.unwrap_or(TEMPERATURE),
                Some(self.top_p.unwrap_or(TOP_P)),
            )
        };
        let sampling = Sampling {
            temperature,
            top_p,
            top_k: self.top_k,
            min_new_tokens: self.min_new_tokens.unwrap_or(0),
            block_ngram: self.block_ngram,
            greedy,
            beam,
            ..least
        };
        sampling.check().map_err(|e| Usage(e.to_string()))?;
        Ok(sampling)
    }

    /// Where no option says how long a reply may be: at most half of the model's positions.
    pub fn within(&self, sampling: Sampling, positions: usize) -> Sampling {
        if self.max_new_tokens.is_some() {
            return sampling;
        }
        let longest = sampling.max_new_tokens.min(positions / 2);
        Sampling {
            max_new_tokens: longest.max(sampling.min_new_tokens).max(1),
            ..sampling
        }
    }

    /// The options by name, and whether each was given.
    pub fn given(&self) -> [(&'static str, bool); 8] {
        [
            ("--max-new-tokens", self.max_new_tokens.is_some()),
            ("--min-new-tokens", self.min_new_tokens.is_some()),
            ("--temperature", self.temperature.is_some()),
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--block-ngram", self.block_ngram.is_some()),
            ("--beams", self.beams.is_some()),
            ("--length-penalty", self.length_penalty.is_some()),
        ]
    }
}

impl ModelArgs {
    /// The options by name, and whether each was given.
    pub fn given(&self) -> [(&'static str, bool); 3] {
        [
            ("--adapter", self.adapter.is_some()),
            ("--system", self.system.is_some()),
            ("--precision", self.precision.is_some()),
        ]
    }
}
