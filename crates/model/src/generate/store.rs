//! How the keys and values of one block lie in memory, and attention over them.
//!
//! On a processor each number of a query takes one long row of numbers, the same coordinate of many keys, and each weight one
//! value: both are sums of weighted rows, which `embedding_bag` makes with kernels that ask for memory ahead. Batched products
//! of one row each wait for it: with weights of 27 MB read in between they take more than twice as long.

use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use super::slots::{Seen, Shape};
use crate::{Error, Result};

/// How many slots lie side by side in one tensor of keys, so that few are read in vain; in tests so few that rows have
/// several blocks.
const BLOCK: i64 = if cfg!(test) { 4 } else { 64 };

/// The keys and values of R rows in S slots.
#[derive(Debug)]
pub(super) enum Store {
    /// [2, R, G, S, d], keys before values.
    Together(Tensor),
    /// Keys a block of slots at a time, each [R·G·d, up to 64], and values [R·G·S, d].
    Apart { keys: Vec<Tensor>, values: Tensor },
}

/// Which coordinates of the keys meet which query, where keys and values lie apart.
#[derive(Debug)]
pub(super) struct Meeting {
    /// For each number of the queries [R·H·d] its row of keys.
    coordinates: Tensor,
    /// Where each head of each row begins, [R·H + 1].
    offsets: Tensor,
}

/// Where one new token per row puts its keys and values.
#[derive(Debug)]
pub(super) enum Places {
    /// [2·R·G] among the slots of a buffer, laid out one after the other.
    Together(Tensor),
    Apart {
        /// By block of slots: its number, the rows that write to it (all where there is none), and the places
        /// [rows, G·d] in it.
        keys: Vec<(usize, Option<Tensor>, Tensor)>,
        /// [R·G].
        values: Tensor,
    },
}

/// Which values the weights belong to, where keys and values lie apart.
#[derive(Debug)]
pub(super) struct Values {
    meeting: Rc<Meeting>,
    /// For each weight [R·H·n] its row of values.
    rows: Tensor,
    /// Where each head of each row begins, [R·H + 1].
    offsets: Tensor,
}

fn offsets(n: i64, step: i64, device: Device) -> Result<Tensor> {
    Ok(Tensor::f_arange_start_step(
        0,
        (n + 1) * step,
        step,
        (Kind::Int64, device),
    )?)
}

/// Numbers for each row and key/value head [R·G, n], again for each query head of it, `[R·H·n]`.
fn for_heads(of_groups: &Tensor, per_group: i64) -> Result<Tensor> {
    let (groups, n) = of_groups.size2()?;
    Ok(of_groups
        .f_unsqueeze(1)?
        .f_expand([groups, per_group, n], false)?
        .f_reshape([-1])?)
}

impl Meeting {
    pub(super) fn new(rows: i64, shape: Shape, device: Device) -> Result<Self> {
        let coordinates = Tensor::f_arange(rows * shape.kv_heads * shape.head_dim, (Kind::Int64, device))?;
        let per_group = shape.heads / shape.kv_heads;
        Ok(Self {
            coordinates: for_heads(&coordinates.f_view([-1, shape.head_dim])?, per_group)?,
            offsets: offsets(rows * shape.heads, shape.head_dim, device)?,
        })
    }
}

impl Places {
    /// `at` is the slot of each row.
    pub(super) fn new(apart: bool, at: &[i64], shape: Shape, device: Device) -> Result<Self> {
        let Shape { kv_heads, slots, .. } = shape;
        let tensor = |numbers: &[i64]| -> Result<Tensor> { Ok(Tensor::f_from_slice(numbers)?.f_to(device)?) };
        let rows = at.len() as i64;
        let of = |which: i64| {
            let heads = move |row: i64| (0..kv_heads).map(move |head| (which * rows + row) * kv_heads + head);
            (0..rows)
                .zip(at)
                .flat_map(move |(row, at)| heads(row).map(move |head| head * slots + at))
        };
        if !apart {
            return Ok(Self::Together(tensor(&of(0).chain(of(1)).collect::<Vec<_>>())?));
        }
        let mut blocks: Vec<i64> = at.iter().map(|at| at / BLOCK).collect();
        blocks.sort_unstable();
        blocks.dedup();
        Ok(Self::Apart {
            keys: blocks
                .into_iter()
                .map(|block| {
                    let rows: Vec<i64> = (0..rows).filter(|&row| at[row as usize] / BLOCK == block).collect();
                    let (start, width) = (block * BLOCK, kv_heads * shape.head_dim);
                    let slots = BLOCK.min(slots - start);
                    let first = rows.iter().map(|&row| row * width * slots + at[row as usize] - start);
                    let first = tensor(&first.collect::<Vec<_>>())?.f_unsqueeze(1)?;
                    let steps = Tensor::f_arange_start_step(0, width * slots, slots, (Kind::Int64, device))?;
                    let own = match rows.len() == at.len() {
                        true => None,
                        false => Some(tensor(&rows)?),
                    };
                    Ok((block as usize, own, first.f_add(&steps)?))
                })
                .collect::<Result<_>>()?,
            values: tensor(&of(0).collect::<Vec<_>>())?,
        })
    }
}

