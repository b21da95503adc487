//! Attention whose way back is a few products of whole matrices of scores.

use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::attention::{Sight, additive, computed_in, merge_heads, seen as seen_by};
use crate::logps::wide;
use crate::products::filled_up;

/// Scores of one product: 8 MiB of bf16, of which the way back holds two at a time. More rows are done in turn; fewer at
/// once were slower wherever they were tried.
const AT_ONCE: i64 = 1 << 22;

/// Scores of one row up to which this way back is taken: 32 MiB of bf16. It computes what is hidden, too.
const MOST: i64 = 1 << 24;

/// Widths that the products meet between two powers of two. A quarter more scores on average cost little beside the maps.
const PER_OCTAVE: u64 = 4;

/// What attention keeps for its way back, of every part that a [`Sight`] takes it apart into.
///
/// libtorch's own way back of bf16 attention is slow on the processor, and widened to f32 it was a third of a training step.
/// Here the weights P of all queries are made again from what went forth, in bf16 products that oneDNN multiplies:
///
/// ```text
/// P = exp(s·Q·Kᵀ - L)    L: the logarithm of each query's sum of exponentials, s = 1/√d
/// E = P ∘ s·(G·Vᵀ - r)   G: the gradient of the output O, r: the sum of G ∘ O of each query
/// dV = Pᵀ·G    dQ = E·K    dK = Eᵀ·Q
/// ```
///
/// What is subtracted is a column of one factor, with ones in the other, and in two pieces where numbers are narrow: a
/// product adds up in f32, so what is rounded is the difference alone, which is small where P is large.
#[derive(Debug)]
pub(crate) struct Attended {
    /// B and T of the whole.
    size: (i64, i64),
    parts: Vec<Part>,
}

/// Rows that see nothing but themselves.
#[derive(Debug)]
struct Part {
    /// [B, T, H, d], turned.
    q: Tensor,
    /// [B, S, G, d], turned.
    k: Tensor,
    /// [B, S, G, d].
    v: Tensor,
    /// [B, T, H·d].
    out: Tensor,
    /// The logarithms of the sums of exponentials [B, H, T], in f32 or wider; 0 where nothing is seen.
    sums: Tensor,
}

impl Attended {
    /// Whether this is the way to take for `heads` query heads over rows of `width`: for bf16 on the processor.
    pub(crate) fn applies((kind, device): (Kind, Device), sight: &Sight, (heads, width): (i64, i64)) -> bool {
        let scores = sight.pairs(width).saturating_mul(heads);
        kind == Kind::BFloat16 && device == Device::Cpu && scores <= MOST
    }

    /// [`attend`](crate::attention::attend), with what its way back needs.
    pub(crate) fn forward([q, k, v]: [Tensor; 3], sight: &Sight) -> Result<(Self, Tensor)> {
        let (rows, width, ..) = q.size4()?;
        let (parts, out) = match sight {
            Sight::Blocks(blocks) => {
                let parts = blocks.split(&q, &k, &v)?.into_iter();
                let parts = parts.map(|(part, sight)| Part::forward(part, sight.mask()));
                let parts = parts.collect::<Result<Vec<_>>>()?;
                let outs: Vec<&Tensor> = parts.iter().map(|part| &part.out).collect();
                let out = blocks.join(&outs)?;
                (parts, out)
            }
            _ => {
                let part = Part::forward([q, k, v], sight.mask())?;
                let out = part.out.shallow_clone();
                (vec![part], out)
            }
        };
        let size = (rows, width);
        Ok((Self { size, parts }, out))
    }

    /// How many rows, and how wide.
    pub(crate) fn size(&self) -> (i64, i64) {
        self.size
    }

    /// The gradients of q, k and v [B, T, heads, d], from that of what came out [B, T, H·d].
    pub(crate) fn backward(self, gradient: &Tensor, sight: &Sight) -> Result<[Tensor; 3]> {
        let mut found = Vec::with_capacity(self.parts.len());
        let Sight::Blocks(blocks) = sight else {
            for part in self.parts {
                found.push(part.backward(gradient, sight.mask())?);
            }
            // A row by itself is one part.
            return Ok(found.remove(0));
        };
        for (part, (gradient, sight)) in self.parts.into_iter().zip(blocks.split_back(gradient)?) {
            found.push(part.backward(&gradient, sight.mask())?);
        }
        blocks.join_back(&found)
    }
}

