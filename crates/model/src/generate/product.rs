//! Products of states and weights as generation makes them: maps of one input joined into one product, and packed where
//! that pays.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::packed::{Packed, Packer};
use super::store::sums;
use crate::Result;
use crate::linear::Linear;
use crate::low_rank::LowRank;

/// Rows of f32 logits whose number is a multiple of this begin at the same place of a cache's sets and drive one another out:
/// the product at 32 rows and [8192, 256] takes twice as long as with a few outputs more.
const CROWDED: i64 = 1024;
/// How many more.
const APART: i64 = 16;
/// Not where the copy that has them takes more than 32 MiB beside what is packed.
const LARGEST_COPY: usize = 1 << 23;

/// The widest row of a table that [`Sums`] adds up without writing in between.
const WIDEST: i64 = 384;
/// The narrowest that pays: each row costs as much again as so many numbers.
const NARROWEST: i64 = 32;

/// How products are made.
#[derive(Debug, Default, Clone)]
pub(super) struct Way {
    /// Lays weights out, where that pays.
    pub(super) packer: Option<Rc<Packer>>,
    /// Whether a single row has weights of its own, which take as much memory again.
    pub(super) one_row: bool,
    /// Lays weights in bf16 out for a single row of states in f32.
    pub(super) halves: Option<Rc<Packer>>,
}

impl Way {
    fn one_row(&self, weight: &Tensor) -> Result<Option<OneRow>> {
        Ok(match (weight.f_kind()?, &self.halves) {
            _ if !self.one_row || self.packer.is_none() => None,
            (Kind::Float, _) => Sums::of(weight)?.map(OneRow::Sums),
            (Kind::BFloat16, Some(packer)) => {
                let packed = packer.pack(weight)?;
                packed.map(|packed| OneRow::Halves(packed, Rc::clone(packer)))
            }
            _ => None,
        })
    }
}

/// Linear maps of the same states, one after the other in their output.
#[derive(Debug)]
pub(super) struct Product {
    weight: Weight,
    /// For a request of one row, where it is faster.
    one_row: Option<OneRow>,
    /// Of the weight.
    kind: Kind,
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

/// The weight of a single row's product.
#[derive(Debug)]
enum OneRow {
    Sums(Sums),
    Halves(Packed, Rc<Packer>),
}

/// A matrix as a table of which a product is a sum of weighted rows: `embedding_bag`, which reads it ahead, and costs less to
/// call than oneDNN. Its outputs are in parts, so that threads can share them.
#[derive(Debug)]
struct Sums {
    /// [parts · in, out / parts].
    table: Tensor,
    /// 0 to parts · in, `[parts · in]`.
    rows: Tensor,
    /// Where each part begins, and the end, `[parts + 1]`.
    offsets: Tensor,
    parts: i64,
}

impl Product {
    pub(super) fn new(maps: &[&Linear], way: &Way) -> Result<Self> {
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
            one_row: way.one_row(&weight)?,
            kind: weight.f_kind()?,
            weight: Weight::new(weight, way.packer.as_ref())?,
            wanted: None,
            bias,
            low_rank,
        })
    }

    /// The product with one matrix [out, in].
    pub(super) fn of(weight: &Tensor, way: &Way) -> Result<Self> {
        let n_out = weight.size2()?.0;
        let apart = way.packer.is_some()
            && weight.f_kind()? == Kind::Float
            && n_out % CROWDED == 0
            && weight.numel() <= LARGEST_COPY;
        let one_row = way.one_row(weight)?;
        let (weight, wanted) = match apart {
            true => (weight.f_constant_pad_nd([0, 0, 0, APART])?, Some(n_out)),
            false => (weight.shallow_clone(), None),
        };
        Ok(Self {
            one_row,
            kind: weight.f_kind()?,
            weight: Weight::new(weight, way.packer.as_ref())?,
            wanted,
            bias: None,
            low_rank: Vec::new(),
        })
    }

    /// x [N, in] → [N, out], in the kind of x. `alone`: N is 1, and the request has no other row. x is of the weight's kind, or
    /// f32 where it is alone; a weight that has no way of its own for that is multiplied in its own kind.
    pub(super) fn apply(&self, x: &Tensor, alone: bool) -> Result<Tensor> {
        let one_row = self.one_row.as_ref().filter(|_| alone);
        let (bias, narrow) = (self.bias.as_ref(), || x.f_to_kind(self.kind));
        let wide_again = |y: Tensor| match alone {
            true => y.f_to_kind(x.f_kind()?),
            false => Ok(y),
        };
        let y = match (one_row, &self.weight) {
            (Some(OneRow::Sums(sums)), _) => sums.apply(x, bias)?,
            (Some(OneRow::Halves(weight, packer)), _) => packer.multiply(x, weight, bias)?,
            (None, Weight::Plain(weight)) => wide_again(narrow()?.f_linear(weight, bias)?)?,
            (None, Weight::Packed(weight, packer)) => wide_again(packer.multiply(&narrow()?, weight, bias)?)?,
        };
        for (part, start, width) in &self.low_rank {
            let mut own = y.f_narrow(-1, *start, *width)?;
            let sum = part.add(x, own.shallow_clone())?;
            own.f_copy_(&sum)?;
        }
        match self.wanted.filter(|_| one_row.is_none()) {
            Some(width) => Ok(y.f_narrow(-1, 0, width)?),
            None => Ok(y),
        }
    }
}

