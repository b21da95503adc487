//! Generation with a key/value cache.

mod beam;
mod engine;
mod packed;
mod product;
mod queue;
mod rows;
mod slots;
mod store;

use std::collections::HashSet;
use std::ops::ControlFlow;

use tch::{Kind, Tensor, no_grad};

use crate::{Decoder, Error, Result, Sampling};

pub use engine::Engine;

/// One completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The tokens, without the token that ended it.
    pub ids: Vec<u32>,
    /// Log-probability of each token under the model itself (temperature 1, nothing filtered), the end
    /// token's included when it was chosen.
    pub logps: Vec<f32>,
    /// Whether a token of `ends` was chosen.
    pub finished: bool,
    /// Of a beam search, what the completion was found best by: the sum of its log-probs over its length, the end token
    /// counted, to the power of the length penalty.
    pub score: Option<f32>,
}

/// Hears of generation while it goes on. Nothing that is told decides a token.
pub trait Listener {
    /// `token` was chosen for a prompt; the token that ends a completion is not told. [`ControlFlow::Break`] ends the
    /// completion here, as its longest length would.
    fn token(&mut self, prompt: usize, token: u32) -> ControlFlow<()> {
        let _ = (prompt, token);
        ControlFlow::Continue(())
    }

    /// So many prompts are done so far.
    fn done(&mut self, prompts: usize) {
        let _ = prompts;
    }
}

/// Changes the scores of the next tokens: given states after the last norm [R, D] and logits [R, V], scores [R, V] to choose
/// by, such as the log-probabilities of two heads together.
pub type Guide<'a> = dyn Fn(&Tensor, &Tensor) -> Result<Tensor, Box<dyn std::error::Error + Send + Sync>> + 'a;

/// The uniform draw in [0, 1) that decides a token, by prompt and step.
pub type Draw<'a> = dyn FnMut(usize, usize) -> f32 + 'a;

/// Rows at once where nothing is said; each beam of a search is a row.
const BATCH: usize = 32;

/// A way to complete prompts: how tokens are chosen and what ends a completion, and what may be added to that.
///
/// A completion depends on its prompt and its draws, not on what it is made together with (up to the rounding of batched
/// products). Up to [`batch`](Self::batch) completions are made at once; a row takes the next prompt as soon as its own
/// has ended, longest prompts first. Prompts that are equal are computed once. Of tokens that are exactly as probable as
/// one another greedy generation takes the first.
///
/// ```
/// # use unsay_model::{Config, Decoder, Generation, Sampling, Size};
/// # use rand::{Rng, SeedableRng};
/// # let size = Size { hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1 };
/// # let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
/// # let decoder = Decoder::init(&Config::new(&size, 20, 32), &mut rng, tch::Device::Cpu)?;
/// let sampling = Sampling { top_p: Some(0.9), ..Sampling::new(4) };
/// let mut draw = |_prompt, _step| rng.random::<f32>();
/// let made = Generation::new(&decoder, &sampling, &[3]).batch(2).draws(&mut draw).run(&[vec![5, 6], vec![7]])?;
/// assert!(made.len() == 2 && made[0].ids.len() <= 4);
/// # Ok::<(), unsay_model::Error>(())
/// ```
#[must_use]
pub struct Generation<'a> {
    model: Model<'a>,
    sampling: &'a Sampling,
    ends: &'a [u32],
    batch: usize,
    guide: Option<&'a Guide<'a>>,
    draws: Option<&'a mut Draw<'a>>,
    listener: Option<&'a mut dyn Listener>,
    progress: Option<&'a mut dyn FnMut(usize)>,
}

#[derive(Debug, Clone, Copy)]
enum Model<'a> {
    /// To be laid out for this request alone.
    Decoder(&'a Decoder),
    Engine(&'a Engine<'a>),
}

impl<'a> Generation<'a> {
    /// Completions that end with the first of the tokens `ends`. The decoder is laid out for this one request; an
    /// [`Engine`] serves several.
    pub fn new(decoder: &'a Decoder, sampling: &'a Sampling, ends: &'a [u32]) -> Self {
        Self::of(Model::Decoder(decoder), sampling, ends)
    }

