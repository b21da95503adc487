//! The way back: from the gradients of the stats to those of the hidden states and the embedding.

use tch::Tensor;

use super::hand_on::{HandOn, dot};
use super::products::filled;
use super::pulls::Pulls;
use super::rows::Pick;
use super::{TokenOp, TokenStats};
use crate::{Error, Result};

/// Gradients under construction, in the kind that sums are taken in. `None` for those that nobody wants.
pub(super) struct Gradients {
    /// `d/du · embedding`: of the states, were there no scale and no temperature.
    pub(super) hidden: Option<Tensor>,
    pub(super) embedding: Option<Tensor>,
    /// What the embedding's gradient will be made of, where that is narrow.
    pub(super) narrow: Narrow,
    /// Before the temperature.
    pub(super) bias: Option<Tensor>,
}

/// What makes a narrow gradient of the embedding: kept until the last chunk, so that it is summed up and rounded by one
/// product instead of being widened and added once a chunk.
#[derive(Debug, Default)]
pub(super) struct Narrow {
    /// Of the logits, room for every row [N, V]; the first rows are filled, as many as there are states.
    logits: Option<Tensor>,
    /// The states [n, D] of the rows that are filled.
    states: Vec<Tensor>,
    /// Tokens `[n]` and what is added to each one's row [n, D], in the kind that sums are taken in.
    pub(super) rows: Vec<(Tensor, Tensor)>,
}

impl Narrow {
    /// Keeps the gradients of logits [n, V] and the states [n, D] of these rows, of `n_rows` in all; gives the former in the
    /// kind of the states, with rows of zeros below where a product is to have `more` rows.
    pub(super) fn keep(
        &mut self,
        dlogits: &Tensor,
        states: &Tensor,
        n_rows: i64,
        more: Option<fn(i64) -> i64>,
    ) -> Result<Tensor> {
        let start = self.n_kept();
        let (n, n_tokens) = dlogits.size2()?;
        let in_all = |n: i64| more.map_or(n, |more| more(n).max(n));
        let all = match self.logits.take() {
            Some(all) => all,
            None => Tensor::f_empty([in_all(n_rows), n_tokens], (states.f_kind()?, states.device()))?,
        };
        let mut kept = all.f_narrow(0, start, n)?;
        kept.f_copy_(dlogits)?;
        let below = (in_all(n) - n).min(all.size()[0] - start - n);
        let _ = all.f_narrow(0, start + n, below)?.f_zero_()?;
        let kept = all.f_narrow(0, start, n + below)?;
        self.logits = Some(all);
        self.states.push(states.shallow_clone());
        Ok(kept)
    }

    fn n_kept(&self) -> i64 {
        self.states.iter().map(|states| states.size()[0]).sum()
    }

    /// Adds all of it to a gradient [V, D].
    fn add_to(self, total: &mut Tensor, more: Option<fn(i64) -> i64>) -> Result<()> {
        let n = self.n_kept();
        if let Some(logits) = self.logits {
            let mut states = Tensor::f_cat(&self.states, 0)?;
            if let Some(more) = more {
                states = filled(&states, more)?;
            }
            let rows = states.size()[0];
            let _ = logits.f_narrow(0, n, rows - n)?.f_zero_()?;
            let _ = total.f_addmm_(&logits.f_narrow(0, 0, rows)?.f_tr()?, &states)?;
        }
        if self.rows.is_empty() {
            return Ok(());
        }
        let (ids, values): (Vec<Tensor>, Vec<Tensor>) = self.rows.into_iter().unzip();
        add_rows(total, &Tensor::f_cat(&ids, 0)?, &Tensor::f_cat(&values, 0)?)
    }
}

