//! Sequences that share their beginnings, laid end to end without padding.
//!
//! A prompt stands once, and each of its branches goes on from it: positions continue where the prompt ends, and a branch
//! sees the prompt and itself. Everything but attention is done token by token and needs to know only the positions.
//! Attention takes the tokens apart into blocks: prompts over themselves, branches over their prompt and themselves.

use std::borrow::Borrow;

use tch::{Device, Kind, Tensor};

use crate::attention::{Sight, additive, attend};
use crate::logps::wide;
use crate::{Error, Result};

/// Which of `N` tokens that lie end to end belong together: prompt after prompt, each followed by its branches.
///
/// ```
/// use unsay_model::Branches;
///
/// let mut branches = Branches::default();
/// branches.push(3, &[2, 4]).unwrap(); // tokens 0..3 a prompt, 3..5 and 5..9 two ways to go on
/// branches.push(5, &[]).unwrap(); // tokens 9..14 a sequence by itself
/// assert_eq!((branches.n_tokens(), branches.longest()), (14, 7));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Branches {
    groups: Vec<Group>,
}

/// A prompt and its branches, by their numbers of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    prompt: usize,
    branches: Vec<usize>,
}

impl Group {
    fn n_tokens(&self) -> usize {
        self.branches.iter().fold(self.prompt, |sum, n| sum.saturating_add(*n))
    }

    fn longest(&self) -> usize {
        let branch = self.branches.iter().copied().max().unwrap_or(0);
        self.prompt.saturating_add(branch)
    }
}

impl Branches {
    /// Adds a prompt of so many tokens, with the numbers of tokens of what goes on from it.
    ///
    /// **Errors**: [`Error::Input`] for a prompt or a branch without tokens.
    pub fn push(&mut self, prompt: usize, branches: &[usize]) -> Result<()> {
        if prompt == 0 || branches.contains(&0) {
            let got = format!("a prompt of {prompt} and branches of {branches:?}");
            return Err(Error::input(
                "tokens of prompt and branches",
                "at least one in each",
                got,
            ));
        }
        self.groups.push(Group {
            prompt,
            branches: branches.to_vec(),
        });
        Ok(())
    }

    /// How many tokens there are (N).
    pub fn n_tokens(&self) -> usize {
        self.groups
            .iter()
            .fold(0, |sum: usize, group| sum.saturating_add(group.n_tokens()))
    }

    /// The tokens of the longest sequence: a prompt and one of its branches.
    pub fn longest(&self) -> usize {
        self.groups.iter().map(Group::longest).max().unwrap_or(0)
    }

    /// The position of every token in its sequence, `[1, N]` (Int64).
    pub(crate) fn positions(&self, device: Device) -> Result<Tensor> {
        let mut positions = Vec::with_capacity(self.n_tokens());
        for Group { prompt, branches } in &self.groups {
            positions.extend(0..*prompt as i64);
            for n in branches {
                positions.extend(*prompt as i64..(prompt + n) as i64);
            }
        }
        on(&positions, device)?.f_unsqueeze(0).map_err(Error::from)
    }

    /// What the tokens see: everything before them in their sequence, or the last `window` with themselves counted.
    pub(crate) fn sight(&self, window: Option<i64>, options: (Kind, Device)) -> Result<Sight> {
        Ok(Sight::Blocks(Box::new(Blocks::new(self, window, options)?)))
    }
}

fn on(values: &[i64], device: Device) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(values)?.f_to(device)?)
}

/// How attention takes the tokens of [`Branches`] apart and puts what comes out in their order again.
#[derive(Debug)]
pub(crate) struct Blocks {
    prompts: Block,
    branches: Option<(Block, Tensor)>,
    /// `[N]` where each token is in what comes out of the blocks, prompts first.
    back: Tensor,
}

