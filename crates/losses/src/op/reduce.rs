//! The first pass: one chunk of logits down to a few numbers per row.

use tch::{Kind, Tensor};

use super::rows::{Pick, Rows};
use super::{Kl, TokenOp, TokenStats};
use crate::{Error, Result};

/// The softmax of a chunk, before it is divided: `p = shares / sum`.
pub(super) struct Softmax {
    /// `[n, V]` `exp(u − largest)`.
    pub(super) shares: Tensor,
    /// `[n, 1]`, from 1 to V.
    pub(super) sum: Tensor,
    /// `[n, 1]` the largest logit.
    pub(super) largest: Tensor,
}

impl Softmax {
    pub(super) fn of(logits: &Tensor) -> Result<Softmax> {
        let largest = logits.f_amax([-1i64].as_slice(), true)?;
        Self::of_shifted(logits.f_sub(&largest)?, largest)
    }

    /// The same in the memory of the logits.
    fn spending(logits: &Tensor) -> Result<Softmax> {
        let largest = logits.f_amax([-1i64].as_slice(), true)?;
        Self::of_shifted(logits.shallow_clone().f_sub_(&largest)?, largest)
    }

    fn of_shifted(mut shifted: Tensor, largest: Tensor) -> Result<Softmax> {
        let shares = shifted.f_exp_()?;
        let sum = sum_rows(&shares)?;
        Ok(Softmax { shares, sum, largest })
    }

    pub(super) fn pick(&self, pick: &Pick) -> Result<Softmax> {
        Ok(Softmax {
            shares: pick.of(&self.shares)?,
            sum: pick.of(&self.sum)?,
            largest: pick.of(&self.largest)?,
        })
    }

    /// Which of the tokens `ids` `[n, C]` have more than half of the row.
    ///
    /// A sum below 2 has one largest logit alone in it, so there is at most one such token.
    pub(super) fn is_most(&self, ids: &Tensor) -> Result<Tensor> {
        let largest = self.shares.f_gather(1, ids, false)?.f_ge(1.0)?;
        Ok(largest.f_logical_and(&self.sum.f_lt(2.0)?)?)
    }
}

impl TokenOp {
    /// Logits `[n, V]` of some rows, in the kind that sums are taken in.
    pub(super) fn logits(&self, rows: &Rows) -> Result<Tensor> {
        self.mapped(self.product(rows)?.f_to_kind(self.wide())?)
    }

    /// From products of states and embedding to logits.
    pub(super) fn mapped(&self, mut logits: Tensor) -> Result<Tensor> {
        if let Some(affine) = &self.affine {
            let wide = |t: &Tensor| t.f_to_kind(self.wide());
            logits = logits.f_mul_(&wide(&affine.scale)?)?.f_add_(&wide(&affine.bias)?)?;
        }
        self.cool(logits)
    }

    /// Log-probabilities `[n, V]` of the reference.
    pub(super) fn reference_logps(&self, rows: &Rows) -> Result<Tensor> {
        let (Some(hidden), Some(embedding)) = (&rows.reference, &self.reference_embedding) else {
            return Err(Error::input(
                "the reference",
                "hidden states by `with_reference`",
                "none",
            ));
        };
        let logits = hidden.f_matmul(&embedding.f_tr()?)?.f_to_kind(self.wide())?;
        Ok(self.cool(logits)?.f_log_softmax(-1, None)?)
    }

    /// Divides by the temperature.
    pub(super) fn cool(&self, values: Tensor) -> Result<Tensor> {
        Ok(match self.temperature {
            None => values,
            Some(t) => values.f_div_scalar(t)?,
        })
    }