impl Weight {
    fn new(weight: Tensor, packer: Option<&Rc<Packer>>) -> Result<Self> {
        let Some(packer) = packer else {
            return Ok(Self::Plain(weight));
        };
        Ok(match packer.pack(&weight)? {
            Some(packed) => Self::Packed(packed, Rc::clone(packer)),
            None => Self::Plain(weight),
        })
    }
}

impl Sums {
    /// Of a matrix [out, in] in f32.
    fn of(weight: &Tensor) -> Result<Option<Self>> {
        let (n_out, n_in) = weight.size2()?;
        // An even number of parts of equal width.
        let fits = |n: &i64| n_out % n == 0 && n_out / n <= WIDEST;
        let Some(parts) = (2..=n_out / NARROWEST).step_by(2).find(fits) else {
            return Ok(None);
        };
        let (width, options) = (n_out / parts, (Kind::Int64, weight.device()));
        let table = weight.f_view([parts, width, n_in])?.f_transpose(1, 2)?;
        Ok(Some(Self {
            table: table.f_reshape([parts * n_in, width])?,
            rows: Tensor::f_arange(parts * n_in, options)?,
            offsets: Tensor::f_arange_start_step(0, (parts + 1) * n_in, n_in, options)?,
            parts,
        }))
    }

    /// x [1, in] → [1, out].
    fn apply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let weights = x.f_repeat([self.parts, 1])?.f_view([-1])?;
        let mut y = sums(&self.table, &self.rows, &self.offsets, &weights)?.f_view([1, -1])?;
        Ok(match bias {
            Some(bias) => y.f_add_(bias)?,
            None => y,
        })
    }
}

fn joined(parts: &[&Tensor]) -> Result<Tensor> {
    match parts {
        [one] => Ok(one.shallow_clone()),
        several => Ok(Tensor::f_cat(several, 0)?),
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::super::packed::Form;
    use super::*;

    /// With tables and with halves a single row of f32 is multiplied otherwise than several, and comes to the same.
    #[test]
    fn a_single_row_is_multiplied_like_several() {
        let _guard = tch::no_grad_guard();
        tch::set_num_threads(1);
        let mut compared = 0;
        for kind in [Kind::Float, Kind::BFloat16] {
            let find = |form| Packer::find(form, kind, Device::Cpu).map(Rc::new);
            let way = Way {
                packer: find(Form::OneDnn),
                one_row: true,
                halves: find(Form::Halves),
            };
            for (n_in, n_out) in [(24, 80), (8, 64), (20, 1032)] {
                let numbers = |n: i64| Tensor::arange(n, (Kind::Float, Device::Cpu)).sin();
                let weight = numbers(n_out * n_in).view([n_out, n_in]).to_kind(kind);
                // Of numbers that bf16 has.
                let x = numbers(n_in).view([1, n_in]).to_kind(kind).to_kind(Kind::Float);
                let product = Product::of(&weight, &way).unwrap();
                // bf16 only where the processor multiplies it.
                if product.one_row.is_none() {
                    assert_eq!(kind, Kind::BFloat16);
                    continue;
                }
                let one = product.apply(&x, true).unwrap();
                let plain = x.matmul(&weight.to_kind(Kind::Float).tr());
                let difference = f64::try_from((one - &plain).abs().max() / plain.abs().max()).unwrap();
                assert!(difference < 1e-6, "{kind:?} {n_in} to {n_out}: {difference}");
                let several = product.apply(&x.repeat([3, 1]), false).unwrap().to_kind(Kind::Float);
                let difference = f64::try_from((several - &plain).abs().max() / plain.abs().max()).unwrap();
                assert!(difference < 0.01, "{kind:?} {n_in} to {n_out}: {difference}");
                compared += 1;
            }
        }
        assert!(compared >= 3);
    }

    /// A feed-forward width of 683, joined, and a vocabulary of 32002 are twice a prime: their rows would be of one number.
    #[test]
    fn outputs_that_make_no_parts_of_some_width_have_no_table() {
        let _guard = tch::no_grad_guard();
        for (n_out, parts) in [(1366, None), (32002, None), (62, None), (64, Some(2)), (1376, Some(4))] {
            let found = Sums::of(&Tensor::zeros([n_out, 1], (Kind::Float, Device::Cpu))).unwrap();
            assert_eq!(found.map(|sums| sums.parts), parts, "{n_out}");
        }
    }

    /// What f16 cannot hold is left to the product of several rows.
    #[test]
    fn numbers_too_large_for_halves_are_not_packed_so() {
        let Some(halves) = Packer::find(Form::Halves, Kind::BFloat16, Device::Cpu) else {
            return;
        };
        let weight = Tensor::full([2, 2], 1e5, (Kind::BFloat16, Device::Cpu));
        assert!(halves.pack(&weight).unwrap().is_none());
        assert!(halves.pack(&(weight / 2)).unwrap().is_some());
    }
}
