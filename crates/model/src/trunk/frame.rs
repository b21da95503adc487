//! Where the tokens of a batch stand and what they see, checked before anything is computed.

use tch::{Kind, Tensor};

use crate::attended::Attended;
use crate::attention::{Sight, attend, attend_step_by_step};
use crate::branches::Branches;
use crate::positions::{Place, Positions};
use crate::{Error, Result, Trunk};

/// What the blocks of one batch see.
#[derive(Debug)]
pub(crate) struct Sights {
    all: Sight,
    /// Of blocks with a window.
    near: Option<Sight>,
}

/// Where the tokens of one batch stand whose rows begin at position 0, and what they see.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) place: Place,
    pub(crate) sights: Sights,
    /// The flat positions whose final states are wanted; all where there is none.
    pub(super) rows: Option<Tensor>,
}

impl Trunk {
    /// Whether sequences can lie end to end, as [`Trunk::hidden_branched`] takes them.
    pub fn takes_branches(&self) -> bool {
        !self.like_transformers.eager
    }

    /// Ids [1, N] on this device, with where they stand.
    pub(super) fn branched(&self, ids: &Tensor, branches: &Branches, rows: Option<&Tensor>) -> Result<(Tensor, Frame)> {
        let (n, size) = (branches.n_tokens(), ids.size());
        if size != [n as i64] {
            return Err(Error::input(
                "token ids",
                format!("[{n}], as the branches have"),
                format!("{size:?}"),
            ));
        }
        if !self.takes_branches() {
            let expected = "attention by blocks";
            return Err(Error::input(
                "attention of branches",
                expected,
                "attention step by step",
            ));
        }
        let width = branches.longest();
        self.check_width(width)?;
        let ids = self.check_ids(&ids.f_unsqueeze(0)?)?;
        let options = (self.kind()?, self.device());
        let place = self.positions.at(&branches.positions(self.device())?, width)?;
        let near = self
            .nearest(width as i64)
            .map(|window| branches.sight(Some(window), options));
        let sights = Sights {
            all: branches.sight(None, options)?,
            near: near.transpose()?,
        };
        let rows = rows.map(|rows| self.checked_rows(rows, n)).transpose()?;
        Ok((ids, Frame { place, sights, rows }))
    }

    /// The window of the blocks that have one, where it hides something of `width` positions.
    fn nearest(&self, width: i64) -> Option<i64> {
        self.windows
            .iter()
            .flatten()
            .min()
            .copied()
            .filter(|&window| window < width)
    }

    /// What `width` positions see in each block, for queries of `kind`; real [B, T] is true where a token counts.
    pub(crate) fn sights(&self, real: Option<&Tensor>, width: usize, kind: Kind) -> Result<Sights> {
        let (width, options) = (width as i64, (kind, self.device()));
        let window = self.nearest(width);
        let sight = |window| {
            if self.like_transformers.eager {
                let twice = matches!(self.positions, Positions::Learned(_)) && !self.like_transformers.later_too;
                return Sight::step_by_step(real, width, window, options, twice);
            }
            Sight::new(real, width, window, options)
        };
        Ok(Sights {
            all: sight(None)?,
            near: window.map(|window| sight(Some(window))).transpose()?,
        })
    }

    /// Attention of block `i` over the whole batch: q [B, T, H, d], k and v [B, T, G, d] → [B, T, H·d].
    pub(crate) fn attend(&self, i: usize, q: &Tensor, k: &Tensor, v: &Tensor, sights: &Sights) -> Result<Tensor> {
        let sight = self.sight(i, sights);
        if self.like_transformers.eager {
            let softmax = match self.positions {
                Positions::Rotary(_) => Kind::Float,
                Positions::Learned(_) => self.kind()?,
            };
            return attend_step_by_step(q, k, v, sight, softmax);
        }
        attend(q, k, v, sight)
    }

