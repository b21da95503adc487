//! Binary classifier optimisation.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Labelled, UnpairedLoss};
use crate::error::positive;
use crate::token::wanted;
use crate::{Baseline, Card, Described, Error, Result};

/// BCO: the implicit reward as the logit of a classifier that tells desirable from undesirable completions.
///
/// `L = −log σ(βu − δ)` for a desirable completion, `−w log σ(δ − βu)` for an undesirable one, with `u` its log-ratio
/// to the reference and `δ` the running mean of all rewards `βu`, a number without gradient. The mean is over all
/// completions.
///
/// **Shapes**: see [`UnpairedLoss::values`]; with `density_ratios` also weights `[B]`.
///
/// **Parameters**: `beta` (required), finite and above 0; `density_ratios` (`false`): whether every undesirable
/// completion has a weight `w`, else all are 1.
///
/// **Errors**: [`Error::Range`] for a parameter; [`Error::Input`] without a reference, baseline or the weights asked
/// for; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `w β σ(βu − δ)` per unit of log-probability, at most `wβ`; fades as the reward
/// falls below `δ`.
///
/// **Reference**: S. Jung, G. Han, D. W. Nam, K.-W. On, "Binary classifier optimization for large language model
/// alignment", 2024: the classification loss with reward shift, and density ratios for prompts that differ between the
/// two kinds.
///
/// **Differs from the paper**: `δ` is the mean of all rewards so far, [`RunningMean`](crate::RunningMean), as in TRL
/// 0.24; the paper takes the middle between the means of the two kinds. The density ratio `p/(1 − p)`, from a
/// classifier that says how likely a prompt is to come from the desirable data, and its clamp (TRL: 0.5 to 10) are
/// the caller's.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::unpaired::{Bco, Labelled, UnpairedLoss};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let (logp, reference) = (Tensor::from_slice(&[-10.0f64, -15.0]), Tensor::from_slice(&[-12.0f64, -12.0]));
/// let completions = Completions::from_sums(&logp, Some(&reference), &Tensor::from_slice(&[5.0f64, 5.0]))?;
/// let labelled = Labelled { baseline: Some(0.5), ..Labelled::new(completions, &[true, false])? };
/// let value = Bco { beta: 0.5, density_ratios: false }.values(&labelled)?;
/// assert!((value.double_value(&[0]) - 0.474077).abs() < 1e-6); // -log sigmoid(1 - 0.5)
/// assert!((value.double_value(&[1]) - 0.126928).abs() < 1e-6); // -log sigmoid(0.5 + 1.5)
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bco {
    /// Scale of the implicit reward; finite, above 0.
    pub beta: f64,
    /// Whether undesirable completions are weighted.
    #[serde(default)]
    pub density_ratios: bool,
}

impl Described for Bco {
    fn card(&self) -> Card {
        Card {
            name: "bco",
            summary: "the implicit reward, less its running mean, as a classifier's logit",
            formula: "−log σ(βc − δ) or −w log σ(δ − βr)",
            on_negatives: "down; bounded by wβ, fades below the mean reward",
            source: "Jung et al. 2024",
        }
    }

    fn problems(&self) -> Vec<Error> {
        positive("bco.beta", self.beta).into_iter().collect()
    }
}

impl UnpairedLoss for Bco {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn baseline(&self) -> Option<Baseline> {
        Some(Baseline::RunningMeanReward)
    }

    fn takes_weights(&self) -> bool {
        self.density_ratios
    }

    fn values(&self, labelled: &Labelled) -> Result<Tensor> {
        let reward = labelled.completions.log_ratio()?.f_mul_scalar(self.beta)?;
        let logit = reward.f_sub_scalar(labelled.wanted_baseline()?)?;
        let values = labelled.signed(&logit)?.f_log_sigmoid()?.f_neg()?;
        if !self.density_ratios {
            return Ok(values);
        }
        let weighted = values.f_mul(wanted("weights", &labelled.weights)?)?;
        Ok(values.f_where_self(&labelled.desirable, &weighted)?)
    }

    fn samples() -> Vec<Self> {
        [(0.1, false), (0.5, true)]
            .map(|(beta, density_ratios)| Bco { beta, density_ratios })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::unpaired::tests::{made, near, problems, run, sigmoid};

    #[test]
    fn the_reward_less_the_baseline_is_a_logit_and_only_negatives_are_weighted() {
        for (density_ratios, weight) in [(false, 1.0), (true, 3.0)] {
            let loss = Bco {
                beta: 0.5,
                density_ratios,
            };
            // 0.5 · 2 - 0.5 and 0.5 · -3 - 0.5
            let (good, bad) = (sigmoid(0.5), sigmoid(-2.0));
            let [values, gradient] = run(&loss, &[2.0, -3.0], &[true, false], Kind::Double);
            assert!(near(&values, &[-good.ln(), -weight * (1.0 - bad).ln()]), "{values:?}");
            assert!(
                near(&gradient, &[0.5 * (good - 1.0), weight * 0.5 * bad]),
                "{gradient:?}"
            );
            assert_eq!(loss.takes_weights(), density_ratios);
        }
        assert_eq!(Bco::samples()[0].baseline(), Some(Baseline::RunningMeanReward));
    }

    #[test]
    fn weights_asked_for_must_be_there() {
        let (_, labelled) = made(&[1.0], &[false], Kind::Double);
        let labelled = Labelled {
            weights: None,
            ..labelled
        };
        let loss = Bco {
            beta: 0.5,
            density_ratios: true,
        };
        let text = loss.values(&labelled).unwrap_err().to_string();
        assert!(text.starts_with("weights: expected"), "{text}");
    }

    #[test]
    fn ranges_are_checked() {
        assert_eq!(
            problems(r#"{"bco": {"beta": 0.0}}"#),
            ["`bco.beta` is 0, expected a finite number above 0"]
        );
    }
}