    /// The same with a decoder that is laid out already.
    pub fn on(engine: &'a Engine<'a>, sampling: &'a Sampling, ends: &'a [u32]) -> Self {
        Self::of(Model::Engine(engine), sampling, ends)
    }

    fn of(model: Model<'a>, sampling: &'a Sampling, ends: &'a [u32]) -> Self {
        Self {
            model,
            sampling,
            ends,
            batch: BATCH,
            guide: None,
            draws: None,
            listener: None,
            progress: None,
        }
    }

    /// Up to so many rows at once, 32 if nothing is said: a row is a completion, or a beam of one. Changes speed and memory,
    /// and log-probs by rounding, which can decide between tokens that are all but equal.
    pub fn batch(mut self, rows: usize) -> Self {
        self.batch = rows;
        self
    }

    /// Where draws come from; greedy generation and beams need none. Draws of a step may be asked for and not used.
    pub fn draws(mut self, draw: &'a mut Draw<'a>) -> Self {
        self.draws = Some(draw);
        self
    }

    /// Chooses by the scores of a guide: they are filtered and drawn from like logits, and [`Generated::logps`] are their
    /// log-softmax.
    pub fn guide(mut self, guide: &'a Guide<'a>) -> Self {
        self.guide = Some(guide);
        self
    }

