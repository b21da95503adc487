//! One pass for losses that are sums over rows.

use std::cell::RefCell;
use std::ops::Range;

use tch::Tensor;

use super::backward::Gradients;
use super::hand_on::HandOn;
use super::pulls::Pulls;
use super::reduce::Softmax;
use super::rows::Pick;
use super::{TokenOp, TokenStats};
use crate::token::{self, TokenLoss};
use crate::{Error, LossValue, Result, TokenCounts, TokenRows};

/// What [`TokenOp::fused`] gives.
#[derive(Debug)]
pub struct Fused {
    /// The value over all rows, without a graph.
    pub value: LossValue,
    /// Targets, log-probability and correctness of all rows, without a graph; all that was asked for with
    /// [`TokenOp::with_all_stats`].
    pub stats: TokenStats,
    /// Taken by the call that hands them on.
    gradients: RefCell<HandOn>,
}

impl Fused {
    /// Pushes the gradient of `value.total` into the trunk and the embedding.
    ///
    /// Does nothing where nothing is trained, or nothing by this loss, and nothing a second time.
    ///
    /// **Errors**: only libtorch's.
    pub fn backward(&self) -> Result<()> {
        self.gradients.take().backward()
    }

    /// A scalar whose `backward()` does the same, to be added to other scalars first. Only its gradient means
    /// anything. `None` where [`backward`](Fused::backward) would do nothing.
    ///
    /// **Errors**: only libtorch's.
    pub fn surrogate(&self) -> Result<Option<Tensor>> {
        match self.gradients.take() {
            gradients if gradients.is_empty() => Ok(None),
            gradients => Ok(Some(gradients.surrogate()?)),
        }
    }
}

impl TokenOp {
    /// Value and gradient in one pass, for a loss that is a sum over rows.
    ///
    /// `loss` is called once per chunk with the chunk's stats and the rows that they belong to, and returns what those
    /// rows add to the value: whatever it divides by must be a count of the whole batch. Its gradient is
    /// taken at once and turned into that of the hidden states and the embedding while the chunk's logits are still
    /// there. So no logits are computed twice and none are kept.
    ///
    /// Without anything to train, or under `no_grad`, only the value is computed. `loss` must not carry a graph from one
    /// call to the next: each call's is used up at once.
    ///
    /// **Errors**: those of [`TokenOp::forward`] and those of `loss`; [`Error::Input`] when `loss` gives another number
    /// of examples for one chunk than for another.
    ///
    /// ```
    /// use tch::{Kind, Tensor};
    /// use unsay_losses::{LossValue, Needs, TokenOp};
    ///
    /// # fn main() -> Result<(), unsay_losses::Error> {
    /// // The mean entropy of two rows, with the identity as embedding.
    /// let logits = Tensor::from_slice(&[1.0f64, 0.0, 3.0, 3.0]).view([2, 2]).set_requires_grad(true);
    /// let identity = Tensor::eye(2, (Kind::Double, tch::Device::Cpu));
    /// let needs = Needs { entropy: true, ..Needs::default() };
    /// let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&[0i64, 0]), &needs)?;
    /// let fused = op.fused(|stats, _rows| {
    ///     let total = stats.entropy.as_ref().map(|h| h.sum(Kind::Double) / 2.0).unwrap_or_default();
    ///     Ok(LossValue { per_example: total.detach().view([1]), total, terms: Vec::new() })
    /// })?;
    /// // p = 0.731059: H = 0.582203; and ln 2 = 0.693147 for the second row.
    /// assert!((fused.value.total.double_value(&[]) - (0.582203 + 0.693147) / 2.0).abs() < 1e-6);
    /// fused.backward()?;
    /// let push = Vec::<f64>::try_from(logits.grad().view([-1])).unwrap();
    /// assert!((push[0] + 0.098306).abs() < 1e-6); // -p (log p + H)/2 = -0.731059 (-0.313262 + 0.582203)/2
    /// assert!(push[2].abs() < 1e-12); // already flat
    /// # Ok(()) }
    /// ```
    pub fn fused(&self, mut loss: impl FnMut(&TokenStats, Range<i64>) -> Result<LossValue>) -> Result<Fused> {
        self.check_given()?;
        let trains = self.trains();
        let (mut sum, mut chunks, mut into) = (None, Vec::new(), None);
        let spent = self.needs.softmax_alone();
        for (start, n) in self.ranges(self.rows.len(), self.chunk_rows(spent)) {
            let at = Pick::Range(start, n);
            let (logits, stats, softmax) = tch::no_grad(|| {
                let rows = self.rows.pick(&at)?;
                let logits = self.logits(&rows)?;
                let (stats, softmax) = self.reduce(&rows, &logits, spent)?;
                Ok::<_, Error>((logits, stats, softmax))
            })?;
            if trains {
                stats.collect_gradients()?;
            }
            let value = loss(&stats, start..start + n)?;
            // Under `no_grad`, and for rows that the loss leaves out, there is no graph.
            if trains && value.total.requires_grad() {
                value.total.f_backward()?;
                tch::no_grad(|| {
                    let into = match &mut into {
                        Some(into) => into,
                        none => none.insert(self.no_gradients()?),
                    };
                    self.chunk_gradients(into, start, &stats, &logits, softmax)
                })?;
            }
            chunks.push(match self.all_stats {
                true => stats,
                false => stats.brief(),
            });
            sum = Some(add(sum, value)?);
        }
        Ok(Fused {
            value: sum.ok_or(Error::Empty {
                what: "the batch of hidden states",
            })?,
            stats: TokenStats::join(&chunks)?,
            gradients: RefCell::new(match into {
                Some(into) => tch::no_grad(|| self.hand_on(into))?,
                None => HandOn::default(),
            }),
        })
    }

