//! Sampling and greedy generation: rows that take one token at a time, and the next prompt once theirs has ended.

use tch::{Device, Kind, Tensor};

use super::engine::Engine;
use super::queue::{Prefill, Queue};
use super::slots::Slots;
use super::{Generated, Generation, repeats};
use crate::choose::{Bans, choose};
use crate::{Error, Result};

/// How many tokens are chosen before a look at them where a look would make a GPU wait.
const BLIND: usize = 8;

/// Completes prompts in up to `n_rows` rows.
pub(super) fn complete(
    engine: &Engine<'_>,
    request: &mut Generation<'_>,
    prompts: &[Vec<u32>],
    n_rows: usize,
) -> Result<Vec<Generated>> {
    Rows::new(engine, request, prompts, n_rows)?.run(request)
}

/// Rows that run together. A row whose completion has ended computes to no purpose until it gets another prompt, or until
/// enough have ended to make closing up worth its copies.
struct Rows<'a> {
    engine: &'a Engine<'a>,
    prompts: &'a [Vec<u32>],
    queue: Queue<'a>,
    out: Vec<Generated>,
    done: usize,
    rows: Vec<Row>,
    slots: Slots,
    /// Final state of each row's last token, [R, D].
    states: Tensor,
    /// Final state of the last token of each row's prompt, [R, D].
    of_prompts: Tensor,
    /// Tokens that are chosen between two looks, at most.
    blind: usize,
    window: Option<i64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Row {
    /// Whose keys are in the first slots.
    prompt: Option<usize>,
    /// Whether its completion goes on.
    active: bool,
}

/// Tokens chosen between two looks.
struct Tokens {
    /// By step, row after row.
    ids: Vec<i64>,
    logps: Vec<f32>,
    steps: usize,
}

impl<'a> Rows<'a> {
    fn new(engine: &'a Engine<'a>, request: &Generation<'_>, prompts: &'a [Vec<u32>], n: usize) -> Result<Self> {
        let queue = Queue::new(prompts);
        let trunk = engine.trunk();
        let (kind, device) = (trunk.kind()?, trunk.device());
        // A listener hears each token at once, and bans of n-grams need the tokens.
        let blind = match device {
            Device::Cpu => 1,
            _ if request.listener.is_some() || request.sampling.block_ngram.is_some() => 1,
            _ => BLIND,
        };
        let slots = queue.longest() + request.sampling.max_new_tokens;
        let width = engine.config().hidden_size as i64;
        let states = || Tensor::f_zeros([n as i64, width], (kind, device));
        let empty = Generated {
            ids: Vec::new(),
            logps: Vec::new(),
            finished: false,
            score: None,
        };
        Ok(Self {
            engine,
            prompts,
            queue,
            out: vec![empty; prompts.len()],
            done: 0,
            rows: vec![Row::default(); n],
            slots: engine.slots(n, slots)?,
            states: states()?,
            of_prompts: states()?,
            blind,
            window: trunk.narrowest_window(),
        })
    }

    fn run(mut self, request: &mut Generation<'_>) -> Result<Vec<Generated>> {
        self.refill()?;
        loop {
            let (tokens, last) = self.choose(request)?;
            self.record(request, &tokens)?;
            if self.active().next().is_some() {
                let last = self.close_up(last)?;
                self.step(&last)?;
            } else if self.queue.is_empty() {
                return Ok(self.out);
            }
            self.refill()?;
        }
    }

    /// Rows with a completion that goes on, and its prompt.
    fn active(&self) -> impl Iterator<Item = (usize, usize)> {
        self.rows
            .iter()
            .enumerate()
            .filter_map(|(row, r)| Some((row, r.prompt.filter(|_| r.active)?)))
    }

    fn tensor(&self, rows: &[usize]) -> Result<Tensor> {
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        Ok(Tensor::f_from_slice(&rows)?.f_to(self.states.device())?)
    }