impl Part {
    /// An additive mask hides what it does where there is one, otherwise what comes later is hidden.
    fn forward([q, k, v]: [Tensor; 3], mask: Option<&Tensor>) -> Result<Self> {
        let kind = q.f_kind()?;
        let computed = computed_in(&q)?;
        let heads_first = |x: &Tensor| -> Result<Tensor> { Ok(x.f_to_kind(computed)?.f_transpose(1, 2)?) };
        let mask = mask.map(|mask| mask.f_to_kind(computed)).transpose()?;
        let causal = mask.is_none();
        let (out, sums) = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(
            &heads_first(&q)?,
            &heads_first(&k)?,
            &heads_first(&v)?,
            0.0,
            causal,
            mask,
            None,
        )?;
        let out = merge_heads(&out)?.f_to_kind(kind)?;
        Ok(Self { q, k, v, out, sums })
    }

    /// The gradients of q, k and v, from that of what came out [B, T, H·d].
    fn backward(self, gradient: &Tensor, mask: Option<&Tensor>) -> Result<[Tensor; 3]> {
        let (rows, width, heads, dim) = self.q.size4()?;
        let (_, seen, groups, _) = self.k.size4()?;
        let options = (self.q.f_kind()?, self.q.device());
        // oneDNN compiles a program for each shape, so it meets few.
        let (queries, keys) = (filled_up(width, PER_OCTAVE), filled_up(seen, PER_OCTAVE));
        let scale = (dim as f64).powf(-0.5);
        let by_head = |x: &Tensor| -> Result<Tensor> { Ok(x.f_reshape([rows, width, heads, dim])?) };
        let (gradient, out) = (by_head(gradient)?, by_head(&self.out)?);
        let pull = wide(gradient.shallow_clone())?.f_mul(&wide(out)?)?;
        let pull = pull.f_sum_dim_intlist([-1i64].as_slice(), true, None)?;
        let sums = self.sums.f_transpose(1, 2)?.f_unsqueeze(-1)?.f_div_scalar(scale)?;

        let [q, g] = [group(&self.q, groups, queries), group(&gradient, groups, queries)];
        let [k, v] = [group(&self.k, groups, keys), group(&self.v, groups, keys)];
        let (q, g, k, v) = (q?, g?, k?, v?);
        let less = |x: &Tensor, by: &Tensor| -> Result<Tensor> {
            let mut columns = vec![x.shallow_clone()];
            for piece in pieces(&by.f_neg()?, options.0)? {
                columns.push(group(&piece, groups, queries)?);
            }
            Ok(Tensor::f_cat(&columns, -1)?)
        };
        let (q_less, g_less) = (less(&q, &sums)?, less(&g, &pull)?);
        let ones = Tensor::f_ones([rows * groups, keys, q_less.size3()?.2 - dim], options)?;
        let with_ones = |x: &Tensor| -> Result<Tensor> { Ok(Tensor::f_cat(&[x, &ones], -1)?.f_transpose(1, 2)?) };
        let (k_ones, v_ones) = (with_ones(&k)?, with_ones(&v)?);
        let mask = match mask {
            Some(mask) => mask.f_pad([0, keys - seen, 0, queries - width], "constant", f64::NEG_INFINITY)?,
            None => additive(&seen_by(None, queries, None, options.1)?, options.0)?,
        };
        let nothing = Tensor::f_zeros([1, 1, 1], options)?;

        let (dq, dk, dv) = (q.f_empty_like()?, k.f_empty_like()?, v.f_empty_like()?);
        let at_once = (AT_ONCE / (heads * queries * keys).max(1)).max(1);
        let mut start = 0;
        while start < rows {
            // Powers of two: few shapes again.
            let n = 1 << (rows - start).min(at_once).ilog2();
            let some = |x: &Tensor| x.f_narrow(0, start * groups, n * groups);
            let hidden = spread(&mask, (start, n), (groups, heads / groups))?;
            let weights = hidden
                .f_baddbmm(&some(&q_less)?, &some(&k_ones)?, 1.0, scale)?
                .f_exp_()?;
            let transposed = weights.f_transpose(1, 2)?;
            let _ = transposed.f_bmm_out(&some(&dv)?, &some(&g)?)?;
            let moved = nothing
                .f_baddbmm(&some(&g_less)?, &some(&v_ones)?, 1.0, scale)?
                .f_mul_(&weights)?;
            let _ = moved.f_bmm_out(&some(&dq)?, &some(&k)?)?;
            let _ = moved.f_transpose(1, 2)?.f_bmm_out(&some(&dk)?, &some(&q)?)?;
            start += n;
        }
        Ok([
            ungroup(&dq, [rows, heads, queries], width)?,
            ungroup(&dk, [rows, groups, keys], seen)?,
            ungroup(&dv, [rows, groups, keys], seen)?,
        ])
    }
}

