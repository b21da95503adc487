//! Products of states and weights as generation makes them: maps of one input joined into one product, and packed where
//! that pays.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::packed::{Packed, Packer};
use crate::Result;
use crate::linear::Linear;
use crate::low_rank::LowRank;

/// Rows of f32 logits whose number is a multiple of this begin at the same place of a cache's sets and drive one another out:
/// the product at 32 rows and [8192, 256] takes twice as long as with a few outputs more.
const CROWDED: i64 = 1024;
/// How many more.
const APART: i64 = 16;

/// Linear maps of the same states, one after the other in their output.
#[derive(Debug)]
pub(super) struct Product {
    weight: Weight,
    /// How many outputs are wanted where the weight has more rows.
    wanted: Option<i64>,
    /// `[out]`.
    bias: Option<Tensor>,
    /// What adapters add, and to which part of the output: its start and width.
    low_rank: Vec<(LowRank, i64, i64)>,
}

#[derive(Debug)]
enum Weight {
    /// [out, in].
    Plain(Tensor),
    Packed(Packed, Rc<Packer>),
}

impl Product {
    pub(super) fn new(maps: &[&Linear], packer: Option<&Rc<Packer>>) -> Result<Self> {
        let mut low_rank = Vec::new();
        let mut start = 0;
        for map in maps {
            let width = map.weight_out_in()?.size()[0];
            low_rank.extend(map.low_rank().map(|part| (part.handle(), start, width)));
            start += width;
        }
        let weights = maps.iter().map(|map| map.weight_out_in()).collect::<Result<Vec<_>>>()?;
        let biases: Vec<&Tensor> = maps.iter().filter_map(|map| map.bias()).collect();
        let bias = match biases.len() {
            0 => None,
            // Either all maps of one input have a bias or none has.
            _ => Some(joined(&biases)?),
        };
        let weight = joined(&weights.iter().collect::<Vec<_>>())?;
        Ok(Self {
            weight: Weight::new(weight, packer)?,
            wanted: None,
            bias,
            low_rank,
        })
    }

    /// The product with one matrix [out, in].
    pub(super) fn of(weight: &Tensor, packer: Option<&Rc<Packer>>) -> Result<Self> {
        let n_out = weight.size2()?.0;
        let apart = packer.is_some() && weight.f_kind()? == Kind::Float && n_out % CROWDED == 0;
        let (weight, wanted) = match apart {
            true => (weight.f_constant_pad_nd([0, 0, 0, APART])?, Some(n_out)),
            false => (weight.shallow_clone(), None),
        };
        Ok(Self {
            weight: Weight::new(weight, packer)?,
            wanted,
            bias: None,
            low_rank: Vec::new(),
        })
    }

    /// x [N, in] → [N, out].
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Plain(weight) => x.f_linear(weight, self.bias.as_ref())?,
            Weight::Packed(weight, packer) => packer.multiply(x, weight, self.bias.as_ref())?,
        };
        for (part, start, width) in &self.low_rank {
            let mut own = y.f_narrow(-1, *start, *width)?;
            let sum = part.add(x, own.shallow_clone())?;
            own.f_copy_(&sum)?;
        }
        match self.wanted {
            Some(width) => Ok(y.f_narrow(-1, 0, width)?),
            None => Ok(y),
        }
    }
}

impl Weight {
    fn new(weight: Tensor, packer: Option<&Rc<Packer>>) -> Result<Self> {
        Ok(match packer {
            Some(packer) => Self::Packed(packer.pack(&weight)?, Rc::clone(packer)),
            None => Self::Plain(weight),
        })
    }
}

fn joined(parts: &[&Tensor]) -> Result<Tensor> {
    match parts {
        [one] => Ok(one.shallow_clone()),
        several => Ok(Tensor::f_cat(several, 0)?),
    }
}