    /// What positions see in block `i`.
    pub(crate) fn sight<'a>(&self, i: usize, sights: &'a Sights) -> &'a Sight {
        match &sights.near {
            Some(near) if self.windows[i].is_some() => near,
            _ => &sights.all,
        }
    }

    /// The same, where attention over `width` positions takes its way back in products.
    pub(crate) fn sight_of_products<'a>(&self, i: usize, sights: &'a Sights, width: i64) -> Option<&'a Sight> {
        let sight = self.sight(i, sights);
        let heads = self.blocks[i].attention.heads;
        let applies = Attended::applies((self.embedding.kind(), self.device()), sight, (heads, width));
        (applies && !self.like_transformers.eager).then_some(sight)
    }

    /// The window of the blocks that have one; all of them have the same.
    pub(crate) fn narrowest_window(&self) -> Option<i64> {
        self.windows.iter().flatten().min().copied()
    }

    /// The window of block `i`.
    pub(crate) fn window(&self, i: usize) -> Option<i64> {
        self.windows[i]
    }

    /// Ids on this device, with where they stand.
    pub(super) fn placed(&self, ids: &Tensor, rows: Option<&Tensor>) -> Result<(Tensor, Frame)> {
        let (ids, n, width) = self.checked(ids)?;
        Ok((ids, self.frame((n, width), rows)?))
    }

    fn frame(&self, (n, width): (usize, usize), rows: Option<&Tensor>) -> Result<Frame> {
        Ok(Frame {
            place: self.positions.first(width)?,
            sights: self.sights(None, width, self.kind()?)?,
            rows: rows.map(|rows| self.checked_rows(rows, n * width)).transpose()?,
        })
    }

    /// Flat positions on this device.
    fn checked_rows(&self, rows: &Tensor, n: usize) -> Result<Tensor> {
        let wrong = |got: String| Error::input("rows", format!("a non-empty [N] of Int64, below {n}"), got);
        let (size, kind) = (rows.size(), rows.f_kind()?);
        if size.len() != 1 || size[0] == 0 || kind != Kind::Int64 {
            return Err(wrong(format!("{size:?} of {kind:?}")));
        }
        let (least, most) = rows.f_aminmax(None, false)?;
        for row in [least.f_int64_value(&[])?, most.f_int64_value(&[])?] {
            if row < 0 || row >= n as i64 {
                return Err(wrong(row.to_string()));
            }
        }
        Ok(rows.f_to(self.device())?)
    }

    /// States between blocks on this device, with where they stand.
    pub(super) fn continued(&self, states: &Tensor, n_frozen: usize, at: Option<&Tensor>) -> Result<(Tensor, Frame)> {
        self.check_frozen(n_frozen)?;
        let (width, longest) = (
            self.config.hidden_size as i64,
            self.config.max_position_embeddings as i64,
        );
        let (size, kind, own) = (states.size(), states.f_kind()?, self.kind()?);
        match *size {
            [rows, length, found] if rows > 0 && (1..=longest).contains(&length) && found == width && kind == own => {
                let frame = self.frame((rows as usize, length as usize), at)?;
                Ok((states.f_to(self.device())?, frame))
            }
            _ => Err(Error::input(
                "states between blocks",
                format!("[B, T, {width}] of {own:?}, T at most {longest}"),
                format!("{size:?} of {kind:?}"),
            )),
        }
    }

    pub(super) fn check_frozen(&self, n_frozen: usize) -> Result<()> {
        let most = self.n_blocks();
        match n_frozen > most {
            false => Ok(()),
            true => Err(Error::input("frozen blocks", format!("at most {most}"), n_frozen)),
        }
    }

    /// Ids on this device, their rows and width; refuses what the embedding or the positions cannot hold.
    pub(super) fn checked(&self, ids: &Tensor) -> Result<(Tensor, usize, usize)> {
        let size = ids.size();
        let kind = ids.f_kind()?;
        let &[rows, width] = size.as_slice() else {
            return Err(Error::input("token ids", "a [B, T] tensor", format!("{size:?}")));
        };
        if rows == 0 || width == 0 || kind != Kind::Int64 {
            return Err(Error::input(
                "token ids",
                "a non-empty [B, T] of Int64",
                format!("{size:?} of {kind:?}"),
            ));
        }
        self.check_width(width as usize)?;
        Ok((self.check_ids(ids)?, rows as usize, width as usize))
    }

    fn check_width(&self, width: usize) -> Result<()> {
        let longest = self.config.max_position_embeddings;
        match width > longest {
            false => Ok(()),
            true => Err(Error::input("sequence length", format!("at most {longest}"), width)),
        }
    }

    /// Ids on this device; refuses others than those of the vocabulary.
    fn check_ids(&self, ids: &Tensor) -> Result<Tensor> {
        let kind = ids.f_kind()?;
        if ids.numel() == 0 || kind != Kind::Int64 {
            let got = format!("{:?} of {kind:?}", ids.size());
            return Err(Error::input("token ids", "at least one, of Int64", got));
        }
        let (least, most) = ids.f_aminmax(None, false)?;
        for id in [least.f_int64_value(&[])?, most.f_int64_value(&[])?] {
            if id < 0 || id >= self.config.vocab_size as i64 {
                return Err(Error::input(
                    "token id",
                    format!("0 to {}", self.config.vocab_size - 1),
                    id,
                ));
            }
        }
        Ok(ids.f_to(self.device())?)
    }
}
