//! The rows of an op, and picking some of them.

use tch::Tensor;

use crate::Result;

/// What the op knows of some rows, without a graph.
#[derive(Debug)]
pub(super) struct Rows {
    /// `[n, D]`.
    pub(super) hidden: Tensor,
    /// `[n]`.
    pub(super) targets: Tensor,
    /// `[n, C]`, -1 for none.
    pub(super) candidates: Option<Tensor>,
    /// `[n, D']` the reference's states.
    pub(super) reference: Option<Tensor>,
    /// `[n]` where the largest logits are wanted; everywhere without it.
    pub(super) top: Option<Tensor>,
}

/// A choice of rows.
#[derive(Debug)]
pub(super) enum Pick {
    /// Neighbours: a first one and how many. Nothing is copied.
    Range(i64, i64),
    /// By ascending index.
    Index(Tensor),
}

impl Pick {
    /// The rows where `used` is true; `None` where there is none.
    pub(super) fn used(used: &Tensor) -> Result<Option<Pick>> {
        let index = used.f_nonzero()?.f_squeeze_dim(1)?;
        let (n, all) = (index.size()[0], used.size()[0]);
        Ok(match n {
            0 => None,
            n if n == all => Some(Pick::Range(0, n)),
            _ => Some(Pick::Index(index)),
        })
    }

    /// How many rows.
    pub(super) fn len(&self) -> i64 {
        match self {
            Pick::Range(_, n) => *n,
            Pick::Index(index) => index.size()[0],
        }
    }

    /// `n` of these from the `start`-th on.
    pub(super) fn narrow(&self, start: i64, n: i64) -> Result<Pick> {
        Ok(match self {
            Pick::Range(first, _) => Pick::Range(first + start, n),
            Pick::Index(index) => Pick::Index(index.f_narrow(0, start, n)?),
        })
    }

    /// These, counted from `by` rows earlier.
    pub(super) fn shift(&self, by: i64) -> Result<Pick> {
        Ok(match self {
            Pick::Range(first, n) => Pick::Range(first + by, *n),
            Pick::Index(index) => Pick::Index(index.f_add_scalar(by)?),
        })
    }

    /// Of these rows, those with the places `index`.
    pub(super) fn then(&self, index: &Tensor) -> Result<Pick> {
        Ok(Pick::Index(match self {
            Pick::Range(first, _) => index.f_add_scalar(*first)?,
            Pick::Index(own) => own.f_index_select(0, index)?,
        }))
    }

    /// These rows of a tensor.
    pub(super) fn of(&self, t: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Pick::Range(first, n) => t.f_narrow(0, *first, *n)?,
            Pick::Index(index) => t.f_index_select(0, index)?,
        })
    }

    /// These rows of a tensor that may be missing.
    pub(super) fn of_some(&self, t: &Option<Tensor>) -> Result<Option<Tensor>> {
        t.as_ref().map(|t| self.of(t)).transpose()
    }

    /// Adds to these rows of a tensor.
    pub(super) fn add_to(&self, total: &mut Tensor, values: &Tensor) -> Result<()> {
        let _ = match self {
            Pick::Range(first, n) => total.f_narrow(0, *first, *n)?.f_add_(values)?,
            // No row twice, so the order of the sums is fixed on every device.
            Pick::Index(index) => total.f_index_add_(0, index, values)?,
        };
        Ok(())
    }
}

impl Rows {
    pub(super) fn pick(&self, pick: &Pick) -> Result<Rows> {
        Ok(Rows {
            hidden: pick.of(&self.hidden)?,
            targets: pick.of(&self.targets)?,
            candidates: pick.of_some(&self.candidates)?,
            reference: pick.of_some(&self.reference)?,
            top: pick.of_some(&self.top)?,
        })
    }

    pub(super) fn len(&self) -> i64 {
        self.targets.size()[0]
    }
}