/// [B, T, h, d] → [B·G, h/G·length, d], the rows of the heads of each of G groups below each other, each filled up with
/// zeros.
fn group(x: &Tensor, groups: i64, length: i64) -> Result<Tensor> {
    let (rows, width, heads, dim) = x.size4()?;
    let x = x.f_transpose(1, 2)?;
    let x = match length - width {
        0 => x.f_contiguous()?,
        more => x.f_constant_pad_nd([0, 0, 0, more])?.f_contiguous()?,
    };
    Ok(x.f_view([rows * groups, heads / groups * length, dim])?)
}

/// And back, [B, T, h, d].
fn ungroup(x: &Tensor, [rows, heads, length]: [i64; 3], width: i64) -> Result<Tensor> {
    let by_head = x.f_view([rows, heads, length, -1])?.f_narrow(2, 0, width)?;
    Ok(by_head.f_transpose(1, 2)?.f_contiguous()?)
}

/// Numbers in f32 or wider as a sum of numbers of a kind: of two where that is narrow, exact to 16 bits.
fn pieces(x: &Tensor, kind: Kind) -> Result<Vec<Tensor>> {
    let high = x.f_to_kind(kind)?;
    let own = x.f_kind()?;
    if own == kind {
        return Ok(vec![high]);
    }
    let low = x.f_sub(&high.f_to_kind(own)?)?.f_to_kind(kind)?;
    Ok(vec![high, low])
}

