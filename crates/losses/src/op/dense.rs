//! The gradients of the stats with respect to the logits.
//!
//! They are written out instead of being asked of autograd, with `p` the softmax of a row, `r` that of the reference,
//! `q_c` the softmax without the token `c`, `H` the entropy, `K` the divergence, and `t = tanh(u/2)`:
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

use super::backward::Gradients;
use super::pulls::Pulls;
use super::reduce::{Softmax, known_ids, without_largest};
use super::rows::{Pick, Rows};
use super::{Kl, TokenOp};
use crate::Result;

impl TokenOp {
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
        self.add_products(into, at, &rows, &dlogits)
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
        let mut dlogits = match self.of_distributions(rows, (logits, own), pulls, &mut common)? {
            None => softmax.shares.f_mul_(&common.f_div(&sum)?)?,
            Some((mut inner, outer)) => {
                let inner = inner.f_add_(&common)?.f_mul_(&softmax.shares)?.f_div_(&sum)?;
                match outer {
                    Some(outer) => inner.f_sub(&outer)?,
                    None => inner,
                }
            }
        };
        for (ids, weight) in single {
            add_at(&mut dlogits, &ids, &weight)?;
        }
        if let Some(most) = most {
            push_from_most(&mut dlogits, logits, own, &most)?;
        }
        Ok(Some(dlogits))
    }

    /// What entropy and divergence pull at each logit: the part that comes with its probability beyond what is
    /// `common` to the row, and the part that is taken off as it is.
    fn of_distributions(
        &self,
        rows: &Rows,
        (logits, own): (&Tensor, &Pick),
        pulls: &Pulls,
        common: &mut Tensor,
    ) -> Result<Option<(Tensor, Option<Tensor>)>> {
        if pulls.entropy.is_none() && pulls.kl.is_none() {
            return Ok(None);
        }
        let logps = own.of(logits)?.f_log_softmax(-1, None)?;
        let mut inner = logps.f_zeros_like()?;
        if let Some((pull, entropy)) = &pulls.entropy {
            let centred = logps.f_add(&entropy.f_unsqueeze(1)?)?;
            let _ = inner.f_sub_(&centred.f_mul(&pull.f_unsqueeze(1)?)?)?;
        }
        let Some((kl, pull, value)) = &pulls.kl else {
            return Ok(Some((inner, None)));
        };
        let (pull, theirs) = (pull.f_unsqueeze(1)?, self.reference_logps(rows)?);
        Ok(Some(match kl {
            Kl::Forward => {
                let _ = common.f_add_(&pull)?;
                (inner, Some(theirs.f_exp()?.f_mul_(&pull)?))
            }
            Kl::Reverse => {
                let centred = logps.f_sub(&theirs)?.f_sub_(&value.f_unsqueeze(1)?)?;
                (inner.f_add_(&centred.f_mul(&pull)?)?, None)
            }
        }))
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
