//! A setting of a registered loss, and what a micro-batch of it gives: one form for every family.

use std::iter::Sum;

use tch::{Kind, Tensor};
use unsay_losses::{Card, Error, Fused, LossValue, Needs, Result, TokenOp, TokenStats};

use crate::batch::{Batch, Part, Size};
use crate::plain;

/// What a family does with a micro-batch. Everything else is written once, for all families.
pub trait Setting {
    fn card(&self) -> Card;

    /// Every parameter outside its range.
    fn problems(&self) -> Vec<Error>;

    /// The roles of the completions of the unit of a number: see [`Completion::role`](crate::batch::Completion::role).
    fn roles(&self, unit: usize) -> Vec<i8>;

    /// The order in which the family wants the completions of some units; unit after unit unless it says otherwise.
    fn order(&self, batch: &Batch, units: &[usize]) -> Vec<usize> {
        units.iter().flat_map(|&unit| batch.units[unit].clone()).collect()
    }

    /// The output embeddings it reads, and what of each; none for losses over scores.
    fn heads(&self) -> Vec<Head>;

    /// `[N, C]` the tokens that each row is set against, where it asks the op about them.
    fn candidates(&self, _part: &Part<'_>) -> Option<Tensor> {
        None
    }

    /// What it must be given beside stats, and must name where it is missing.
    fn asks_for(&self) -> Vec<Missing> {
        Vec::new()
    }

    /// Whether a unit's value depends on the others, so that a part of a batch is refused.
    fn couples_units(&self) -> bool {
        false
    }

    /// What its gradient takes for a constant though it depends on the weights: [`Given::still`] holds that.
    fn detaches(&self) -> Option<&'static str> {
        None
    }

    /// The setting whose value has this one's gradient, where it is another.
    fn differentiated(&self) -> Option<Box<dyn Setting>> {
        None
    }

    /// The value on a micro-batch, divided by counts of the whole batch.
    fn evaluate(&self, given: &Given<'_>) -> Result<LossValue>;

    /// One number for each unit of the part from what the family calls examples: by unit, or by completion.
    fn per_unit(&self, part: &Part<'_>, examples: &[f64]) -> Vec<f64> {
        if examples.len() == part.units.len() {
            return examples.to_vec();
        }
        assert_eq!(examples.len(), part.completions.len());
        let mut sums = vec![0.0; part.units.len()];
        for (value, completion) in examples.iter().zip(part.members()) {
            sums[part.place(completion.unit)] += value;
        }
        sums
    }

    /// What a push on a completion moves.
    fn pushes(&self) -> Pushed {
        Pushed::Logp
    }

    /// The same in one pass over the first head, where the family has that.
    fn fused(&self, _op: &TokenOp, _given: &Given<'_>) -> Option<Result<Fused>> {
        None
    }
}

/// What is detached, by every loss that has the switch.
pub const SAMPLED_TOKEN: &str = "the sampled token's logit";

/// What a family may leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Reference,
    Draws,
    Baseline,
    Marks,
    Weights,
    Old,
}

/// What a push on a completion moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// The log-probabilities of its tokens.
    Logp,
    /// The logits of its tokens in the second head.
    Judgement,
    /// Its score.
    Score,
}

/// One output embedding that a setting reads.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    pub needs: Needs,
    pub table: Table,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// The language head's.
    First,
    /// A second head's own.
    Second,
    /// The language head's, with a scale and a bias.
    Shared,
}

impl Head {
    pub fn first(needs: Needs) -> Head {
        Head {
            needs,
            table: Table::First,
        }
    }
}

/// What a setting is given for a micro-batch.
pub struct Given<'a> {
    pub part: &'a Part<'a>,
    /// One for each head.
    pub stats: &'a [TokenStats],
    /// `[N]` a number per row that is no log-probability, in the graph of the states: scores and values are read off it.
    pub scalars: &'a Tensor,
    pub without: Option<Missing>,
    /// What becomes of every count of the whole batch.
    pub count: fn(f64) -> f64,
    /// The stats that what is detached is read from, where those are not `stats`.
    pub still: Option<&'a [TokenStats]>,
}

