//! Initial weights from a generator that is handed in, never from libtorch's own.

use std::f64::consts::TAU;

use rand::Rng;
use tch::{Device, Kind, Tensor};

use crate::arch::{Initial, Spec};
use crate::{Config, Error, Result};

/// Initial values of one tensor.
pub(crate) fn initial(config: &Config, spec: &Spec, rng: &mut impl Rng, kind: Kind) -> Result<Tensor> {
    let narrower = match spec.initial {
        Initial::One => return Ok(Tensor::f_ones(&spec.shape, (kind, Device::Cpu))?),
        Initial::Zero => return Ok(Tensor::f_zeros(&spec.shape, (kind, Device::Cpu))?),
        Initial::Uniform => {
            let width = spec.shape.last().copied().unwrap_or(1);
            return uniform(rng, &spec.shape, 1.0 / (width as f64).sqrt(), kind);
        }
        Initial::Normal => 1.0,
        Initial::IntoResidual => (2.0 * config.num_hidden_layers as f64).sqrt(),
    };
    normal(rng, &spec.shape, config.initializer_range / narrower, kind)
}

/// A tensor of independent normal draws with mean zero. Draws are made in order in f64 and rounded, so
/// one generator gives the same weights in every float kind.
pub(crate) fn normal(rng: &mut impl Rng, shape: &[i64], std: f64, kind: Kind) -> Result<Tensor> {
    let numel = numel(shape)?;
    let flat = match kind {
        Kind::Double => Tensor::f_from_slice(&draws(rng, numel, |z| z * std))?,
        _ => Tensor::f_from_slice(&draws(rng, numel, |z| (z * std) as f32))?,
    };
    Ok(flat.f_to_kind(kind)?.f_reshape(shape)?)
}

/// The same for independent draws that are uniform in ±`bound`.
fn uniform(rng: &mut impl Rng, shape: &[i64], bound: f64, kind: Kind) -> Result<Tensor> {
    let halves = (1_u64 << 52) as f64;
    let draw = |word: u64| bound * ((word >> 11) as f64 / halves - 1.0);
    let flat: Vec<f64> = (0..numel(shape)?).map(|_| draw(rng.next_u64())).collect();
    Ok(Tensor::f_from_slice(&flat)?.f_to_kind(kind)?.f_reshape(shape)?)
}

fn numel(shape: &[i64]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1_i64, |n, &d| n.checked_mul(d))
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| Error::input("tensor shape", "a product that fits", format!("{shape:?}")))
}

/// Box and Muller's transform: one word of the generator makes a pair.
fn draws<T>(rng: &mut impl Rng, n: usize, scale: impl Fn(f64) -> T) -> Vec<T> {
    let mut out = Vec::with_capacity(n + 1);
    while out.len() < n {
        let word = rng.next_u64();
        let unit = 1.0 / 4_294_967_296.0;
        // In (0, 1], so that the logarithm is finite.
        let radius = (-2.0 * (((word >> 32) as f64 + 1.0) * unit).ln()).sqrt();
        let (sin, cos) = (TAU * (word & 0xffff_ffff) as f64 * unit).sin_cos();
        out.push(scale(radius * cos));
        out.push(scale(radius * sin));
    }
    out.truncate(n);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn moments_and_tails_are_those_of_a_normal() {
        let z = draws(&mut ChaCha8Rng::seed_from_u64(1), 200_001, |z| z);
        assert_eq!(z.len(), 200_001);
        let n = z.len() as f64;
        let moment = |p: i32| z.iter().map(|v| v.powi(p)).sum::<f64>() / n;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.01);
        assert!(moment(3).abs() < 0.05 && (moment(4) - 3.0).abs() < 0.1);
        let beyond_two = z.iter().filter(|v| v.abs() > 2.0).count() as f64 / n;
        assert!((beyond_two - 0.0455).abs() < 0.002, "{beyond_two}");
        let neighbours = z.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / n;
        assert!(neighbours.abs() < 0.01, "{neighbours}");
    }

    #[test]
    fn the_same_generator_gives_the_same_weights_in_either_kind() {
        let make = |kind| normal(&mut ChaCha8Rng::seed_from_u64(7), &[3, 5], 0.02, kind).unwrap();
        let difference = make(Kind::Double).to_kind(Kind::Float) - make(Kind::Float);
        assert!(difference.abs().max().double_value(&[]) == 0.0);
    }
}
