//! How far the policy has moved from the reference, token by token.
//!
//! Most of a [`KlEstimator`]'s forms need the log-probability of the sampled token alone. `full`, the KL itself, a sum
//! over the vocabulary, comes from the op, chunk by chunk and with its gradient: ask for what
//! [`Objective::needs`](super::Objective::needs) says and give
//! [`TokenOp::with_reference`](crate::TokenOp::with_reference).

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::positive;
use crate::token::wanted;
use crate::{Error, Result, TokenStats};

/// `k3` holds the log-ratio here from below: the square of `e^{40}` still fits `f32`, where norms of gradients are taken.
const LOWEST_LOG_RATIO: f64 = -40.0;

/// An estimate of `KL(π ‖ π_ref)` from the log-probabilities of a token that the policy sampled, or the KL itself.
///
/// With `d = log π(y) − log π_ref(y)`: `k1 = d`, `k2 = d²/2`, `k3 = e^{−d} − 1 + d`, `abs = |d|`. The
/// `…_with_k2_gradient` ones have the value of `k1` or `k3` and the gradient of `k2`. `full` is
/// `Σ_v π(v) (log π(v) − log π_ref(v))` over the vocabulary, which takes the reference's scores of all tokens.
///
/// Over the policy's samples `k1` and `k3` have the KL as their mean; `k3` is never negative and usually varies less;
/// `k2` is close while the KL is small; `abs` is a distance of its own. As a **penalty in the reward**, where no
/// gradient is taken, `k1` is exact on average. As a **term of the loss** the gradient counts: that of `k1` is zero
/// on average, that of `k3` is the gradient of `KL(π_ref ‖ π)`, and that of `k2`, `d ∇log π`, is the gradient of
/// `KL(π ‖ π_ref)`: hence those with the gradient of `k2`. `full` has value and gradient of the KL without any variance.
///
/// **Shapes**: see [`KlEstimator::per_token`].
///
/// **Parameters**: `k1`, `k2`, `k3`, `abs`, `k1_with_k2_gradient`, `k3_with_k2_gradient` or `full`; no default. Limits
/// are in [`KlClamp`].
///
/// **Errors**: see [`KlEstimator::per_token`].
///
/// **On negatives**: none are meant; every token is pulled to the reference's probability. Per unit of
/// log-probability the pull is at most 1 for `abs`, grows as `d` with the gradient of `k2`, and with that of `k3`
/// is below 1 where the policy likes the token more than the reference does and grows as `e^{−d}` where it likes it
/// less. `full` pulls every token `v` of the vocabulary, per unit of its logit by `π(v)` times the distance of its `d`
/// from their mean.
///
/// **Reference**: J. Schulman, "Approximating KL divergence", 2020.
///
/// **Differs from the paper**: below `d = −40` `k3` stays at its value there, with no gradient, so that it is
/// finite in `f32`. TRL names `abs`, `full` and `k2` (`mse`) likewise, verl writes `k1+` and `k3+` for the two with the
/// gradient of `k2`, and trlx takes `k3` of `−d`, which is not an estimate of this KL on the policy's samples; it is left out.
///
/// ```
/// use tch::{Kind, Tensor};
/// use unsay_losses::policy::kl::{KlClamp, KlEstimator};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let logp = Tensor::from_slice(&[0.5f64.ln(), 0.1f64.ln()]).set_requires_grad(true);
/// let reference = Tensor::from_slice(&[0.25f64.ln(), 0.2f64.ln()]); // d = ln 2, -ln 2
/// let k3 = KlEstimator::K3.per_token(&logp, &reference, &KlClamp::default())?;
/// assert!((k3.double_value(&[0]) - 0.193147).abs() < 1e-6); // 1/2 - 1 + ln 2
/// assert!((k3.double_value(&[1]) - 0.306853).abs() < 1e-6); // 2 - 1 - ln 2
/// k3.sum(Kind::Double).backward();
/// assert!((logp.grad().double_value(&[0]) - 0.5).abs() < 1e-12); // 1 - e^-d
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// `d`.
    K1,
    /// `d²/2`.
    K2,
    /// `e^{−d} − 1 + d`.
    K3,
    /// `|d|`.
    Abs,
    /// `d`, with the gradient of `d²/2`.
    K1WithK2Gradient,
    /// `e^{−d} − 1 + d`, with the gradient of `d²/2`.
    K3WithK2Gradient,
    /// The KL itself: the column `kl` of the op.
    Full,
}