impl Given<'_> {
    /// `[N]` how far the log-probabilities have moved from those that what is detached is read from.
    pub fn moved(&self) -> Option<Tensor> {
        let still = self.still?;
        Some(self.stats[0].logp.detach() - still[0].logp.detach())
    }

    /// Something that may be left out.
    pub fn unless<T>(&self, missing: Missing, value: T) -> Option<T> {
        (self.without != Some(missing)).then_some(value)
    }

    /// Sizes of the whole batch, added up over its two halves as a training loop adds them up over micro-batches.
    pub fn counts<C: Sum>(&self, setting: &dyn Setting, of: impl Fn(&Part<'_>) -> Result<C>) -> Result<C> {
        let units: Vec<usize> = (0..self.part.batch.units.len()).collect();
        let halves = units.chunks(units.len().div_ceil(2));
        let of = |units| {
            of(&Part::new(self.part.batch, units, |batch, units| {
                setting.order(batch, units)
            }))
        };
        halves.map(of).sum()
    }
}

/// A setting of a registered loss.
pub struct Subject {
    pub family: &'static str,
    pub name: &'static str,
    /// How it is written, for the report.
    pub text: String,
    pub setting: Box<dyn Setting>,
}

/// The first setting of each name.
pub fn firsts<T>(settings: &[T], name: impl Fn(&T) -> &'static str) -> Vec<&T> {
    let mut seen = Vec::new();
    let mut new = |setting: &&T| {
        let name = name(setting);
        let new = !seen.contains(&name);
        seen.push(name);
        new
    };
    settings.iter().filter(|setting| new(setting)).collect()
}

/// How a micro-batch is computed.
#[derive(Clone, Copy)]
pub struct How<'a> {
    pub kind: Kind,
    pub chunk_rows: Option<usize>,
    pub way: Way,
    /// Whether the states are picked from a table with states that predict nothing, NaN.
    pub padded: bool,
    pub without: Option<Missing>,
    pub count: fn(f64) -> f64,
    /// The batch before it was moved: what is detached stays as it was there.
    pub still: Option<&'a Batch>,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    /// The op, in two passes.
    Op,
    /// The op, in one pass.
    Fused,
    /// Full logits and autograd.
    Plain,
}

impl Default for How<'_> {
    fn default() -> Self {
        How {
            kind: Kind::Double,
            chunk_rows: None,
            way: Way::Op,
            padded: false,
            without: None,
            count: |n| n,
            still: None,
        }
    }
}

/// What a micro-batch gave. Gradients are those of the whole batch, zero where nothing was said.
pub struct Outcome {
    pub total: Tensor,
    /// One number for each unit of the part, in its order.
    pub per_unit: Vec<f64>,
    pub terms: Vec<(&'static str, f64)>,
    /// Of states, embedding, second embedding, scale and bias.
    pub gradients: [Tensor; 5],
}

impl Outcome {
    pub fn total(&self) -> f64 {
        self.total.double_value(&[])
    }

    pub fn all_finite(&self) -> bool {
        let terms = self.terms.iter().map(|(_, value)| value);
        plain::all_finite(&self.total)
            && self.gradients.iter().all(plain::all_finite)
            && self.per_unit.iter().chain(terms).all(|x| x.is_finite())
    }

    /// The largest difference of any gradient, each relative to its own largest value.
    pub fn difference(&self, other: &Outcome) -> f64 {
        let pairs = self.gradients.iter().zip(&other.gradients);
        pairs.map(|(a, b)| plain::difference(a, b)).fold(0.0, f64::max)
    }
}

impl Subject {
    /// A small made batch of so many units.
    pub fn batch(&self, seed: u64, n: usize) -> Batch {
        let size = Size {
            units: n,
            longest: 5,
            d: 6,
            v: 17,
        };
        Batch::new(seed, size, &|unit| self.setting.roles(unit))
    }

    /// All units of a batch.
    pub fn whole(&self, batch: &Batch, how: How<'_>) -> Result<Outcome> {
        self.run(batch, &(0..batch.units.len()).collect::<Vec<_>>(), how)
    }

    /// The stats of the rows of a part, of another batch.
    fn stats(&self, batch: &Batch, part: &Part<'_>) -> Result<Vec<TokenStats>> {
        let hidden = batch.states.index_select(0, &Tensor::from_slice(&part.rows));
        let targets = Tensor::from_slice(&part.targets());
        let stats = self.setting.heads().into_iter().map(|head| {
            assert_eq!(head.table, Table::First, "{}", self.text);
            TokenOp::new(&hidden, &batch.embedding, &targets, &Needs { kl: None, ..head.needs })?.forward()
        });
        stats.collect()
    }

