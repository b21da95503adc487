//! Embedding, blocks and final norm: what decoder and classifier share.

mod frame;

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::block::{Block, Way, chosen};
use crate::branches::Branches;
use crate::linear::{Linear, LinearShape, gradient_of};
use crate::logps::wide;
use crate::norm::Norm;
use crate::positions::{self, Place, Positions};
use crate::staged::{Staged, push};
use crate::{Config, Error, Params, Products, Result};

pub(crate) use frame::Frame;

/// The blocks of a model with what stands before and after them: handles on their weights, and the tables of its
/// positions.
///
/// States between two blocks can be made once where nothing below is trained: [`Trunk::states_below`] and
/// [`Trunk::hidden_above`] together are [`Trunk::hidden`].
#[derive(Debug)]
pub struct Trunk {
    pub(crate) config: Config,
    pub(crate) embedding: Tensor,
    pub(crate) blocks: Vec<Block>,
    /// Every linear map of the blocks, in their order.
    pub(crate) linear: Vec<LinearShape>,
    pub(crate) norm: Norm,
    pub(crate) positions: Positions,
    /// What each block's window is; none where it sees everything before it.
    windows: Vec<Option<i64>>,
    like_transformers: Rounding,
    /// Who multiplies where whole sequences are read.
    products: Products,
}

