//! Embedding, blocks and final norm: what decoder and classifier share.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::attention::{Sight, attend, left_padding_mask};
use crate::block::Block;
use crate::norm::Norm;
use crate::positions::{self, Place, Positions};
use crate::replay::Replayed;
use crate::{Config, Error, Params, Result};

/// The blocks of a model with what stands before and after them: handles on their weights, and the tables of its
/// positions.
///
/// States between two blocks can be made once where nothing below is trained: [`Trunk::states_below`] and
/// [`Trunk::hidden_above`] together are [`Trunk::hidden`].
#[derive(Debug)]
pub struct Trunk {
    pub(crate) config: Config,
    pub(crate) embedding: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    pub(crate) positions: Positions,
}

impl Trunk {
    pub(crate) fn new(config: &Config, params: &Params) -> Result<Self> {
        let form = config.architecture.form();
        let embedding = params.shared(form.embedding())?;
        let blocks = (0..config.num_hidden_layers)
            .map(|i| form.block(config, params, i))
            .collect::<Result<_>>()?;
        Ok(Self {
            config: config.clone(),
            blocks,
            norm: form.final_norm(config, params)?,
            positions: form.positions(config, params)?,
            embedding,
        })
    }

    /// The kind that it computes in.
    pub fn kind(&self) -> Result<Kind> {
        Ok(self.embedding.f_kind()?)
    }

    /// Where its weights are.
    pub fn device(&self) -> Device {
        self.embedding.device()
    }

    /// How many blocks (L).
    pub fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// What the trunk is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Final states [B, T, D] of ids [B, T] (Int64), after the last norm. Padding on the right is harmless:
    /// nothing before it sees it.
    pub fn hidden(&self, ids: &Tensor) -> Result<Tensor> {
        let (ids, place) = self.placed(ids)?;
        self.finish(&self.blocks(0..self.n_blocks(), self.embed(&ids, &place)?, &place)?)
    }

    /// The same without activations for the way back; see [`Replayed`]. `n_frozen` blocks, and the embedding if it
    /// is not 0, have nothing that is trained.
    pub fn hidden_replayed(&self, ids: &Tensor, n_frozen: usize) -> Result<Replayed<'_>> {
        self.check_frozen(n_frozen)?;
        let (ids, place) = self.placed(ids)?;
        let x = tch::no_grad(|| self.blocks(0..n_frozen, self.embed(&ids, &place)?, &place))?;
        Replayed::new(self, x, n_frozen, place, (n_frozen == 0).then_some(ids))
    }

    /// What comes out of the lowest `n_frozen` blocks, [B, T, D], for ids [B, T] (Int64) padded on the right; without
    /// a graph.
    pub fn states_below(&self, ids: &Tensor, n_frozen: usize) -> Result<Tensor> {
        self.check_frozen(n_frozen)?;
        let (ids, place) = self.placed(ids)?;
        tch::no_grad(|| self.blocks(0..n_frozen, self.embed(&ids, &place)?, &place))
    }

    /// Final states [B, T, D] from those that came out of the lowest `n_frozen` blocks, padded on the right with
    /// anything finite.
    pub fn hidden_above(&self, states: &Tensor, n_frozen: usize) -> Result<Tensor> {
        let (states, place) = self.continued(states, n_frozen)?;
        self.finish(&self.blocks(n_frozen..self.n_blocks(), states, &place)?)
    }

    /// The same without activations for the way back; see [`Replayed`].
    pub fn hidden_above_replayed(&self, states: &Tensor, n_frozen: usize) -> Result<Replayed<'_>> {
        let (states, place) = self.continued(states, n_frozen)?;
        Replayed::new(self, states, n_frozen, place, None)
    }

    /// Ids [B, T] with real [B, T] true where a token is real → final states [B, T, D]; positions count
    /// real tokens only, and states at padding mean nothing.
    pub(crate) fn hidden_with_mask(&self, ids: &Tensor, real: &Tensor) -> Result<Tensor> {
        let (ids, rows, width) = self.checked(ids)?;
        let kind = real.f_kind()?;
        if real.size() != [rows as i64, width as i64] || kind != Kind::Bool {
            let got = format!("{:?} of {kind:?}", real.size());
            return Err(Error::input(
                "mask of real tokens",
                format!("[{rows}, {width}] of Bool"),
                got,
            ));
        }
        let real = real.f_to(self.device())?;
        let sight = Sight::Masked(left_padding_mask(&real, self.kind()?)?);
        let place = self.positions.at(&positions::count(&real)?, width)?;
        let x = self.run(&ids, &place, |_, q, k, v| attend(q, k, v, &sight))?;
        self.finish(&x)
    }

    /// Ids [B, T] → embedding, all blocks [B, T, D]; `attend` is handed the block's number.
    pub(crate) fn run(
        &self,
        ids: &Tensor,
        place: &Place,
        mut attend: impl FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut x = self.embed(ids, place)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, place, |q, k, v| attend(i, q, k, v))?;
        }
        Ok(x)
    }

    /// Some blocks over x [B, T, D], whose rows begin at position 0.
    pub(crate) fn blocks(&self, range: Range<usize>, mut x: Tensor, place: &Place) -> Result<Tensor> {
        for block in &self.blocks[range] {
            x = block.forward(&x, place, |q, k, v| attend(q, k, v, &Sight::Causal))?;
        }
        Ok(x)
    }

    /// What the first block sees, [B, T, D].
    pub(crate) fn embed(&self, ids: &Tensor, place: &Place) -> Result<Tensor> {
        place.embed(Tensor::f_embedding(&self.embedding, ids, -1, false, false)?)
    }

    /// The final norm.
    pub(crate) fn finish(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(x)
    }

    /// Ids on this device, with their places.
    fn placed(&self, ids: &Tensor) -> Result<(Tensor, Place)> {
        let (ids, _, width) = self.checked(ids)?;
        Ok((ids, self.positions.first(width)?))
    }

    /// States between blocks on this device, with their places.
    fn continued(&self, states: &Tensor, n_frozen: usize) -> Result<(Tensor, Place)> {
        self.check_frozen(n_frozen)?;
        let (width, longest) = (
            self.config.hidden_size as i64,
            self.config.max_position_embeddings as i64,
        );
        let (size, kind, own) = (states.size(), states.f_kind()?, self.kind()?);
        match *size {
            [rows, length, found] if rows > 0 && (1..=longest).contains(&length) && found == width && kind == own => {
                Ok((states.f_to(self.device())?, self.positions.first(length as usize)?))
            }
            _ => Err(Error::input(
                "states between blocks",
                format!("[B, T, {width}] of {own:?}, T at most {longest}"),
                format!("{size:?} of {kind:?}"),
            )),
        }
    }

    fn check_frozen(&self, n_frozen: usize) -> Result<()> {
        let most = self.n_blocks();
        match n_frozen > most {
            false => Ok(()),
            true => Err(Error::input("frozen blocks", format!("at most {most}"), n_frozen)),
        }
    }

    /// Ids on this device, their rows and width; refuses what the embedding or the positions cannot hold.
    fn checked(&self, ids: &Tensor) -> Result<(Tensor, usize, usize)> {
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
        let longest = self.config.max_position_embeddings;
        if width as usize > longest {
            return Err(Error::input("sequence length", format!("at most {longest}"), width));
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
        Ok((ids.f_to(self.device())?, rows as usize, width as usize))
    }
}
