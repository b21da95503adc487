//! How a token's position enters the computation.

use tch::{Kind, Tensor};

use crate::Result;
use crate::rope::{Rope, Rotation};

/// The positions that a model knows.
#[derive(Debug)]
pub(crate) enum Positions {
    /// Queries and keys are turned.
    Rotary(Box<Rope>),
    /// A vector of its own [positions, D] is added to the token's.
    Learned(Tensor),
}

/// Where the tokens of one batch stand.
#[derive(Debug)]
pub(crate) enum Place {
    /// Angles for queries and keys.
    Rotation(Rotation),
    /// What is added to the tokens' embeddings, [B, T, D] or [1, T, D].
    Added(Tensor),
}

impl Positions {
    /// Positions 0 to `n` - 1, the same in every row.
    pub(crate) fn first(&self, n: usize) -> Result<Place> {
        match self {
            Self::Rotary(rope) => rope.first(n).map(Place::Rotation),
            Self::Learned(table) => Ok(Place::Added(table.f_narrow(0, 0, n as i64)?.f_unsqueeze(0)?)),
        }
    }

    /// Position ids [B, T] of their own per row, each below `n`.
    pub(crate) fn at(&self, positions: &Tensor, n: usize) -> Result<Place> {
        match self {
            Self::Rotary(rope) => rope.at(positions, n).map(Place::Rotation),
            Self::Learned(table) => Ok(Place::Added(Tensor::f_embedding(table, positions, -1, false, false)?)),
        }
    }
}

impl Place {
    /// Token embeddings x [B, T, D] with what the position adds to them.
    pub(crate) fn embed(&self, x: Tensor) -> Result<Tensor> {
        match self {
            Self::Rotation(_) => Ok(x),
            Self::Added(embedding) => Ok(x.f_add(embedding)?),
        }
    }

    /// Turns queries and keys [B, T, heads, d] in place, where no gradient is wanted.
    pub(crate) fn turn_in_place(&self, heads: &Tensor) -> Result<()> {
        match self {
            Self::Rotation(rotation) => rotation.apply_in_place(heads),
            Self::Added(_) => Ok(()),
        }
    }

    /// The same with angles for queries and keys of another kind than the embeddings.
    pub(crate) fn with_angles_of(self, kind: Kind) -> Result<Self> {
        match self {
            Self::Rotation(rotation) => rotation.to_kind(kind).map(Self::Rotation),
            Self::Added(_) => Ok(self),
        }
    }

    /// Queries or keys [B, T, heads, d] as they are compared.
    pub(crate) fn turn(&self, heads: Tensor) -> Result<Tensor> {
        match self {
            Self::Rotation(rotation) => rotation.apply(&heads),
            Self::Added(_) => Ok(heads),
        }
    }

    /// The gradient of what [`Place::turn`] was given, from that of what it made.
    pub(crate) fn turn_back(&self, gradient: Tensor) -> Result<Tensor> {
        match self {
            Self::Rotation(rotation) => rotation.apply_back(&gradient),
            Self::Added(_) => Ok(gradient),
        }
    }
}

/// How many real tokens stand before each, from real [B, T] (true where a token is real); 0 at padding on
/// the left.
pub(crate) fn count(real: &Tensor) -> Result<Tensor> {
    Ok(real.f_cumsum(-1, Kind::Int64)?.f_sub_scalar(1)?.f_clamp_min(0)?)
}