/// Limits that libraries put on their estimates; none by default.
///
/// OpenRLHF holds every estimate in `[−10, 10]` (`value: 10`); verl holds `d` in `[−20, 20]` and the estimate in
/// `[−10, 10]` for `k3` alone (`log_ratio: 20, value: 10`). A value held at a limit has no gradient; the gradient
/// of `k2` that the `…_with_k2_gradient` estimators carry is not held. `full` has no single `d` to hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KlClamp {
    /// Holds `d` in `[−x, x]` before anything is made of it; finite, above 0.
    #[serde(default)]
    pub log_ratio: Option<f64>,
    /// Holds the estimate in `[−x, x]`; finite, above 0.
    #[serde(default)]
    pub value: Option<f64>,
}

impl KlClamp {
    /// Every limit outside its range.
    pub fn problems(&self) -> Vec<Error> {
        let log_ratio = self.log_ratio.and_then(|x| positive("kl.clamp.log_ratio", x));
        let value = self.value.and_then(|x| positive("kl.clamp.value", x));
        log_ratio.into_iter().chain(value).collect()
    }
}

impl KlEstimator {
    /// The estimate for every token, with its graph.
    ///
    /// **Shapes**: `logp` and `reference` of one shape, whatever it is; so is the result, in the kind of `logp`.
    /// `reference` gets no gradient.
    ///
    /// **Errors**: [`Error::Range`] for a limit of `clamp` and for `full`, which the sampled tokens do not tell;
    /// [`Error::Input`] when the two do not fit together.
    pub fn per_token(self, logp: &Tensor, reference: &Tensor, clamp: &KlClamp) -> Result<Tensor> {
        crate::error::first(clamp.problems())?;
        for (what, tensor) in [("logp", logp), ("reference", reference)] {
            if tensor.size() != logp.size() || tensor.device() != logp.device() || !tensor.is_floating_point() {
                let expected = format!("{:?} on {:?}, floating point", logp.size(), logp.device());
                let got = format!("{:?} on {:?} of {:?}", tensor.size(), tensor.device(), tensor.f_kind()?);
                return Err(Error::input(what, expected, got));
            }
        }
        let log_ratio = logp.f_sub(&reference.f_detach()?.f_to_kind(logp.f_kind()?)?)?;
        let d = held(&log_ratio, clamp.log_ratio)?;
        let value = match self {
            KlEstimator::K1 | KlEstimator::K1WithK2Gradient => d,
            KlEstimator::K2 => half_square(&d)?,
            KlEstimator::K3 | KlEstimator::K3WithK2Gradient => {
                let d = d.f_clamp_min(LOWEST_LOG_RATIO)?;
                d.f_neg()?.f_expm1()?.f_add(&d)?
            }
            KlEstimator::Abs => d.f_abs()?,
            KlEstimator::Full => {
                return Err(Error::Range {
                    name: "kl.estimator",
                    value: "full".to_owned(),
                    range: "an estimate from sampled tokens, as nothing is known of the others",
                });
            }
        };
        let value = held(&value, clamp.value)?;
        match self {
            KlEstimator::K1WithK2Gradient | KlEstimator::K3WithK2Gradient => {
                // Zero with a gradient: the difference is taken first, where it is exact.
                let slope = half_square(&log_ratio)?;
                Ok(slope.f_sub(&slope.f_detach()?)?.f_add(&value.f_detach()?)?)
            }
            _ => Ok(value),
        }
    }

    /// The estimate for every row of an op, with its graph.
    ///
    /// **Errors**: [`Error::Input`] when what it is made of is missing; otherwise as [`KlEstimator::per_token`].
    pub(super) fn of_rows(self, stats: &TokenStats, reference: Option<&Tensor>, clamp: &KlClamp) -> Result<Tensor> {
        if self == KlEstimator::Full {
            return held(wanted("stats.kl", &stats.kl)?, clamp.value);
        }
        let reference = reference.ok_or_else(|| {
            let expected = "the reference's log-probability of every row, for the penalty";
            Error::input("reference", expected, "none")
        })?;
        self.per_token(&stats.logp, reference, clamp)
    }
}

fn half_square(d: &Tensor) -> Result<Tensor> {
    Ok(d.f_square()?.f_mul_scalar(0.5)?)
}