/// Rows of tokens, padded on the right with tokens that nothing sees and whose outcome nobody takes.
#[derive(Debug)]
struct Block {
    /// How many rows.
    rows: i64,
    /// Tokens of a row.
    width: i64,
    /// `[rows · width]` which token stands there.
    index: Tensor,
    /// Where it is not all up to the token itself, what is seen.
    sight: Sight,
}

impl Block {
    /// Tokens of x [1, N, heads, d] → [rows, width, heads, d].
    fn take(&self, x: &Tensor) -> Result<Tensor> {
        pick(x, &self.index, (self.rows, self.width))
    }
}

/// A look-up in a table: its gradient is a sum in one fixed order, also where a prompt is looked up for several branches.
fn pick(x: &Tensor, index: &Tensor, (rows, width): (i64, i64)) -> Result<Tensor> {
    let (_, n, heads, dim) = x.size4()?;
    let table = x.f_reshape([n, heads * dim])?;
    Ok(Tensor::f_embedding(&table, index, -1, false, false)?.f_view([rows, width, heads, dim])?)
}

impl Blocks {
    fn new(branches: &Branches, window: Option<i64>, options: (Kind, Device)) -> Result<Self> {
        let groups = &branches.groups;
        let longest = |of: &mut dyn Iterator<Item = usize>| of.max().unwrap_or(0);
        let prompt_width = longest(&mut groups.iter().map(|g| g.prompt));
        let branch_width = longest(&mut groups.iter().flat_map(|g| g.branches.iter().copied()));
        let mut prompts = Vec::with_capacity(groups.len() * prompt_width);
        let (mut queries, mut keys, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        let mut back = Vec::with_capacity(branches.n_tokens());
        let first_branch = groups.len() * prompt_width;
        let padded = |start: usize, n: usize, width: usize| {
            // What stands in for padding is a token of the same sequence: there is always one.
            (0..width).map(move |at| if at < n { start + at } else { start } as i64)
        };
        let mut start = 0;
        for (row, Group { prompt, branches }) in groups.iter().enumerate() {
            prompts.extend(padded(start, *prompt, prompt_width));
            back.extend((0..*prompt).map(|at| (row * prompt_width + at) as i64));
            let mut next = start + prompt;
            for n in branches {
                let slot = first_branch + lengths.len() * branch_width;
                back.extend((0..*n).map(|at| (slot + at) as i64));
                queries.extend(padded(next, *n, branch_width));
                keys.extend(padded(start, *prompt, prompt_width).chain(padded(next, *n, branch_width)));
                lengths.push(*prompt as i64);
                next += n;
            }
            start = next;
        }
        let device = options.1;
        let (rows, width) = (groups.len() as i64, prompt_width as i64);
        let prompts = Block {
            rows,
            width,
            index: on(&prompts, device)?,
            sight: Sight::new(None, width, window, options)?,
        };
        let branches = match lengths.is_empty() {
            true => None,
            false => {
                let seen = seen(&lengths, (width, branch_width as i64), window, device)?;
                let block = Block {
                    rows: lengths.len() as i64,
                    width: branch_width as i64,
                    index: on(&queries, device)?,
                    sight: Sight::Masked(additive(&seen, options.0)?),
                };
                Some((block, on(&keys, device)?))
            }
        };
        Ok(Self {
            prompts,
            branches,
            back: on(&back, device)?,
        })
    }

    /// q [1, N, H, d], k and v [1, N, G, d] → [1, N, H·d].
    pub(crate) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let parts = self.split(q, k, v)?.into_iter();
        let outs = parts.map(|([q, k, v], sight)| attend(&q, &k, &v, sight));
        self.join(&outs.collect::<Result<Vec<_>>>()?)
    }

