//! From logits to chosen tokens, one row per sequence, each row a function of itself alone.

use tch::{Kind, Tensor};

use crate::logps::chosen_logps;
use crate::{Result, Sampling};

/// How many of the most probable tokens are looked at before all are sorted for top-p.
const NUCLEUS: i64 = 256;

/// What cannot be chosen at this step.
#[derive(Debug, Default)]
pub(crate) struct Bans {
    /// In every row.
    pub(crate) everywhere: Option<u32>,
    /// (row, token) pairs.
    pub(crate) single: Vec<(i64, i64)>,
}

/// Chosen tokens [R, 1] and their log-probs [R] under the unfiltered model, given logits [R, V] and, unless
/// greedy, one uniform draw per row [R] (Double).
pub(crate) fn choose(logits: &Tensor, sampling: &Sampling, bans: &Bans, uniforms: &Tensor) -> Result<(Tensor, Tensor)> {
    let scores = banned(logits, bans)?;
    let ids = if sampling.greedy {
        scores.f_argmax(-1, true)?
    } else {
        let scores = scores.f_div_scalar(sampling.temperature)?;
        sample(&scores, sampling, &uniforms.f_unsqueeze(-1)?)?
    };
    let logps = chosen_logps(logits, &ids)?;
    Ok((ids, logps))
}

fn banned(logits: &Tensor, bans: &Bans) -> Result<Tensor> {
    if bans.everywhere.is_none() && bans.single.is_empty() {
        return Ok(logits.shallow_clone());
    }
    let scores = logits.f_detach_copy()?;
    if let Some(token) = bans.everywhere {
        let _ = scores.f_narrow(-1, i64::from(token), 1)?.f_fill_(f64::NEG_INFINITY)?;
    }
    if !bans.single.is_empty() {
        let vocab = logits.size()[1];
        let flat: Vec<i64> = bans.single.iter().map(|(row, token)| row * vocab + token).collect();
        let flat = Tensor::f_from_slice(&flat)?.f_to(logits.device())?;
        let _ = scores.f_view([-1])?.f_index_fill_(0, &flat, f64::NEG_INFINITY)?;
    }
    Ok(scores)
}

fn sample(scores: &Tensor, sampling: &Sampling, uniforms: &Tensor) -> Result<Tensor> {
    let vocab = scores.size()[1];
    let p = sampling.top_p.filter(|&p| p < 1.0);
    let k = sampling.top_k.map(|k| k as i64).filter(|&k| k < vocab);
    match (k, p) {
        (None, None) => draw(&scores.f_softmax(-1, None::<Kind>)?, uniforms),
        (Some(k), p) => {
            let (top, ids) = scores.f_topk(k, -1, true, true)?;
            let probs = top.f_softmax(-1, Kind::Double)?;
            let probs = match p {
                Some(p) => nucleus(&probs, p)?,
                None => probs,
            };
            Ok(ids.f_gather(-1, &draw(&probs, uniforms)?, false)?)
        }
        (None, Some(p)) => sample_nucleus(scores, p, uniforms),
    }
}

/// Top-p alone. The most probable few usually hold the mass; rows where they do not are sorted whole.
fn sample_nucleus(scores: &Tensor, p: f64, uniforms: &Tensor) -> Result<Tensor> {
    let vocab = scores.size()[1];
    let total = scores.f_logsumexp([-1], true)?;
    let few = NUCLEUS.min(vocab);
    let (top, ids) = scores.f_topk(few, -1, true, true)?;
    let probs = top.f_sub(&total)?.f_to_kind(Kind::Double)?.f_exp()?;
    let mut chosen = ids.f_gather(-1, &draw(&nucleus(&probs, p)?, uniforms)?, false)?;
    let short = probs.f_sum_dim_intlist([-1].as_slice(), false, None::<Kind>)?.f_lt(p)?;
    let short = short.f_nonzero()?.f_view([-1])?;
    if few < vocab && short.numel() > 0 {
        let (all, ids) = scores.f_index_select(0, &short)?.f_sort_stable(true, -1, true)?;
        let probs = all.f_sub(&total.f_index_select(0, &short)?)?.f_to_kind(Kind::Double)?.f_exp()?;
        let drawn = draw(&nucleus(&probs, p)?, &uniforms.f_index_select(0, &short)?)?;
        chosen = chosen.f_index_copy(0, &short, &ids.f_gather(-1, &drawn, false)?)?;
    }
    Ok(chosen)
}

/// Zeroes what lies outside the smallest set of mass at least p, given probabilities in falling order: a
/// token stays while the mass before it is below p.
fn nucleus(sorted: &Tensor, p: f64) -> Result<Tensor> {
    let before = sorted.f_cumsum(-1, Kind::Double)?.f_sub(sorted)?;
    Ok(sorted.f_masked_fill(&before.f_ge(p)?, 0.0)?)
}

/// Inverse of the cumulative distribution: the first place whose mass up to and with it exceeds the draw. A
/// token of mass zero is never drawn. In f64, where a draw below 1 times the total stays below the total.
fn draw(mass: &Tensor, uniforms: &Tensor) -> Result<Tensor> {
    let upto = mass.f_cumsum(-1, Kind::Double)?;
    let last = upto.size()[1] - 1;
    let aim = upto.f_narrow(-1, last, 1)?.f_mul(uniforms)?;
    let found = upto.f_searchsorted(&aim, false, true, "right", None::<&Tensor>)?;
    // Only a mass that is not a number can lead past the end; the caller refuses its log-prob.
    Ok(found.f_clamp_max(last)?)
}
