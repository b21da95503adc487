//! Distributional dispreference optimisation.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Groups, RankedLoss};
use crate::error::positive;
use crate::{Card, Described, Error, Result};

/// D2O: a negative against the distribution that the model's own samples stand for.
///
/// `L = −log σ((β/K) Σ_i [log π(y_i) − log π⁻(y_i)] − α [log π(y_l) − log π⁺(y_l)])` with `y_i` the `K` samples of
/// the prompt, `y_l` its negative, `π⁻` and `π⁺` frozen references. The mean over the samples is inside of `σ`: not a
/// mean of `K` pairwise losses, which it never exceeds where `α = β` and the references agree. With `K = 1` it then
/// is [`Dpo`](crate::paired::Dpo).
///
/// **Shapes**: see [`RankedLoss::values`]. Prompts may have different numbers of samples.
///
/// **Parameters**: `alpha` and `beta` (required), finite and above 0.
///
/// **Errors**: [`Error::Range`] for a parameter; [`Error::Input`] without a reference; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `α σ(−z)` per unit of log-probability, `z` the argument of `σ`: at most `α`;
/// fades as the samples become more likely than the negative. Each sample is pushed up by `(β/K) σ(−z)`, so a harmful
/// one among them counts little.
///
/// **Reference**: S. Duan, X. Yi, P. Zhang, Y. Liu, Z. Liu, T. Lu, X. Xie, N. Gu, "Negating negatives: Alignment with
/// human negative samples via distributional dispreference optimization", 2024, eq. 3.
///
/// **Differs from the paper**: no. `π⁻`, which leans to harm, scores the samples and `π⁺`, which leans to help, the
/// negatives; both may be one model, as in the paper's main results. Samples are data: no gradient goes through drawing
/// them, and they are scored under the plain prompt, whatever instructions they were drawn with. The paper uses 11.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::ranked::{D2o, Groups, RankedLoss};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// // Two samples with log-ratios 1 and 3, and a negative with -5.
/// let logp = Tensor::from_slice(&[-9.0f64, -7.0, -20.0]);
/// let reference = Tensor::from_slice(&[-10.0f64, -10.0, -15.0]);
/// let completions = Completions::from_sums(&logp, Some(&reference), &Tensor::from_slice(&[5.0f64, 5.0, 5.0]))?;
/// let value = D2o { alpha: 0.1, beta: 0.1 }.values(&Groups::split(&completions, &[2])?)?;
/// assert!((value.double_value(&[0]) - 0.403186).abs() < 1e-6); // -log sigmoid(0.1 · 2 + 0.1 · 5)
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct D2o {
    /// Weight of the negative's log-ratio; finite, above 0. The paper uses 0.1.
    pub alpha: f64,
    /// Weight of the samples' mean log-ratio; finite, above 0. The paper uses 0.1.
    pub beta: f64,
}

impl D2o {
    /// The two sides of `z`, with their graphs.
    fn sides(&self, groups: &Groups) -> Result<(Tensor, Tensor)> {
        let (samples, negatives) = groups.log_ratios()?;
        Ok((samples.f_mul_scalar(self.beta)?, negatives.f_mul_scalar(self.alpha)?))
    }
}

impl Described for D2o {
    fn card(&self) -> Card {
        Card {
            name: "d2o",
            summary: "logistic loss of a negative against the mean of the model's own samples",
            formula: "−log σ((β/K) Σ c_i − αr)",
            on_negatives: "down relative to the samples; bounded by α",
            source: "Duan et al. 2024, eq. 3",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let alpha = positive("d2o.alpha", self.alpha);
        alpha.into_iter().chain(positive("d2o.beta", self.beta)).collect()
    }
}

impl RankedLoss for D2o {
    fn uses_reference(&self) -> bool {
        true
    }

    fn values(&self, groups: &Groups) -> Result<Tensor> {
        let (samples, negatives) = self.sides(groups)?;
        Ok(samples.f_sub(&negatives)?.f_log_sigmoid()?.f_neg()?)
    }

    fn rewards(&self, groups: &Groups) -> Result<(Tensor, Tensor)> {
        let (samples, negatives) = self.sides(groups)?;
        Ok((samples.f_detach()?, negatives.f_detach()?))
    }

    fn samples() -> Vec<Self> {
        [(0.1, 0.1), (0.3, 0.5)]
            .map(|(alpha, beta)| D2o { alpha, beta })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::Completions;

    /// Values, and the gradient of their sum, of completions with these log-ratios to a reference of -12.
    fn run(loss: &D2o, ratios: &[f64], samples: &[usize], kind: Kind) -> [Vec<f64>; 2] {
        let leaf = (Tensor::from_slice(ratios) - 12.0)
            .to_kind(kind)
            .set_requires_grad(true);
        let constant = |x: f64| leaf.full_like(x).detach();
        let completions = Completions::from_sums(&leaf, Some(&constant(-12.0)), &constant(4.0)).unwrap();
        let groups = Groups::split(&completions, samples).unwrap();
        let (of_samples, of_negative) = loss.rewards(&groups).unwrap();
        assert!(!of_samples.requires_grad() && !of_negative.requires_grad());
        let values = loss.values(&groups).unwrap();
        values.sum(kind).backward();
        [values, leaf.grad()].map(|t| Vec::try_from(t.detach().to_kind(Kind::Double)).unwrap())
    }

    fn near(ours: &[f64], expected: &[f64]) -> bool {
        ours.len() == expected.len() && ours.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12)
    }

    #[test]
    fn the_mean_over_the_samples_is_inside_and_each_side_has_its_own_weight() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let loss = D2o { alpha: 0.1, beta: 0.3 };
        // z = 0.3 · 2 - 0.1 · -5 = 1.1 and 0.3 · -2 - 0.1 · 4 = -1
        let [values, gradient] = run(&loss, &[1.0, 3.0, -2.0, -5.0, 4.0], &[2, 1], Kind::Double);
        assert!(near(&values, &[-sigmoid(1.1).ln(), -sigmoid(-1.0).ln()]), "{values:?}");
        let (first, second) = (sigmoid(-1.1), sigmoid(1.0));
        let slopes = [-0.15 * first, -0.15 * first, -0.3 * second, 0.1 * first, 0.1 * second];
        assert!(near(&gradient, &slopes), "{gradient:?}");
    }

    #[test]
    fn margins_of_ten_thousand_stay_finite() {
        for loss in D2o::samples() {
            for kind in [Kind::Double, Kind::Float] {
                let [values, gradient] = run(&loss, &[1e4, 1e4, -1e4, -1e4, -1e4, 1e4], &[2, 2], kind);
                assert!(
                    values.iter().chain(&gradient).all(|x| x.is_finite()),
                    "{loss:?} {kind:?}"
                );
                assert!(gradient[2] < 0.0 && gradient[5] > 0.0);
            }
        }
    }

    #[test]
    fn ranges_are_checked() {
        let loss: super::super::Loss = serde_json::from_str(r#"{"d2o": {"alpha": 0.0, "beta": -1.0}}"#).unwrap();
        let texts: Vec<String> = loss.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "`d2o.alpha` is 0, expected a finite number above 0",
                "`d2o.beta` is -1, expected a finite number above 0",
            ]
        );
        for loss in super::super::Loss::samples() {
            loss.check().unwrap();
            let text = serde_json::to_string(&loss).unwrap();
            assert!(text.starts_with("{\"d2o\":"), "{text}");
            assert_eq!(serde_json::from_str::<super::super::Loss>(&text).unwrap(), loss);
        }
    }
}