    /// The stats of one chunk of logits `[n, V]`, and its softmax, which takes their memory where they are `spent`: then they
    /// are logits no more, and [`Needs::softmax_alone`](super::Needs::softmax_alone) must hold.
    pub(super) fn reduce(&self, rows: &Rows, logits: &Tensor, spent: bool) -> Result<(TokenStats, Softmax)> {
        let needs = &self.needs;
        let target = rows.targets.f_unsqueeze(1)?;
        let target_logit = logits.f_gather(1, &target, false)?;
        let top = match needs.top_k {
            0 => None,
            _ => Some(self.largest(rows, logits)?),
        };
        let softmax = match spent {
            true => Softmax::spending(logits)?,
            false => Softmax::of(logits)?,
        };
        // Shifted by the largest logit before the subtraction: `z_y − logsumexp(z)` would lose what is small
        // beside large logits.
        let log_sum = softmax.sum.f_log()?;
        let logp_of = |logits: &Tensor| logits.f_sub(&softmax.largest)?.f_sub(&log_sum);
        let correct = target_logit.f_ge_tensor(&softmax.largest)?;
        let flat = |t: &Tensor| t.f_squeeze_dim(1);
        let mut stats = TokenStats::new(
            rows.targets.shallow_clone(),
            flat(&logp_of(&target_logit)?)?,
            flat(&correct)?,
        );
        if needs.target_logit {
            stats.target_logit = Some(flat(&target_logit)?);
        }
        (stats.top_logits, stats.top_ids) = top.unzip();
        if needs.log_sum_exp {
            stats.log_sum_exp = Some(flat(&softmax.largest.f_add(&log_sum)?)?);
        }
        if needs.collision {
            let squares = sum_rows(&softmax.shares.f_square()?)?.f_log()?;
            stats.collision = Some(flat(&squares.f_sub(&log_sum.f_mul_scalar(2.0)?)?)?);
        }
        if needs.entropy {
            let below = logits.f_sub(&softmax.largest)?.f_mul_(&softmax.shares)?;
            stats.entropy = Some(flat(&log_sum.f_sub(&sum_rows(&below)?.f_div(&softmax.sum)?)?)?);
        }
        if let Some(kl) = needs.kl {
            let (ours, theirs) = (logp_of(logits)?, self.reference_logps(rows)?);
            stats.kl = Some(flat(&match kl {
                Kl::Forward => sum_rows(&theirs.f_sub(&ours)?.f_mul_(&theirs.f_exp()?)?)?,
                Kl::Reverse => sum_rows(&ours.f_sub(&theirs)?.f_mul_(&softmax.shares)?)?.f_div(&softmax.sum)?,
            })?);
        }
        if needs.off_target {
            // (σ(u) − 1/2)² = tanh²(u/2)/4
            let mut slope = self.half_tanh(logits, &target)?;
            let mean = sum_rows(&slope.f_square_()?)?.f_div_scalar(4.0 * self.n_others())?;
            stats.off_target = Some(flat(&mean)?);
        }
        self.complements(rows, logits, &softmax, &mut stats)?;
        Ok((stats, softmax))
    }

    /// The largest logits `[n, k]` of the rows that want them, and their tokens.
    fn largest(&self, rows: &Rows, logits: &Tensor) -> Result<(Tensor, Tensor)> {
        let k = self.needs.top_k as i64;
        let of = |logits: &Tensor| logits.f_topk(k, -1, true, true);
        let Some(wanted) = &rows.top else {
            return Ok(of(logits)?);
        };
        let n = rows.len();
        let found = Tensor::f_zeros([n, k], (logits.f_kind()?, logits.device()))?;
        let ids = Tensor::f_arange(k, (Kind::Int64, logits.device()))?.f_repeat([n, 1])?;
        match Pick::used(wanted)? {
            None => Ok((found, ids)),
            Some(Pick::Range(..)) => Ok(of(logits)?),
            Some(Pick::Index(index)) => {
                let (logits, tokens) = of(&logits.f_index_select(0, &index)?)?;
                Ok((
                    found.f_index_copy(0, &index, &logits)?,
                    ids.f_index_copy(0, &index, &tokens)?,
                ))
            }
        }
    }

