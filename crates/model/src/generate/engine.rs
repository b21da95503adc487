//! The passes of generation: over whole prompts, and over one new token per row.

use std::borrow::Borrow;
use std::rc::Rc;

use tch::{Device, Kind, Tensor, no_grad};

use super::packed::{Form, Packer};
use super::product::{Product, Way};
use super::slots::{Shape, Slots, Turn};
use crate::attention::Projections;
use crate::block::Block;
use crate::logps::wide;
use crate::mlp::Inner;
use crate::norm::{LeanNorm, Norm};
use crate::positions::Place;
use crate::trunk::Trunk;
use crate::{Activation, Config, Decoder, Error, Result};

/// Models of more numbers (64 MiB in f32) have no weights for single rows alone: what these save is the same for each product,
/// and they take as much memory again.
const LARGEST_ONE_ROW: i64 = 1 << 24;

/// A decoder laid out for generation: maps of the same states are one product, and its weights are packed where that
/// pays. Made once it serves any number of requests ([`Generation::on`](crate::Generation::on)). It has a copy of the blocks'
/// weights that no later change to them reaches, so it either takes the decoder or borrows it for as long as it lives.
///
/// ```
/// # use unsay_model::{Config, Decoder, Engine, Generation, Sampling, Size};
/// # use rand::SeedableRng;
/// # let size = Size { hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1 };
/// # let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
/// # let decoder = Decoder::init(&Config::new(&size, 20, 32), &mut rng, tch::Device::Cpu)?;
/// let engine = Engine::taking(decoder)?;
/// for prompt in [vec![5, 6], vec![7]] {
///     let made = Generation::on(&engine, &Sampling::greedy(4), &[3]).run(&[prompt])?;
///     assert!(made[0].ids.len() <= 4);
/// }
/// # Ok::<(), unsay_model::Error>(())
/// ```
#[derive(Debug)]
pub struct Engine<'a> {
    trunk: Held<'a>,
    layers: Vec<Layer>,
    norm: Norms,
    head: Product,
    /// What states are between two blocks where a request has one row, if not of the weights' kind.
    of_one_row: Option<Kind>,
    /// What attention is computed in, and what keys and values are kept in.
    attention: Kind,
    /// Whether keys and values lie as a processor's attention reads them.
    pub(super) apart: bool,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
}

/// What stands before and after the blocks; of a trunk that was taken the blocks are gone.
#[derive(Debug)]
enum Held<'a> {
    Borrowed(&'a Trunk),
    Taken(Box<Trunk>),
}

/// A norm for states of the weights' kind, and of that of a single row.
#[derive(Debug)]
struct Norms {
    own: LeanNorm,
    of_one_row: Option<(Kind, LeanNorm)>,
}

#[derive(Debug)]
struct Layer {
    before_attention: Norms,
    qkv: Product,
    out: Product,
    before_mlp: Norms,
    /// Gate and up in one, or up alone.
    inner: Product,
    gated: bool,
    down: Product,
    activation: Activation,
}

impl Engine<'static> {
    /// Lays a decoder out that is wanted for nothing else. Its blocks are freed one by one as their copies are made, so that
    /// the weights of a large model hardly take more memory than in the decoder; one of up to 2²⁴ numbers has those of a
    /// single row beside them, as in [`new`](Self::new).
    ///
    /// **Errors**: those of libtorch, such as too little memory.
    pub fn taking(decoder: Decoder) -> Result<Self> {
        let embedding = decoder.output_embedding();
        let Decoder { mut trunk, params, .. } = decoder;
        // Masters in f32 and gradients.
        drop(params);
        let blocks = std::mem::take(&mut trunk.blocks);
        Self::assemble(Held::Taken(Box::new(trunk)), blocks.into_iter(), &embedding, true)
    }
}

impl<'a> Engine<'a> {
    /// Lays a decoder out.
    ///
    /// **Errors**: those of libtorch, such as too little memory.
    pub fn new(decoder: &'a Decoder) -> Result<Self> {
        Self::borrowing(decoder, true)
    }

    /// Lays a decoder out for one request: without weights for single rows, which take as long to make as they save there.
    pub(super) fn for_request(decoder: &'a Decoder) -> Result<Self> {
        Self::borrowing(decoder, false)
    }

    fn borrowing(decoder: &'a Decoder, kept: bool) -> Result<Self> {
        let trunk = decoder.trunk();
        let blocks = trunk.blocks.iter();
        Self::assemble(Held::Borrowed(trunk), blocks, &decoder.output_embedding(), kept)
    }