    fn chunk_gradients(
        &self,
        into: &mut Gradients,
        start: i64,
        stats: &TokenStats,
        logits: &Tensor,
        softmax: Softmax,
    ) -> Result<()> {
        let pulls = Pulls::of(self, stats)?;
        self.sparse(into, (start, stats.n_rows()), &pulls)?;
        let Some(used) = pulls.dense_rows()? else {
            return Ok(());
        };
        let Some(own) = Pick::used(&used)? else {
            return Ok(());
        };
        let softmax = softmax.pick(&own)?;
        self.dense(
            into,
            &own.shift(start)?,
            (logits, &own, Some(softmax)),
            &pulls.pick(&own)?,
        )
    }

    /// [`fused`](TokenOp::fused) with a loss over the tokens of labelled completions.
    ///
    /// **Shapes**: `rows` and `draws` of as many rows as the op has; see [`TokenLoss::evaluate`].
    ///
    /// **Errors**: those of [`TokenOp::fused`] and of [`TokenLoss::evaluate`]; those of `rows`, `counts` and `draws` before
    /// any row is computed.
    pub fn fused_loss(
        &self,
        loss: &dyn TokenLoss,
        rows: &TokenRows,
        counts: &TokenCounts,
        draws: Option<&Tensor>,
    ) -> Result<Fused> {
        let n = self.rows.len();
        let found = rows.example.size();
        if found.first() != Some(&n) {
            let expected = format!("{n} rows, as the op has");
            return Err(Error::input("rows", expected, format!("{found:?}")));
        }
        token::check(loss, rows, counts, draws, (n, self.hidden.device()))?;
        let draws = draws.filter(|_| loss.draws_per_row() > 0);
        self.fused(|stats, range| {
            let n = range.end - range.start;
            let draws = draws.map(|draws| draws.f_narrow(0, range.start, n)).transpose()?;
            loss.value(stats, &rows.narrow(range)?, counts, draws.as_ref())
        })
    }
}

/// Adds up the values of chunks.
fn add(sum: Option<LossValue>, value: LossValue) -> Result<LossValue> {
    let value = LossValue {
        total: value.total.f_detach()?,
        ..value
    };
    let Some(mut sum) = sum else {
        return Ok(value);
    };
    if sum.per_example.size() != value.per_example.size() {
        return Err(Error::input(
            "per_example",
            format!("{:?}, as for the rows before", sum.per_example.size()),
            format!("{:?}", value.per_example.size()),
        ));
    }
    for (name, term) in value.terms {
        match sum.terms.iter_mut().find(|(known, _)| *known == name) {
            Some((_, total)) => *total = total.f_add(&term)?,
            None => sum.terms.push((name, term)),
        }
    }
    Ok(LossValue {
        total: sum.total.f_add(&value.total)?,
        per_example: sum.per_example.f_add(&value.per_example)?,
        terms: sum.terms,
    })
}
