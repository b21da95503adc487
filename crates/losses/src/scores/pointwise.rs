//! Binary cross-entropy of a classifier.

use tch::Tensor;

use crate::{Error, Result};

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
