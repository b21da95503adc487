//! Attention: its projections, and grouped-query attention over keys and values of the whole batch or of a cache.

use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::block::Way;
use crate::branches::Blocks;
use crate::linear::{self, Linear};
use crate::products::Input;

/// The attention of one block: projections of the state to queries, keys and values, and of what was
/// attended to back to the state.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) projections: Projections,
    pub(crate) out: Linear,
    /// Query heads (H).
    pub(crate) heads: i64,
    /// Key/value heads (G).
    pub(crate) kv_heads: i64,
    /// Width of a head (d).
    pub(crate) head_dim: i64,
}

/// Maps of the state to queries [.., H·d], keys and values [.., G·d].
#[derive(Debug)]
pub(crate) enum Projections {
    /// One each.
    Separate {
        /// D → H·d.
        q: Linear,
        /// D → G·d.
        k: Linear,
        /// D → G·d.
        v: Linear,
    },
    /// One map D → (H + 2G)·d: queries, keys, values.
    Fused(Linear),
}

impl Attention {
    /// x [B, T, D] → [B, T, D], or [N, D] of the rows that are wanted; `attend` gets turned queries and keys and the
    /// values, each [B, T, heads, d], and returns [B, T, H·d].
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        way: Way<'_>,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let maps = linear::all(&self.maps(), &Input::new(x, way.products)?)?;
        let seen = self.seen(&maps, way, attend)?;
        self.out.of(&Input::new(&seen, way.products)?)
    }

    /// The maps of the state.
    pub(crate) fn maps(&self) -> Vec<&Linear> {
        match &self.projections {
            Projections::Separate { q, k, v } => vec![q, k, v],
            Projections::Fused(all) => vec![all],
        }
    }

    /// From what the maps gave, each [B, T, ..], to what was attended to, of the rows that are wanted.
    pub(crate) fn seen(
        &self,
        maps: &[Tensor],
        way: Way<'_>,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let [q, k, v] = self.turned(maps, way)?;
        way.wanted(&attend(&q, &k, &v)?)
    }

    /// From what the maps gave to turned queries and keys and the values, each [B, T, heads, d].
    pub(crate) fn turned(&self, maps: &[Tensor], way: Way<'_>) -> Result<[Tensor; 3]> {
        let (rows, width, _) = maps[0].size3()?;
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (q, k, v) = match maps {
            [q, k, v] => (q.shallow_clone(), k.shallow_clone(), v.shallow_clone()),
            _ => {
                let part = |start, n| maps[0].f_narrow(-1, start, n);
                (part(0, q)?, part(q, kv)?, part(q + kv, kv)?)
            }
        };
        let heads = |x: &Tensor, n: i64| x.f_view([rows, width, n, self.head_dim]);
        let q = way.place.turn(heads(&q, self.heads)?)?;
        let k = way.place.turn(heads(&k, self.kv_heads)?)?;
        let v = heads(&v, self.kv_heads)?;
        Ok([q, k, v])
    }

    /// The gradients of what the maps gave, from those of turned queries and keys and of values.
    pub(crate) fn turned_backward(&self, [q, k, v]: [Tensor; 3], way: Way<'_>) -> Result<Vec<Tensor>> {
        let parts = [way.place.turn_back(q)?, way.place.turn_back(k)?, v];
        let merged = parts.iter().map(|x| {
            let (rows, width, heads, dim) = x.size4()?;
            Ok(x.f_reshape([rows, width, heads * dim])?)
        });
        let merged = merged.collect::<Result<Vec<_>>>()?;
        match self.projections {
            Projections::Separate { .. } => Ok(merged),
            Projections::Fused(_) => Ok(vec![Tensor::f_cat(&merged, -1)?]),
        }
    }

    /// Its linear maps.
    pub(crate) fn linear_maps(&mut self) -> Vec<&mut Linear> {
        match &mut self.projections {
            Projections::Separate { q, k, v } => vec![q, k, v, &mut self.out],
            Projections::Fused(all) => vec![all, &mut self.out],
        }
    }
}

/// Which earlier positions a position sees.
#[derive(Debug)]
pub(crate) enum Sight {
    /// All up to itself.
    Causal,
    /// Those where an additive mask [B, 1, T, S] or [1, 1, T, S] is 0 rather than minus infinity.
    Masked(Tensor),
    /// Those before it in its sequence, of sequences that lie end to end.
    Blocks(Box<Blocks>),
}

impl Sight {
    /// What `width` positions see: all up to themselves, or the last `window` with themselves counted. Nothing
    /// sees padding; real [B, T] is true where a token counts. A position that sees nothing, as padding on the
    /// left does, attends to zeros, which is libtorch's and transformers' convention. Windows count places,
    /// padding included.
    pub(crate) fn new(real: Option<&Tensor>, width: i64, window: Option<i64>, options: (Kind, Device)) -> Result<Self> {
        let window = window.filter(|&window| window < width);
        if real.is_none() && window.is_none() {
            return Ok(Self::Causal);
        }
        additive(&seen(real, width, window, options.1)?, options.0).map(Self::Masked)
    }