    /// Candidates' logits, and `log(1 − p)` of targets and candidates.
    fn complements(&self, rows: &Rows, logits: &Tensor, softmax: &Softmax, stats: &mut TokenStats) -> Result<()> {
        let needs = &self.needs;
        let asked = needs.candidates || needs.candidate_log1m_p;
        let candidates = rows.candidates.as_ref().filter(|_| asked);
        let Some(candidates) = candidates else {
            if needs.log1m_p {
                let target = rows.targets.f_unsqueeze(1)?;
                stats.log1m_p = Some(log1m_p(logits, softmax, &target)?.f_squeeze_dim(1)?);
            }
            return Ok(());
        };
        let (none, known) = known_ids(candidates)?;
        stats.candidate_ids = Some(candidates.shallow_clone());
        if needs.candidates {
            let found = logits.f_gather(1, &known, false)?;
            stats.candidate_logits = Some(found.f_masked_fill(&none, f64::NEG_INFINITY)?);
        }
        let target = rows.targets.f_unsqueeze(1)?;
        let ids = match (needs.log1m_p, needs.candidate_log1m_p) {
            (false, false) => return Ok(()),
            (true, false) => target,
            (false, true) => known,
            // Together, so that a row whose largest logit is to be left out is walked over once.
            (true, true) => Tensor::f_cat(&[target, known], 1)?,
        };
        let mut found = log1m_p(logits, softmax, &ids)?;
        if needs.log1m_p {
            stats.log1m_p = Some(found.f_select(1, 0)?);
            found = found.f_narrow(1, 1, found.size()[1] - 1)?;
        }
        if needs.candidate_log1m_p {
            stats.candidate_log1m_p = Some(found.f_masked_fill(&none, 0.0)?);
        }
        Ok(())
    }

    /// `tanh(u/2)` of all tokens but the target, which gets 0: `2(σ(u) − 1/2)` without its cancellation.
    pub(super) fn half_tanh(&self, logits: &Tensor, target: &Tensor) -> Result<Tensor> {
        let half = logits.f_mul_scalar(0.5)?.f_tanh_()?.f_scatter_value_(1, target, 0.0)?;
        Ok(half)
    }

    /// How many tokens there are beside the target.
    pub(super) fn n_others(&self) -> f64 {
        (self.n_tokens() - 1) as f64
    }

    /// The kind that sums are taken in.
    pub(super) fn wide(&self) -> Kind {
        if self.hidden.kind() == Kind::Double {
            Kind::Double
        } else {
            Kind::Float
        }
    }
}

/// Where there is no candidate, and ids that can be looked up everywhere.
pub(super) fn known_ids(candidates: &Tensor) -> Result<(Tensor, Tensor)> {
    Ok((candidates.f_lt(0)?, candidates.f_clamp_min(0)?))
}

/// `log(1 − p)` `[n, C]` of the tokens `ids`: `log1p(−p)`, or where a token has more than half of its row the
/// log-sum-exp without it.
fn log1m_p(logits: &Tensor, softmax: &Softmax, ids: &Tensor) -> Result<Tensor> {
    let log_sum = softmax.sum.f_log()?;
    let logp = logits
        .f_gather(1, ids, false)?
        .f_sub(&softmax.largest)?
        .f_sub(&log_sum)?;
    let far = logp.f_exp()?.f_neg()?.f_log1p()?;
    let most = softmax.is_most(ids)?;
    let rows = most.f_any_dim(1, false)?.f_nonzero()?.f_squeeze_dim(1)?;
    if rows.size()[0] == 0 {
        return Ok(far);
    }
    let pick = |t: &Tensor| t.f_index_select(0, &rows);
    let without = without_largest(&pick(logits)?)?
        .0
        .f_logsumexp([-1i64].as_slice(), true)?;
    let near = without.f_sub(&pick(&softmax.largest)?)?.f_sub(&pick(&log_sum)?)?;
    let near = log_sum.f_zeros_like()?.f_index_copy_(0, &rows, &near)?;
    Ok(near.f_where_self(&most, &far)?)
}

/// Logits of which the largest in each row is made `-inf`, and its token `[n, 1]`.
pub(super) fn without_largest(logits: &Tensor) -> Result<(Tensor, Tensor)> {
    let largest = logits.f_argmax(-1, true)?;
    Ok((logits.f_scatter_value(1, &largest, f64::NEG_INFINITY)?, largest))
}

fn sum_rows(t: &Tensor) -> Result<Tensor> {
    Ok(t.f_sum_dim_intlist([-1i64].as_slice(), true, None)?)
}