    /// Gives waiting prompts to rows that have ended, once an eighth has: several prompts at once cost less than one by one.
    fn refill(&mut self) -> Result<()> {
        let free: Vec<usize> = (0..self.rows.len()).filter(|&row| !self.rows[row].active).collect();
        if self.queue.is_empty() || free.len() * 8 < self.rows.len() {
            return Ok(());
        }
        let taken = self.queue.take(free.len());
        let ids = |prompt: usize| self.prompts[prompt].as_slice();
        // Keys that are there already are copied, the others computed, each prompt once.
        let mut held = Vec::new();
        let mut fresh = Vec::new();
        let mut distinct: Vec<usize> = Vec::new();
        for (&row, &prompt) in free.iter().zip(&taken) {
            let holder = self
                .rows
                .iter()
                .position(|r| r.prompt.is_some_and(|other| ids(other) == ids(prompt)));
            if let Some(holder) = holder {
                held.push((holder, row));
            } else {
                if distinct.last().is_none_or(|&last| ids(last) != ids(prompt)) {
                    distinct.push(prompt);
                }
                fresh.push((distinct.len() - 1, row));
            }
        }
        let split = |pairs: &[(usize, usize)]| -> Result<(Tensor, Tensor)> {
            let (from, to): (Vec<usize>, Vec<usize>) = pairs.iter().copied().unzip();
            Ok((self.tensor(&from)?, self.tensor(&to)?))
        };
        let mut changed = Vec::new();
        if !held.is_empty() {
            let (from, to) = split(&held)?;
            let longest = taken.iter().map(|&prompt| ids(prompt).len()).max().unwrap_or(0);
            self.slots.copy(&from, &to, longest)?;
            changed.push((self.of_prompts.f_index_select(0, &from)?, to));
        }
        if !fresh.is_empty() {
            let (owners, rows) = split(&fresh)?;
            let unique: Vec<&[u32]> = distinct.iter().map(|&prompt| ids(prompt)).collect();
            let prefill = Prefill::new(&unique, self.states.device())?;
            let states = self
                .engine
                .prefill(&prefill.ids, &prefill.lengths, &self.slots, (&owners, &rows))?;
            changed.push((states.f_index_select(0, &owners)?, rows));
        }
        for (states, rows) in changed {
            let _ = self.of_prompts.f_index_copy_(0, &rows, &states)?;
            let _ = self.states.f_index_copy_(0, &rows, &states)?;
        }
        for (&row, &prompt) in free.iter().zip(&taken) {
            self.slots.set_filled(row, self.prompts[prompt].len());
            self.rows[row] = Row {
                prompt: Some(prompt),
                active: true,
            };
        }
        Ok(())
    }

    /// The next tokens of each row, and by themselves the last of them, [R, 1], which no states have seen yet.
    fn choose(&mut self, request: &mut Generation<'_>) -> Result<(Tokens, Tensor)> {
        let left = self
            .active()
            .map(|(_, prompt)| request.sampling.max_new_tokens - self.out[prompt].ids.len());
        let steps = left.min().map_or(1, |left| left.min(self.blind));
        let (mut ids, mut logps) = (Vec::new(), Vec::new());
        let mut last: Option<Tensor> = None;
        for ahead in 0..steps {
            if let Some(last) = &last {
                self.step(last)?;
            }
            let scores = request.scores(self.engine, &self.states, self.slots.alone())?;
            let (bans, uniforms) = self.limits(request, ahead)?;
            let uniforms = Tensor::f_from_slice(&uniforms)?.f_to(scores.device())?;
            let (chosen, logp) = choose(&scores, request.sampling, &bans, &uniforms)?;
            ids.push(chosen.f_view([-1])?);
            logps.push(logp.f_to_kind(Kind::Float)?);
            last = Some(chosen);
        }
        let tokens = Tokens {
            ids: Vec::try_from(Tensor::f_cat(&ids, 0)?.f_to(Device::Cpu)?)?,
            logps: Vec::try_from(Tensor::f_cat(&logps, 0)?.f_to(Device::Cpu)?)?,
            steps,
        };
        let last = last.ok_or_else(|| Error::input("tokens between two looks", "at least 1", 0))?;
        Ok((tokens, last))
    }

    /// Runs the tokens that were chosen last, [R, 1].
    fn step(&mut self, ids: &Tensor) -> Result<()> {
        let turn = self.slots.turn(self.window)?;
        self.states = self.engine.step(ids, &mut self.slots, &turn)?;
        for (row, r) in self.rows.iter().enumerate() {
            if r.active {
                self.slots.advance(row);
            }
        }
        Ok(())
    }

