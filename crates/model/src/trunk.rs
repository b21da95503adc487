//! Embedding, blocks and final norm: what decoder and classifier share.

use tch::{Device, Kind, Tensor};

use crate::attention::{Sight, attend, left_padding_mask};
use crate::block::Block;
use crate::norm::Norm;
use crate::positions::{self, Place, Positions};
use crate::{Config, Error, Params, Result};

/// Handles on the trunk's weights, and the tables of its positions.
#[derive(Debug)]
pub(crate) struct Trunk {
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

    pub(crate) fn kind(&self) -> Result<Kind> {
        Ok(self.embedding.f_kind()?)
    }

    pub(crate) fn device(&self) -> Device {
        self.embedding.device()
    }

    pub(crate) fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Right-padded ids [B, T] → final states [B, T, D].
    pub(crate) fn hidden(&self, ids: &Tensor) -> Result<Tensor> {
        let (ids, _, width) = self.checked(ids)?;
        let place = self.positions.first(width)?;
        let x = self.run(&ids, &place, |_, q, k, v| attend(q, k, v, &Sight::Causal))?;
        self.finish(&x)
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

    /// What the first block sees, [B, T, D].
    fn embed(&self, ids: &Tensor, place: &Place) -> Result<Tensor> {
        place.embed(Tensor::f_embedding(&self.embedding, ids, -1, false, false)?)
    }

    /// The final norm.
    pub(crate) fn finish(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(x)
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
