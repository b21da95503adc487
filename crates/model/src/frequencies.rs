//! The frequencies of rotary positions, and how they are scaled for longer sequences than a model was first
//! trained on. The formulas are those of transformers' `modeling_rope_utils.py`, operation for operation, so
//! that f32 rounds as it does there.

use std::f64::consts::{PI, TAU};

use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::fields::{Fields, same};
use crate::{Config, Result};

/// How frequencies are scaled: `rope_scaling`, or `rope_parameters` in newer files.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    Default,
    /// All divided by one factor.
    Linear {
        /// Above 0.
        factor: f64,
    },
    /// Low frequencies divided by a factor, high ones left, those between interpolated (Llama 3.1).
    Llama3 {
        /// Above 0.
        factor: f64,
        /// Wavelengths above the first length divided by this are divided by the factor; above 0.
        low_freq_factor: f64,
        /// Wavelengths below the first length divided by this are left; above the other one.
        high_freq_factor: f64,
        /// The length of the first training.
        original_max_position_embeddings: usize,
    },
    /// A ramp over the number of turns within the first length; cosines and sines are scaled too (Peng et al.
    /// 2023, "YaRN: Efficient context window extension of large language models").
    Yarn {
        /// Above 0.
        factor: f64,
        /// Times cosines and sines; from `factor` and the two `mscale` when not given.
        attention_factor: Option<f64>,
        /// Turns at which frequencies are left; above 0.
        beta_fast: f64,
        /// Turns at which they are divided by the factor; above 0.
        beta_slow: f64,
        /// Weight of the logarithm in the attention factor's numerator.
        mscale: Option<f64>,
        /// The same in its denominator.
        mscale_all_dim: Option<f64>,
        /// The length of the first training; the longest sequence when not given.
        original_max_position_embeddings: Option<usize>,
        /// Whether the ends of the ramp are rounded to whole coordinates.
        truncate: bool,
    },
}

/// Takes `rope_theta` and the scaling in either form.
pub(crate) fn read(fields: &mut Fields) -> Result<(f64, RopeScaling), String> {
    let mut theta = fields.take("rope_theta");
    let mut scaling = None;
    for name in ["rope_scaling", "rope_parameters"] {
        let inner = match fields.take(name) {
            None => continue,
            Some(Value::Object(map)) => map,
            Some(other) => return Err(format!("`{name}`: expected an object, got {other}")),
        };
        let mut inner = Fields::new(inner);
        match (&theta, inner.take("rope_theta")) {
            (_, None) => {}
            (Some(a), Some(b)) if !same(a, &b) => {
                return Err(format!("`rope_theta` is {a} and `{name}.rope_theta` {b}"));
            }
            (_, found) => theta = found,
        }
        // Newer files say here what share of a head turns; who computes with a share has taken it by now.
        inner
            .only("partial_rotary_factor", &json!(1.0))
            .map_err(|what| format!("`{name}`: {what}"))?;
        let found = RopeScaling::read(&mut inner).map_err(|what| format!("`{name}`: {what}"))?;
        if let Some((other, value)) = inner.rest().iter().find(|(_, v)| !v.is_null()) {
            return Err(format!("`{name}.{other}` is not supported, got {value}"));
        }
        if scaling.is_some_and(|before| before != found) {
            return Err("`rope_scaling` and `rope_parameters` disagree".to_owned());
        }
        scaling = Some(found);
    }
    let theta = match theta {
        None => 10_000.0,
        Some(value) => value
            .as_f64()
            .ok_or_else(|| format!("`rope_theta`: expected a number, got {value}"))?,
    };
    Ok((theta, scaling.unwrap_or_default()))
}