fn held(x: &Tensor, limit: Option<f64>) -> Result<Tensor> {
    Ok(match limit {
        Some(limit) => x.f_clamp(-limit, limit)?,
        None => x.shallow_clone(),
    })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    const ALL: [KlEstimator; 6] = [
        KlEstimator::K1,
        KlEstimator::K2,
        KlEstimator::K3,
        KlEstimator::Abs,
        KlEstimator::K1WithK2Gradient,
        KlEstimator::K3WithK2Gradient,
    ];

    const NONE: KlClamp = KlClamp {
        log_ratio: None,
        value: None,
    };

    /// Values and gradients for these log-ratios, against a reference at 0.25.
    fn of(estimator: KlEstimator, d: &[f64], clamp: &KlClamp) -> (Vec<f64>, Vec<f64>) {
        let logp = (Tensor::from_slice(d) + 0.25).set_requires_grad(true);
        let reference = (Tensor::from_slice(d).zeros_like() + 0.25).set_requires_grad(true);
        let value = estimator.per_token(&logp, &reference, clamp).unwrap();
        value.sum(Kind::Double).backward();
        assert!(!reference.grad().defined(), "the reference is not trained");
        (Vec::try_from(value).unwrap(), Vec::try_from(logp.grad()).unwrap())
    }

    fn close(ours: &[f64], by_hand: &[f64]) -> bool {
        ours.len() == by_hand.len() && ours.iter().zip(by_hand).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    #[test]
    fn by_hand() {
        // d = ln 2, 0, -1.
        let l2 = 2f64.ln();
        let d = [l2, 0.0, -1.0];
        let expected: [([f64; 3], [f64; 3]); 6] = [
            ([l2, 0.0, -1.0], [1.0, 1.0, 1.0]),
            ([0.240227, 0.0, 0.5], [l2, 0.0, -1.0]),
            ([0.193147, 0.0, 0.718282], [0.5, 0.0, -1.718282]),
            ([l2, 0.0, 1.0], [1.0, 0.0, -1.0]),
            ([l2, 0.0, -1.0], [l2, 0.0, -1.0]),
            ([0.193147, 0.0, 0.718282], [l2, 0.0, -1.0]),
        ];
        for (estimator, (values, slopes)) in ALL.into_iter().zip(expected) {
            let ours = of(estimator, &d, &NONE);
            assert!(
                close(&ours.0, &values) && close(&ours.1, &slopes),
                "{estimator:?}: {ours:?}"
            );
        }
    }

    #[test]
    fn limits_hold_the_log_ratio_and_the_estimate() {
        let d = [5.0, 1.0, -5.0];
        let log_ratio = KlClamp {
            log_ratio: Some(2.0),
            ..NONE
        };
        let value = KlClamp {
            value: Some(3.0),
            ..NONE
        };
        let (e2, e5, e1) = (2f64.exp(), (-5f64).exp(), (-1f64).exp());
        for (estimator, clamp, values, slopes) in [
            (KlEstimator::K1, log_ratio, [2.0, 1.0, -2.0], [0.0, 1.0, 0.0]),
            (KlEstimator::K1, value, [3.0, 1.0, -3.0], [0.0, 1.0, 0.0]),
            (KlEstimator::K2, log_ratio, [2.0, 0.5, 2.0], [0.0, 1.0, 0.0]),
            (KlEstimator::K2, value, [3.0, 0.5, 3.0], [0.0, 1.0, 0.0]),
            (KlEstimator::Abs, log_ratio, [2.0, 1.0, 2.0], [0.0, 1.0, 0.0]),
            (
                KlEstimator::K3,
                log_ratio,
                [1.0 / e2 + 1.0, e1, e2 - 3.0],
                [0.0, 1.0 - e1, 0.0],
            ),
            (KlEstimator::K3, value, [3.0, e1, 3.0], [0.0, 1.0 - e1, 0.0]),
            (KlEstimator::K1WithK2Gradient, log_ratio, [2.0, 1.0, -2.0], d),
            (KlEstimator::K3WithK2Gradient, value, [3.0, e1, 3.0], d),
        ] {
            let ours = of(estimator, &d, &clamp);
            assert!(
                close(&ours.0, &values) && close(&ours.1, &slopes),
                "{estimator:?} {clamp:?}: {ours:?}"
            );
        }
        // Both at once: the estimate is made of the log-ratio that is held.
        let both = KlClamp {
            log_ratio: Some(2.0),
            value: Some(4.2),
        };
        let ours = of(KlEstimator::K3, &d, &both);
        assert!(close(&ours.0, &[1.0 / e2 + 1.0, e1, 4.2]), "{ours:?}");
        assert!(close(&of(KlEstimator::K3, &d, &NONE).0[..1], &[e5 + 4.0]));
    }

    /// Over a whole distribution: the mean estimate is the KL, and the mean gradient is that of which KL.
    #[test]
    fn means_over_the_policy_are_what_the_documentation_says() {
        let logits = Tensor::from_slice(&[1.0f64, 0.2, -0.7]);
        let reference = Tensor::from_slice(&[0.1f64, 0.5, 0.3]).log_softmax(-1, None);
        let gradient = |of: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
            let leaf = logits.detach().set_requires_grad(true);
            let logp = leaf.log_softmax(-1, None);
            let p = logp.detach().exp();
            let value = of(&logp, &p).sum(Kind::Double);
            value.backward();
            (value.double_value(&[]), Vec::<f64>::try_from(leaf.grad()).unwrap())
        };
        let reverse = gradient(&|logp, _| logp.exp() * (logp - &reference));
        let forward = gradient(&|logp, _| reference.exp() * (&reference - logp));
        let mean = |e: KlEstimator| gradient(&|logp, p| p * e.per_token(logp, &reference, &NONE).unwrap());
        for (estimator, unbiased, slope) in [
            (KlEstimator::K1, true, &vec![0.0; 3]),
            (KlEstimator::K2, false, &reverse.1),
            (KlEstimator::K3, true, &forward.1),
            (KlEstimator::K1WithK2Gradient, true, &reverse.1),
            (KlEstimator::K3WithK2Gradient, true, &reverse.1),
        ] {
            let ours = mean(estimator);
            assert_eq!((ours.0 - reverse.0).abs() < 1e-12, unbiased, "{estimator:?}: {ours:?}");
            assert!(close(&ours.1, slope), "{estimator:?}: {ours:?}");
        }
    }

    #[test]
    fn log_ratios_of_ten_thousand_stay_finite() {
        for kind in [Kind::Float, Kind::Double] {
            for estimator in ALL {
                let logp = Tensor::from_slice(&[1e4f64, -1e4, 0.0])
                    .to_kind(kind)
                    .set_requires_grad(true);
                let reference = Tensor::zeros([3], (Kind::Double, Device::Cpu));
                let value = estimator.per_token(&logp, &reference, &NONE).unwrap();
                assert_eq!(value.kind(), kind);
                value.sum(kind).backward();
                for tensor in [value, logp.grad()] {
                    assert_eq!(tensor.isfinite().all().int64_value(&[]), 1, "{estimator:?}");
                }
            }
        }
        // The value of k3 at -40, and from there on no gradient; just before it is the formula's.
        let ours = of(KlEstimator::K3, &[-41.0, -39.0], &NONE);
        let relative = |ours: f64, exact: f64| (ours / exact - 1.0).abs() < 1e-9;
        assert!(relative(ours.0[0], 40f64.exp() - 41.0) && relative(ours.0[1], 39f64.exp() - 40.0));
        assert!(ours.1[0].abs() < 1e-12 && relative(ours.1[1], 1.0 - 39f64.exp()));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let zeros = |n: i64, kind: Kind| Tensor::zeros([n], (kind, Device::Cpu));
        let text = |logp: &Tensor, reference: &Tensor, clamp: KlClamp| {
            let error = KlEstimator::K1.per_token(logp, reference, &clamp).unwrap_err();
            error.to_string()
        };
        let (two, three) = (zeros(2, Kind::Double), zeros(3, Kind::Double));
        assert_eq!(
            text(&two, &three, NONE),
            "reference: expected [2] on Cpu, floating point, got [3] on Cpu of Double"
        );
        assert_eq!(
            text(&zeros(2, Kind::Int64), &two, NONE),
            "logp: expected [2] on Cpu, floating point, got [2] on Cpu of Int64"
        );
        assert_eq!(
            text(&two, &zeros(2, Kind::Int64), NONE),
            "reference: expected [2] on Cpu, floating point, got [2] on Cpu of Int64"
        );
        let clamp = KlClamp {
            log_ratio: Some(0.0),
            value: Some(f64::INFINITY),
        };
        assert_eq!(
            text(&two, &two, clamp),
            "`kl.clamp.log_ratio` is 0, expected a finite number above 0"
        );
        let problems: Vec<String> = clamp.problems().iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 2);
        assert_eq!(problems[1], "`kl.clamp.value` is inf, expected a finite number above 0");
        assert!(NONE.problems().is_empty());
        let full = KlEstimator::Full.per_token(&two, &two, &NONE).unwrap_err().to_string();
        assert_eq!(
            full,
            "`kl.estimator` is full, expected an estimate from sampled tokens, as nothing is known of the others"
        );
    }

    #[test]
    fn the_manifest_names_the_estimators_and_limits() {
        let names: Vec<String> = ALL.iter().map(|e| serde_json::to_string(e).unwrap()).collect();
        let expected = ["k1", "k2", "k3", "abs", "k1_with_k2_gradient", "k3_with_k2_gradient"];
        assert_eq!(names, expected.map(|name| format!("\"{name}\"")));
        assert_eq!(serde_json::to_string(&KlEstimator::Full).unwrap(), "\"full\"");
        let clamp: KlClamp = serde_json::from_str(r#"{ "log_ratio": 20.0 }"#).unwrap();
        assert_eq!((clamp.log_ratio, clamp.value), (Some(20.0), None));
        assert!(serde_json::from_str::<KlClamp>(r#"{ "ratio": 20.0 }"#).is_err());
    }
}