impl Values {
    pub(super) fn new(meeting: &Rc<Meeting>, (start, n): (i64, i64), shape: Shape) -> Result<Self> {
        let device = meeting.offsets.device();
        let rows = (meeting.offsets.numel() as i64 - 1) / shape.heads;
        let options = (Kind::Int64, device);
        let rows_of =
            Tensor::f_arange_start_step(start, start + rows * shape.kv_heads * shape.slots, shape.slots, options)?;
        let all = rows_of.f_unsqueeze(1)?.f_add(&Tensor::f_arange(n, options)?)?;
        Ok(Self {
            meeting: Rc::clone(meeting),
            rows: for_heads(&all, shape.heads / shape.kv_heads)?,
            offsets: offsets(rows * shape.heads, n, device)?,
        })
    }
}

/// Sums of weighted rows of a table: weights `[m]` of its `rows` `[m]`, from one of `offsets` `[n + 1]` to the next one sum
/// each, [n, width].
pub(super) fn sums(table: &Tensor, rows: &Tensor, offsets: &Tensor, weights: &Tensor) -> Result<Tensor> {
    const SUM: i64 = 0;
    Ok(Tensor::f_embedding_bag(table, rows, offsets, false, SUM, false, Some(weights), true)?.0)
}

impl Store {
    /// Room for the keys of so many rows.
    pub(super) fn new(apart: bool, rows: i64, shape: Shape, options: (Kind, Device)) -> Result<Self> {
        let Shape {
            kv_heads,
            head_dim,
            slots,
            ..
        } = shape;
        // Zeros: what is hidden is multiplied by zero, which a leftover that is no number would survive.
        if !apart {
            return Ok(Self::Together(Tensor::f_zeros(
                [2, rows, kv_heads, slots, head_dim],
                options,
            )?));
        }
        let blocks = (0..slots).step_by(BLOCK as usize);
        Ok(Self::Apart {
            keys: blocks
                .map(|start| {
                    let size = [rows * kv_heads * head_dim, BLOCK.min(slots - start)];
                    Ok(Tensor::f_zeros(size, options)?)
                })
                .collect::<Result<_>>()?,
            values: Tensor::f_zeros([rows * kv_heads * slots, head_dim], options)?,
        })
    }

    /// Keys a block at a time with its first slot, [R, G, d, up to 64].
    fn blocks(keys: &[Tensor], shape: Shape) -> impl Iterator<Item = Result<(i64, Tensor)>> {
        (0..).step_by(BLOCK as usize).zip(keys).map(move |(start, block)| {
            let slots = block.size2()?.1;
            Ok((start, block.f_view([-1, shape.kv_heads, shape.head_dim, slots])?))
        })
    }

    /// Values as [R, G, S, d].
    fn by_row(values: &Tensor, shape: Shape) -> Result<Tensor> {
        Ok(values.f_view([-1, shape.kv_heads, shape.slots, shape.head_dim])?)
    }

    /// Stores keys and values [N, T, 2G, d] of N sequences in the first slots of `rows`, the sequence of each row being
    /// `owners`, both `[m]` (Int64).
    pub(super) fn insert(&self, kv: &Tensor, (owners, rows): (&Tensor, &Tensor), shape: Shape) -> Result<()> {
        let (n, t, _, d) = kv.size4()?;
        let kv = kv.f_view([n, t, 2, shape.kv_heads, d])?.f_permute([2, 0, 3, 1, 4])?;
        match self {
            Self::Together(all) => {
                let kv = kv.f_index_select(1, owners)?;
                let _ = all.f_narrow(3, 0, t)?.f_index_copy_(1, rows, &kv)?;
            }
            Self::Apart { keys, values } => {
                let k = kv.f_select(0, 0)?.f_transpose(2, 3)?.f_index_select(0, owners)?;
                for block in Self::blocks(keys, shape) {
                    let (start, block) = block?;
                    let n = (t - start).min(block.size()[3]);
                    if n > 0 {
                        let own = k.f_narrow(3, start, n)?;
                        let _ = block.f_narrow(3, 0, n)?.f_index_copy_(0, rows, &own)?;
                    }
                }
                let v = kv.f_select(0, 1)?.f_index_select(0, owners)?;
                let _ = Self::by_row(values, shape)?
                    .f_narrow(2, 0, t)?
                    .f_index_copy_(0, rows, &v)?;
            }
        }
        Ok(())
    }

    /// Copies the first `n` slots of the rows `from` to the rows `to`, both `[m]`.
    pub(super) fn copy(&self, (from, to): (&Tensor, &Tensor), n: i64, shape: Shape) -> Result<()> {
        let copy = |part: &mut Tensor, axis: i64| -> Result<()> {
            let rows = part.f_index_select(axis, from)?;
            let _ = part.f_index_copy_(axis, to, &rows)?;
            Ok(())
        };
        match self {
            Self::Together(all) => copy(&mut all.f_narrow(3, 0, n)?, 1),
            Self::Apart { keys, values } => {
                for block in Self::blocks(keys, shape) {
                    let (start, mut block) = block?;
                    if start < n {
                        copy(&mut block, 0)?;
                    }
                }
                copy(&mut Self::by_row(values, shape)?.f_narrow(2, 0, n)?, 0)
            }
        }
    }

