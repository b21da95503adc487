//! Keys and values of the rows that generate, each row's from slot 0 on.

use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::attention::additive;

/// One buffer [2, R, G, S, d] per block, keys before values, made once for the longest completion.
#[derive(Debug)]
pub(super) struct Slots {
    layers: Vec<Tensor>,
    /// How many tokens of each row have keys.
    filled: Vec<i64>,
    shape: Shape,
    kind: Kind,
    device: Device,
}

/// What all rows share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Key/value heads (G).
    pub(super) kv_heads: i64,
    /// Width of a head (d).
    pub(super) head_dim: i64,
    /// Slots of a row (S).
    pub(super) slots: i64,
}

/// Where one new token per row goes and what it sees.
#[derive(Debug)]
pub(super) struct Turn {
    /// Position of each row's token, [R, 1].
    pub(super) position: Tensor,
    /// Its places [2·R·G] among the slots of a buffer, laid out one after the other.
    places: Tensor,
    /// What blocks without a window see.
    pub(super) all: Seen,
    /// What blocks see that have one, when it hides something.
    pub(super) near: Option<Seen>,
}

/// Slots that are read, and which row sees which of them.
#[derive(Debug)]
pub(super) struct Seen {
    start: i64,
    n: i64,
    /// [R·G, 1, n]: minus infinity where a row does not see a slot; none where every row sees all of them.
    pub(super) mask: Option<Tensor>,
}

impl Turn {
    /// More than any row's position.
    pub(super) fn longest(&self) -> usize {
        (self.all.start + self.all.n) as usize
    }
}

impl Slots {
    pub(super) fn new(n_blocks: usize, rows: usize, shape: Shape, (kind, device): (Kind, Device)) -> Result<Self> {
        let size = [2, rows as i64, shape.kv_heads, shape.slots, shape.head_dim];
        // Zeros: what is hidden is multiplied by zero, which a leftover that is no number would survive.
        let layers = (0..n_blocks)
            .map(|_| Ok(Tensor::f_zeros(size, (kind, device))?))
            .collect::<Result<_>>()?;
        Ok(Self {
            layers,
            filled: vec![0; rows],
            shape,
            kind,
            device,
        })
    }

    /// Stores keys and values [N, T, 2G, d] of N sequences in the first slots of `rows`, the sequence of each row being
    /// `owners`, both `[m]` (Int64).
    pub(super) fn insert(&self, layer: usize, kv: &Tensor, owners: &Tensor, rows: &Tensor) -> Result<()> {
        let (n, t, _, d) = kv.size4()?;
        let kv = kv
            .f_view([n, t, 2, self.shape.kv_heads, d])?
            .f_permute([2, 0, 3, 1, 4])?;
        let kv = kv.f_index_select(1, owners)?;
        let _ = self.layers[layer].f_narrow(3, 0, t)?.f_index_copy_(1, rows, &kv)?;
        Ok(())
    }

    /// How many tokens the longest row has keys of.
    pub(super) fn longest(&self) -> usize {
        self.filled.iter().max().map_or(0, |&n| n as usize)
    }

    /// Says how many tokens of a row have keys.
    pub(super) fn set_filled(&mut self, row: usize, n: usize) {
        self.filled[row] = n as i64;
    }

    /// Copies the first `n` slots of the rows `from` to the rows `to`, both `[m]`.
    pub(super) fn copy(&self, from: &Tensor, to: &Tensor, n: usize) -> Result<()> {
        for layer in &self.layers {
            let mut part = layer.f_narrow(3, 0, n as i64)?;
            let rows = part.f_index_select(1, from)?;
            let _ = part.f_index_copy_(1, to, &rows)?;
        }
        Ok(())
    }

    /// Keeps the given rows.
    pub(super) fn keep(&mut self, rows: &[usize]) -> Result<()> {
        let kept: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let kept = Tensor::f_from_slice(&kept)?.f_to(self.device)?;
        for layer in &mut self.layers {
            *layer = layer.f_index_select(1, &kept)?;
        }
        self.filled = rows.iter().map(|&row| self.filled[row]).collect();
        Ok(())
    }

    /// The turn of one new token per row. `window` is that of the blocks that have one.
    pub(super) fn turn(&self, window: Option<i64>) -> Result<Turn> {
        let (rows, Shape { kv_heads, slots, .. }) = (self.filled.len() as i64, self.shape);
        let at = &self.filled;
        let heads = |which: i64, row: i64| (0..kv_heads).map(move |head| (which * rows + row) * kv_heads + head);
        let mut places = Vec::with_capacity((2 * rows * kv_heads) as usize);
        for which in 0..2 {
            for (row, at) in (0..rows).zip(at) {
                places.extend(heads(which, row).map(|head| head * slots + at));
            }
        }
        let position = Tensor::f_from_slice(at)?.f_to(self.device)?.f_unsqueeze(1)?;
        let (least, most) = at
            .iter()
            .fold((i64::MAX, 0), |(least, most), &n| (least.min(n), most.max(n)));
        let seen = |window: Option<i64>| self.seen(&position, (least, most), window);
        Ok(Turn {
            places: Tensor::f_from_slice(&places)?.f_to(self.device)?,
            all: seen(None)?,
            near: window
                .filter(|&window| window <= most)
                .map(|window| seen(Some(window)))
                .transpose()?,
            position,
        })
    }

    fn seen(&self, position: &Tensor, (least, most): (i64, i64), window: Option<i64>) -> Result<Seen> {
        let start = window.map_or(0, |window| (least + 1 - window).max(0));
        let n = most + 1 - start;
        let mask = if least == most {
            None
        } else {
            let slots = Tensor::f_arange_start(start, most + 1, (Kind::Int64, self.device))?.f_unsqueeze(0)?;
            let mut seen = slots.f_le_tensor(position)?;
            if let Some(window) = window {
                seen = seen.f_logical_and(&position.f_sub(&slots)?.f_lt(window)?)?;
            }
            let rows = self.filled.len() as i64;
            let mask = additive(&seen, self.kind)?.f_view([rows, 1, 1, n])?;
            let heads = self.shape.kv_heads;
            Some(
                mask.f_expand([rows, heads, 1, n], false)?
                    .f_reshape([rows * heads, 1, n])?,
            )
        };
        Ok(Seen { start, n, mask })
    }

    /// Stores keys and values [R, 1, 2G, d] of one new token per row.
    pub(super) fn write(&self, layer: usize, kv: &Tensor, turn: &Turn) -> Result<()> {
        let Shape { kv_heads, head_dim, .. } = self.shape;
        let rows = self.filled.len() as i64;
        let kv = kv.f_view([rows, 2, kv_heads, head_dim])?.f_transpose(0, 1)?;
        let flat = self.layers[layer].f_view([-1, head_dim]);
        let _ = flat?.f_index_copy_(0, &turn.places, &kv.f_reshape([-1, head_dim])?)?;
        Ok(())
    }

    /// The keys and the values that are read, each [R·G, n, d].
    pub(super) fn read(&self, layer: usize, seen: &Seen) -> Result<(Tensor, Tensor)> {
        let Shape {
            kv_heads,
            head_dim,
            slots,
        } = self.shape;
        let all = self.layers[layer].f_view([2, self.filled.len() as i64 * kv_heads, slots, head_dim])?;
        let all = all.f_narrow(2, seen.start, seen.n)?;
        Ok((all.f_select(0, 0)?, all.f_select(0, 1)?))
    }

    /// Counts one more token of a row.
    pub(super) fn advance(&mut self, row: usize) {
        self.filled[row] += 1;
    }
}
