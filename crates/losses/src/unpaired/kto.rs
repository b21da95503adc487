//! Kahneman-Tversky optimisation.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Labelled, UnpairedLoss};
use crate::error::{not_negative, positive};
use crate::{Baseline, Card, Described, Error, Result};

/// KTO: how far each completion's log-ratio is on the right side of what is usual.
///
/// `L = w_d (1 − σ(β(u − z₀)))` for a desirable completion, `w_u (1 − σ(β(z₀ − u)))` for an undesirable one, with `u`
/// its log-ratio to the reference and `z₀` the baseline, a number without gradient. The mean is over all completions.
///
/// **Shapes**: see [`UnpairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; `desirable_weight` and `undesirable_weight` (`1`), finite, at
/// least 0. With `n_d` and `n_u` completions of each kind in the data, keep `w_d n_d / (w_u n_u)` between 1 and 4/3.
///
/// **Errors**: [`Error::Range`] for a parameter; [`Error::Input`] without a reference or baseline; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `w_u β σ(x)(1 − σ(x))` with `x = β(u − z₀)` per unit of log-probability: at most
/// `w_u β/4`, at `u = z₀`; fades on both sides, so a negative that the policy finds very likely is hardly pushed.
///
/// **Reference**: K. Ethayarajh, W. Xu, N. Muennighoff, D. Jurafsky, D. Kiela, "KTO: Model alignment as prospect
/// theoretic optimization", 2024, the KTO loss.
///
/// **Differs from the paper**: no. `z₀` comes in as a number of the whole batch, from
/// [`mismatched_kl`](crate::mismatched_kl).
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::unpaired::{Kto, Labelled, UnpairedLoss};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let (logp, reference) = (Tensor::from_slice(&[-10.0f64, -15.0]), Tensor::from_slice(&[-12.0f64, -12.0]));
/// let completions = Completions::from_sums(&logp, Some(&reference), &Tensor::from_slice(&[5.0f64, 5.0]))?;
/// let labelled = Labelled { baseline: Some(0.5), ..Labelled::new(completions, &[true, false])? };
/// let value = Kto { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 }.values(&labelled)?;
/// assert!((value.double_value(&[0]) - 0.462570).abs() < 1e-6); // 1 - sigmoid(0.1 (2 - 0.5))
/// assert!((value.double_value(&[1]) - 0.413382).abs() < 1e-6); // 1 - sigmoid(0.1 (0.5 + 3))
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kto {
    /// Steepness around the baseline; finite, above 0. Published runs use 0.1.
    pub beta: f64,
    /// Weight of desirable completions; finite, at least 0.
    #[serde(default = "one")]
    pub desirable_weight: f64,
    /// Weight of undesirable completions; finite, at least 0.
    #[serde(default = "one")]
    pub undesirable_weight: f64,
}

/// The weight of a kind of completions that is not weighted.
pub(super) fn one() -> f64 {
    1.0
}

/// `[B]` `w σ(∓β(u − z₀))`: the value that KTO and APO-zero share.
pub(super) fn values(loss: &Kto, labelled: &Labelled, baseline: f64) -> Result<Tensor> {
    let surplus = labelled.completions.log_ratio()?.f_sub_scalar(baseline)?;
    // 1 − σ(x) as σ(−x), which keeps what is left of it where σ(x) rounds to 1.
    let wrong = labelled.signed(&surplus.f_mul_scalar(-loss.beta)?)?.f_sigmoid()?;
    let undesirable = wrong.f_mul_scalar(loss.undesirable_weight)?;
    Ok(wrong
        .f_mul_scalar(loss.desirable_weight)?
        .f_where_self(&labelled.desirable, &undesirable)?)
}

impl Described for Kto {
    fn card(&self) -> Card {
        Card {
            name: "kto",
            summary: "utility of each completion's log-ratio against a baseline of mismatched pairs",
            formula: "w_d (1 − σ(β(c − z₀))) or w_u (1 − σ(β(z₀ − r)))",
            on_negatives: "down; bounded by w_u β/4, fades on both sides of the baseline",
            source: "Ethayarajh et al. 2024",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let beta = positive("kto.beta", self.beta);
        beta.into_iter()
            .chain(not_negative("kto.desirable_weight", self.desirable_weight))
            .chain(not_negative("kto.undesirable_weight", self.undesirable_weight))
            .collect()
    }
}

impl UnpairedLoss for Kto {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn baseline(&self) -> Option<Baseline> {
        Some(Baseline::MismatchedKl)
    }

    fn values(&self, labelled: &Labelled) -> Result<Tensor> {
        values(self, labelled, labelled.wanted_baseline()?)
    }

    fn samples() -> Vec<Self> {
        [(0.1, 1.0, 1.0), (0.5, 1.33, 0.5)]
            .map(|(beta, desirable_weight, undesirable_weight)| Kto {
                beta,
                desirable_weight,
                undesirable_weight,
            })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::unpaired::tests::{made, near, problems, run, sigmoid};

    #[test]
    fn each_side_has_its_own_weight_and_distance_from_the_baseline() {
        let loss = Kto {
            beta: 0.1,
            desirable_weight: 2.0,
            undesirable_weight: 0.25,
        };
        // x = 0.1 (2 - 0.5) and 0.1 (-3 - 0.5)
        let (good, bad) = (sigmoid(0.15), sigmoid(-0.35));
        let [values, gradient] = run(&loss, &[2.0, -3.0], &[true, false], Kind::Double);
        assert!(near(&values, &[2.0 * (1.0 - good), 0.25 * bad]), "{values:?}");
        let slopes = [-2.0 * 0.1 * good * (1.0 - good), 0.25 * 0.1 * bad * (1.0 - bad)];
        assert!(near(&gradient, &slopes), "{gradient:?}");
        // The other way round.
        let [values, _] = run(&loss, &[2.0, -3.0], &[false, true], Kind::Double);
        assert!(near(&values, &[0.25 * good, 2.0 * (1.0 - bad)]), "{values:?}");
    }

    #[test]
    fn weights_are_one_unless_given() {
        let loss: Kto = serde_json::from_str(r#"{"beta": 0.1}"#).unwrap();
        assert!(near(&[loss.desirable_weight, loss.undesirable_weight], &[1.0, 1.0]));
    }

    #[test]
    fn a_baseline_that_is_missing_or_not_a_number_is_an_error() {
        for (baseline, got) in [(None, "none"), (Some(f64::NAN), "NaN"), (Some(f64::INFINITY), "inf")] {
            let (_, labelled) = made(&[1.0], &[true], Kind::Double);
            let error = Kto::samples()[0]
                .values(&Labelled { baseline, ..labelled })
                .unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "baseline: expected the finite whole-batch number that the loss subtracts from rewards, got {got}"
                )
            );
        }
    }

    #[test]
    fn ranges_are_checked() {
        let text = r#"{"kto": {"beta": 0.0, "desirable_weight": -1.0, "undesirable_weight": -2.0}}"#;
        assert_eq!(
            problems(text),
            [
                "`kto.beta` is 0, expected a finite number above 0",
                "`kto.desirable_weight` is -1, expected a finite number, at least 0",
                "`kto.undesirable_weight` is -2, expected a finite number, at least 0",
            ]
        );
    }
}
