//! The way back: from the gradients of the stats to those of the hidden states and the embedding.
//!
//! The gradients with respect to the logits are written out instead of being asked of autograd, with `p` the
//! softmax of a row, `r` that of the reference, `q_c` the softmax without the token `c`, `H` the entropy, `K` the
//! divergence, and `t = tanh(u/2)`:
//!
//! | stat | `d/du_y` | `d/du_v` of the others |
//! |---|---|---|
//! | `logp` | `1 − p_y` | `−p_v` |
//! | `log_sum_exp` | `p_y` | `p_v` |
//! | `log1m_p` | `−p_y` | `p_y q_y(v)` |
//! | `candidate_log1m_p` of `c` | `−p_c` at `c` | `p_c q_c(v)` |
//! | `entropy` | `−p_y (log p_y + H)` | `−p_v (log p_v + H)` |
//! | `kl`, forward | `p_y − r_y` | `p_v − r_v` |
//! | `kl`, reverse | `p_y (log p_y − log r_y − K)` | `p_v (log p_v − log r_v − K)` |
//! | `off_target` | `0` | `t_v (1 − t_v²)/(4(V−1))` |
//! | `target_logit` | `1` | `0` |
//! | `top_logits`, `candidate_logits` | `1` at their token | `0` |
//!
//! All but the last two share one `[n, V]` buffer where autograd keeps several, and stay exact where `p` is close to
//! 0 or 1: `p_c q_c` is `p_v p_c/(1 − p_c)` for a token of at most half of the row, and the softmax without it for the
//! one token that may have more. The last two, which are all a contrastive loss uses, touch only the tokens they
//! name: no product over the vocabulary.

use tch::{Device, Kind, Tensor};

use super::pulls::Pulls;
use super::reduce::{Softmax, known_ids, without_largest};
use super::rows::{Pick, Rows};
use super::{CHUNK_LOGITS, Kl, TokenOp, TokenStats};
use crate::{Error, Result};

/// Gradients under construction, in the kind that sums are taken in. `None` for those that nobody wants.
pub(super) struct Gradients {
    /// `d/du · embedding`: of the states, were there no scale and no temperature.
    hidden: Option<Tensor>,
    embedding: Option<Tensor>,
    /// Before the temperature.
    bias: Option<Tensor>,
}

/// What is trained, each with its gradient, on its way to autograd.
#[derive(Debug, Default)]
pub(super) struct HandOn(Vec<(Tensor, Tensor)>);