    /// Of q [1, N, H, d], k and v [1, N, G, d] those of the prompts and, where there are any, of the branches, each
    /// [rows, width, heads, d], with what is seen there.
    pub(crate) fn split(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Vec<([Tensor; 3], &Sight)>> {
        let prompts = &self.prompts;
        let own = [prompts.take(q)?, prompts.take(k)?, prompts.take(v)?];
        let mut parts = vec![(own, &prompts.sight)];
        if let Some((branches, keys)) = &self.branches {
            let shape = (branches.rows, prompts.width + branches.width);
            let theirs = [branches.take(q)?, pick(k, keys, shape)?, pick(v, keys, shape)?];
            parts.push((theirs, &branches.sight));
        }
        Ok(parts)
    }

    /// What was attended to in each of the parts, [rows, width, H·d], in the order of the tokens [1, N, H·d].
    pub(crate) fn join<T: Borrow<Tensor>>(&self, parts: &[T]) -> Result<Tensor> {
        let out = flat(parts)?;
        Ok(Tensor::f_embedding(&out, &self.back, -1, false, false)?.f_unsqueeze(0)?)
    }

    /// The gradients of what was attended to in each of the parts, [rows, width, H·d], with what is seen there, from that
    /// of all [1, N, H·d]; 0 at padding.
    pub(crate) fn split_back(&self, gradient: &Tensor) -> Result<Vec<(Tensor, &Sight)>> {
        let (_, n, wide) = gradient.size3()?;
        let blocks = [Some(&self.prompts), self.branches.as_ref().map(|(block, _)| block)];
        let blocks: Vec<&Block> = blocks.into_iter().flatten().collect();
        let places = blocks.iter().map(|block| block.rows * block.width).sum::<i64>();
        let options = (gradient.f_kind()?, gradient.device());
        let all =
            Tensor::f_zeros([places, wide], options)?.f_index_copy_(0, &self.back, &gradient.f_reshape([n, wide])?)?;
        let mut start = 0;
        let part = |block: &&'_ Block| -> Result<Tensor> {
            let n = block.rows * block.width;
            let part = all.f_narrow(0, start, n)?.f_view([block.rows, block.width, wide])?;
            start += n;
            Ok(part)
        };
        let parts = blocks.iter().map(part).collect::<Result<Vec<_>>>()?;
        Ok(parts.into_iter().zip(blocks.iter().map(|block| &block.sight)).collect())
    }

    /// The gradients of q, k and v [1, N, heads, d], from those of each of the parts, which are 0 at padding.
    pub(crate) fn join_back(&self, parts: &[[Tensor; 3]]) -> Result<[Tensor; 3]> {
        let of = |which: usize| -> Result<(Tensor, [i64; 4])> {
            let (.., heads, dim) = parts[0][which].size4()?;
            let n = self.back.size1()?;
            let found: Vec<&Tensor> = parts.iter().map(|part| &part[which]).collect();
            Ok((flat(&found)?, [1, n, heads, dim]))
        };
        let (q, size) = of(0)?;
        let q = q.f_index_select(0, &self.back)?.f_view(size)?;
        let seen = match &self.branches {
            Some((_, keys)) => Tensor::f_cat(&[&self.prompts.index, keys], 0)?,
            None => self.prompts.index.shallow_clone(),
        };
        // A prompt is summed up in one fixed order.
        let summed = |which: usize| -> Result<Tensor> {
            let (found, size) = of(which)?;
            let kind = found.f_kind()?;
            let sum = Tensor::f_embedding_dense_backward(&wide(found)?, &seen, size[1], -1, false)?;
            Ok(sum.f_to_kind(kind)?.f_view(size)?)
        };
        Ok([q, summed(1)?, summed(2)?])
    }

    /// Pairs of a query and a key in the larger of the parts, of a row.
    pub(crate) fn pairs(&self) -> i64 {
        let prompt = self.prompts.width;
        let branch = self.branches.as_ref().map_or(0, |(block, _)| block.width);
        (prompt * prompt).max(branch * (prompt + branch))
    }
}

/// Parts [rows, width, ..] as rows [Σ rows · width, ..].
fn flat<T: Borrow<Tensor>>(parts: &[T]) -> Result<Tensor> {
    let flat = parts.iter().map(|part| {
        let size = part.borrow().size();
        Ok(part.borrow().f_reshape([size[0] * size[1], -1])?)
    });
    Ok(Tensor::f_cat(&flat.collect::<Result<Vec<_>>>()?, 0)?)
}