impl RopeScaling {
    fn read(fields: &mut Fields) -> Result<Self, String> {
        // Older files say `type`; files that say both say the same.
        let (newer, older) = (fields.text("rope_type")?, fields.text("type")?);
        if let (Some(a), Some(b)) = (&newer, &older)
            && a != b
        {
            return Err(format!("`rope_type` is \"{a}\" and `type` \"{b}\""));
        }
        let kind = newer.or(older).unwrap_or_else(|| "default".to_owned());
        Ok(match kind.as_str() {
            "default" => Self::Default,
            "linear" => Self::Linear {
                factor: fields.needed("factor")?,
            },
            "llama3" => Self::Llama3 {
                factor: fields.needed("factor")?,
                low_freq_factor: fields.needed("low_freq_factor")?,
                high_freq_factor: fields.needed("high_freq_factor")?,
                original_max_position_embeddings: fields.size("original_max_position_embeddings", None)?,
            },
            "yarn" => Self::Yarn {
                factor: fields.needed("factor")?,
                attention_factor: fields.maybe("attention_factor")?,
                beta_fast: fields.number("beta_fast", 32.0)?,
                beta_slow: fields.number("beta_slow", 1.0)?,
                mscale: fields.maybe("mscale")?,
                mscale_all_dim: fields.maybe("mscale_all_dim")?,
                original_max_position_embeddings: match fields.size("original_max_position_embeddings", Some(0))? {
                    0 => None,
                    n => Some(n),
                },
                // Null is false to transformers, absence true.
                truncate: !fields.is_null("truncate") && fields.flag("truncate", true)?,
            },
            "dynamic" => {
                return Err(
                    "\"dynamic\" is not supported: frequencies would depend on the longest sequence of a batch"
                        .to_owned(),
                );
            }
            "longrope" | "su" => {
                return Err(format!(
                    "\"{kind}\" is not supported: frequencies would change with the length of the sequence"
                ));
            }
            _ => {
                return Err(format!(
                    "`rope_type`: expected one of default, linear, llama3, yarn, got \"{kind}\""
                ));
            }
        })
    }

    /// As `rope_scaling` is written.
    pub(crate) fn write(&self) -> Value {
        match *self {
            Self::Default => Value::Null,
            Self::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
            Self::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                original_max_position_embeddings,
                truncate,
            } => {
                let mut map = Map::from_iter([
                    ("rope_type".to_owned(), json!("yarn")),
                    ("factor".to_owned(), json!(factor)),
                    ("beta_fast".to_owned(), json!(beta_fast)),
                    ("beta_slow".to_owned(), json!(beta_slow)),
                    ("truncate".to_owned(), json!(truncate)),
                ]);
                let optional = [
                    ("attention_factor", attention_factor.map(|v| json!(v))),
                    ("mscale", mscale.map(|v| json!(v))),
                    ("mscale_all_dim", mscale_all_dim.map(|v| json!(v))),
                    (
                        "original_max_position_embeddings",
                        original_max_position_embeddings.map(|v| json!(v)),
                    ),
                ];
                map.extend(optional.into_iter().filter_map(|(n, v)| Some((n.to_owned(), v?))));
                Value::Object(map)
            }
        }
    }

    fn problem(&self) -> Option<String> {
        let positive = |name: &str, got: f64| {
            let fits = got > 0.0 && got <= 1e6;
            (!fits).then(|| format!("`rope_scaling.{name}`: expected above 0 and at most 1e6, got {got}"))
        };
        let length = |n: usize| {
            positive(
                "original_max_position_embeddings",
                if n < 1 << 22 { n as f64 } else { 0.0 },
            )
        };
        match *self {
            Self::Default => None,
            Self::Linear { factor } => positive("factor", factor),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings,
            } => positive("factor", factor)
                .or_else(|| positive("low_freq_factor", low))
                .or_else(|| positive("high_freq_factor", high))
                .or_else(|| length(original_max_position_embeddings))
                .or_else(|| {
                    (low >= high).then(|| {
                        format!("`rope_scaling.high_freq_factor`: expected above `low_freq_factor` {low}, got {high}")
                    })
                }),
            Self::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                original_max_position_embeddings,
                ..
            } => positive("factor", factor)
                .or_else(|| positive("beta_fast", beta_fast))
                .or_else(|| positive("beta_slow", beta_slow))
                .or_else(|| positive("attention_factor", attention_factor.unwrap_or(1.0)))
                .or_else(|| positive("mscale", mscale.unwrap_or(1.0)))
                .or_else(|| positive("mscale_all_dim", mscale_all_dim.unwrap_or(1.0)))
                .or_else(|| length(original_max_position_embeddings.unwrap_or(1))),
        }
    }

    /// What cosines and sines are multiplied by.
    pub(crate) fn attention_factor(&self) -> f64 {
        let Self::Yarn {
            factor,
            attention_factor,
            mscale,
            mscale_all_dim,
            ..
        } = *self
        else {
            return 1.0;
        };
        let of = |weight: f64| {
            if factor <= 1.0 {
                1.0
            } else {
                0.1 * weight * factor.ln() + 1.0
            }
        };
        match (attention_factor, mscale, mscale_all_dim) {
            (Some(given), ..) => given,
            (None, Some(above), Some(below)) => of(above) / of(below),
            _ => of(1.0),
        }
    }
}