    /// What each row may not choose, and its draw.
    fn limits(&self, request: &mut Generation<'_>, ahead: usize) -> Result<(Bans, Vec<f64>)> {
        let mut bans = Bans::default();
        let mut uniforms = vec![0.0; if request.sampling.greedy { 0 } else { self.rows.len() }];
        for (row, prompt) in self.active() {
            let ids = &self.out[prompt].ids;
            let step = ids.len() + ahead;
            if step < request.sampling.min_new_tokens {
                bans.add(row, request.ends.iter().copied());
            }
            if let Some(n) = request.sampling.block_ngram {
                bans.add(row, repeats(ids, n));
            }
            if let Some(u) = uniforms.get_mut(row) {
                *u = request.draw(prompt, step)?;
            }
        }
        Ok((bans, uniforms))
    }

    /// Writes the chosen tokens down.
    fn record(&mut self, request: &mut Generation<'_>, tokens: &Tokens) -> Result<()> {
        let before = self.done;
        let n = self.rows.len();
        for step in 0..tokens.steps {
            for row in 0..n {
                let Row {
                    prompt: Some(prompt),
                    active: true,
                } = self.rows[row]
                else {
                    continue;
                };
                let (id, logp) = (tokens.ids[step * n + row], tokens.logps[step * n + row]);
                let one = &mut self.out[prompt];
                if !logp.is_finite() {
                    return Err(Error::NonFinite {
                        prompt,
                        step: one.logps.len(),
                    });
                }
                one.logps.push(logp);
                one.finished = request.ends.iter().any(|&end| id == i64::from(end));
                let mut ended = one.finished;
                if !ended {
                    one.ids.push(id as u32);
                    ended = one.ids.len() == request.sampling.max_new_tokens;
                    ended |= request.tell_token(prompt, id as u32).is_break();
                }
                if ended {
                    self.rows[row].active = false;
                    self.done += 1;
                }
            }
        }
        if self.done > before {
            request.tell_done(self.done);
        }
        Ok(())
    }

    /// Drops ended rows once nothing waits and they are a quarter of all, so that copying the cache pays; returns the
    /// tokens [R, 1] of those that stay.
    fn close_up(&mut self, ids: Tensor) -> Result<Tensor> {
        let active: Vec<usize> = self.active().map(|(row, _)| row).collect();
        let ended = self.rows.len() - active.len();
        if !self.queue.is_empty() || ended * 4 < self.rows.len().max(4) {
            return Ok(ids);
        }
        let kept = self.tensor(&active)?;
        self.slots.keep(&active)?;
        self.of_prompts = self.of_prompts.f_index_select(0, &kept)?;
        self.rows = active.iter().map(|&row| self.rows[row]).collect();
        Ok(ids.f_index_select(0, &kept)?)
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::{Architecture, Config, Decoder, Mistral, Sampling, Size};

    const END: u32 = 3;

    fn decoder() -> Decoder {
        with_window(None)
    }

    fn with_window(sliding_window: Option<usize>) -> Decoder {
        tch::set_num_threads(1);
        let size = Size {
            hidden_size: 24,
            intermediate_size: 40,
            num_hidden_layers: 2,
            num_attention_heads: 6,
            num_key_value_heads: 2,
        };
        let config = Config {
            initializer_range: 0.4,
            architecture: Architecture::Mistral(Mistral { sliding_window }),
            ..Config::new(&size, 20, 32)
        };
        Decoder::init_kind(&config, &mut ChaCha8Rng::seed_from_u64(1), Device::Cpu, Kind::Double).unwrap()
    }

    /// Prompts of any length, of which some are equal.
    fn prompts(n: usize) -> Vec<Vec<u32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let distinct: Vec<Vec<u32>> = (0..n.div_ceil(2))
            .map(|_| (0..rng.random_range(1..12)).map(|_| rng.random_range(4..20)).collect())
            .collect();
        (0..n)
            .map(|_| distinct[rng.random_range(0..distinct.len())].clone())
            .collect()
    }