    /// Some units of a batch, in this order.
    pub fn run(&self, batch: &Batch, units: &[usize], how: How<'_>) -> Result<Outcome> {
        let leaf = |t: &Tensor| t.detach().to_kind(how.kind).set_requires_grad(true);
        let states = match how.padded {
            true => leaf(&Tensor::cat(
                &[batch.states.shallow_clone(), batch.states.full_like(f64::NAN)],
                0,
            )),
            false => leaf(&batch.states),
        };
        let (embedding, second) = (leaf(&batch.embedding), leaf(&batch.second));
        let (scale, bias) = (leaf(&Tensor::from(batch.scale)), leaf(&Tensor::from(batch.bias)));
        let leaves = [&states, &embedding, &second, &scale, &bias];

        let part = Part::new(batch, units, |batch, units| self.setting.order(batch, units));
        let rows = Tensor::from_slice(&part.rows);
        let hidden = states.index_select(0, &rows);
        let targets = Tensor::from_slice(&part.targets());
        let candidates = self
            .setting
            .candidates(&part)
            .filter(|_| how.without != Some(Missing::Marks));
        let constant = |t: &Tensor| t.to_kind(how.kind);
        let frozen = constant(&batch.reference_states).index_select(0, &rows);
        let frozen_table = constant(&batch.reference_embedding);
        let (mut ops, mut stats) = (Vec::new(), Vec::new());
        for Head { needs, table } in self.setting.heads() {
            let rows_of = if table == Table::Second { &second } else { &embedding };
            if how.way == Way::Plain {
                let logits = hidden.matmul(&rows_of.tr());
                let logits = match table {
                    Table::Shared => logits * &scale + &bias,
                    _ => logits,
                };
                let given = plain::Given {
                    candidates: candidates.as_ref(),
                    reference: Some(&frozen.matmul(&frozen_table.tr())),
                };
                stats.push(plain::stats_of(&logits, &targets, &needs, &given));
                continue;
            }
            let mut op = TokenOp::new(&hidden, rows_of, &targets, &needs)?;
            if table == Table::Shared {
                op = op.with_affine(&scale, &bias)?;
            }
            if needs.kl.is_some() {
                op = op.with_reference(&frozen, &frozen_table)?;
            }
            if let Some(ids) = &candidates {
                op = op.with_candidates(ids)?;
            }
            if let Some(rows) = how.chunk_rows {
                op = op.with_chunk_rows(rows);
            }
            if how.way == Way::Op {
                stats.push(op.forward()?);
            }
            ops.push(op);
        }
        let still = how.still.map(|still| self.stats(still, &part)).transpose()?;
        let given = Given {
            part: &part,
            stats: &stats,
            scalars: &hidden.matmul(&embedding.get(0)),
            without: how.without,
            count: how.count,
            still: still.as_deref(),
        };
        let value = match how.way {
            Way::Fused => {
                let fused = self.setting.fused(&ops[0], &given).unwrap()?;
                // Two ways to hand the gradient on, each at some chunk size.
                match how.chunk_rows {
                    Some(1) => fused.surrogate()?.unwrap().backward(),
                    _ => fused.backward()?,
                }
                fused.value
            }
            _ => {
                let value = self.setting.evaluate(&given)?;
                value.total.backward();
                // Heads share states, and the graph behind those is walked once.
                let surrogates = ops.iter().zip(&stats).map(|(op, stats)| op.surrogate(stats));
                if let Some(sum) = surrogates.reduce(|a, b| Ok(a? + b?)) {
                    sum?.backward();
                }
                value
            }
        };
        let logged = value.terms.iter().map(|(name, term)| (*name, term));
        for (name, logged) in logged.chain([("per_example", &value.per_example)]) {
            assert!(!logged.requires_grad(), "{}: `{name}` has a graph", self.text);
        }
        for constant in part.constants.borrow().iter() {
            assert!(
                !constant.grad().defined(),
                "{}: a gradient to a measured number",
                self.text
            );
        }
        let n = batch.n_rows() as i64;
        let mut gradients = leaves.map(|leaf| match leaf.grad() {
            gradient if gradient.defined() => gradient,
            _ => leaf.detach().zeros_like(),
        });
        if how.padded {
            let padding = gradients[0].narrow(0, n, n).abs().sum(Kind::Double).double_value(&[]);
            assert!(padding.abs() == 0.0, "{}: a gradient in padding", self.text);
            gradients[0] = gradients[0].narrow(0, 0, n);
        }
        Ok(Outcome {
            per_unit: self.setting.per_unit(&part, &plain::numbers(&value.per_example)),
            terms: value
                .terms
                .iter()
                .map(|(name, t)| (*name, t.double_value(&[])))
                .collect(),
            total: value.total.detach(),
            gradients,
        })
    }
}