    /// Keeps the rows `[m]`.
    pub(super) fn keep(&mut self, rows: &Tensor, shape: Shape) -> Result<()> {
        match self {
            Self::Together(all) => *all = all.f_index_select(1, rows)?,
            Self::Apart { keys, values } => {
                let kept = Self::blocks(keys, shape).map(|block| {
                    let block = block?.1;
                    Ok(block.f_index_select(0, rows)?.f_view([-1, block.size()[3]])?)
                });
                *keys = kept.collect::<Result<_>>()?;
                let kept = Self::by_row(values, shape)?.f_index_select(0, rows)?;
                *values = kept.f_view([-1, shape.head_dim])?;
            }
        }
        Ok(())
    }

    /// Stores keys and values [R, 1, 2G, d] of one new token per row.
    pub(super) fn write(&mut self, kv: &Tensor, places: &Places, shape: Shape) -> Result<()> {
        let Shape { kv_heads, head_dim, .. } = shape;
        match (self, places) {
            (Self::Together(all), Places::Together(places)) => {
                let kv = kv.f_view([-1, 2, kv_heads, head_dim])?.f_transpose(0, 1)?;
                let flat = all.f_view([-1, head_dim]);
                let _ = flat?.f_index_copy_(0, places, &kv.f_reshape([-1, head_dim])?)?;
            }
            (
                Self::Apart { keys, values },
                Places::Apart {
                    keys: of_keys,
                    values: of_values,
                },
            ) => {
                let k = kv.f_narrow(2, 0, kv_heads)?.f_reshape([-1, kv_heads * head_dim])?;
                for (block, rows, places) in of_keys {
                    let own = match rows {
                        Some(rows) => k.f_index_select(0, rows)?,
                        None => k.shallow_clone(),
                    };
                    let _ = keys[*block].f_put_(places, &own, false)?;
                }
                let v = kv.f_narrow(2, kv_heads, kv_heads)?.f_reshape([-1, head_dim])?;
                let _ = values.f_index_copy_(0, of_values, &v)?;
            }
            (_, places) => return Err(other_layout(places)),
        }
        Ok(())
    }

    /// One new position per row against what its row holds: q [R, 1, H, d] → [R, H·d].
    pub(super) fn attend(&self, q: &Tensor, seen: &Seen, shape: Shape) -> Result<Tensor> {
        let Shape {
            heads,
            kv_heads,
            head_dim,
            slots,
        } = shape;
        let rows = q.size()[0];
        match (self, &seen.values) {
            (Self::Together(all), None) => {
                // The queries of a group stand in for positions, so keys are not copied.
                let q = q.f_reshape([rows, kv_heads, heads / kv_heads, head_dim])?;
                let all = all.f_narrow(3, seen.start, seen.n)?;
                let (k, v) = (all.f_select(0, 0)?, all.f_select(0, 1)?);
                let mask = seen.mask.as_ref().map(|mask| mask.f_view([rows, 1, 1, seen.n]));
                let out =
                    Tensor::f_scaled_dot_product_attention(&q, &k, &v, mask.transpose()?, 0.0, false, None, false)?;
                Ok(out.f_reshape([rows, -1])?)
            }
            (Self::Apart { keys, values }, Some(of_values)) => {
                let q = q.f_reshape([-1])?.f_mul_scalar((head_dim as f64).powf(-0.5))?;
                let first = seen.start / BLOCK;
                let meeting = &of_values.meeting;
                let scores = keys[first as usize..((seen.start + seen.n - 1) / BLOCK + 1) as usize]
                    .iter()
                    .map(|block| sums(block, &meeting.coordinates, &meeting.offsets, &q))
                    .collect::<Result<Vec<_>>>()?;
                let scores = match scores.as_slice() {
                    [one] => one.shallow_clone(),
                    several => Tensor::f_cat(several, 1)?,
                };
                let mut scores = scores.f_narrow(1, seen.start - first * BLOCK, seen.n)?;
                if let Some(mask) = &seen.mask {
                    scores = scores.f_view([rows, heads, seen.n])?.f_add(&mask.f_unsqueeze(1)?)?;
                }
                let weights = scores.f_softmax(-1, None::<Kind>)?.f_view([-1])?;
                let out = sums(values, &of_values.rows, &of_values.offsets, &weights)?;
                Ok(out.f_view([rows, -1])?)
            }
            _ => Err(Error::input(
                "keys that are read",
                "the layout that they were written in",
                slots,
            )),
        }
    }
}

fn other_layout(places: &Places) -> Error {
    let got = match places {
        Places::Together(_) => "places where they lie together",
        Places::Apart { .. } => "places where they lie apart",
    };
    Error::input("keys and values that are stored", "places in their own layout", got)
}
