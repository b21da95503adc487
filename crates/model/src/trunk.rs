//! Embedding, blocks and final norm: what decoder and classifier share.

use tch::{Device, Kind, Tensor};

use crate::attention::{Sight, attend, attend_with_f32_softmax};
use crate::block::Block;
use crate::linear::{Linear, LinearShape};
use crate::norm::Norm;
use crate::positions::{self, Place, Positions};
use crate::{Config, Error, Params, Result};

/// Handles on the trunk's weights, and the tables of its positions.
#[derive(Debug)]
pub(crate) struct Trunk {
    pub(crate) config: Config,
    pub(crate) embedding: Tensor,
    blocks: Vec<Block>,
    /// Every linear map of the blocks, in their order.
    pub(crate) linear: Vec<LinearShape>,
    norm: Norm,
    pub(crate) positions: Positions,
    /// What each block's window is; none where it sees everything before it.
    windows: Vec<Option<i64>>,
    f32_softmax: bool,
}

/// What the blocks of one batch see.
#[derive(Debug)]
pub(crate) struct Sights {
    all: Sight,
    /// Of blocks with a window.
    near: Option<Sight>,
}

/// The number of its block with each linear map.
fn linear_maps(blocks: &mut [Block]) -> impl Iterator<Item = (usize, &mut Linear)> {
    blocks.iter_mut().enumerate().flat_map(|(i, block)| {
        let maps = block.attention.linear_maps().into_iter().chain(block.mlp.linear_maps());
        maps.map(move |map| (i, map))
    })
}

impl Trunk {
    pub(crate) fn new(config: &Config, params: &Params) -> Result<Self> {
        let form = config.architecture.form();
        let embedding = params.shared(form.embedding())?;
        let mut blocks = (0..config.num_hidden_layers)
            .map(|i| form.block(config, params, i))
            .collect::<Result<Vec<_>>>()?;
        let linear = linear_maps(&mut blocks).map(|(i, map)| map.shape(i));
        Ok(Self {
            config: config.clone(),
            linear: linear.collect::<Result<_>>()?,
            blocks,
            norm: form.final_norm(config, params)?,
            positions: form.positions(config, params)?,
            windows: (0..config.num_hidden_layers)
                .map(|i| form.window(config, i).map(|n| n as i64))
                .collect(),
            f32_softmax: false,
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

    /// Takes up the adapter that the parameters hold, or drops the one that they no longer hold.
    pub(crate) fn readapt(&mut self, params: &Params) -> Result<()> {
        linear_maps(&mut self.blocks).try_for_each(|(_, map)| map.readapt(params))
    }

    /// Rounds norms and angles to f32, and the softmax of attention when asked: see
    /// [`crate::Decoder::rounded_like_transformers`].
    pub(crate) fn round_to_f32(&mut self, softmax: bool) {
        let norms = self
            .blocks
            .iter_mut()
            .flat_map(|b| [&mut b.before_attention, &mut b.before_mlp]);
        norms.chain([&mut self.norm]).for_each(Norm::round_to_f32);
        if let Positions::Rotary(rope) = &mut self.positions {
            rope.round_to_f32();
            // Architectures with learned positions keep their kind in the softmax too.
            self.f32_softmax = softmax;
        }
    }

    /// Right-padded ids [B, T] → final states [B, T, D].
    pub(crate) fn hidden(&self, ids: &Tensor) -> Result<Tensor> {
        let (ids, _, width) = self.checked(ids)?;
        let place = self.positions.first(width)?;
        let sights = self.sights(None, width)?;
        let x = self.run(&ids, &place, |i, q, k, v| self.attend(i, q, k, v, &sights))?;
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
        let place = self.positions.at(&positions::count(&real)?, width)?;
        let sights = self.sights(Some(&real), width)?;
        let x = self.run(&ids, &place, |i, q, k, v| self.attend(i, q, k, v, &sights))?;
        self.finish(&x)
    }

    /// What `width` positions see in each block; real [B, T] is true where a token counts.
    pub(crate) fn sights(&self, real: Option<&Tensor>, width: usize) -> Result<Sights> {
        let (width, options) = (width as i64, (self.kind()?, self.device()));
        let window = self.windows.iter().flatten().min().filter(|&&window| window < width);
        Ok(Sights {
            all: Sight::new(real, width, None, options)?,
            near: window
                .map(|&window| Sight::new(real, width, Some(window), options))
                .transpose()?,
        })
    }

    /// Attention of block `i` over the whole batch: q [B, T, H, d], k and v [B, T, G, d] → [B, T, H·d].
    pub(crate) fn attend(&self, i: usize, q: &Tensor, k: &Tensor, v: &Tensor, sights: &Sights) -> Result<Tensor> {
        let sight = match &sights.near {
            Some(near) if self.windows[i].is_some() => near,
            _ => &sights.all,
        };
        if self.f32_softmax {
            return attend_with_f32_softmax(q, k, v, sight);
        }
        attend(q, k, v, sight)
    }

    /// The window of block `i`.
    pub(crate) fn window(&self, i: usize) -> Option<i64> {
        self.windows[i]
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
        let padding = match self.config.pad_token_id {
            Some(pad) if self.config.architecture.form().padding_is_not_trained() => i64::from(pad),
            _ => -1,
        };
        place.embed(Tensor::f_embedding(&self.embedding, ids, padding, false, false)?)
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
