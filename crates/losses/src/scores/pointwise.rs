//! Binary cross-entropy of a classifier.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Feedback, ScoreLoss, Scores};
use crate::{Card, Described, Error, Result};

/// Binary cross-entropy of labelled scores: [`pointwise`] as a registered loss.
///
/// `L = −t log σ(x) − (1 − t) log(1 − σ(x))` with `x` the score and `t` its label.
///
/// **Shapes**: [`Scores::Labels`]; see [`ScoreLoss::values`].
///
/// **Parameters**: none.
///
/// **Errors**: those of [`ScoreLoss::evaluate`] and [`pointwise`].
///
/// **On negatives**, **Reference**, **Differs from the paper**: see [`pointwise`].
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::scores::{Pointwise, ScoreLoss, Scores};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let (score, target) = (Tensor::from_slice(&[1.0f64]), Tensor::from_slice(&[0i64]));
/// let value = Pointwise {}.values(&Scores::Labels { score: &score, target: &target })?;
/// assert!((value.double_value(&[0]) - 1.313262).abs() < 1e-6); // log(1 + e)
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pointwise {}

impl Described for Pointwise {
    fn card(&self) -> Card {
        Card {
            name: "pointwise",
            summary: "binary cross-entropy of labelled scores",
            formula: "−t log σ(x) − (1 − t) log(1 − σ(x))",
            on_negatives: "score down by σ(x); bounded by 1",
            source: "Cox 1958",
        }
    }

    fn problems(&self) -> Vec<Error> {
        Vec::new()
    }
}

impl ScoreLoss for Pointwise {
    fn feedback(&self) -> Feedback {
        Feedback::Labels
    }

    fn values(&self, scores: &Scores<'_>) -> Result<Tensor> {
        let (score, target) = scores.labels()?;
        pointwise(score, target)
    }

    fn samples() -> Vec<Self> {
        vec![Pointwise {}]
    }
}

/// Binary cross-entropy of each example, from its logit.
///
/// `L_i = max(x_i, 0) − x_i t_i + log(1 + e^{−|x_i|})`, which is `−t log σ(x) − (1 − t) log(1 − σ(x))` without overflow.
///
/// **Shapes**: `logit` `[B]`, `target` `[B]`; the result `[B]`, with its graph, not reduced.
///
/// **Parameters**: `target` in `[0, 1]`, of any kind; it is read as the logit's kind.
///
/// **Errors**: [`Error::Empty`] without examples; [`Error::Input`] for other shapes, logits that are not floating
/// point, or targets outside the range.
///
/// **On negatives**: a negative (`t = 0`) pushes its logit down by `σ(x)`, at most 1.
///
/// **Reference**: D. R. Cox, "The regression analysis of binary sequences", 1958.
///
/// **Differs from the paper**: no.
///
/// ```
/// use tch::{Kind, Tensor};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let logit = Tensor::from_slice(&[0.0f64, 1000.0, 1000.0]).set_requires_grad(true);
/// let loss = unsay_losses::scores::pointwise(&logit, &Tensor::from_slice(&[1.0f64, 1.0, 0.0]))?;
/// assert_eq!(Vec::<f64>::try_from(&loss).unwrap(), [2f64.ln(), 0.0, 1000.0]);
/// loss.sum(Kind::Double).backward();
/// assert_eq!(Vec::<f64>::try_from(logit.grad()).unwrap(), [-0.5, 0.0, 1.0]);
/// # Ok(()) }
/// ```
pub fn pointwise(logit: &Tensor, target: &Tensor) -> Result<Tensor> {
    let size = logit.size();
    if size.len() != 1 || !logit.is_floating_point() {
        return Err(Error::input(
            "logit",
            "[B], floating point",
            format!("{size:?} of {:?}", logit.f_kind()?),
        ));
    }
    if size == [0] {
        return Err(Error::Empty {
            what: "the batch of logits",
        });
    }
    if target.size() != size || target.device() != logit.device() {
        let got = format!("{:?} on {:?}", target.size(), target.device());
        return Err(Error::input(
            "target",
            format!("{size:?} on {:?}, as `logit`", logit.device()),
            got,
        ));
    }
    let target = target.f_detach()?.f_to_kind(logit.f_kind()?)?;
    let (low, high) = (target.f_min()?.double_value(&[]), target.f_max()?.double_value(&[]));
    if !(low >= 0.0 && high <= 1.0) {
        return Err(Error::input(
            "target",
            "values in [0, 1]",
            format!("values from {low} to {high}"),
        ));
    }
    // x(1 − t) − log σ(x)
    Ok(logit
        .f_mul(&target.f_neg()?.f_add_scalar(1.0)?)?
        .f_sub(&logit.f_log_sigmoid()?)?)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn equals_the_definition_in_value_and_gradient() {
        let (x, t) = ([-3.0f64, -0.5, 0.0, 0.7, 4.0], [0.0, 1.0, 0.3, 0.0, 1.0]);
        let logit = Tensor::from_slice(&x).set_requires_grad(true);
        let loss = pointwise(&logit, &Tensor::from_slice(&t)).unwrap();
        loss.sum(Kind::Double).backward();
        let (values, slopes) = (
            Vec::<f64>::try_from(&loss).unwrap(),
            Vec::<f64>::try_from(logit.grad()).unwrap(),
        );
        for (at, (x, t)) in x.into_iter().zip(t).enumerate() {
            let p = 1.0 / (1.0 + (-x).exp());
            assert!((values[at] + t * p.ln() + (1.0 - t) * (1.0 - p).ln()).abs() < 1e-12);
            assert!((slopes[at] - (p - t)).abs() < 1e-12);
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for kind in [Kind::Float, Kind::Double] {
            let logit = Tensor::from_slice(&[1e4f64, -1e4, 1e4, -1e4])
                .to_kind(kind)
                .set_requires_grad(true);
            let loss = pointwise(&logit, &Tensor::from_slice(&[1i64, 1, 0, 0])).unwrap();
            loss.sum(kind).backward();
            let close = |ours: &Tensor, exact: &[f64]| {
                let ours = Vec::<f64>::try_from(ours.to_kind(Kind::Double)).unwrap();
                ours.iter().zip(exact).all(|(a, b)| (a - b).abs() < 1e-9)
            };
            assert!(close(&loss, &[0.0, 1e4, 1e4, 0.0]) && close(&logit.grad(), &[0.0, -1.0, 1.0, 0.0]));
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let zeros = |n: i64| Tensor::zeros([n], (Kind::Float, Device::Cpu));
        let text = |logit: &Tensor, target: &Tensor| pointwise(logit, target).unwrap_err().to_string();
        assert_eq!(text(&zeros(0), &zeros(0)), "the batch of logits is empty");
        assert_eq!(
            text(&zeros(2), &zeros(3)),
            "target: expected [2] on Cpu, as `logit`, got [3] on Cpu"
        );
        assert_eq!(
            text(&zeros(2), &(zeros(2) - 1.0)),
            "target: expected values in [0, 1], got values from -1 to -1"
        );
        assert_eq!(
            text(&zeros(2).view([1, 2]), &zeros(2)),
            "logit: expected [B], floating point, got [1, 2] of Float"
        );
    }
}
