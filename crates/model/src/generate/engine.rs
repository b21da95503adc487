//! The passes of generation: over whole prompts, and over one new token per row.

use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use super::packed::Packer;
use super::product::Product;
use super::slots::{Shape, Slots, Turn};
use crate::attention::Projections;
use crate::block::Block;
use crate::logps::wide;
use crate::mlp::Inner;
use crate::norm::LeanNorm;
use crate::positions::Place;
use crate::trunk::Trunk;
use crate::{Activation, Decoder, Result};

/// A decoder laid out for generation: maps of the same states are one product, and its weights are packed where that
/// pays. It is a copy of the blocks' weights, and knows nothing of later changes to them.
#[derive(Debug)]
pub(super) struct Engine<'a> {
    pub(super) decoder: &'a Decoder,
    layers: Vec<Layer<'a>>,
    norm: LeanNorm<'a>,
    head: Product<'a>,
    /// What attention is computed in, and what keys and values are kept in.
    attention: Kind,
    /// Whether keys and values lie as a processor's attention reads them.
    pub(super) apart: bool,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
}

#[derive(Debug)]
struct Layer<'a> {
    before_attention: LeanNorm<'a>,
    qkv: Product<'a>,
    out: Product<'a>,
    before_mlp: LeanNorm<'a>,
    /// Gate and up in one, or up alone.
    inner: Product<'a>,
    gated: bool,
    down: Product<'a>,
    activation: Activation,
}

impl<'a> Engine<'a> {
    /// Lays a decoder out.
    pub(super) fn new(decoder: &'a Decoder) -> Result<Self> {
        let trunk = decoder.trunk();
        let (kind, device) = (trunk.kind()?, trunk.device());
        let packer = Packer::find(kind, device).map(Rc::new);
        let packer = packer.as_ref();
        // libtorch's bf16 kernels for attention take longer than those for f32, and bf16 keys are f32 numbers.
        let attention = match (kind, device) {
            (Kind::BFloat16, Device::Cpu) => Kind::Float,
            _ => kind,
        };
        let config = decoder.config();
        Ok(Self {
            layers: trunk
                .blocks
                .iter()
                .map(|block| Layer::new(block, packer))
                .collect::<Result<_>>()?,
            norm: trunk.norm.lean()?,
            head: Product::of(&decoder.output_embedding(), packer)?,
            attention,
            apart: device == Device::Cpu,
            heads: config.num_attention_heads as i64,
            kv_heads: config.num_key_value_heads as i64,
            head_dim: config.head_dim as i64,
            decoder,
        })
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
        let x = self.run(ids, place, |layer, q, kv| {
            slots.insert(layer, kv, owners, rows)?;
            let (k, v) = (
                kv.f_narrow(2, 0, self.kv_heads)?,
                kv.f_narrow(2, self.kv_heads, self.kv_heads)?,
            );
            trunk.attend(layer, q, &k, &v, &sights)
        })?;
        let starts = Tensor::f_arange(n, (Kind::Int64, ids.device()))?.f_mul_scalar(t)?;
        let last = starts.f_add(lengths)?.f_sub_scalar(1)?;
        self.norm.forward(&x.f_index_select(0, &last)?)
    }

    /// Runs one new token ids [R, 1] per row and stores its keys. Returns the final states [R, D].
    pub(super) fn step(&self, ids: &Tensor, slots: &mut Slots, turn: &Turn) -> Result<Tensor> {
        let trunk = self.trunk();
        let place = trunk.positions.at(&turn.position, turn.longest())?;
        let x = self.run(ids, place, |layer, q, kv| {
            slots.write(layer, kv, turn)?;
            let seen = match &turn.near {
                Some(near) if trunk.window(layer).is_some() => near,
                _ => &turn.all,
            };
            slots.attend(layer, q, seen)
        })?;
        self.norm.forward(&x)
    }

    /// States [N, D] → logits [N, V], in f32 or wider.
    pub(super) fn logits(&self, states: &Tensor) -> Result<Tensor> {
        wide(self.head.apply(states)?)
    }

    fn trunk(&self) -> &'a Trunk {
        self.decoder.trunk()
    }

    /// Ids [N, T] → all blocks [N·T, D]. `attend` is handed the block's number, turned queries [N, T, H, d], and turned
    /// keys before values [N, T, 2G, d].
    fn run(
        &self,
        ids: &Tensor,
        place: Place,
        mut attend: impl FnMut(usize, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let trunk = self.trunk();
        let (n, t) = ids.size2()?;
        let x = trunk.embed(ids, &place)?;
        let kind = x.f_kind()?;
        let mut x = x.f_view([n * t, -1])?;
        let place = match kind == self.attention {
            true => place,
            false => place.with_angles_of(self.attention)?,
        };
        let heads = self.heads + 2 * self.kv_heads;
        for (i, layer) in self.layers.iter().enumerate() {
            let qkv = layer.qkv.apply(&layer.before_attention.forward(&x)?)?;
            let qkv = qkv.f_to_kind(self.attention)?.f_view([n, t, heads, self.head_dim])?;
            place.turn_in_place(&qkv.f_narrow(2, 0, self.heads + self.kv_heads)?)?;
            let (q, kv) = (
                qkv.f_narrow(2, 0, self.heads)?,
                qkv.f_narrow(2, self.heads, 2 * self.kv_heads)?,
            );
            let seen = attend(i, &q, &kv)?.f_view([n * t, -1])?.f_to_kind(kind)?;
            x = layer.out.apply_onto(&seen, &x)?;
            x = layer
                .down
                .apply_onto(&layer.inner(&layer.before_mlp.forward(&x)?)?, &x)?;
        }
        Ok(x)
    }
}

impl<'a> Layer<'a> {
    fn new(block: &'a Block, packer: Option<&Rc<Packer>>) -> Result<Self> {
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
            before_attention: block.before_attention.lean()?,
            qkv: Product::new(&qkv, packer)?,
            out: Product::new(&[&attention.out], packer)?,
            before_mlp: block.before_mlp.lean()?,
            inner: Product::new(&inner, packer)?,
            gated,
            down: Product::new(&[&mlp.down], packer)?,
            activation: mlp.activation,
        })
    }

    /// x [N, D] → [N, F].
    fn inner(&self, x: &Tensor) -> Result<Tensor> {
        let both = self.inner.apply(x)?;
        if !self.gated {
            return self.activation.apply(&both);
        }
        let width = both.size()[1] / 2;
        let gate = self.activation.apply(&both.f_narrow(1, 0, width)?)?;
        Ok(gate.f_mul(&both.f_narrow(1, width, width)?)?)
    }
}
