//! Batched generation with a key/value cache.

use tch::{Device, Kind, Tensor, no_grad};

use crate::attention::{additive, attend_cached};
use crate::cache::Cache;
use crate::choose::{Bans, choose};
use crate::linear::linear;
use crate::logps::wide;
use crate::{Decoder, Error, Result, Sampling, positions};

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
}

/// Changes the scores of the next tokens: given states after the last norm [R, D] and logits [R, V], scores [R, V] to choose
/// by, such as the log-probabilities of two heads together.
pub type Guide<'a> = dyn Fn(&Tensor, &Tensor) -> Result<Tensor, Box<dyn std::error::Error + Send + Sync>> + 'a;

/// Completes each prompt, up to `batch` of them at a time, and returns the completions in the prompts'
/// order.
///
/// `draw(prompt, step)` gives the uniform draw in [0, 1) that decides a token, so a completion depends on
/// its prompt and its draws, not on the batch it was made in (up to the rounding of batched products).
/// Greedy generation asks for none. A completion ends with the first token of `ends`. `progress` hears how many prompts are done so far.
///
/// Prompts of similar length share a batch, padded on the left; rows that have ended leave it. Of tokens
/// that are exactly as probable as one another, libtorch decides which comes first.
pub fn generate(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    sampling: &Sampling,
    ends: &[u32],
    batch: usize,
    draw: &mut dyn FnMut(usize, usize) -> f32,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Generated>> {
    let settings = Settings {
        sampling,
        ends,
        batch,
        guide: None,
    };
    complete(decoder, prompts, &settings, draw, progress)
}

/// The same by the scores of a guide: they are filtered and drawn from like logits, and [`Generated::logps`] are their
/// log-softmax.
#[expect(clippy::too_many_arguments, reason = "those of `generate` and the guide")]
pub fn generate_guided(
    decoder: &Decoder,
    guide: &Guide<'_>,
    prompts: &[Vec<u32>],
    sampling: &Sampling,
    ends: &[u32],
    batch: usize,
    draw: &mut dyn FnMut(usize, usize) -> f32,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Generated>> {
    let settings = Settings {
        sampling,
        ends,
        batch,
        guide: Some(guide),
    };
    complete(decoder, prompts, &settings, draw, progress)
}

/// What does not change from prompt to prompt.
struct Settings<'a> {
    sampling: &'a Sampling,
    ends: &'a [u32],
    batch: usize,
    guide: Option<&'a Guide<'a>>,
}

fn complete(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    settings: &Settings<'_>,
    draw: &mut dyn FnMut(usize, usize) -> f32,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Generated>> {
    let &Settings {
        sampling, ends, batch, ..
    } = settings;
    check(decoder, prompts, sampling, ends, batch)?;
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    // Longest first: what does not fit in memory fails at once.
    order.sort_by_key(|&i| std::cmp::Reverse(prompts[i].len()));
    let empty = Generated {
        ids: Vec::new(),
        logps: Vec::new(),
        finished: false,
    };
    let mut out = vec![empty; prompts.len()];
    let mut done = 0;
    for members in order.chunks(batch) {
        no_grad(|| {
            let mut group = Group::new(decoder, prompts, members, settings)?;
            group.run(&mut out, draw, &mut |n| {
                done += n;
                progress(done);
            })
        })?;
    }
    Ok(out)
}

fn check(decoder: &Decoder, prompts: &[Vec<u32>], sampling: &Sampling, ends: &[u32], batch: usize) -> Result<()> {
    sampling.check()?;
    let config = decoder.config();
    if batch == 0 {
        return Err(Error::input("generation batch", "at least 1", 0));
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

/// Prompts that run together. Rows are the places in the tensors; a row whose prompt has ended stays, and
/// computes to no purpose, until enough have ended to make closing up worth its copies.
struct Group<'a> {
    decoder: &'a Decoder,
    settings: &'a Settings<'a>,
    embedding: Tensor,
    cache: Cache,
    /// The prompt of each row, none once it has ended.
    rows: Vec<Option<usize>>,
    /// [R, 1]: where each row's next token stands.
    position: Tensor,
    /// [R, 1, 1, S]: minus infinity at the padding; none when no row has any.
    mask: Option<Tensor>,
    /// Final state before the norm of each row's last token, [R, 1, D].
    last: Tensor,
    longest: usize,
}

impl<'a> Group<'a> {
    /// Runs the prompts themselves.
    fn new(decoder: &'a Decoder, prompts: &[Vec<u32>], members: &[usize], settings: &'a Settings<'a>) -> Result<Self> {
        let sampling = settings.sampling;
        let trunk = &decoder.trunk;
        let width = members.iter().map(|&i| prompts[i].len()).max().unwrap_or(0);
        let (mut ids, mut real) = (Vec::new(), Vec::new());
        for &i in members {
            let padding = width - prompts[i].len();
            ids.extend(std::iter::repeat_n(0, padding).chain(prompts[i].iter().map(|&id| i64::from(id))));
            real.extend(std::iter::repeat_n(false, padding).chain(std::iter::repeat_n(true, prompts[i].len())));
        }
        let padded = real.contains(&false);
        let (n, t) = (members.len() as i64, width as i64);
        let ids = Tensor::f_from_slice(&ids)?.f_view([n, t])?.f_to(trunk.device())?;
        let real = Tensor::f_from_slice(&real)?.f_view([n, t])?.f_to(trunk.device())?;
        let new = sampling.max_new_tokens as i64;
        let mut cache = Cache::new(trunk, n, t + new)?;
        let place = if padded {
            trunk.positions.at(&positions::count(&real)?, width)?
        } else {
            trunk.positions.first(width)?
        };
        let sights = trunk.sights(padded.then_some(&real), width)?;
        let x = trunk.run(&ids, &place, |layer, q, k, v| {
            let _ = cache.extend(layer, k, v)?;
            trunk.attend(layer, q, k, v, &sights)
        })?;
        cache.advance(t);
        let mask = if padded {
            let ones = Tensor::f_ones([n, new], (Kind::Bool, trunk.device()))?;
            let seen = Tensor::f_cat(&[&real, &ones], 1)?.f_view([n, 1, 1, t + new])?;
            Some(additive(&seen, trunk.kind()?)?)
        } else {
            None
        };
        Ok(Self {
            decoder,
            settings,
            embedding: decoder.output_embedding(),
            cache,
            rows: members.iter().copied().map(Some).collect(),
            position: real.f_sum_dim_intlist([-1].as_slice(), true, Kind::Int64)?,
            mask,
            last: x.f_narrow(1, t - 1, 1)?,
            longest: width + sampling.max_new_tokens,
        })
    }

    fn run(
        &mut self,
        out: &mut [Generated],
        draw: &mut dyn FnMut(usize, usize) -> f32,
        ended: &mut dyn FnMut(usize),
    ) -> Result<()> {
        // Log-probs stay on the device until the end; only tokens are needed at every step.
        let mut logps = Vec::new();
        let mut owners = Vec::new();
        for step in 0..self.settings.sampling.max_new_tokens {
            let (ids, chosen) = self.choose(out, step, draw)?;
            logps.push(chosen);
            owners.push(self.rows.clone());
            let n = self.record(&ids, out, step)?;
            if n > 0 {
                ended(n);
            }
            if self.rows.iter().all(Option::is_none) {
                break;
            }
            let ids = self.close_up(ids)?;
            self.advance(&ids)?;
        }
        let flat = Vec::<f32>::try_from(Tensor::f_cat(&logps, 0)?.f_to_kind(Kind::Float)?.f_to(Device::Cpu)?)?;
        let mut flat = flat.into_iter();
        for (step, rows) in owners.into_iter().enumerate() {
            for (owner, logp) in rows.into_iter().zip(flat.by_ref()) {
                if let Some(prompt) = owner {
                    if !logp.is_finite() {
                        return Err(Error::NonFinite { prompt, step });
                    }
                    out[prompt].logps.push(logp);
                }
            }
        }
        Ok(())
    }

    /// The next token of each row, [R, 1], and its log-prob, `[R]`.
    fn choose(
        &self,
        out: &[Generated],
        step: usize,
        draw: &mut dyn FnMut(usize, usize) -> f32,
    ) -> Result<(Tensor, Tensor)> {
        let state = self.decoder.trunk.finish(&self.last)?.f_squeeze_dim(1)?;
        let logits = wide(linear(&state, &self.embedding)?)?;
        let logits = match self.settings.guide {
            Some(guide) => guided(guide, &state, &logits)?,
            None => logits,
        };
        let mut bans = Bans {
            everywhere: if step < self.settings.sampling.min_new_tokens {
                self.settings.ends
            } else {
                &[]
            },
            single: Vec::new(),
        };
        let mut uniforms = Vec::with_capacity(self.rows.len());
        for (row, owner) in self.rows.iter().enumerate() {
            let Some(prompt) = *owner else {
                uniforms.push(0.0);
                continue;
            };
            if let Some(n) = self.settings.sampling.block_ngram {
                bans.single
                    .extend(repeats(&out[prompt].ids, n).map(|token| (row as i64, i64::from(token))));
            }
            if !self.settings.sampling.greedy {
                let u = draw(prompt, step);
                if !(0.0..1.0).contains(&u) {
                    return Err(Error::input(
                        format!("draw of prompt {prompt}, token {step}"),
                        "[0, 1)",
                        u,
                    ));
                }
                uniforms.push(f64::from(u));
            }
        }
        let uniforms = Tensor::f_from_slice(&uniforms)?.f_to(logits.device())?;
        choose(&logits, self.settings.sampling, &bans, &uniforms)
    }

    /// Writes the chosen tokens down; returns how many rows ended.
    fn record(&mut self, ids: &Tensor, out: &mut [Generated], step: usize) -> Result<usize> {
        let ids = Vec::<i64>::try_from(ids.f_view([-1])?.f_to(Device::Cpu)?)?;
        let mut ended = 0;
        for (owner, id) in self.rows.iter_mut().zip(ids) {
            let Some(prompt) = *owner else { continue };
            let finished = self.settings.ends.iter().any(|&end| id == i64::from(end));
            if finished {
                out[prompt].finished = true;
            } else {
                out[prompt].ids.push(id as u32);
            }
            if finished || step + 1 == self.settings.sampling.max_new_tokens {
                *owner = None;
                ended += 1;
            }
        }
        Ok(ended)
    }

    /// Drops ended rows once they are a quarter of all, so that copying the cache pays.
    fn close_up(&mut self, ids: Tensor) -> Result<Tensor> {
        let ended = self.rows.iter().filter(|r| r.is_none()).count();
        if ended * 4 < self.rows.len().max(4) {
            return Ok(ids);
        }
        let kept: Vec<i64> = (0_i64..)
            .zip(&self.rows)
            .filter(|(_, r)| r.is_some())
            .map(|(i, _)| i)
            .collect();
        let kept = Tensor::f_from_slice(&kept)?.f_to(ids.device())?;
        self.rows.retain(Option::is_some);
        self.cache.keep(&kept)?;
        self.position = self.position.f_index_select(0, &kept)?;
        self.mask = self.mask.as_ref().map(|m| m.f_index_select(0, &kept)).transpose()?;
        Ok(ids.f_index_select(0, &kept)?)
    }

    /// Runs one new token [R, 1] per row.
    fn advance(&mut self, ids: &Tensor) -> Result<()> {
        let trunk = &self.decoder.trunk;
        let place = trunk.positions.at(&self.position, self.longest)?;
        let seen = self.cache.used() + 1;
        let mask = self.mask.as_ref().map(|m| m.f_narrow(3, 0, seen)).transpose()?;
        let cache = &self.cache;
        self.last = trunk.run(ids, &place, |layer, q, k, v| {
            let (keys, values) = cache.extend(layer, k, v)?;
            attend_cached(q, &keys, &values, mask.as_ref(), trunk.window(layer))
        })?;
        self.cache.advance(1);
        self.position = self.position.f_add_scalar(1)?;
        Ok(())
    }
}

fn guided(guide: &Guide<'_>, state: &Tensor, logits: &Tensor) -> Result<Tensor> {
    let scores = guide(state, logits).map_err(Error::Guide)?;
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

    /// Log-probs leave as f32, so exactness is shown on the states that they are made from: with padding,
    /// and with rows that leave on the way, the cache gives what the whole sequence gives.
    #[test]
    fn cached_states_equal_recomputed_ones() {
        tch::set_num_threads(1);
        let size = crate::Size {
            hidden_size: 24,
            intermediate_size: 40,
            num_hidden_layers: 2,
            num_attention_heads: 6,
            num_key_value_heads: 2,
        };
        let config = crate::Config {
            initializer_range: 0.4,
            ..crate::Config::new(&size, 20, 32)
        };
        let mut rng = <rand_chacha::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(1);
        let decoder = Decoder::init_kind(&config, &mut rng, Device::Cpu, Kind::Double).unwrap();
        let mut sequences = vec![vec![1_u32, 2, 3], vec![4], vec![5, 6, 7, 8, 9]];
        let sampling = Sampling::new(8);
        let settings = Settings {
            sampling: &sampling,
            ends: &[3],
            batch: 3,
            guide: None,
        };
        let _guard = tch::no_grad_guard();
        let mut group = Group::new(&decoder, &sequences, &[0, 1, 2], &settings).unwrap();
        for step in 0..6 {
            let states = decoder.trunk.finish(&group.last).unwrap();
            for (row, owner) in group.rows.iter().enumerate() {
                let Some(prompt) = *owner else { continue };
                let ids: Vec<i64> = sequences[prompt].iter().map(|&id| i64::from(id)).collect();
                let whole = decoder.hidden(&Tensor::from_slice(&ids).view([1, -1])).unwrap();
                let difference = states.get(row as i64).get(0) - whole.get(0).get(ids.len() as i64 - 1);
                assert!(
                    difference.abs().max().double_value(&[]) < 1e-10,
                    "step {step}, prompt {prompt}"
                );
            }
            if step == 2 {
                group.rows[0] = None;
            }
            let ids: Vec<i64> = (0..group.rows.len() as i64)
                .map(|row| (7 * step + 5 * row) % 20)
                .collect();
            for (owner, &id) in group.rows.iter().zip(&ids) {
                if let Some(prompt) = *owner {
                    sequences[prompt].push(id as u32);
                }
            }
            let ids = group.close_up(Tensor::from_slice(&ids).view([-1, 1])).unwrap();
            group.advance(&ids).unwrap();
        }
        assert_eq!(group.rows, [Some(1), Some(2)]);
    }
}