    /// The same for [`attend_step_by_step`]; `twice` hides what comes later twice, as transformers does in GPT-2,
    /// so that positions which see nothing see what is before them alike.
    pub(crate) fn step_by_step(
        real: Option<&Tensor>,
        width: i64,
        window: Option<i64>,
        options: (Kind, Device),
        twice: bool,
    ) -> Result<Self> {
        let (kind, device) = options;
        let least = if kind == Kind::Double {
            f64::MIN
        } else {
            f64::from(f32::MIN)
        };
        let hidden = seen(real, width, window, device)?.f_logical_not()?;
        let mut mask = Tensor::f_zeros(hidden.size(), options)?.f_masked_fill(&hidden, least)?;
        if twice {
            let later = seen(None, width, None, device)?.f_logical_not()?;
            mask = mask.f_masked_fill(&later, f64::NEG_INFINITY)?;
        }
        Ok(Self::Masked(mask))
    }

    /// The additive mask, where there is one.
    pub(crate) fn mask(&self) -> Option<&Tensor> {
        match self {
            Self::Masked(mask) => Some(mask),
            _ => None,
        }
    }

    /// How many pairs of a query and a key a row of `width` makes, hidden ones too.
    pub(crate) fn pairs(&self, width: i64) -> i64 {
        match self {
            Self::Blocks(blocks) => blocks.pairs(),
            _ => width.saturating_mul(width),
        }
    }
}

/// Which position (third axis) sees which (last axis), [B, 1, T, T] or [1, 1, T, T].
pub(crate) fn seen(real: Option<&Tensor>, width: i64, window: Option<i64>, device: Device) -> Result<Tensor> {
    let mut seen = Tensor::f_ones([width, width], (Kind::Bool, device))?.f_tril(0)?;
    if let Some(window) = window {
        seen = seen.f_triu(1 - window)?;
    }
    seen = seen.f_view([1, 1, width, width])?;
    if let Some(real) = real {
        seen = seen.f_logical_and(&real.f_view([-1, 1, 1, width])?)?;
    }
    Ok(seen)
}

/// Up to so many positions, attention of bf16 queries and keys is computed in f32 on the CPU: libtorch's bf16 kernel
/// takes 2.4 to 3.2 times as long at 64 positions with its way back, as long at 256, and 0.75 times as long at 1024.
const WIDE_UP_TO: i64 = 256;

/// The kind that attention of queries q [B, T, H, d] is computed in.
pub(crate) fn computed_in(q: &Tensor) -> Result<Kind> {
    let kind = q.f_kind()?;
    match kind == Kind::BFloat16 && q.device() == Device::Cpu && q.size4()?.1 <= WIDE_UP_TO {
        true => Ok(Kind::Float),
        false => Ok(kind),
    }
}

/// q [B, T, H, d], k and v [B, S, G, d] with G dividing H → [B, T, H·d]; without a mask S is T.
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, sight: &Sight) -> Result<Tensor> {
    let mask = match sight {
        Sight::Blocks(blocks) => return blocks.attend(q, k, v),
        Sight::Causal => None,
        Sight::Masked(mask) => Some(mask),
    };
    let (kind, computed) = (q.f_kind()?, computed_in(q)?);
    if kind != computed {
        let wide = |x: &Tensor| x.f_to_kind(computed);
        let sight = match mask {
            None => Sight::Causal,
            Some(mask) => Sight::Masked(wide(mask)?),
        };
        return Ok(attend(&wide(q)?, &wide(k)?, &wide(v)?, &sight)?.f_to_kind(kind)?);
    }
    let grouped = q.size()[2] != k.size()[2];
    let (q, k, v) = (q.f_transpose(1, 2)?, k.f_transpose(1, 2)?, v.f_transpose(1, 2)?);
    let out = Tensor::f_scaled_dot_product_attention(&q, &k, &v, mask, 0.0, mask.is_none(), None, grouped)?;
    merge_heads(&out)
}

/// The same step by step, as transformers' `eager` attention computes it: the mask hides with the smallest number
/// of its kind, so that a position which sees nothing sees everything alike, and the softmax is computed in
/// `softmax`.
pub(crate) fn attend_step_by_step(q: &Tensor, k: &Tensor, v: &Tensor, sight: &Sight, softmax: Kind) -> Result<Tensor> {
    let Sight::Masked(mask) = sight else {
        return attend(q, k, v, sight);
    };
    let per_group = q.size()[2] / k.size()[2].max(1);
    let of_heads = |x: &Tensor| x.f_transpose(1, 2)?.f_repeat_interleave_self_int(per_group, 1, None);
    let (q, k, v) = (q.f_transpose(1, 2)?, of_heads(k)?, of_heads(v)?);
    let scale = (q.size()[3] as f64).powf(-0.5);
    let scores = q.f_matmul(&k.f_transpose(2, 3)?)?.f_mul_scalar(scale)?.f_add(mask)?;
    let weights = scores.f_softmax(-1, softmax)?.f_to_kind(v.f_kind()?)?;
    merge_heads(&weights.f_matmul(&v)?)
}

/// [B, H, T, d] → [B, T, H·d].
pub(crate) fn merge_heads(x: &Tensor) -> Result<Tensor> {
    let (rows, heads, width, dim) = x.size4()?;
    Ok(x.f_transpose(1, 2)?.f_reshape([rows, width, heads * dim])?)
}

/// 0 where true, minus infinity where false.
pub(crate) fn additive(seen: &Tensor, kind: Kind) -> Result<Tensor> {
    let zeros = Tensor::f_zeros(seen.size(), (kind, seen.device()))?;
    Ok(zeros.f_masked_fill(&seen.f_logical_not()?, f64::NEG_INFINITY)?)
}