    fn assemble<B: Borrow<Block>>(
        held: Held<'a>,
        blocks: impl Iterator<Item = B>,
        output_embedding: &Tensor,
        kept: bool,
    ) -> Result<Self> {
        let trunk = held.trunk();
        let (kind, device) = (trunk.kind()?, trunk.device());
        let find = |form| Packer::find(form, kind, device).map(Rc::new);
        let numbers: i64 = trunk.linear.iter().map(|map| map.n_in * map.n_out).sum();
        // Logits are made by oneDNN in bf16: that product is large enough for its own kernels to pay.
        let of_head = Way {
            packer: find(Form::OneDnn),
            one_row: kept && numbers + output_embedding.numel() as i64 <= LARGEST_ONE_ROW,
            halves: None,
        };
        let halves = match of_head.one_row && of_head.packer.is_some() {
            true => find(Form::Halves),
            false => None,
        };
        let of_blocks = Way {
            halves,
            ..of_head.clone()
        };
        let of_one_row = of_blocks.halves.as_ref().map(|_| Kind::Float);
        // libtorch's bf16 kernels for attention take longer than those for f32, and bf16 keys are f32 numbers.
        let attention = match (kind, device) {
            (Kind::BFloat16, Device::Cpu) => Kind::Float,
            _ => kind,
        };
        let config = &trunk.config;
        let (layers, norm, head) = no_grad(|| {
            Ok::<_, Error>((
                blocks
                    .map(|block| Layer::new(block.borrow(), &of_blocks, (kind, of_one_row)))
                    .collect::<Result<_>>()?,
                Norms::new(&trunk.norm, (kind, of_one_row))?,
                Product::of(output_embedding, &of_head)?,
            ))
        })?;
        Ok(Self {
            layers,
            norm,
            head,
            of_one_row,
            attention,
            apart: device == Device::Cpu,
            heads: config.num_attention_heads as i64,
            kv_heads: config.num_key_value_heads as i64,
            head_dim: config.head_dim as i64,
            trunk: held,
        })
    }

    /// What the model is.
    pub fn config(&self) -> &Config {
        &self.trunk().config
    }

    /// Room for the keys of so many rows, each of up to so many tokens.
    pub(super) fn slots(&self, rows: usize, slots: usize) -> Result<Slots> {
        let shape = Shape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            slots: slots as i64,
        };
        // One row has few keys to wait for.
        let apart = self.apart && rows > 1;
        let options = (self.attention, self.trunk().device());
        Slots::new(self.layers.len(), rows, (shape, apart), options)
    }

    /// Runs prompts ids [N, T] (Int64), padded on the right, of which `lengths` `[N]` are real; stores their keys for
    /// `rows`, whose prompts are `owners`, both `[m]`. Returns the final states after the last real tokens, [N, D].
    pub(super) fn prefill(
        &self,
        ids: &Tensor,
        lengths: &Tensor,
        slots: &Slots,
        (owners, rows): (&Tensor, &Tensor),
    ) -> Result<Tensor> {
        let trunk = self.trunk();
        let (n, t) = ids.size2()?;
        let place = trunk.positions.first(t as usize)?;
        let sights = trunk.sights(None, t as usize, self.attention)?;
        let x = self.run(ids, place, false, |layer, q, kv| {
            slots.insert(layer, kv, owners, rows)?;
            let (k, v) = (
                kv.f_narrow(2, 0, self.kv_heads)?,
                kv.f_narrow(2, self.kv_heads, self.kv_heads)?,
            );
            trunk.attend(layer, q, &k, &v, &sights)
        })?;
        let starts = Tensor::f_arange(n, (Kind::Int64, ids.device()))?.f_mul_scalar(t)?;
        let last = starts.f_add(lengths)?.f_sub_scalar(1)?;
        self.finish(&x.f_index_select(0, &last)?)
    }

    /// Runs one new token ids [R, 1] per row and stores its keys. Returns the final states [R, D].
    pub(super) fn step(&self, ids: &Tensor, slots: &mut Slots, turn: &Turn) -> Result<Tensor> {
        let trunk = self.trunk();
        let place = trunk.positions.at(&turn.position, turn.longest())?;
        let x = self.run(ids, place, slots.alone(), |layer, q, kv| {
            slots.write(layer, kv, turn)?;
            let seen = match &turn.near {
                Some(near) if trunk.window(layer).is_some() => near,
                _ => &turn.all,
            };
            slots.attend(layer, q, seen)
        })?;
        self.finish(&x)
    }

    /// The final norm, in the kind of the weights.
    fn finish(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.norm.forward(x)?.f_to_kind(self.trunk().kind()?)?)
    }

    /// States [N, D] → logits [N, V], in f32 or wider. `alone`: of a request of one row.
    pub(super) fn logits(&self, states: &Tensor, alone: bool) -> Result<Tensor> {
        wide(self.head.apply(states, alone)?)
    }

    pub(super) fn trunk(&self) -> &Trunk {
        self.trunk.trunk()
    }

    /// Ids [N, T] → all blocks [N·T, D]. `alone`: one token of a request of one row. `attend` is handed the block's number,
    /// turned queries [N, T, H, d], and turned keys before values [N, T, 2G, d].
    fn run(
        &self,
        ids: &Tensor,
        place: Place,
        alone: bool,
        mut attend: impl FnMut(usize, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let trunk = self.trunk();
        let (n, t) = ids.size2()?;
        let x = trunk.embed(ids, &place)?;
        let place = match x.f_kind()? == self.attention {
            true => place,
            false => place.with_angles_of(self.attention)?,
        };
        let kind = self.of_one_row.filter(|_| alone).unwrap_or(x.f_kind()?);
        let mut x = x.f_view([n * t, -1])?.f_to_kind(kind)?;
        let heads = self.heads + 2 * self.kv_heads;
        for (i, layer) in self.layers.iter().enumerate() {
            let qkv = layer.qkv.apply(&layer.before_attention.forward(&x)?, alone)?;
            let qkv = qkv.f_to_kind(self.attention)?.f_view([n, t, heads, self.head_dim])?;
            place.turn_in_place(&qkv.f_narrow(2, 0, self.heads + self.kv_heads)?)?;
            let (q, kv) = (
                qkv.f_narrow(2, 0, self.heads)?,
                qkv.f_narrow(2, self.heads, 2 * self.kv_heads)?,
            );
            let seen = attend(i, &q, &kv)?.f_view([n * t, -1])?.f_to_kind(kind)?;
            x = x.f_add(&layer.out.apply(&seen, alone)?)?;
            let inner = layer.inner(&layer.before_mlp.forward(&x)?, alone)?;
            x = x.f_add(&layer.down.apply(&inner, alone)?)?;
        }
        Ok(x)
    }
}

