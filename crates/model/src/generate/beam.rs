//! Beam search: of the continuations of a few unfinished completions the best are kept, until none can beat what has
//! finished.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

use super::engine::Engine;
use super::queue::{Prefill, Queue};
use super::slots::Slots;
use super::{Generated, Generation, repeats};
use crate::choose::Bans;
use crate::sampling::{Beam, EarlyStopping};
use crate::{Error, Result};

/// The score of a beam that has not begun: all beams begin with the same prompt, so the first alone is continued.
const NOT_BEGUN: f32 = -1e9;

/// Completes prompts in up to `n_rows` rows, but with room for one prompt at least. Equal prompts have equal completions.
pub(super) fn complete(
    engine: &Engine<'_>,
    request: &mut Generation<'_>,
    (prompts, beam): (&[Vec<u32>], &Beam),
    n_rows: usize,
) -> Result<Vec<Generated>> {
    let mut first: HashMap<&[u32], usize> = HashMap::new();
    let mut distinct: Vec<Vec<u32>> = Vec::new();
    let mut owners: Vec<Vec<usize>> = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let place = *first.entry(prompt).or_insert_with(|| {
            distinct.push(prompt.clone());
            owners.push(Vec::new());
            distinct.len() - 1
        });
        owners[place].push(i);
    }
    let n_groups = (n_rows / beam.size).clamp(1, distinct.len());
    let made = Search::new(engine, request, (&distinct, beam), (&owners, n_groups))?.run(request)?;
    let mut out = vec![None; prompts.len()];
    for (made, owners) in made.into_iter().zip(&owners) {
        for &owner in owners {
            out[owner].clone_from(&made);
        }
    }
    out.into_iter()
        .enumerate()
        .map(|(i, made)| made.ok_or_else(|| Error::input(format!("beams of prompt {i}"), "a completion", "none")))
        .collect()
}

/// A completion that is not finished, or one that is, with its score.
#[derive(Debug, Clone)]
struct Hypothesis {
    ids: Vec<u32>,
    logps: Vec<f32>,
    score: f32,
}

/// The beams of one prompt, in rows side by side.
#[derive(Debug)]
struct Group {
    prompt: usize,
    beams: Vec<Hypothesis>,
    /// Best first, the token that ended it counted in.
    finished: Vec<Hypothesis>,
    /// Whether a beam may still beat what has finished.
    open: bool,
}

/// The best continuations of one group, best first.
struct Best<'a> {
    sums: &'a [f32],
    /// Log-probs of the tokens alone.
    logps: &'a [f32],
    /// Beam · V + token.
    places: &'a [i64],
    vocab: usize,
}

struct Search<'a> {
    engine: &'a Engine<'a>,
    beam: &'a Beam,
    prompts: &'a [Vec<u32>],
    /// The places of each prompt in the request.
    owners: &'a [Vec<usize>],
    queue: Queue<'a>,
    out: Vec<Option<Generated>>,
    done: usize,
    /// None where no prompt is left.
    groups: Vec<Option<Group>>,
    slots: Slots,
    /// Final state of each beam's last token, [R, D].
    states: Tensor,
    /// How many continuations of a group are looked at: so many that as many as there are beams do not end.
    n_best: usize,
}