impl TokenOp {
    /// The second pass: a scalar whose `backward()` pushes the gradient into the trunk and the embedding.
    ///
    /// `Σ hidden ⊙ dhidden + Σ embedding ⊙ dembedding` (and the same for scale and bias), with the gradients computed
    /// here, chunk by chunk, from those that `loss.backward()` left on `stats`. Only its gradient means anything. Rows
    /// whose stats got no gradient are skipped.
    ///
    /// **Errors**: [`Error::Input`] when `stats` has another number of rows than this op, or when neither
    /// `hidden` nor `embedding` (nor scale nor bias) is being trained.
    pub fn surrogate(&self, stats: &TokenStats) -> Result<Tensor> {
        self.second_pass(stats)?.surrogate()
    }

    /// The second pass and the `backward()` of its [`surrogate`](TokenOp::surrogate), with less memory where the
    /// embedding is a parameter that has a gradient already: the new one is added in place.
    ///
    /// **Errors**: as for [`TokenOp::surrogate`].
    pub fn backward(&self, stats: &TokenStats) -> Result<()> {
        self.second_pass(stats)?.backward()
    }

    fn second_pass(&self, stats: &TokenStats) -> Result<HandOn> {
        if stats.n_rows() != self.rows.len() {
            return Err(Error::input(
                "stats",
                format!("{} rows, as the op has", self.rows.len()),
                stats.n_rows(),
            ));
        }
        if !self.trains() {
            return Err(Error::input(
                "hidden and embedding",
                "at least one that requires a gradient",
                "none",
            ));
        }
        let _guard = tch::no_grad_guard();
        let pulls = Pulls::of(self, stats)?;
        let mut into = self.no_gradients()?;
        let kept = self.kept.take();
        if let Some(used) = pulls.dense_rows()? {
            let mut done = 0;
            for logits in kept {
                let n = logits.size()[0];
                if let Some(own) = Pick::used(&used.f_narrow(0, done, n)?)? {
                    let rows = own.shift(done)?;
                    self.dense(&mut into, &rows, (&logits, &own, None), &pulls.pick(&rows)?)?;
                }
                done += n;
            }
            if let Some(rest) = Pick::used(&used.f_narrow(0, done, self.rows.len() - done)?)? {
                let rest = rest.shift(done)?;
                for (start, n) in self.ranges(rest.len(), self.chunk_rows(false)) {
                    let rows = rest.narrow(start, n)?;
                    let logits = self.logits(&self.rows.pick(&rows)?)?;
                    let all = Pick::Range(0, n);
                    self.dense(&mut into, &rows, (&logits, &all, None), &pulls.pick(&rows)?)?;
                }
            }
        }
        self.sparse(&mut into, (0, self.rows.len()), &pulls)?;
        self.hand_on(into)
    }

    pub(super) fn no_gradients(&self) -> Result<Gradients> {
        let options = (self.wide(), self.hidden.device());
        let zeros = |wanted: bool, size: &[i64]| match wanted {
            true => Tensor::f_zeros(size, options).map(Some),
            false => Ok(None),
        };
        let affine =
            |pick: fn(&super::Affine) -> &Tensor| self.affine.as_ref().is_some_and(|a| pick(a).requires_grad());
        Ok(Gradients {
            // The gradient of the scale is that of the hidden states times the states.
            hidden: zeros(self.hidden.requires_grad() || affine(|a| &a.scale), &self.hidden.size())?,
            embedding: match self.adds_in_place() {
                true => Some(self.known_gradient()?),
                false => zeros(self.embedding.requires_grad(), &self.embedding.size())?,
            },
            narrow: Narrow::default(),
            bias: zeros(affine(|a| &a.bias), &[])?,
        })
    }

    /// From gradients with respect to `u` to those with respect to `z`.
    pub(super) fn slope(&self, mut gradient: Tensor) -> Result<Tensor> {
        if let Some(affine) = &self.affine {
            gradient = gradient.f_mul(&affine.scale.f_detach()?.f_to_kind(gradient.f_kind()?)?)?;
        }
        self.cool(gradient)
    }