    fn draw(prompt: usize, step: usize) -> f32 {
        ChaCha8Rng::seed_from_u64((prompt * 1000 + step) as u64).random()
    }

    /// Log-probs leave as f32, so exactness is shown on the states that they are made from: with rows that end, that take
    /// another prompt, that take a prompt another row holds, and that leave, the cache gives what the whole sequence gives.
    #[test]
    fn states_of_rows_equal_recomputed_ones() {
        let (prompts, sampling) = (prompts(23), Sampling::new(8));
        let mut compared = 0;
        let mut held = 0;
        for (n_rows, window) in [(1, None), (2, None), (2, Some(5)), (5, None), (23, Some(6)), (23, None)] {
            let decoder = with_window(window);
            for (blind, apart) in [(1, true), (3, true), (3, false)] {
                let _guard = tch::no_grad_guard();
                let mut engine = Engine::new(&decoder).unwrap();
                engine.apart = apart;
                let mut draw = draw;
                let mut request = Generation::new(&decoder, &sampling, &[END]).draws(&mut draw);
                let mut rows = Rows::new(&engine, &request, &prompts, n_rows).unwrap();
                rows.blind = blind;
                rows.refill().unwrap();
                loop {
                    for (row, prompt) in rows.active() {
                        let ids: Vec<i64> = prompts[prompt]
                            .iter()
                            .chain(&rows.out[prompt].ids)
                            .map(|&id| i64::from(id))
                            .collect();
                        let whole = decoder.hidden(&Tensor::from_slice(&ids).view([1, -1])).unwrap();
                        let difference = rows.states.get(row as i64) - whole.get(0).get(ids.len() as i64 - 1);
                        assert!(
                            difference.abs().max().double_value(&[]) < 1e-10,
                            "{n_rows} rows, prompt {prompt}"
                        );
                        compared += 1;
                    }
                    let (tokens, last) = rows.choose(&mut request).unwrap();
                    rows.record(&mut request, &tokens).unwrap();
                    if rows.active().next().is_some() {
                        let last = rows.close_up(last).unwrap();
                        rows.step(&last).unwrap();
                    } else if rows.queue.is_empty() {
                        break;
                    }
                    let ended: Vec<usize> = (0..rows.rows.len()).filter(|&row| !rows.rows[row].active).collect();
                    let before: Vec<Row> = rows.rows.clone();
                    rows.refill().unwrap();
                    held += ended
                        .iter()
                        .filter(|&&row| rows.rows[row].active)
                        .filter(|&&row| {
                            let new = rows.rows[row].prompt.map(|p| &prompts[p]);
                            before.iter().any(|r| r.prompt.map(|p| &prompts[p]) == new)
                        })
                        .count();
                }
                assert_eq!(rows.done, 23);
            }
        }
        assert!(
            compared > 600 && held > 20,
            "{compared} states, {held} prompts that a row held"
        );
    }

    /// Looking seldom, as on a GPU, changes nothing of what is seen.
    #[test]
    fn completions_do_not_depend_on_when_they_are_looked_at() {
        let (decoder, prompts) = (decoder(), prompts(17));
        for sampling in [
            Sampling::greedy(9),
            Sampling {
                min_new_tokens: 3,
                ..Sampling::new(9)
            },
        ] {
            let made = |blind: usize, n_rows: usize| {
                let _guard = tch::no_grad_guard();
                let engine = Engine::new(&decoder).unwrap();
                let mut draw = draw;
                let mut request = Generation::new(&decoder, &sampling, &[END]).draws(&mut draw);
                let mut rows = Rows::new(&engine, &request, &prompts, n_rows).unwrap();
                rows.blind = blind;
                rows.run(&mut request).unwrap()
            };
            let ids = |made: Vec<Generated>| made.into_iter().map(|one| (one.ids, one.finished)).collect::<Vec<_>>();
            let expected = ids(made(1, 1));
            assert!(expected.iter().any(|(ids, finished)| *finished && ids.len() < 9));
            for (blind, n_rows) in [(2, 1), (8, 1), (1, 4), (3, 4), (8, 17)] {
                assert_eq!(ids(made(blind, n_rows)), expected, "{blind} at once in {n_rows} rows");
            }
        }
    }
}