    /// Someone who hears every token at once, and may end a completion. Of a beam search the tokens are told when they are
    /// decided, which is at the end.
    pub fn listener(mut self, listener: &'a mut dyn Listener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Told how many prompts are done so far.
    pub fn progress(mut self, progress: &'a mut dyn FnMut(usize)) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Completes each prompt, and returns the completions in the prompts' order.
    ///
    /// **Errors**: [`Error::Input`] for settings, prompts and draws out of range; [`Error::NonFinite`];
    /// [`Error::Guide`].
    pub fn run(mut self, prompts: &[Vec<u32>]) -> Result<Vec<Generated>> {
        self.check(prompts)?;
        let beams = self.sampling.beam.as_ref().map_or(1, |beam| beam.size);
        let rows = self.batch.max(beams).min(prompts.len() * beams);
        if rows == 0 {
            return Ok(Vec::new());
        }
        no_grad(|| {
            let own;
            let engine = match self.model {
                Model::Decoder(decoder) => {
                    own = Engine::for_request(decoder)?;
                    &own
                }
                Model::Engine(engine) => engine,
            };
            match &self.sampling.beam {
                Some(beam) => beam::complete(engine, &mut self, (prompts, beam), rows),
                None => rows::complete(engine, &mut self, prompts, rows),
            }
        })
    }

    fn check(&self, prompts: &[Vec<u32>]) -> Result<()> {
        let Self { sampling, ends, .. } = self;
        sampling.check()?;
        let config = match self.model {
            Model::Decoder(decoder) => decoder.config(),
            Model::Engine(engine) => engine.config(),
        };
        if self.batch == 0 {
            return Err(Error::input("generation batch", "at least 1", 0));
        }
        if !sampling.greedy && sampling.beam.is_none() && self.draws.is_none() {
            return Err(Error::input("draws", "a source of them, which sampling needs", "none"));
        }
        if let Some(beam) = &sampling.beam
            && beam.n_best(ends.len()) > config.vocab_size
        {
            let most = config.vocab_size / beam.n_best(ends.len()).div_ceil(beam.size);
            let expected = format!("at most {most} for a vocabulary of {}", config.vocab_size);
            return Err(Error::input("`size` of beams", expected, beam.size));
        }
        if ends.is_empty() {
            return Err(Error::input("end tokens", "at least one", "none"));
        }
        if let Some(end) = ends.iter().find(|&&end| end as usize >= config.vocab_size) {
            return Err(Error::input("end token", format!("below {}", config.vocab_size), end));
        }
        if sampling.block_ngram.is_some() && sampling.max_new_tokens >= config.vocab_size {
            let most = format!("below the vocabulary of {} (a token must stay free)", config.vocab_size);
            return Err(Error::input(
                "`max_new_tokens` with `block_ngram`",
                most,
                sampling.max_new_tokens,
            ));
        }
        if sampling.min_new_tokens > 0 {
            let n_ends = ends.iter().collect::<HashSet<_>>().len();
            // So many n-grams can have begun as the last tokens do.
            let used = sampling
                .block_ngram
                .map_or(0, |n| sampling.min_new_tokens.saturating_sub(n));
            if n_ends + used >= config.vocab_size {
                let expected = format!("a token of {} that stays free", config.vocab_size);
                let got = format!("{n_ends} end tokens and up to {used} that would repeat an n-gram");
                return Err(Error::input("`min_new_tokens` with bans", expected, got));
            }
        }
        let longest = config.max_position_embeddings;
        for (i, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(Error::input(format!("prompt {i}"), "at least one token", "none"));
            }
            if prompt.len().saturating_add(sampling.max_new_tokens) > longest {
                let got = format!("{} and {}", prompt.len(), sampling.max_new_tokens);
                let expected = format!("its length and `max_new_tokens` together at most {longest}");
                return Err(Error::input(format!("prompt {i}"), expected, got));
            }
            if let Some(id) = prompt.iter().find(|&&id| id as usize >= config.vocab_size) {
                return Err(Error::input(
                    format!("token of prompt {i}"),
                    format!("below {}", config.vocab_size),
                    id,
                ));
            }
        }
        Ok(())
    }

    /// A uniform draw of a prompt.
    fn draw(&mut self, prompt: usize, step: usize) -> Result<f64> {
        let u = self.draws.as_mut().map_or(0.0, |draw| draw(prompt, step));
        if !(0.0..1.0).contains(&u) {
            return Err(Error::input(
                format!("draw of prompt {prompt}, token {step}"),
                "[0, 1)",
                u,
            ));
        }
        Ok(f64::from(u))
    }

    fn tell_token(&mut self, prompt: usize, token: u32) -> ControlFlow<()> {
        match &mut self.listener {
            Some(listener) => listener.token(prompt, token),
            None => ControlFlow::Continue(()),
        }
    }

    fn tell_done(&mut self, prompts: usize) {
        if let Some(listener) = &mut self.listener {
            listener.done(prompts);
        }
        if let Some(progress) = &mut self.progress {
            progress(prompts);
        }
    }

    /// The scores [R, V] to choose by, given final states [R, D]. `alone`: of a request of one row.
    fn scores(&self, engine: &Engine<'_>, states: &Tensor, alone: bool) -> Result<Tensor> {
        let logits = engine.logits(states, alone)?;
        let Some(guide) = self.guide else {
            return Ok(logits);
        };
        let scores = guide(states, &logits).map_err(Error::Guide)?;
        let (kind, wanted) = (scores.f_kind()?, logits.size());
        if scores.size() != wanted || !matches!(kind, Kind::Float | Kind::Double) {
            let got = format!("{:?} of {kind:?}", scores.size());
            return Err(Error::input(
                "scores of the guide",
                format!("{wanted:?} of Float or Double"),
                got,
            ));
        }
        Ok(scores)
    }
}

/// Tokens that would complete an n-gram that `ids` already hold.
fn repeats(ids: &[u32], n: usize) -> impl Iterator<Item = u32> {
    let tail = ids.len().checked_sub(n - 1).map(|start| &ids[start..]);
    ids.windows(n)
        .filter(move |w| Some(&w[..n - 1]) == tail)
        .map(move |w| w[n - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_the_ends_of_known_n_grams() {
        let of = |ids: &[u32], n| repeats(ids, n).collect::<Vec<_>>();
        assert_eq!(of(&[1, 2, 3, 1, 2], 3), [3]);
        assert_eq!(of(&[1, 2, 1], 2), [2]);
        assert_eq!(of(&[5, 6], 1), [5, 6]);
        assert_eq!(of(&[1, 1], 3), [0; 0]);
        assert_eq!(of(&[], 2), [0; 0]);
    }
}
