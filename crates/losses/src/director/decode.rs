//! Generation with two heads.

use tch::{Kind, Tensor};

use crate::error::not_negative;
use crate::{Error, Result};

/// Log-probabilities of the next token from both heads.
///
/// `log_softmax( log_softmax(z) + γ log σ(u) )`, with `z` the language head's logits and `u` the second head's. For
/// the shared form of the second head, `u = scale · z + bias`.
///
/// **Shapes**: `logits` and `classifier_logits` `[B, V]`; the result `[B, V]`, in `f32` (`f64` for `f64` inputs).
/// Rows sum to one in probability.
///
/// **Parameters**: `gamma`, finite and at least 0: how much the second head says. It may differ from the `gamma` of
/// training; 0 is the language head alone.
///
/// **Errors**: [`Error::Range`] for `gamma`; [`Error::Input`] for other shapes or kinds; [`Error::Empty`] without
/// rows or tokens.
///
/// **On negatives**: a token that the second head judges bad loses `γ log(1 + e^{−u})`, which has no bound: a
/// sure judgement takes the token out, and a sure approval leaves it as it is.
///
/// **Reference**: K. Arora, K. Shuster, S. Sukhbaatar, J. Weston, "DIRECTOR: Generator-classifiers for supervised
/// language modeling", 2022.
///
/// **Differs from the paper**: no.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::director::decode;
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let z = Tensor::from_slice(&[0.0f64, 0.0]).view([1, 2]);
/// let u = Tensor::from_slice(&[0.0f64, 1000.0]).view([1, 2]); // the first token is judged half good
/// let p = decode(&z, &u, 1.0)?.exp();
/// assert!((p.double_value(&[0, 0]) - 1.0 / 3.0).abs() < 1e-12); // 1/2 · 1/2 against 1/2 · 1
/// # Ok(()) }
/// ```
pub fn decode(logits: &Tensor, classifier_logits: &Tensor, gamma: f64) -> Result<Tensor> {
    if let Some(problem) = not_negative("gamma", gamma) {
        return Err(problem);
    }
    let size = logits.size();
    if size.len() != 2 || !logits.is_floating_point() {
        let got = format!("{size:?} of {:?}", logits.f_kind()?);
        return Err(Error::input("logits", "[B, V], floating point", got));
    }
    if size.contains(&0) {
        return Err(Error::Empty {
            what: "the batch of logits",
        });
    }
    let kind = logits.f_kind()?;
    if classifier_logits.size() != size
        || classifier_logits.device() != logits.device()
        || classifier_logits.f_kind()? != kind
    {
        let of = |t: &Tensor| format!("{:?} of {:?} on {:?}", t.size(), t.kind(), t.device());
        let expected = format!("{}, as `logits`", of(logits));
        return Err(Error::input("classifier_logits", expected, of(classifier_logits)));
    }
    let wide = if kind == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    };
    let judgement = classifier_logits
        .f_to_kind(wide)?
        .f_log_sigmoid()?
        .f_mul_scalar(gamma)?;
    // The first of the two only shifts a row, but beside large logits the judgement would drown in their rounding.
    Ok(logits
        .f_log_softmax(-1, wide)?
        .f_add(&judgement)?
        .f_log_softmax(-1, wide)?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn row(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).view([1, -1])
    }

    #[test]
    fn by_hand() {
        // p = (.6439, .2369, .0871, .0321); the second head gives 1/2, 1, 1/5, 1.
        let z = row(&[2.0, 1.0, 0.0, -1.0]);
        let u = row(&[0.0, 1e3, -(4f64.ln()), 1e3]);
        let weight = [0.643914, 0.236883, 0.087144, 0.032059];
        for gamma in [0.0, 1.0, 2.0] {
            let good = [0.5f64, 1.0, 0.2, 1.0].map(|g| g.powf(gamma));
            let sum: f64 = weight.iter().zip(good).map(|(w, g)| w * g).sum();
            let ours = Vec::<f64>::try_from(decode(&z, &u, gamma).unwrap().exp().view([-1])).unwrap();
            assert_eq!(ours.len(), 4);
            for (ours, (w, g)) in ours.iter().zip(weight.iter().zip(good)) {
                assert!((ours - w * g / sum).abs() < 1e-6, "gamma {gamma}: {ours}");
            }
        }
    }

    #[test]
    fn extreme_logits_stay_finite_and_narrow_kinds_are_widened() {
        let (z, u) = (row(&[1e4, -1e4, 0.0]), row(&[-1e4, 1e4, 0.0]));
        for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
            let logp = decode(&z.to_kind(kind), &u.to_kind(kind), 3.0).unwrap();
            assert_eq!(
                logp.kind(),
                if kind == Kind::Double {
                    Kind::Double
                } else {
                    Kind::Float
                }
            );
            assert_eq!(logp.isfinite().all().int64_value(&[]), 1);
        }
        // 1e4 - 3e4, -1e4 and 0: the second head wins, whatever the language head thinks of the first token.
        let logp = decode(&z, &u, 3.0).unwrap();
        assert!(logp.double_value(&[0, 2]).abs() < 1e-9 && (logp.double_value(&[0, 0]) + 2e4).abs() < 5.0);
    }

    #[test]
    fn a_judgement_does_not_drown_beside_large_logits() {
        let float = |t: Tensor| t.to_kind(Kind::Float);
        let logp = decode(&float(row(&[8192.0, 8192.0])), &float(row(&[0.0, 1e3])), 1e-3).unwrap();
        let difference = logp.double_value(&[0, 1]) - logp.double_value(&[0, 0]);
        assert!((difference / (1e-3 * 2f64.ln()) - 1.0).abs() < 1e-3, "{difference}");
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let zeros = |size: &[i64], kind: Kind| Tensor::zeros(size, (kind, Device::Cpu));
        let text = |z: &Tensor, u: &Tensor, gamma: f64| decode(z, u, gamma).unwrap_err().to_string();
        let fine = zeros(&[1, 2], Kind::Float);
        assert_eq!(
            text(&fine, &fine, -1.0),
            "`gamma` is -1, expected a finite number, at least 0"
        );
        assert_eq!(
            text(&zeros(&[2], Kind::Float), &fine, 1.0),
            "logits: expected [B, V], floating point, got [2] of Float"
        );
        assert_eq!(
            text(&zeros(&[1, 2], Kind::Int64), &fine, 1.0),
            "logits: expected [B, V], floating point, got [1, 2] of Int64"
        );
        let empty = zeros(&[1, 0], Kind::Float);
        assert_eq!(text(&empty, &empty, 1.0), "the batch of logits is empty");
        assert_eq!(
            text(&fine, &zeros(&[2, 2], Kind::Float), 1.0),
            "classifier_logits: expected [1, 2] of Float on Cpu, as `logits`, got [2, 2] of Float on Cpu"
        );
        assert_eq!(
            text(&fine, &zeros(&[1, 2], Kind::Double), 1.0),
            "classifier_logits: expected [1, 2] of Float on Cpu, as `logits`, got [1, 2] of Double on Cpu"
        );
    }
}