/// What is wrong with a description whose heads turn in their first `dim` coordinates.
pub(crate) fn problem(config: &Config, dim: usize) -> Option<String> {
    // Coordinates turn in pairs, so an odd number turns one more.
    let (turned, head_dim) = (dim.next_multiple_of(2), config.head_dim);
    if dim == 0 || turned > head_dim {
        return Some(format!(
            "head width: expected at least {} for its {dim} turned coordinates (rotary positions), got {head_dim}",
            turned.max(2)
        ));
    }
    let theta = config.rope_theta;
    if !(f64::MIN_POSITIVE..=1e12).contains(&theta) {
        return Some(format!("`rope_theta`: expected above 0 and at most 1e12, got {theta}"));
    }
    if matches!(config.rope_scaling, RopeScaling::Yarn { .. }) && theta <= 1.0 {
        return Some(format!("`rope_theta`: expected above 1 with yarn, got {theta}"));
    }
    config.rope_scaling.problem()
}

/// The angle per position of each pair of coordinates, [dim/2] rounded up, computed in `kind` (Float or Double) on
/// the CPU.
pub(crate) fn frequencies(config: &Config, dim: usize, kind: Kind) -> Result<Tensor> {
    let (n, width) = (dim.div_ceil(2) as i64, dim as f64);
    let exponents = Tensor::f_arange(n, (Kind::Int64, Device::Cpu))?
        .f_mul_scalar(2)?
        .f_to_kind(kind)?
        .f_div_scalar(width)?;
    let powers = Tensor::f_pow_scalar(config.rope_theta, &exponents)?;
    let plain = powers.f_reciprocal()?;
    match config.rope_scaling {
        RopeScaling::Default => Ok(plain),
        RopeScaling::Linear { factor } => Ok(plain.f_div_scalar(factor)?),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: first,
        } => {
            let first = first as f64;
            let wavelength = plain.f_reciprocal()?.f_mul_scalar(TAU)?;
            let (long, short) = (wavelength.f_gt(first / low)?, wavelength.f_lt(first / high)?);
            let divided = plain.f_div_scalar(factor)?.f_where_self(&long, &plain)?;
            let smooth = wavelength
                .f_reciprocal()?
                .f_mul_scalar(first)?
                .f_sub_scalar(low)?
                .f_div_scalar(high - low)?;
            let between = smooth
                .f_rsub_scalar(1)?
                .f_mul(&divided)?
                .f_div_scalar(factor)?
                .f_add(&smooth.f_mul(&divided)?)?;
            let medium = long.f_logical_or(&short)?.f_logical_not()?;
            Ok(between.f_where_self(&medium, &divided)?)
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            truncate,
            ..
        } => {
            let first = original_max_position_embeddings.unwrap_or(config.max_position_embeddings) as f64;
            // The coordinate that turns this often within the first length.
            let at = |turns: f64| width * (first / (turns * 2.0 * PI)).ln() / (2.0 * config.rope_theta.ln());
            let (mut low, mut high) = (at(beta_fast), at(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, mut high) = (low.max(0.0), high.min(width - 1.0));
            if (low - high).abs() < f64::EPSILON {
                high += 0.001;
            }
            let ramp = Tensor::f_arange(n, (Kind::Int64, Device::Cpu))?
                .f_to_kind(kind)?
                .f_sub_scalar(low)?
                .f_div_scalar(high - low)?
                .f_clamp(0, 1)?;
            let kept = ramp.f_rsub_scalar(1)?;
            let divided = powers.f_mul_scalar(factor)?.f_reciprocal()?;
            Ok(divided.f_mul(&kept.f_rsub_scalar(1)?)?.f_add(&plain.f_mul(&kept)?)?)
        }
    }
}
