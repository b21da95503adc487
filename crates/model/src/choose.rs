//! From logits to chosen tokens, one row per sequence, each row a function of itself alone.

use tch::{Kind, Tensor};

use crate::{Result, Sampling};

/// How many of the most probable tokens are looked at before all are sorted for top-p.
const NUCLEUS: i64 = 256;

/// What cannot be chosen at this step: (row, token) pairs.
#[derive(Debug, Default)]
pub(crate) struct Bans(Vec<(i64, i64)>);

impl Bans {
    /// Tokens that a row cannot choose.
    pub(crate) fn add(&mut self, row: usize, tokens: impl Iterator<Item = u32>) {
        self.0.extend(tokens.map(|token| (row as i64, i64::from(token))));
    }

    /// Scores [R, V] without what cannot be chosen.
    pub(crate) fn apply(&self, scores: &Tensor) -> Result<Tensor> {
        if self.0.is_empty() {
            return Ok(scores.shallow_clone());
        }
        let (rows, vocab) = scores.size2()?;
        let flat: Vec<i64> = self.0.iter().map(|(row, token)| row * vocab + token).collect();
        let flat = Tensor::f_from_slice(&flat)?.f_to(scores.device())?;
        Ok(scores
            .f_view([-1])?
            .f_index_fill(0, &flat, f64::NEG_INFINITY)?
            .f_view([rows, vocab])?)
    }
}

/// Chosen tokens [R, 1] and their log-probs `[R]` under the unfiltered model, given logits [R, V] and, unless
/// greedy, one uniform draw per row `[R]` (Double).
pub(crate) fn choose(logits: &Tensor, sampling: &Sampling, bans: &Bans, uniforms: &Tensor) -> Result<(Tensor, Tensor)> {
    // Log-probs are scores as good as logits, and those of the chosen tokens are wanted anyway.
    let logps = logits.f_log_softmax(-1, None::<Kind>)?;
    let scores = bans.apply(&logps)?;
    let ids = if sampling.greedy {
        most_probable(&scores)?
    } else {
        let scores = match sampling.temperature.to_bits() == 1.0_f64.to_bits() {
            true => scores.shallow_clone(),
            false => scores.f_div_scalar(sampling.temperature)?,
        };
        sample(&scores, sampling, &uniforms.f_unsqueeze(-1)?)?
    };
    let of_chosen = |x: &Tensor| -> Result<Tensor> { Ok(x.f_gather(-1, &ids, false)?.f_squeeze_dim(-1)?) };
    let mut chosen = of_chosen(&logps)?;
    if !bans.0.is_empty() {
        // Where a guide and bans together leave nothing, what was taken is no choice: the caller refuses what is no number.
        let none = of_chosen(&scores)?.f_eq(f64::NEG_INFINITY)?;
        chosen = chosen.f_masked_fill(&none, f64::NAN)?;
    }
    Ok((ids, chosen))
}

/// The place of each row's greatest score [R, 1], the first of equals. libtorch's own argmax is ten times slower on the
/// CPU than its maximum, so that comes first, block by block.
fn most_probable(scores: &Tensor) -> Result<Tensor> {
    let (rows, vocab) = scores.size2()?;
    let width = (64..=256).rev().find(|width| vocab % width == 0);
    let Some(width) = width else {
        return Ok(scores.f_argmax(-1, true)?);
    };
    let blocks = scores.f_view([rows, vocab / width, width])?;
    let block = blocks.f_amax([-1], false)?.f_argmax(-1, true)?;
    let inside = blocks
        .f_take_along_dim(&block.f_unsqueeze(-1)?, 1)?
        .f_argmax(-1, false)?;
    Ok(block.f_mul_scalar(width)?.f_add(&inside)?)
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
        let probs = all
            .f_sub(&total.f_index_select(0, &short)?)?
            .f_to_kind(Kind::Double)?
            .f_exp()?;
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
    let found = aim.f_searchsorted(&upto, false, true, "right", None::<&Tensor>)?;
    // Only a mass that is not a number can lead past the end; the caller refuses its log-prob.
    Ok(found.f_clamp_max(last)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> (usize, Tensor) {
        // Row 0 peaked, row 1 nearly flat, so that only the second needs a full sort.
        let vocab = 1000;
        let logit = |row: usize, token: usize| {
            let wave = ((token * 7919) % 1009) as f64 / 1009.0;
            if row == 0 { -20.0 * wave } else { wave / 10.0 }
        };
        let logits: Vec<f64> = (0..2).flat_map(|r| (0..vocab).map(move |t| logit(r, t))).collect();
        (vocab, Tensor::from_slice(&logits).view([2, vocab as i64]))
    }

    #[test]
    fn a_wide_nucleus_equals_its_definition() {
        tch::set_num_threads(1);
        let (vocab, logits) = rows();
        let sampling = Sampling {
            top_p: Some(0.9),
            ..Sampling::new(1)
        };
        let mut wide = 0;
        for u in [0.0, 0.01, 0.3, 0.5, 0.77, 0.95, 0.9999999] {
            let uniforms = Tensor::from_slice(&[u, u]);
            let (ids, logps) = choose(&logits, &sampling, &Bans::default(), &uniforms).unwrap();
            for row in 0..2 {
                let scores = Vec::<f64>::try_from(logits.get(row)).unwrap();
                let total: f64 = scores.iter().map(|s| s.exp()).sum();
                let mut order: Vec<usize> = (0..vocab).collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
                let (mut kept, mut mass) = (Vec::new(), 0.0);
                for t in order {
                    if mass >= 0.9 {
                        break;
                    }
                    mass += scores[t].exp() / total;
                    kept.push(t);
                }
                wide += usize::from(kept.len() > NUCLEUS as usize);
                let mut upto = 0.0;
                let expected = kept.iter().copied().find(|&t| {
                    upto += scores[t].exp() / total;
                    upto > u * mass
                });
                let found = ids.int64_value(&[row, 0]);
                assert_eq!(Some(found as usize), expected, "row {row}, draw {u}");
                let logp = scores[found as usize] - total.ln();
                assert!((logps.double_value(&[row]) - logp).abs() < 1e-10);
            }
        }
        assert_eq!(wide, 7);
    }

    #[test]
    fn bans_move_the_choice_and_not_the_log_prob() {
        let logits = Tensor::from_slice(&[3.0, 2.0, 2.0, 1.0, 0.0, 5.0]).view([2, 3]);
        let greedy = Sampling::greedy(1);
        let pick = |bans: &Bans| {
            let (ids, logps) = choose(
                &logits,
                &greedy,
                bans,
                &Tensor::zeros([0], (Kind::Double, logits.device())),
            )
            .unwrap();
            (Vec::<i64>::try_from(ids.view([-1])).unwrap(), logps.double_value(&[0]))
        };
        let total = (3.0_f64.exp() + 2.0 * 2.0_f64.exp()).ln();
        let (ids, logp) = pick(&Bans::default());
        assert!(ids == [0, 2] && (logp - (3.0 - total)).abs() < 1e-12);
        // Of equals the first.
        let mut bans = Bans::default();
        bans.add(0, [0].into_iter());
        bans.add(1, [0, 2].into_iter());
        let (ids, logp) = pick(&bans);
        assert!(ids == [1, 1] && (logp - (2.0 - total)).abs() < 1e-12);
        // Of nothing none: the token that is taken then was banned, and has a log-prob.
        bans.add(0, [1, 2].into_iter());
        assert!(pick(&bans).1.is_nan());
    }
}