impl Held<'_> {
    fn trunk(&self) -> &Trunk {
        match self {
            Self::Borrowed(trunk) => trunk,
            Self::Taken(trunk) => trunk,
        }
    }
}

impl Norms {
    fn new(norm: &Norm, (own, of_one_row): (Kind, Option<Kind>)) -> Result<Self> {
        Ok(Self {
            own: norm.lean(own)?,
            of_one_row: of_one_row
                .map(|kind| Ok::<_, Error>((kind, norm.lean(kind)?)))
                .transpose()?,
        })
    }

    /// x [N, D] → [N, D].
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        match &self.of_one_row {
            Some((other, norm)) if *other == kind => norm.forward(x),
            _ => self.own.forward(x),
        }
    }
}

impl Layer {
    fn new(block: &Block, way: &Way, kinds: (Kind, Option<Kind>)) -> Result<Self> {
        let (attention, mlp) = (&block.attention, &block.mlp);
        let qkv = match &attention.projections {
            Projections::Separate { q, k, v } => vec![q, k, v],
            Projections::Fused(all) => vec![all],
        };
        let (inner, gated) = match &mlp.inner {
            Inner::Gated { gate, up } => (vec![gate, up], true),
            Inner::FusedGate(both) => (vec![both], true),
            Inner::Plain(up) => (vec![up], false),
        };
        Ok(Self {
            before_attention: Norms::new(&block.before_attention, kinds)?,
            qkv: Product::new(&qkv, way)?,
            out: Product::new(&[&attention.out], way)?,
            before_mlp: Norms::new(&block.before_mlp, kinds)?,
            inner: Product::new(&inner, way)?,
            gated,
            down: Product::new(&[&mlp.down], way)?,
            activation: mlp.activation,
        })
    }

    /// x [N, D] → [N, F].
    fn inner(&self, x: &Tensor, alone: bool) -> Result<Tensor> {
        let both = self.inner.apply(x, alone)?;
        if !self.gated {
            return self.activation.apply(&both);
        }
        let width = both.size()[1] / 2;
        let gate = self.activation.apply(&both.f_narrow(1, 0, width)?)?;
        Ok(gate.f_mul(&both.f_narrow(1, width, width)?)?)
    }
}
