//! Keys and values of the rows that generate, each row's from slot 0 on.

use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use super::store::{Meeting, Places, Store, Values};
use crate::Result;
use crate::attention::additive;

/// The keys and values of all blocks, made once for the longest completion.
#[derive(Debug)]
pub(super) struct Slots {
    layers: Vec<Store>,
    /// How many tokens of each row have keys.
    filled: Vec<i64>,
    shape: Shape,
    /// Whether the request has one row, and had no other.
    alone: bool,
    /// Where keys and values lie apart.
    meeting: Option<Rc<Meeting>>,
    kind: Kind,
    device: Device,
}

/// What all rows share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Query heads (H).
    pub(super) heads: i64,
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
    places: Places,
    /// What blocks without a window see.
    pub(super) all: Seen,
    /// What blocks see that have one, when it hides something.
    pub(super) near: Option<Seen>,
}

/// Slots that are read, and which row sees which of them.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) start: i64,
    pub(super) n: i64,
    /// [R, n]: minus infinity where a row does not see a slot; none where every row sees all of them.
    pub(super) mask: Option<Tensor>,
    /// Where keys and values lie apart.
    pub(super) values: Option<Values>,
}

impl Turn {
    /// More than any row's position.
    pub(super) fn longest(&self) -> usize {
        (self.all.start + self.all.n) as usize
    }
}

impl Slots {
    /// `apart` lays keys and values out for a processor, otherwise for libtorch's own attention.
    pub(super) fn new(
        n_blocks: usize,
        rows: usize,
        (shape, apart): (Shape, bool),
        (kind, device): (Kind, Device),
    ) -> Result<Self> {
        let store = |_| Store::new(apart, rows as i64, shape, (kind, device));
        let mut slots = Self {
            layers: (0..n_blocks).map(store).collect::<Result<_>>()?,
            filled: vec![0; rows],
            shape,
            alone: rows == 1,
            meeting: None,
            kind,
            device,
        };
        if apart {
            slots.meet()?;
        }
        Ok(slots)
    }

    /// Says which queries meet which keys, where those lie apart from values.
    fn meet(&mut self) -> Result<()> {
        let rows = self.filled.len() as i64;
        self.meeting = Some(Rc::new(Meeting::new(rows, self.shape, self.device)?));
        Ok(())
    }

    /// Stores keys and values [N, T, 2G, d] of N sequences in the first slots of `rows`, the sequence of each row being
    /// `owners`, both `[m]` (Int64).
    pub(super) fn insert(&self, layer: usize, kv: &Tensor, owners: &Tensor, rows: &Tensor) -> Result<()> {
        self.layers[layer].insert(kv, (owners, rows), self.shape)
    }

    /// Whether they are of a request of one row. The last row that is left of several is not alone: it goes on as it began.
    pub(super) fn alone(&self) -> bool {
        self.alone
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
        self.layers
            .iter()
            .try_for_each(|layer| layer.copy((from, to), n as i64, self.shape))
    }

    /// Keeps the given rows.
    pub(super) fn keep(&mut self, rows: &[usize]) -> Result<()> {
        let kept: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let kept = Tensor::f_from_slice(&kept)?.f_to(self.device)?;
        for layer in &mut self.layers {
            layer.keep(&kept, self.shape)?;
        }
        self.filled = rows.iter().map(|&row| self.filled[row]).collect();
        match self.meeting {
            Some(_) => self.meet(),
            None => Ok(()),
        }
    }

    /// The turn of one new token per row. `window` is that of the blocks that have one.
    pub(super) fn turn(&self, window: Option<i64>) -> Result<Turn> {
        let at = &self.filled;
        let position = Tensor::f_from_slice(at)?.f_to(self.device)?.f_unsqueeze(1)?;
        let (least, most) = at
            .iter()
            .fold((i64::MAX, 0), |(least, most), &n| (least.min(n), most.max(n)));
        let seen = |window: Option<i64>| self.seen(&position, (least, most), window);
        Ok(Turn {
            places: Places::new(self.meeting.is_some(), at, self.shape, self.device)?,
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
            Some(additive(&seen, self.kind)?)
        };
        let meeting = self.meeting.as_ref();
        let values = meeting.map(|meeting| Values::new(meeting, (start, n), self.shape));
        Ok(Seen {
            start,
            n,
            mask,
            values: values.transpose()?,
        })
    }

    /// Stores keys and values [R, 1, 2G, d] of one new token per row.
    pub(super) fn write(&mut self, layer: usize, kv: &Tensor, turn: &Turn) -> Result<()> {
        self.layers[layer].write(kv, &turn.places, self.shape)
    }

    /// One new position per row against what its row holds: q [R, 1, H, d] → [R, H·d].
    pub(super) fn attend(&self, layer: usize, q: &Tensor, seen: &Seen) -> Result<Tensor> {
        self.layers[layer].attend(q, seen, self.shape)
    }

    /// Counts one more token of a row.
    pub(super) fn advance(&mut self, row: usize) {
        self.filled[row] += 1;
    }
}