impl<'a> Search<'a> {
    fn new(
        engine: &'a Engine<'a>,
        request: &Generation<'_>,
        (prompts, beam): (&'a [Vec<u32>], &'a Beam),
        (owners, n_groups): (&'a [Vec<usize>], usize),
    ) -> Result<Self> {
        let queue = Queue::new(prompts);
        let rows = n_groups * beam.size;
        let slots = queue.longest() + request.sampling.max_new_tokens;
        let width = engine.config().hidden_size as i64;
        let options = (engine.trunk().kind()?, engine.trunk().device());
        Ok(Self {
            engine,
            beam,
            prompts,
            owners,
            queue,
            out: vec![None; prompts.len()],
            done: 0,
            groups: (0..n_groups).map(|_| None).collect(),
            slots: engine.slots(rows, slots)?,
            states: Tensor::f_zeros([rows as i64, width], options)?,
            n_best: beam.n_best(request.ends.len()),
        })
    }

    fn run(mut self, request: &mut Generation<'_>) -> Result<Vec<Option<Generated>>> {
        self.refill()?;
        while self.groups.iter().any(Option::is_some) {
            let (parents, tokens) = self.choose(request)?;
            self.close_up(&parents, &tokens)?;
            self.refill()?;
        }
        Ok(self.out)
    }

    fn tensor(&self, rows: &[usize]) -> Result<Tensor> {
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        Ok(Tensor::f_from_slice(&rows)?.f_to(self.states.device())?)
    }

    /// Gives waiting prompts to groups that are done.
    fn refill(&mut self) -> Result<()> {
        let free: Vec<usize> = (0..self.groups.len())
            .filter(|&group| self.groups[group].is_none())
            .collect();
        let taken = self.queue.take(free.len());
        if taken.is_empty() {
            return Ok(());
        }
        let size = self.beam.size;
        let ids: Vec<&[u32]> = taken.iter().map(|&prompt| self.prompts[prompt].as_slice()).collect();
        let prefill = Prefill::new(&ids, self.states.device())?;
        let rows: Vec<usize> = free
            .iter()
            .take(taken.len())
            .flat_map(|group| group * size..(group + 1) * size)
            .collect();
        let owners: Vec<usize> = (0..taken.len())
            .flat_map(|owner| std::iter::repeat_n(owner, size))
            .collect();
        let (rows_at, owners) = (self.tensor(&rows)?, self.tensor(&owners)?);
        let states = self
            .engine
            .prefill(&prefill.ids, &prefill.lengths, &self.slots, (&owners, &rows_at))?;
        let _ = self
            .states
            .f_index_copy_(0, &rows_at, &states.f_index_select(0, &owners)?)?;
        for (&group, &prompt) in free.iter().zip(&taken) {
            for row in group * size..(group + 1) * size {
                self.slots.set_filled(row, self.prompts[prompt].len());
            }
            let beam = |score| Hypothesis {
                ids: Vec::new(),
                logps: Vec::new(),
                score,
            };
            self.groups[group] = Some(Group {
                prompt,
                beams: (0..size)
                    .map(|beam_idx| beam(if beam_idx == 0 { 0.0 } else { NOT_BEGUN }))
                    .collect(),
                finished: Vec::new(),
                open: true,
            });
        }
        Ok(())
    }

    /// Takes one token per beam. Returns for each row whose continuation it holds now, and the token.
    fn choose(&mut self, request: &mut Generation<'_>) -> Result<(Vec<usize>, Vec<i64>)> {
        let size = self.beam.size;
        let scores = request.scores(self.engine, &self.states, self.slots.alone())?;
        let (rows, vocab) = scores.size2()?;
        let logps = scores.f_log_softmax(-1, None::<Kind>)?;
        let mut bans = Bans::default();
        let mut sums = vec![0.0; rows as usize];
        for (i, group) in self.groups.iter().enumerate() {
            for (j, beam) in group.iter().flat_map(|group| &group.beams).enumerate() {
                let row = i * size + j;
                sums[row] = beam.score;
                if beam.ids.len() < request.sampling.min_new_tokens {
                    bans.add(row, request.ends.iter().copied());
                }
                if let Some(n) = request.sampling.block_ngram {
                    bans.add(row, repeats(&beam.ids, n));
                }
            }
        }
        let sums = Tensor::f_from_slice(&sums)?.f_to(scores.device())?.f_unsqueeze(1)?;
        let n_groups = self.groups.len() as i64;
        let of_groups = |x: &Tensor| x.f_view([n_groups, size as i64 * vocab]);
        let all = of_groups(&bans.apply(&logps)?.f_add(&sums)?)?;
        let (best, places) = all.f_topk(self.n_best as i64, 1, true, true)?;
        let own = of_groups(&logps)?.f_gather(1, &places, false)?;
        let floats = |x: &Tensor| -> Result<Vec<f32>> {
            Ok(Vec::try_from(
                x.f_to_kind(Kind::Float)?.f_view([-1])?.f_to(Device::Cpu)?,
            )?)
        };
        let (best, own) = (floats(&best)?, floats(&own)?);
        let places: Vec<i64> = Vec::try_from(places.f_view([-1])?.f_to(Device::Cpu)?)?;
        let (mut parents, mut tokens): (Vec<usize>, _) = ((0..rows as usize).collect(), vec![0; rows as usize]);
        for i in 0..self.groups.len() {
            let Some(group) = &mut self.groups[i] else { continue };
            let part = i * self.n_best..(i + 1) * self.n_best;
            let best = Best {
                sums: &best[part.clone()],
                logps: &own[part.clone()],
                places: &places[part],
                vocab: vocab as usize,
            };
            if best.logps.iter().any(|logp| logp.is_nan()) {
                let prompt = self.owners[group.prompt][0];
                return Err(Error::NonFinite {
                    prompt,
                    step: group.beams[0].ids.len(),
                });
            }
            let (kept, done) = group.take(&best, self.beam, request);
            for (j, (parent, token)) in kept.into_iter().enumerate() {
                parents[i * size + j] = i * size + parent;
                tokens[i * size + j] = token;
            }
            if done {
                self.finish(i, request);
            }
        }
        Ok((parents, tokens))
    }

    /// Writes the best completion of a group down.
    fn finish(&mut self, i: usize, request: &mut Generation<'_>) {
        let Some(group) = self.groups[i].take() else { return };
        let owners = &self.owners[group.prompt];
        self.done += owners.len();
        self.out[group.prompt] = group.finished.into_iter().next().map(|best| {
            let Hypothesis { mut ids, logps, score } = best;
            let finished = ids.last().is_some_and(|last| request.ends.contains(last));
            if finished {
                ids.pop();
            }
            Generated {
                ids,
                logps,
                finished,
                score: Some(score),
            }
        });
        if let Some(made) = &self.out[group.prompt] {
            for &owner in owners {
                for &id in &made.ids {
                    // A completion that is decided has no tokens left to spare.
                    let _ = request.tell_token(owner, id);
                }
            }
        }
        request.tell_done(self.done);
    }

    /// Runs the tokens of the groups that go on; those that are done leave once nothing waits.
    fn close_up(&mut self, parents: &[usize], tokens: &[i64]) -> Result<()> {
        let size = self.beam.size;
        let moved: (Vec<usize>, Vec<usize>) = parents.iter().zip(0..).filter(|&(&parent, row)| parent != row).unzip();
        if !moved.0.is_empty() {
            let (from, to) = (self.tensor(&moved.0)?, self.tensor(&moved.1)?);
            self.slots.copy(&from, &to, self.slots.longest())?;
        }
        let mut tokens = tokens.to_vec();
        let active: Vec<usize> = (0..self.groups.len())
            .filter(|&group| self.groups[group].is_some())
            .collect();
        if self.queue.is_empty() && active.len() < self.groups.len() {
            let kept: Vec<usize> = active
                .iter()
                .flat_map(|group| group * size..(group + 1) * size)
                .collect();
            self.slots.keep(&kept)?;
            tokens = kept.iter().map(|&row| tokens[row]).collect();
            self.groups.retain(Option::is_some);
        }
        if self.groups.iter().all(Option::is_none) {
            return Ok(());
        }
        let ids = Tensor::f_from_slice(&tokens)?
            .f_view([-1, 1])?
            .f_to(self.states.device())?;
        let turn = self.slots.turn(self.engine.trunk().narrowest_window())?;
        self.states = self.engine.step(&ids, &mut self.slots, &turn)?;
        for (i, group) in self.groups.iter().enumerate() {
            if group.is_some() {
                (i * size..(i + 1) * size).for_each(|row| self.slots.advance(row));
            }
        }
        Ok(())
    }
}

impl Group {
    /// Takes the best continuations: those that end count as finished if they are among the best of all, and of the others
    /// the best go on. Returns the beam and token of each that goes on, and whether the search is over.
    fn take(&mut self, best: &Best<'_>, beam: &Beam, request: &Generation<'_>) -> (Vec<(usize, i64)>, bool) {
        let length = self.beams[0].ids.len() + 1;
        let longest = request.sampling.max_new_tokens;
        let full = |finished: &[Hypothesis]| finished.len() == beam.size;
        let takes = self.open && !(full(&self.finished) && beam.early_stopping == EarlyStopping::Full);
        let mut next = Vec::new();
        let mut kept = Vec::new();
        for (rank, &place) in best.places.iter().enumerate() {
            let (parent, token) = (place as usize / best.vocab, place as usize % best.vocab);
            let (sum, logp, id) = (best.sums[rank], best.logps[rank], token as u32);
            let ends = length == longest || request.ends.contains(&id);
            if ends && !(rank < beam.size && takes && sum.is_finite()) || !ends && next.len() == beam.size {
                continue;
            }
            let mut one = self.beams[parent].clone();
            one.ids.push(id);
            one.logps.push(logp);
            if ends {
                one.score = beam.score(sum, length);
                let at = self.finished.partition_point(|other| other.score >= one.score);
                self.finished.insert(at, one);
                self.finished.truncate(beam.size);
            } else {
                one.score = sum;
                next.push(one);
                kept.push((parent, token as i64));
            }
        }
        if next.is_empty() {
            return (kept, true);
        }
        self.beams = next;
        let reach = match beam.early_stopping {
            EarlyStopping::Never if beam.length_penalty > 0.0 => longest,
            _ => length,
        };
        let hope = beam.score(self.beams[0].score, reach);
        let least = self
            .finished
            .last()
            .filter(|_| full(&self.finished))
            .map_or(NOT_BEGUN, |worst| worst.score);
        self.open &= hope > least;
        let enough = full(&self.finished) && beam.early_stopping == EarlyStopping::Full;
        (kept, !self.open || enough)
    }
}