/// Of a mask [B, 1, T, S] or [1, 1, T, S] what `n` rows from `start` on need: [n·G, h·T, S] or [1, h·T, S], with `heads`
/// (G, h): how many groups there are and how many heads each has.
fn spread(mask: &Tensor, (start, n): (i64, i64), (groups, of_group): (i64, i64)) -> Result<Tensor> {
    let (rows, _, queries, keys) = mask.size4()?;
    let (mask, n, groups) = match rows {
        1 => (mask.shallow_clone(), 1, 1),
        _ => (mask.f_narrow(0, start, n)?, n, groups),
    };
    let all = mask
        .f_unsqueeze(1)?
        .f_expand([n, groups, of_group, queries, keys], false)?;
    Ok(all.f_reshape([n * groups, of_group * queries, keys])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Branches;
    use crate::attention::attend;
    use crate::staged::push;

    const CPU: Device = Device::Cpu;

    /// Queries, keys, values and the gradient of what comes out, rounded to bf16, in f64.
    fn drawn((rows, width): (i64, i64), (heads, groups, dim): (i64, i64, i64), peak: f64) -> [Tensor; 4] {
        tch::manual_seed(7);
        let draw = |heads: i64, by: f64| {
            let x = Tensor::randn([rows, width, heads, dim], (Kind::Float, CPU)) * by;
            x.to_kind(Kind::BFloat16).to_kind(Kind::Double)
        };
        let gradient = draw(heads, 1.0).view([rows, width, heads * dim]);
        [draw(heads, peak), draw(groups, peak), draw(groups, 1.0), gradient]
    }

    /// What comes out, and the gradients of q, k and v by autograd.
    fn by_autograd([q, k, v, gradient]: &[Tensor; 4], sight: &Sight) -> Vec<Tensor> {
        let leaves = [q, k, v].map(|x| x.copy().set_requires_grad(true));
        let out = tch::with_grad(|| attend(&leaves[0], &leaves[1], &leaves[2], sight)).unwrap();
        push(&out, gradient).unwrap();
        std::iter::once(out.detach())
            .chain(leaves.iter().map(Tensor::grad))
            .collect()
    }

    /// The same by products, in a kind.
    fn by_products(drawn: &[Tensor; 4], sight: &Sight, kind: Kind) -> Vec<Tensor> {
        let [q, k, v, gradient] = drawn.each_ref().map(|x| x.to_kind(kind));
        let (attended, out) = Attended::forward([q, k, v], sight).unwrap();
        assert_eq!(out.size()[..2], [attended.size().0, attended.size().1]);
        let found = attended.backward(&gradient, sight).unwrap();
        let all = std::iter::once(out).chain(found);
        all.map(|x| x.to_kind(Kind::Double)).collect()
    }

    fn norm(x: &Tensor) -> f64 {
        x.norm().double_value(&[])
    }

    /// Everything before a token, a window, windows over rows padded on the left, of which some see nothing, and branches.
    fn sights(kind: Kind) -> Vec<(Sight, i64, i64)> {
        let lengths = Tensor::from_slice(&[0_i64, 4, 11]).view([3, 1]);
        let real = Tensor::arange(21, (Kind::Int64, CPU)).view([1, 21]).ge_tensor(&lengths);
        let mut branches = Branches::default();
        let (prompts, few): (_, &[usize]) = ([5, 1, 9], &[3, 6]);
        for (prompt, more) in prompts.into_iter().zip([few, &[1], &[2, 2, 7]]) {
            branches.push(prompt, more).unwrap();
        }
        let n = branches.n_tokens() as i64;
        let options = (kind, CPU);
        vec![
            (Sight::Causal, 3, 21),
            (Sight::new(None, 21, Some(4), options).unwrap(), 3, 21),
            (Sight::new(Some(&real), 21, Some(6), options).unwrap(), 3, 21),
            (branches.sight(None, options).unwrap(), 1, n),
            (branches.sight(Some(3), options).unwrap(), 1, n),
        ]
    }

    #[test]
    fn gradients_by_products_are_those_of_autograd() {
        let _guard = tch::no_grad_guard();
        let mut compared = 0;
        for (sight, rows, width) in sights(Kind::Double) {
            for (heads, groups) in [(4, 4), (6, 2), (3, 1)] {
                let drawn = drawn((rows, width), (heads, groups, 8), 1.0);
                let expected = by_autograd(&drawn, &sight);
                for (expected, found) in expected.iter().zip(by_products(&drawn, &sight, Kind::Double)) {
                    let off = norm(&(&found - expected)) / norm(expected);
                    assert!(off < 1e-12, "{sight:?} {heads} {groups}: {off}");
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, 5 * 3 * 4);
    }

    /// Also where few scores are large, as heads that look at one place have them.
    #[test]
    fn narrow_gradients_by_products_are_near_the_exact_ones() {
        let _guard = tch::no_grad_guard();
        let mut compared = 0;
        for ((sight, rows, width), (narrow, ..)) in sights(Kind::Double).into_iter().zip(sights(Kind::BFloat16)) {
            for peak in [1.0, 3.0] {
                let drawn = drawn((rows, width), (6, 2, 32), peak);
                let expected = by_autograd(&drawn, &sight);
                for (expected, found) in expected.iter().zip(by_products(&drawn, &narrow, Kind::BFloat16)) {
                    let off = norm(&(&found - expected)) / norm(expected);
                    assert!(off < 0.012, "{sight:?} {peak}: {off}");
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, 5 * 2 * 4);
    }

    #[test]
    fn it_applies_to_what_is_narrow_and_fits() {
        let bf16 = (Kind::BFloat16, CPU);
        let applies = |options, heads, width| Attended::applies(options, &Sight::Causal, (heads, width));
        assert!(applies(bf16, 16, 1024) && !applies(bf16, 16, 1025) && !applies(bf16, i64::MAX, 3));
        assert!(!applies((Kind::Float, CPU), 1, 8) && !applies((Kind::BFloat16, Device::Cuda(0)), 1, 8));
    }
}
