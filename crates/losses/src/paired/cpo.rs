//! Contrastive preference optimisation.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::simpo::{logistic_or_hinge, margin, smoothing_or_hinge};
use super::{PairedLoss, Pairs};
use crate::error::{not_negative, positive};
use crate::{Card, Described, Error, Result};

/// CPO: DPO against a uniform reference plus the likelihood of the chosen completion.
///
/// `L = −(1 − ε) log σ(m) − ε log σ(−m) + α NLL(y_w)` with `m = β (log π(y_w) − log π(y_l))`; with `hinge` the first
/// part is `max(0, 1 − m)`. The likelihood is a mean over the tokens of chosen completions in the whole batch, see
/// [`Objective`](super::Objective).
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; `alpha` (required), finite and at least 0; `label_smoothing`
/// `ε` (`0`), in `[0, 0.5)`, 0 with the hinge; `hinge` (`false`).
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β σ(−m)` per unit of log-probability, at most `β`; fades as the margin grows, and
/// with `ε > 0` turns round past `m = log((1 − ε)/ε)`. The hinge pushes by `β` until `m = 1`, then not at all. The
/// likelihood keeps the chosen one from falling with it.
///
/// **Reference**: H. Xu, A. Sharaf, Y. Chen, W. Tan, L. Shen, B. Van Durme, K. Murray, Y. J. Kim, "Contrastive
/// preference optimization: Pushing the boundaries of LLM performance in machine translation", 2024, the preference
/// loss and the likelihood beside it; `alpha`, label smoothing and hinge are those of the released code and TRL 0.24.
///
/// **Differs from the paper**: the likelihood is a mean over tokens as in the released code, in the paper a sum over
/// each completion; its weight is a parameter, in the paper 1.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{Cpo, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64| Completions::from_sums(&Tensor::from_slice(&[logp]), None, &Tensor::from_slice(&[5.0]));
/// let pairs = Pairs::new(side(-10.0)?, side(-17.0)?)?;
/// let loss = Cpo { beta: 0.1, alpha: 1.0, label_smoothing: 0.0, hinge: false };
/// let value = loss.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 0.403186).abs() < 1e-6); // -log sigmoid(0.7)
/// assert_eq!(loss.nll(), 1.0); // and the objective adds the likelihood with this weight
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpo {
    /// Scale of the rewards; finite, above 0. Published runs use 0.1.
    pub beta: f64,
    /// Weight of the likelihood of the chosen completion; finite, at least 0. Published runs use 1.
    pub alpha: f64,
    /// Share of labels believed to be wrong, in `[0, 0.5)`.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Whether the margin goes through a hinge in place of the logistic function.
    #[serde(default)]
    pub hinge: bool,
}

impl Described for Cpo {
    fn card(&self) -> Card {
        Card {
            name: "cpo",
            summary: "logistic loss of a pair's log-probabilities plus likelihood of the chosen one, no reference",
            formula: "−(1 − ε) log σ(m) − ε log σ(−m) + α NLL(y_w), m = β(log π(y_w) − log π(y_l)); or max(0, 1 − m)",
            on_negatives: "down relative to the chosen one; bounded by β",
            source: "Xu et al. 2024",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let all = [
            positive("cpo.beta", self.beta),
            not_negative("cpo.alpha", self.alpha),
            smoothing_or_hinge("cpo.label_smoothing", self.label_smoothing, self.hinge),
        ];
        all.into_iter().flatten().collect()
    }
}

impl PairedLoss for Cpo {
    fn uses_reference(&self) -> bool {
        false
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn nll(&self) -> f64 {
        self.alpha
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        let margin = margin(&pairs.chosen.logp, &pairs.rejected.logp, self.beta, 0.0)?;
        logistic_or_hinge(&margin, self.label_smoothing, self.hinge)
    }

    fn samples() -> Vec<Self> {
        let base = Cpo {
            beta: 0.1,
            alpha: 1.0,
            label_smoothing: 0.0,
            hinge: false,
        };
        vec![
            base,
            Cpo {
                alpha: 0.0,
                label_smoothing: 0.2,
                ..base
            },
            Cpo { hinge: true, ..base },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Completions;
    use crate::paired::pairs::tests::numbers;

    #[test]
    fn values_and_pushes_are_those_of_the_definition_on_sums() {
        let (sums, others) = ([-10.0f64, -20.0, -3.0, -1e4], [-17.0f64, -12.0, -40.0, 0.0]);
        let mut tried = 0;
        for (label_smoothing, hinge) in [(0.0, false), (0.3, false), (0.0, true)] {
            let loss = Cpo {
                beta: 0.1,
                alpha: 0.0,
                label_smoothing,
                hinge,
            };
            let leaf = |sums: &[f64]| Tensor::from_slice(sums).set_requires_grad(true);
            let (chosen, rejected) = (leaf(&sums), leaf(&others));
            let side =
                |logp: &Tensor, n: f64| Completions::from_sums(logp, None, &Tensor::from_slice(&[n; 4])).unwrap();
            let pairs = Pairs::new(side(&chosen, 3.0), side(&rejected, 5.0)).unwrap();
            let values = loss.values(&pairs).unwrap();
            values.sum(tch::Kind::Double).backward();
            let (reward, other_reward) = loss.rewards(&pairs).unwrap();
            for i in 0..sums.len() {
                let m = 0.1 * (sums[i] - others[i]);
                let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
                let log_sigmoid = |x: f64| x.min(0.0) - (-x.abs()).exp().ln_1p();
                let (value, slope) = if hinge {
                    ((1.0 - m).max(0.0), if m < 1.0 { -1.0 } else { 0.0 })
                } else {
                    let value = -(1.0 - label_smoothing) * log_sigmoid(m) - label_smoothing * log_sigmoid(-m);
                    (
                        value,
                        label_smoothing * sigmoid(m) - (1.0 - label_smoothing) * sigmoid(-m),
                    )
                };
                let near = |t: &Tensor, expected: f64| {
                    let got = numbers(t)[i];
                    let bound = 1e-12 * (1.0 + expected.abs());
                    assert!(
                        (got - expected).abs() < bound,
                        "{loss:?}, pair {i}: {got}, not {expected}"
                    );
                };
                near(&values, value);
                near(&chosen.grad(), 0.1 * slope);
                near(&rejected.grad(), -0.1 * slope);
                near(&reward, 0.1 * sums[i]);
                near(&other_reward, 0.1 * others[i]);
            }
            tried += 1;
        }
        assert_eq!(tried, 3);
    }

    #[test]
    fn says_what_it_is_and_what_is_out_of_range() {
        let base = Cpo {
            beta: 0.1,
            alpha: 0.5,
            label_smoothing: 0.0,
            hinge: false,
        };
        assert!(!base.uses_reference() && !base.per_token() && base.problems().is_empty());
        assert!((base.nll() - 0.5).abs() < 1e-15);
        let text = |loss: Cpo| -> Vec<String> { loss.problems().iter().map(ToString::to_string).collect() };
        assert_eq!(
            text(Cpo {
                beta: -0.1,
                alpha: -1.0,
                label_smoothing: 0.5,
                ..base
            }),
            [
                "`cpo.beta` is -0.1, expected a finite number above 0",
                "`cpo.alpha` is -1, expected a finite number, at least 0",
                "`cpo.label_smoothing` is 0.5, expected a number from 0 up to, but not, 0.5",
            ]
        );
        let smoothed_hinge = Cpo {
            label_smoothing: 0.1,
            hinge: true,
            ..base
        };
        assert_eq!(
            text(smoothed_hinge),
            ["`cpo.label_smoothing` is 0.1, expected 0, as `hinge` has no label smoothing"]
        );
    }
}