    /// From the gradients with respect to what the product `u` is made of to those of what is trained.
    pub(super) fn hand_on(&self, mut from: Gradients) -> Result<HandOn> {
        let wide = self.wide();
        if let Some(embedding) = &mut from.embedding {
            from.narrow.add_to(embedding, self.onednn)?;
        }
        let mut found = Vec::new();
        if let Some(affine) = &self.affine {
            if let Some(hidden) = from.hidden.as_ref().filter(|_| affine.scale.requires_grad()) {
                found.push((&affine.scale, dot(&self.rows.hidden.f_to_kind(wide)?, hidden)?));
            }
            if let Some(bias) = from.bias {
                found.push((&affine.bias, bias));
            }
        }
        for (_, gradient) in &mut found {
            *gradient = self.cool(gradient.shallow_clone())?;
        }
        if let Some(hidden) = from.hidden.filter(|_| self.hidden.requires_grad()) {
            found.push((&self.hidden, self.slope(hidden)?));
        }
        // What was added in place is where it belongs.
        if let Some(embedding) = from.embedding.filter(|_| !self.adds_in_place()) {
            found.push((&self.embedding, embedding));
        }
        let finished = found.into_iter();
        let finished =
            finished.map(|(value, gradient)| Ok((value.shallow_clone(), gradient.f_to_kind(value.f_kind()?)?)));
        Ok(HandOn(finished.collect::<Result<_>>()?))
    }

    /// Adds the gradient of `Σ pulls · stats` over the stats that are single logits: only the tokens named take part.
    ///
    /// `pulls` are those of the `n` rows from `first` on.
    pub(super) fn sparse(&self, into: &mut Gradients, (first, n): (i64, i64), pulls: &Pulls) -> Result<()> {
        let own = self.rows.pick(&Pick::Range(first, n))?;
        let sparse = pulls.sparse(&own.targets, &own.candidates)?;
        if let (Some(bias), Some(shift)) = (&mut into.bias, pulls.shift(self.wide(), &sparse)?) {
            let _ = bias.f_add_(&shift)?;
        }
        let step = self.portion();
        let embedding = self.embedding.detach();
        for (weights, ids) in &sparse {
            let used = weights.f_nonzero()?;
            let n_used = used.size()[0];
            for start in (0..n_used).step_by(step as usize) {
                let pairs = used.f_narrow(0, start, step.min(n_used - start))?;
                let (rows, columns) = (pairs.f_select(1, 0)?, pairs.f_select(1, 1)?);
                let at = |t: &Tensor| t.f_index(&[Some(&rows), Some(&columns)]);
                let (weight, ids) = (at(weights)?.f_unsqueeze(1)?, at(ids)?);
                let scaled = |t: &Tensor, index: &Tensor| -> Result<Tensor> {
                    Ok(t.f_index_select(0, index)?.f_to_kind(self.wide())?.f_mul_(&weight)?)
                };
                if let Some(hidden) = &into.hidden {
                    add_rows(&mut hidden.f_narrow(0, first, n)?, &rows, &scaled(&embedding, &ids)?)?;
                }
                if let Some(total) = &mut into.embedding {
                    let values = self.slope(scaled(&own.hidden, &rows)?)?;
                    match self.adds_at_once() {
                        true => into.narrow.rows.push((ids, values)),
                        false => add_rows(total, &ids, &values)?,
                    }
                }
            }
        }
        Ok(())
    }
}

/// Adds `values` to the rows `ids` of `total`; rows can repeat.
///
/// libtorch's gradient of an embedding look-up adds repeated rows in one fixed order on every device, which `index_add`
/// does not promise; it is asked only about the rows that occur, so nothing of the size of `total` is made.
fn add_rows(total: &mut Tensor, ids: &Tensor, values: &Tensor) -> Result<()> {
    let (known, place) = ids.f_internal_unique(true, true)?;
    let sums = Tensor::f_embedding_dense_backward(values, &place, known.size()[0], -1, false)?;
    let _ = total.f_index_add_(0, &known, &sums.f_to_kind(total.f_kind()?)?)?;
    Ok(())
}
