//! Rotary positions in the Hugging Face layout: coordinate i of a head turns with coordinate i + r/2, where r
//! coordinates turn and the others stay.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use crate::frequencies::frequencies;
use crate::{Config, Result};

/// Cosines and sines of every position, made once and grown when a longer sequence comes.
#[derive(Debug)]
pub(crate) struct Rope {
    config: Config,
    /// How many coordinates of a head are to turn.
    wanted: usize,
    /// How many do, in pairs (r).
    dim: usize,
    /// The kind that frequencies are computed in.
    of_frequencies: Kind,
    /// The kind that angles, cosines and sines are computed in.
    of_angles: Kind,
    kind: Kind,
    device: Device,
    table: RefCell<Option<Table>>,
}

#[derive(Debug)]
struct Table {
    positions: usize,
    /// [positions, r]; both halves alike.
    cos: Tensor,
    /// [positions, r]; the first half negated, so that turning needs no negation.
    sin: Tensor,
}

/// The angles of one batch, shaped to broadcast over [B, T, heads, r].
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Tensor,
    sin: Tensor,
    dim: i64,
}

impl Rotation {
    /// Turns each head of x [B, T, heads, d] by its position.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let rest = x.size().last().copied().unwrap_or(0) - self.dim;
        if rest == 0 {
            return self.turn(x);
        }
        let turned = self.turn(&x.f_narrow(-1, 0, self.dim)?)?;
        Ok(Tensor::f_cat(&[turned, x.f_narrow(-1, self.dim, rest)?], -1)?)
    }

    /// The gradient of what [`Rotation::apply`] turned, from that of what came out: the other way round.
    pub(crate) fn apply_back(&self, gradient: &Tensor) -> Result<Tensor> {
        let back = Self {
            cos: self.cos.shallow_clone(),
            sin: self.sin.f_neg()?,
            dim: self.dim,
        };
        back.apply(gradient)
    }

    /// The same as [`Rotation::apply`] in place, where no gradient is wanted.
    pub(crate) fn apply_in_place(&self, x: &Tensor) -> Result<()> {
        let mut x = x.f_narrow(-1, 0, self.dim)?;
        let swapped = x.f_roll([self.dim / 2], [-1])?;
        let _ = x.f_mul_(&self.cos)?.f_addcmul_(&swapped, &self.sin)?;
        Ok(())
    }

    /// The same in another kind.
    pub(crate) fn to_kind(&self, kind: Kind) -> Result<Self> {
        Ok(Self {
            cos: self.cos.f_to_kind(kind)?,
            sin: self.sin.f_to_kind(kind)?,
            dim: self.dim,
        })
    }

    fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let swapped = x.f_roll([self.dim / 2], [-1])?;
        Ok(x.f_mul(&self.cos)?.f_addcmul(&swapped, &self.sin)?)
    }
}

impl Rope {
    /// Positions that turn the first `dim` coordinates of each head. Angles are computed in f64 and rounded once:
    /// the products of transformers, which are f32, are off by 9e-6 at position 500.
    pub(crate) fn new(config: &Config, dim: usize, kind: Kind, device: Device) -> Self {
        Self {
            config: config.clone(),
            wanted: dim,
            dim: dim.next_multiple_of(2),
            of_frequencies: Kind::Double,
            of_angles: Kind::Double,
            kind,
            device,
            table: RefCell::new(None),
        }
    }

    /// Computes frequencies, or angles, cosines and sines too, in f32.
    pub(crate) fn round_to_f32(&mut self, frequencies: bool, angles: bool) {
        let kind = |narrow| if narrow { Kind::Float } else { Kind::Double };
        self.of_frequencies = kind(frequencies || angles);
        self.of_angles = kind(angles);
        self.table = RefCell::new(None);
    }

    /// Positions 0 to `n` - 1, the same in every row.
    pub(crate) fn first(&self, n: usize) -> Result<Rotation> {
        self.with_table(n, |table| {
            let shape = [1, n as i64, 1, self.dim as i64];
            let of = |t: &Tensor| -> Result<Tensor> { Ok(t.f_narrow(0, 0, n as i64)?.f_view(shape)?) };
            Ok(self.rotation(of(&table.cos)?, of(&table.sin)?))
        })
    }

    /// Position ids [B, T] of their own per row, each below `n`.
    pub(crate) fn at(&self, positions: &Tensor, n: usize) -> Result<Rotation> {
        let (b, t) = positions.size2()?;
        let flat = positions.f_reshape([-1])?;
        self.with_table(n, |table| {
            let shape = [b, t, 1, self.dim as i64];
            let of = |t: &Tensor| -> Result<Tensor> { Ok(t.f_index_select(0, &flat)?.f_view(shape)?) };
            Ok(self.rotation(of(&table.cos)?, of(&table.sin)?))
        })
    }

    fn rotation(&self, cos: Tensor, sin: Tensor) -> Rotation {
        Rotation {
            cos,
            sin,
            dim: self.dim as i64,
        }
    }

    fn with_table<T>(&self, n: usize, read: impl FnOnce(&Table) -> Result<T>) -> Result<T> {
        let mut slot = self.table.borrow_mut();
        let table = match slot.take() {
            Some(table) if table.positions >= n => table,
            _ => {
                let longest = self.config.max_position_embeddings;
                self.make(n.next_power_of_two().max(64).min(longest.max(n)))?
            }
        };
        read(slot.insert(table))
    }

    fn make(&self, positions: usize) -> Result<Table> {
        let frequencies = frequencies(&self.config, self.wanted, self.of_frequencies)?.f_to_kind(self.of_angles)?;
        let angles = Tensor::f_arange(positions as i64, (Kind::Int64, Device::Cpu))?
            .f_to_kind(self.of_angles)?
            .f_unsqueeze(1)?
            .f_mul(&frequencies)?;
        let factor = self.config.rope_scaling.attention_factor();
        let cos = angles.f_cos()?.f_mul_scalar(factor)?;
        let sin = angles.f_sin()?.f_mul_scalar(factor)?;
        let table = |halves: [&Tensor; 2]| -> Result<Tensor> {
            Ok(Tensor::f_cat(&halves, 1)?.f_to_kind(self.kind)?.f_to(self.device)?)
        };
        Ok(Table {
            positions,
            cos: table([&cos, &cos])?,
            sin: table([&sin.f_neg()?, &sin])?,
        })
    }
}