impl HandOn {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Σ value ⊙ gradient`.
    pub(super) fn surrogate(&self) -> Result<Tensor> {
        let sums = self.0.iter().map(|(value, gradient)| {
            let sum = dot(value, gradient)?;
            Ok(sum.f_to_kind(if sum.f_kind()? == Kind::Double {
                Kind::Double
            } else {
                Kind::Float
            })?)
        });
        if self.is_empty() {
            // Its gradient goes nowhere, which is no error.
            return Ok(Tensor::from(0.0f32).f_set_requires_grad(true)?);
        }
        Ok(Tensor::f_stack(&sums.collect::<Result<Vec<_>>>()?, 0)?.f_sum(None)?)
    }

    /// Hands the gradients on.
    ///
    /// Autograd would make a second tensor of the size of each before it adds it. Where a gradient is there already,
    /// adding to it is all that autograd would do.
    pub(super) fn backward(self) -> Result<()> {
        let mut rest = Vec::new();
        for (value, gradient) in self.0 {
            // libtorch warns where the gradient of anything but a leaf is asked for.
            match value.is_leaf().then(|| value.grad()).filter(Tensor::defined) {
                Some(mut known) => {
                    let _ = tch::no_grad(|| known.f_add_(&gradient))?;
                }
                None => rest.push((value, gradient)),
            }
        }
        match HandOn(rest) {
            rest if rest.is_empty() => Ok(()),
            rest => Ok(rest.surrogate()?.f_backward()?),
        }
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
                for (start, n) in self.ranges(rest.len()) {
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
            bias: zeros(affine(|a| &a.bias), &[])?,
        })
    }

    /// Whether the embedding's gradient is added to the one that it has. In a narrow kind the sum over chunks would
    /// lose too much.
    fn adds_in_place(&self) -> bool {
        let embedding = &self.embedding;
        self.in_place && embedding.requires_grad() && embedding.is_leaf() && embedding.kind() == self.wide()
    }

    /// The gradient that the embedding has; zeros where it had none.
    fn known_gradient(&self) -> Result<Tensor> {
        if !self.embedding.grad().defined() {
            // The bindings cannot set a gradient, but this one is zero everywhere.
            let nothing = tch::with_grad(|| self.embedding.f_narrow(0, 0, 1)?.f_sum(None)?.f_mul_scalar(0.0))?;
            nothing.f_backward()?;
        }
        Ok(self.embedding.grad())
    }

    /// From gradients with respect to `u` to those with respect to `z`.
    fn slope(&self, mut gradient: Tensor) -> Result<Tensor> {
        if let Some(affine) = &self.affine {
            gradient = gradient.f_mul(&affine.scale.f_detach()?.f_to_kind(gradient.f_kind()?)?)?;
        }
        self.cool(gradient)
    }

    /// From the gradients with respect to what the product `u` is made of to those of what is trained.
    pub(super) fn hand_on(&self, from: Gradients) -> Result<HandOn> {
        let wide = self.wide();
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

    /// Adds the gradient of `Σ pulls · stats` over the stats that depend on every logit.
    ///
    /// `pulls` are those of the rows `at`; their logits are the rows `own` of `logits`, whose softmax may be known.
    pub(super) fn dense(
        &self,
        into: &mut Gradients,
        at: &Pick,
        (logits, own, softmax): (&Tensor, &Pick, Option<Softmax>),
        pulls: &Pulls,
    ) -> Result<()> {
        let rows = self.rows.pick(at)?;
        let mut dlogits = self.of_softmax(&rows, (logits, own, softmax), pulls)?;
        if let Some(pull) = &pulls.off_target {
            let slope = self.half_tanh(&own.of(logits)?, &rows.targets.f_unsqueeze(1)?)?;
            let share = pull.f_unsqueeze(1)?.f_div_scalar(4.0 * self.n_others())?;
            let slope = slope.f_sub(&slope.f_pow_tensor_scalar(3.0)?)?.f_mul_(&share)?;
            if let Some(bias) = &mut into.bias {
                let _ = bias.f_add_(&slope.f_sum(self.wide())?)?;
            }
            dlogits = Some(match dlogits {
                Some(mut dlogits) => dlogits.f_add_(&slope)?,
                None => slope,
            });
        }
        let Some(dlogits) = dlogits else {
            return Ok(());
        };
        let kind = self.hidden.kind();
        let dlogits = dlogits.f_to_kind(kind)?;
        if let Some(hidden) = &mut into.hidden {
            at.add_to(hidden, &dlogits.f_mm(&self.embedding)?.f_to_kind(self.wide())?)?;
        }
        if let Some(embedding) = &mut into.embedding {
            let transposed = dlogits.f_tr()?;
            // In place where the kinds agree; a narrow product is widened before it is added.
            let _ = match kind == self.wide() {
                true => embedding.f_addmm_(&transposed, &self.slope(rows.hidden)?)?,
                false => {
                    let product = transposed.f_mm(&rows.hidden)?.f_to_kind(self.wide())?;
                    embedding.f_add_(&self.slope(product)?)?
                }
            };
        }
        Ok(())
    }

    /// The gradient with respect to the logits of the stats that are functions of the softmax.
    fn of_softmax(
        &self,
        rows: &Rows,
        (logits, own, softmax): (&Tensor, &Pick, Option<Softmax>),
        pulls: &Pulls,
    ) -> Result<Option<Tensor>> {
        let target = rows.targets.f_unsqueeze(1)?;
        let complements = complements(&target, rows, pulls)?;
        let bare = pulls.logp.is_none() && pulls.log_sum_exp.is_none() && complements.is_none();
        if bare && pulls.entropy.is_none() && pulls.kl.is_none() {
            return Ok(None);
        }
        let mut softmax = match softmax {
            Some(softmax) => softmax,
            None => Softmax::of(&own.of(logits)?)?,
        };
        let sum = softmax.sum.shallow_clone();
        // `p_v` comes with this much, and these single tokens with that much more.
        let mut common = sum.f_zeros_like()?;
        let mut single = Vec::new();
        let mut most = None;
        if let Some(pull) = &pulls.logp {
            let pull = pull.f_unsqueeze(1)?;
            let _ = common.f_sub_(&pull)?;
            single.push((target.shallow_clone(), pull));
        }
        if let Some(pull) = &pulls.log_sum_exp {
            let _ = common.f_add_(&pull.f_unsqueeze(1)?)?;
        }
        if let Some((ids, pull)) = complements {
            let p = softmax.shares.f_gather(1, &ids, false)?.f_div(&sum)?;
            let is_most = softmax.is_most(&ids)?;
            let none = pull.f_zeros_like()?;
            let odds = p.f_div(&p.f_neg()?.f_add_scalar(1.0)?)?;
            let odds = none.f_where_self(&is_most, &odds.f_mul(&pull)?)?;
            let _ = common.f_add_(&odds.f_sum_dim_intlist([1i64].as_slice(), true, None)?)?;
            single.push((ids, odds.f_neg()?));
            let pull = pull.f_where_self(&is_most, &none)?;
            most = Some(pull.f_sum_dim_intlist([1i64].as_slice(), true, None)?.f_div(&sum)?);
        }
        let mut dlogits = if pulls.entropy.is_some() || pulls.kl.is_some() {
            let logps = own.of(logits)?.f_log_softmax(-1, None)?;
            let theirs = pulls.kl.as_ref().map(|_| self.reference_logps(rows)).transpose()?;
            let mut inner = logps.f_zeros_like()?;
            if let Some((pull, entropy)) = &pulls.entropy {
                let centred = logps.f_add(&entropy.f_unsqueeze(1)?)?;
                let _ = inner.f_sub_(&centred.f_mul(&pull.f_unsqueeze(1)?)?)?;
            }
            let mut outer = None;
            if let (Some((kl, pull, value)), Some(theirs)) = (&pulls.kl, theirs) {
                let pull = pull.f_unsqueeze(1)?;
                match kl {
                    Kl::Forward => {
                        let _ = common.f_add_(&pull)?;
                        outer = Some(theirs.f_exp()?.f_mul_(&pull)?);
                    }
                    Kl::Reverse => {
                        let centred = logps.f_sub(&theirs)?.f_sub_(&value.f_unsqueeze(1)?)?;
                        let _ = inner.f_add_(&centred.f_mul(&pull)?)?;
                    }
                }
            }
            let mut dlogits = inner.f_add_(&common)?.f_mul_(&softmax.shares)?.f_div_(&sum)?;
            if let Some(outer) = outer {
                dlogits = dlogits.f_sub_(&outer)?;
            }
            dlogits
        } else {
            softmax.shares.f_mul_(&common.f_div(&sum)?)?
        };
        for (ids, weight) in single {
            add_at(&mut dlogits, &ids, &weight)?;
        }
        if let Some(most) = most {
            push_from_most(&mut dlogits, logits, own, &most)?;
        }
        Ok(Some(dlogits))
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
        let step = (CHUNK_LOGITS / self.hidden.size()[1]).max(1);
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
                    add_rows(total, &ids, &self.slope(scaled(&own.hidden, &rows)?)?)?;
                }
            }
        }
        Ok(())
    }
}

/// The tokens whose `log(1 − p)` is pulled at, `[n, C]`, and how much.
fn complements(target: &Tensor, rows: &Rows, pulls: &Pulls) -> Result<Option<(Tensor, Tensor)>> {
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    if let Some(pull) = &pulls.log1m_p {
        ids.push(target.shallow_clone());
        weights.push(pull.f_unsqueeze(1)?);
    }
    if let (Some(pull), Some(candidates)) = (&pulls.candidate_log1m_p, &rows.candidates) {
        ids.push(known_ids(candidates)?.1);
        weights.push(pull.shallow_clone());
    }
    Ok(match ids.is_empty() {
        true => None,
        false => Some((Tensor::f_cat(&ids, 1)?, Tensor::f_cat(&weights, 1)?)),
    })
}

/// Adds what `log(1 − p)` of a row's most likely token `c` is pulled by: `weight p_c (q_c(v) − [v = c])`.
fn push_from_most(dlogits: &mut Tensor, logits: &Tensor, own: &Pick, weights: &Tensor) -> Result<()> {
    let places = weights.f_squeeze_dim(1)?.f_nonzero()?.f_squeeze_dim(1)?;
    if places.size()[0] == 0 {
        return Ok(());
    }
    let weight = weights.f_index_select(0, &places)?;
    let (others, largest) = without_largest(&own.then(&places)?.of(logits)?)?;
    let push = others.f_softmax(-1, None)?.f_mul_(&weight)?;
    let push = push.shallow_clone().f_scatter_(1, &largest, &weight.f_neg()?)?;
    let _ = dlogits.f_index_add_(0, &places, &push)?;
    Ok(())
}

/// Adds `weights` `[n, C]` at the tokens `ids` of each row; a token may be there more than once.
fn add_at(dlogits: &mut Tensor, ids: &Tensor, weights: &Tensor) -> Result<()> {
    if dlogits.device() == Device::Cpu {
        let _ = dlogits.f_scatter_add_(1, ids, weights)?;
        return Ok(());
    }
    // Elsewhere a scatter adds in any order, this in one.
    let rows = Tensor::f_arange(ids.size()[0], (Kind::Int64, ids.device()))?;
    let rows = rows.f_unsqueeze(1)?.f_expand_as(ids)?;
    let _ = dlogits.f_index_put_(&[Some(&rows), Some(ids)], weights, true)?;
    Ok(())
}

/// Adds `values` to the rows `ids` of `total`; rows can repeat.
///
/// libtorch's gradient of an embedding look-up adds repeated rows in one fixed order on every device, which `index_add`
/// does not promise; it is asked only about the rows that occur, so nothing of the size of `total` is made.
fn add_rows(total: &mut Tensor, ids: &Tensor, values: &Tensor) -> Result<()> {
    let (known, place) = ids.f_internal_unique(true, true)?;
    let sums = Tensor::f_embedding_dense_backward(values, &place, known.size()[0], -1, false)?;
    let _ = total.f_index_add_(0, &known, &sums)?;
    Ok(())
}

/// `Σ a ⊙ b` as one product: nothing of their size is made.
fn dot(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(a.f_reshape([-1])?.f_dot(&b.f_reshape([-1])?)?)
}