/// Which tokens of its prompt, in `width.0` places, and of itself, in `width.1` places, each token of a branch sees:
/// [K, 1, C, P + C], or [1, 1, C, P + C] where all prompts are as long. `lengths` are those of the prompts.
fn seen(lengths: &[i64], width: (i64, i64), window: Option<i64>, device: Device) -> Result<Tensor> {
    let lengths = match lengths.split_first() {
        Some((first, rest)) if rest.iter().all(|n| n == first) => &lengths[..1],
        _ => lengths,
    };
    let count = |n: i64| Tensor::f_arange(n, (Kind::Int64, device));
    let before = on(lengths, device)?.f_view([-1, 1, 1, 1])?;
    let at = count(width.1)?;
    // Positions in the sequence of what sees, and of what is seen: in the prompt, and in the branch.
    let own = before.f_add(&at.f_view([1, 1, -1, 1])?)?;
    let of_prompt = count(width.0)?.f_view([1, 1, 1, -1])?;
    let of_branch = before.f_add(&at.f_view([1, 1, 1, -1])?)?;
    let within = |seen: Tensor, position: &Tensor| -> Result<Tensor> {
        match window {
            Some(window) => Ok(seen.f_logical_and(&own.f_sub(position)?.f_lt(window)?)?),
            None => Ok(seen),
        }
    };
    let whole = [lengths.len() as i64, 1, width.1, width.0];
    let prompt = within(of_prompt.f_lt_tensor(&before)?.f_expand(whole, false)?, &of_prompt)?;
    let branch = within(of_branch.f_le_tensor(&own)?, &of_branch)?;
    Ok(Tensor::f_cat(&[prompt, branch], 3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(seen: &Tensor) -> Vec<String> {
        let width = *seen.size().last().unwrap();
        let flat = Vec::<bool>::try_from(seen.contiguous().view(-1)).unwrap();
        let line = |row: &[bool]| row.iter().map(|&seen| if seen { 'x' } else { '.' }).collect();
        flat.chunks(width as usize).map(line).collect()
    }

    #[test]
    fn a_branch_sees_its_prompt_and_itself() {
        let cpu = Device::Cpu;
        let plain = seen(&[2, 3], (3, 2), None, cpu).unwrap();
        assert_eq!(plain.size(), [2, 1, 2, 5]);
        assert_eq!(rows(&plain), ["xx.x.", "xx.xx", "xxxx.", "xxxxx"]);
        let near = seen(&[2, 3], (3, 2), Some(3), cpu).unwrap();
        assert_eq!(rows(&near), ["xx.x.", ".x.xx", ".xxx.", "..xxx"]);
        let alike = seen(&[3, 3, 3], (3, 2), Some(1), cpu).unwrap();
        assert_eq!(alike.size(), [1, 1, 2, 5]);
        assert_eq!(rows(&alike), ["...x.", "....x"]);
    }

    #[test]
    fn positions_go_on_from_the_prompt_in_each_branch() {
        let mut branches = Branches::default();
        branches.push(2, &[1, 3]).unwrap();
        branches.push(1, &[]).unwrap();
        let positions = Vec::<i64>::try_from(branches.positions(Device::Cpu).unwrap().view(-1)).unwrap();
        assert_eq!(positions, [0, 1, 2, 2, 3, 4, 0]);
        assert_eq!((branches.n_tokens(), branches.longest()), (7, 5));
        for (prompt, others) in [(0, &[1, 2][..]), (2, &[0]), (2, &[3, 0])] {
            let error = branches.push(prompt, others).unwrap_err().to_string();
            assert!(error.contains("at least one in each"), "{error}");
        }
        assert_eq!(branches.n_tokens(), 7);
        assert_eq!((Branches::default().n_tokens(), Branches::default().longest()), (0, 0));
    }
}