/// Where a computation rounds as transformers does although it need not, and what it makes of padding that means
/// nothing. Equality with transformers in more than seven digits needs the first: there, RMS norms, frequencies and
/// angles are f32 whatever the kind of the weights. Equality in a loss whose labels padding predicts needs the second.
/// The default rounds nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rounding {
    /// The quotients of RMS norms, in f32 and step by step.
    pub norms: bool,
    /// The frequencies of rotary positions, in f32.
    pub frequencies: bool,
    /// Their angles, cosines and sines, and the frequencies, in f32.
    pub angles: bool,
    /// Attention as with `eager`: step by step, the softmax in f32 unless positions are learned, and a position
    /// that sees nothing sees everything alike; where positions are learned, everything before it.
    pub eager: bool,
    /// With `eager` and learned positions, such a position sees what is after it too, as since transformers 5.
    pub later_too: bool,
    /// Padding stands at position 1, as in code that fills the counts in so, rather than at the last real position.
    pub padding_at_one: bool,
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
            like_transformers: Rounding::default(),
            products: Products::fastest(embedding.f_kind()?, embedding.device(), config.hidden_size as i64),
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

    pub(crate) fn multiply_by(&mut self, products: Products) {
        if products.applies(self.embedding.kind(), self.device()) {
            self.products = products;
        }
    }

    /// Who multiplies where whole sequences are read.
    pub fn products(&self) -> Products {
        self.products
    }

    /// How many blocks (L).
    pub fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Takes up the adapter that the parameters hold, or drops the one that they no longer hold.
    pub(crate) fn readapt(&mut self, params: &Params) -> Result<()> {
        linear_maps(&mut self.blocks).try_for_each(|(_, map)| map.readapt(params))
    }

    pub(crate) fn round(&mut self, places: Rounding) {
        if places.norms {
            let norms = self
                .blocks
                .iter_mut()
                .flat_map(|b| [&mut b.before_attention, &mut b.before_mlp]);
            norms.chain([&mut self.norm]).for_each(Norm::round_to_f32);
        }
        if let Positions::Rotary(rope) = &mut self.positions {
            rope.round_to_f32(places.frequencies, places.angles);
        }
        self.like_transformers = places;
    }

    /// What the trunk is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Final states [B, T, D] of ids [B, T] (Int64), after the last norm. Padding on the right is harmless:
    /// nothing before it sees it.
    pub fn hidden(&self, ids: &Tensor) -> Result<Tensor> {
        self.states(ids, None)
    }

    /// Of the final states those at some positions, [N, D]: `rows` `[N]` (Int64) counts them through the batch, row b
    /// and place t being b·T + t. What is behind the last attention is computed for these alone.
    ///
    /// **Errors**: those of [`Trunk::hidden`], and [`Error::Input`] for rows that are not there.
    pub fn hidden_at(&self, ids: &Tensor, rows: &Tensor) -> Result<Tensor> {
        self.states(ids, Some(rows))
    }

    fn states(&self, ids: &Tensor, rows: Option<&Tensor>) -> Result<Tensor> {
        let (ids, frame) = self.placed(ids, rows)?;
        self.top(0, self.embed(&ids, &frame.place)?, &frame)
    }

    /// [`Trunk::hidden_at`], or without rows [`Trunk::hidden`], with a way back that costs less time and memory than
    /// autograd's; to `replay` costs more time and far less memory. See [`Staged`]. `n_frozen` blocks, and the embedding if
    /// it is not 0, have nothing that is trained.
    pub fn hidden_staged(
        &self,
        ids: &Tensor,
        n_frozen: usize,
        rows: Option<&Tensor>,
        replay: bool,
    ) -> Result<Staged<'_>> {
        self.check_frozen(n_frozen)?;
        let (ids, frame) = self.placed(ids, rows)?;
        let x = tch::no_grad(|| self.blocks(0..n_frozen, self.embed(&ids, &frame.place)?, &frame))?;
        Staged::new(self, x, n_frozen, (frame, replay), (n_frozen == 0).then_some(ids))
    }

    /// What comes out of the lowest `n_frozen` blocks, [B, T, D], for ids [B, T] (Int64) padded on the right; without
    /// a graph.
    pub fn states_below(&self, ids: &Tensor, n_frozen: usize) -> Result<Tensor> {
        self.check_frozen(n_frozen)?;
        let (ids, frame) = self.placed(ids, None)?;
        tch::no_grad(|| self.blocks(0..n_frozen, self.embed(&ids, &frame.place)?, &frame))
    }

    /// Final states [B, T, D], or of some rows [N, D], from those that came out of the lowest `n_frozen` blocks, padded on
    /// the right with anything finite; see [`Trunk::hidden_at`].
    pub fn hidden_above(&self, states: &Tensor, n_frozen: usize, rows: Option<&Tensor>) -> Result<Tensor> {
        let (states, frame) = self.continued(states, n_frozen, rows)?;
        self.top(n_frozen, states, &frame)
    }

    /// The same with another way back; see [`Trunk::hidden_staged`].
    pub fn hidden_above_staged(
        &self,
        states: &Tensor,
        n_frozen: usize,
        rows: Option<&Tensor>,
        replay: bool,
    ) -> Result<Staged<'_>> {
        let (states, frame) = self.continued(states, n_frozen, rows)?;
        Staged::new(self, states, n_frozen, (frame, replay), None)
    }

    /// Final states [1, N, D] of sequences that share their beginnings, `ids` `[N]` (Int64) end to end, or of some `rows` of
    /// these tokens [R, D]; see [`Trunk::hidden_at`]. Each token's are those that [`Trunk::hidden`] gives it in a row with
    /// prompt and branch alone.
    ///
    /// **Errors**: [`Error::Input`] for ids that do not fit the branches, the vocabulary or the positions, for rows that are
    /// not there, and where attention goes step by step ([`Rounding::eager`]).
    pub fn hidden_branched(&self, ids: &Tensor, branches: &Branches, rows: Option<&Tensor>) -> Result<Tensor> {
        let (ids, frame) = self.branched(ids, branches, rows)?;
        self.top(0, self.embed(&ids, &frame.place)?, &frame)
    }

    /// The same with another way back; see [`Trunk::hidden_staged`].
    pub fn hidden_branched_staged(
        &self,
        (ids, branches): (&Tensor, &Branches),
        n_frozen: usize,
        rows: Option<&Tensor>,
        replay: bool,
    ) -> Result<Staged<'_>> {
        self.check_frozen(n_frozen)?;
        let (ids, frame) = self.branched(ids, branches, rows)?;
        let x = tch::no_grad(|| self.blocks(0..n_frozen, self.embed(&ids, &frame.place)?, &frame))?;
        Staged::new(self, x, n_frozen, (frame, replay), (n_frozen == 0).then_some(ids))
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
        let mut counts = positions::count(&real)?;
        if self.like_transformers.padding_at_one {
            counts = counts.f_masked_fill(&real.f_logical_not()?, 1)?;
        }
        let place = self.positions.at(&counts, width.max(2))?;
        let sights = self.sights(Some(&real), width, self.kind()?)?;
        let x = self.run(&ids, &place, |i, q, k, v| self.attend(i, q, k, v, &sights))?;
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
            x = block.forward(&x, Way::plain(place), |q, k, v| attend(i, q, k, v))?;
        }
        Ok(x)
    }

    /// The blocks from `first` on over x [B, T, D], and the final norm: the states that the frame wants.
    fn top(&self, first: usize, x: Tensor, frame: &Frame) -> Result<Tensor> {
        let x = self.entering(first, x, frame)?;
        self.finish(&self.blocks(first..self.n_blocks(), x, frame)?)
    }

    /// What is handed to block `first`: where none is left, the states [N, D] that the frame wants, unless the last block
    /// made these alone.
    pub(crate) fn entering(&self, first: usize, x: Tensor, frame: &Frame) -> Result<Tensor> {
        match &frame.rows {
            Some(rows) if first == self.n_blocks() && x.dim() == 3 => chosen(&x, rows),
            _ => Ok(x),
        }
    }

    /// Some blocks over x [B, T, D]; of the last one what the frame wants.
    pub(crate) fn blocks(&self, range: Range<usize>, mut x: Tensor, frame: &Frame) -> Result<Tensor> {
        for (i, block) in self.blocks.iter().enumerate().skip(range.start).take(range.len()) {
            let way = self.way(i, frame).1;
            x = block.forward(&x, way, |q, k, v| self.attend(i, q, k, v, &frame.sights))?;
        }
        Ok(x)
    }

    /// A block, and how a batch goes through it.
    pub(crate) fn way<'a>(&'a self, index: usize, frame: &'a Frame) -> (&'a Block, Way<'a>) {
        let way = Way {
            place: &frame.place,
            products: self.products,
            rows: frame.rows.as_ref().filter(|_| index + 1 == self.n_blocks()),
        };
        (&self.blocks[index], way)
    }

    /// Adds the gradients of the embedding, and of positions that are learned, that come with that of what the first
    /// block sees [B, T, D].
    pub(crate) fn embed_backward(&self, ids: &Tensor, place: &Place, gradient: &Tensor) -> Result<()> {
        match place {
            Place::Rotation(_) => self.add_looked_up(ids, gradient),
            Place::Added(_) => push(&tch::with_grad(|| self.embed(ids, place))?, gradient),
        }
    }

    /// Adds the gradient of a look-up to that of the embedding, of which only the rows that occur are touched. Tokens that
    /// occur more than once are added up in one fixed order on every device, in f32 or wider.
    fn add_looked_up(&self, ids: &Tensor, gradient: &Tensor) -> Result<()> {
        let Some(mut into) = gradient_of(&self.embedding)? else {
            return Ok(());
        };
        let mut gradient = wide(gradient.shallow_clone())?;
        if let Some(pad) = self.untrained_token() {
            gradient = gradient.f_masked_fill(&ids.f_eq(pad)?.f_unsqueeze(-1)?, 0.0)?;
        }
        let (known, places) = ids.f_internal_unique(true, true)?;
        let sums = Tensor::f_embedding_dense_backward(&gradient, &places, known.size()[0], -1, false)?;
        let _ = into.f_index_add_(0, &known, &sums.f_to_kind(into.f_kind()?)?)?;
        Ok(())
    }

    /// The token whose embedding collects no gradient.
    fn untrained_token(&self) -> Option<i64> {
        let form = self.config.architecture.form();
        let pad = self.config.pad_token_id.filter(|_| form.padding_is_not_trained());
        pad.map(i64::from)
    }

    /// What the first block sees, [B, T, D].
    pub(crate) fn embed(&self, ids: &Tensor, place: &Place) -> Result<Tensor> {
        let padding = self.untrained_token().unwrap_or(-1);
        place.embed(Tensor::f_embedding(&self.embedding, ids, padding, false, false)?)
    }

    /// The final norm.
    pub(crate) fn finish(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(x)
    }
}
