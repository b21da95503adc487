//! Simple preference optimisation.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::dpo::logistic;
use super::hinge::hinge;
use super::{PairedLoss, Pairs};
use crate::error::{not_negative, positive, smoothing};
use crate::{Card, Described, Error, Result};

/// SimPO: a target margin between mean log-probabilities per token, without a reference.
///
/// `L = −(1 − ε) log σ(m) − ε log σ(−m)` with `m = β (a_w − a_l) − γ`, `a` the mean log-probability of a completion's
/// tokens; with `hinge` `L = max(0, 1 − m)`.
///
/// Other code writes the margin differently. TRL's `simpo_gamma` is this `γ`: it subtracts `γ/β` inside `β(·)`. The
/// authors' code takes `gamma_beta_ratio`, which is `γ/β`: its `beta` 2.5 with a ratio of 0.55 is `γ` 1.375. TRL also
/// adds the likelihood of the chosen completion with a default weight of 1; here that is
/// [`Objective::nll`](super::Objective::nll).
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; `gamma` (required), finite and at least 0; `label_smoothing`
/// `ε` (`0`), in `[0, 0.5)`, 0 with the hinge; `hinge` (`false`).
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β σ(−m)` per unit of mean log-probability, at most `β`, so by at most `β/n` per
/// token of a completion of `n`; fades once the margin exceeds `γ`, and with `ε > 0` turns round past
/// `m = log((1 − ε)/ε)`. The hinge pushes by `β` until `m = 1`, then not at all. Both log-probabilities may fall.
///
/// **Reference**: Y. Meng, M. Xia, D. Chen, "SimPO: Simple preference optimization with a reference-free reward", 2024,
/// eq. 6; label smoothing and hinge are those of the authors' code.
///
/// **Differs from the paper**: no.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{PairedLoss, Pairs, Simpo};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let one = |x: f64| Tensor::from_slice(&[x]);
/// let side = |logp: f64, tokens: f64| Completions::from_sums(&one(logp), None, &one(tokens));
/// let pairs = Pairs::new(side(-4.0, 4.0)?, side(-6.0, 5.0)?)?; // means -1.0 and -1.2
/// let loss = Simpo { beta: 2.5, gamma: 1.4, label_smoothing: 0.0, hinge: false };
/// let value = loss.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 1.241154).abs() < 1e-6); // -log sigmoid(2.5 * 0.2 - 1.4)
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Simpo {
    /// Scale of the rewards; finite, above 0. Published runs use 2 to 10.
    pub beta: f64,
    /// The margin to reach, after scaling by `beta`; finite, at least 0. Published runs use 0.3 to 5.
    pub gamma: f64,
    /// Share of labels believed to be wrong, in `[0, 0.5)`.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Whether the margin goes through a hinge in place of the logistic function.
    #[serde(default)]
    pub hinge: bool,
}

/// `β (chosen − rejected) − γ`, of any shape.
pub(super) fn margin(chosen: &Tensor, rejected: &Tensor, beta: f64, gamma: f64) -> Result<Tensor> {
    Ok(chosen.f_sub(rejected)?.f_mul_scalar(beta)?.f_sub_scalar(gamma)?)
}

/// The logistic loss of a margin or, as some losses offer instead, the hinge with its corner at 1.
pub(super) fn logistic_or_hinge(margin: &Tensor, label_smoothing: f64, with_hinge: bool) -> Result<Tensor> {
    match with_hinge {
        true => hinge(margin, 1.0),
        false => logistic(margin, label_smoothing),
    }
}

/// Label smoothing for a loss that may be a hinge, which has none: not ignored but refused.
pub(super) fn smoothing_or_hinge(name: &'static str, label_smoothing: f64, with_hinge: bool) -> Option<Error> {
    let unused = with_hinge && label_smoothing != 0.0;
    match unused {
        true => Some(Error::Range {
            name,
            value: label_smoothing.to_string(),
            range: "0, as `hinge` has no label smoothing",
        }),
        false => smoothing(name, label_smoothing),
    }
}

impl Described for Simpo {
    fn card(&self) -> Card {
        Card {
            name: "simpo",
            summary: "target margin between the mean log-probabilities of a pair, no reference",
            formula: "−(1 − ε) log σ(m) − ε log σ(−m), m = β(a_w − a_l) − γ; or max(0, 1 − m)",
            on_negatives: "down relative to the chosen one; bounded by β over its length",
            source: "Meng et al. 2024, eq. 6",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let all = [
            positive("simpo.beta", self.beta),
            not_negative("simpo.gamma", self.gamma),
            smoothing_or_hinge("simpo.label_smoothing", self.label_smoothing, self.hinge),
        ];
        all.into_iter().flatten().collect()
    }
}

impl PairedLoss for Simpo {
    fn uses_reference(&self) -> bool {
        false
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn per_token(&self) -> bool {
        true
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        let (chosen, rejected) = (pairs.chosen.mean_logp()?, pairs.rejected.mean_logp()?);
        let margin = margin(&chosen, &rejected, self.beta, self.gamma)?;
        logistic_or_hinge(&margin, self.label_smoothing, self.hinge)
    }

    fn samples() -> Vec<Self> {
        let base = Simpo {
            beta: 2.0,
            gamma: 0.5,
            label_smoothing: 0.0,
            hinge: false,
        };
        vec![
            base,
            Simpo {
                label_smoothing: 0.1,
                ..base
            },
            Simpo { hinge: true, ..base },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Completions;
    use crate::paired::pairs::tests::numbers;

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    /// Every switch against the definition, with completions of different lengths; margins of both signs, past the
    /// point where smoothing turns round and past the corner of the hinge.
    #[test]
    fn values_and_pushes_are_those_of_the_definition() {
        let (lengths, others) = ([4.0f64, 2.0, 5.0, 1.0], [3.0f64, 6.0, 2.0, 8.0]);
        let (sums, other_sums) = ([-6.0f64, -5.0, -1.0, -0.5], [-3.0f64, -9.0, -8.0, -30.0]);
        let mut tried = 0;
        for (label_smoothing, hinge) in [(0.0, false), (0.3, false), (0.0, true)] {
            let loss = Simpo {
                beta: 2.5,
                gamma: 0.75,
                label_smoothing,
                hinge,
            };
            assert!(loss.problems().is_empty());
            let (chosen, rejected) = (Tensor::from_slice(&sums), Tensor::from_slice(&other_sums));
            let (chosen, rejected) = (chosen.set_requires_grad(true), rejected.set_requires_grad(true));
            let side = |logp: &Tensor, n: &[f64]| Completions::from_sums(logp, None, &Tensor::from_slice(n)).unwrap();
            let pairs = Pairs::new(side(&chosen, &lengths), side(&rejected, &others)).unwrap();
            let values = loss.values(&pairs).unwrap();
            values.sum(tch::Kind::Double).backward();
            let (reward, other_reward) = loss.rewards(&pairs).unwrap();
            for i in 0..lengths.len() {
                let (a, b) = (sums[i] / lengths[i], other_sums[i] / others[i]);
                let m = 2.5 * (a - b) - 0.75;
                let (value, slope) = if hinge {
                    ((1.0 - m).max(0.0), if m < 1.0 { -1.0 } else { 0.0 })
                } else {
                    let value = -(1.0 - label_smoothing) * sigmoid(m).ln() - label_smoothing * sigmoid(-m).ln();
                    (
                        value,
                        label_smoothing * sigmoid(m) - (1.0 - label_smoothing) * sigmoid(-m),
                    )
                };
                let near = |t: &Tensor, expected: f64| {
                    let got = numbers(t)[i];
                    assert!(
                        (got - expected).abs() < 1e-12,
                        "{loss:?}, pair {i}: {got}, not {expected}"
                    );
                };
                near(&values, value);
                near(&chosen.grad(), 2.5 * slope / lengths[i]);
                near(&rejected.grad(), -2.5 * slope / others[i]);
                near(&reward, 2.5 * a);
                near(&other_reward, 2.5 * b);
            }
            tried += 1;
        }
        assert_eq!(tried, 3);
    }

    #[test]
    fn smoothing_with_a_hinge_is_refused_and_so_is_what_is_out_of_range() {
        let text = |beta: f64, gamma: f64, label_smoothing: f64, hinge: bool| -> Vec<String> {
            let loss = Simpo {
                beta,
                gamma,
                label_smoothing,
                hinge,
            };
            loss.problems().iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            text(0.0, -1.0, 0.5, false),
            [
                "`simpo.beta` is 0, expected a finite number above 0",
                "`simpo.gamma` is -1, expected a finite number, at least 0",
                "`simpo.label_smoothing` is 0.5, expected a number from 0 up to, but not, 0.5",
            ]
        );
        assert_eq!(
            text(2.0, 0.0, 0.1, true),
            ["`simpo.label_smoothing` is 0.1, expected 0, as `hinge` has no label smoothing"]
        );
        assert!(text(2.0, 0.0, 0.1, false).is_empty() && text(2.0, 0.0, 0.0, true).is_empty());
        assert!(
            Simpo::samples()
                .iter()
                .all(|loss| loss.per_token() && !loss.uses_reference())
        );
    }
}
