//! SimPO with another shape of the reward.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::dpo::logistic;
use super::pairs::power;
use super::simpo::margin;
use super::{PairedLoss, Pairs};
use crate::error::{finite, not_negative, positive, smoothing};
use crate::{Card, Completions, Described, Error, Result};

/// AlphaPO: SimPO with a power of the probability as reward in place of its logarithm.
///
/// `L = −(1 − ε) log σ(m) − ε log σ(−m)` with `m = β (r_w − r_l) − γ`, `r = (1 − p^{−α})/α`, `p = e^a` and `a` the mean
/// log-probability of a completion's tokens. `α → 0` gives `r = a`, which is SimPO; `α = 0` is exactly that.
///
/// `γ` is as in [`Simpo`](super::Simpo); the likelihood that TRL adds is [`Objective::nll`](super::Objective::nll).
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; `gamma` (required), finite and at least 0; `alpha`
/// (required), finite, of either sign; `label_smoothing` `ε` (`0`), in `[0, 0.5)`.
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β σ(−m) p_l^{−α}` per unit of mean log-probability. With `α > 0` an unlikely
/// completion is pushed harder than a likely one, and the push is bounded only by the margin being reached; with `α < 0`
/// it fades with `p_l` and is at most `β`. With `ε > 0` it turns round past `m = log((1 − ε)/ε)`. Both probabilities may
/// fall.
///
/// **Reference**: A. Gupta, S. Tang, Q. Song, S. Zhu, J. Hong, A. Saha, V. Gupta, N. Lee, E. Kim, S. Zhu, P. Agrawal,
/// N. Pillai, S. S. Keerthi, "AlphaPO: Reward shape matters for LLM alignment", 2025, the AlphaPO reward and objective;
/// label smoothing is that of TRL 0.24.
///
/// **Differs from the paper**: `−αa` is held at 40, beyond which the reward no longer moves and its gradient is zero:
/// at `α = 0.25` that is a mean log-probability of −160.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{Alphapo, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64| Completions::from_sums(&Tensor::from_slice(&[logp]), None, &Tensor::from_slice(&[2.0]));
/// let pairs = Pairs::new(side(-2.0)?, side(-4.0)?)?; // means -1 and -2
/// let loss = Alphapo { beta: 2.0, gamma: 1.0, alpha: 0.5, label_smoothing: 0.0 };
/// let value = loss.values(&pairs)?; // rewards (1 - e^0.5)/0.5 = -1.297443 and (1 - e)/0.5 = -3.436564
/// assert!((value.double_value(&[0]) - 0.037001).abs() < 1e-6); // -log sigmoid(2 * 2.139121 - 1)
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alphapo {
    /// Scale of the rewards; finite, above 0.
    pub beta: f64,
    /// The margin to reach, after scaling by `beta`; finite, at least 0.
    pub gamma: f64,
    /// Shape of the reward; finite, of either sign; 0 is the logarithm.
    pub alpha: f64,
    /// Share of labels believed to be wrong, in `[0, 0.5)`.
    #[serde(default)]
    pub label_smoothing: f64,
}

/// Below this `(1 − e^{−αa})/α` and its limit `a` agree to rounding, and `αa` could underflow.
const SMALLEST_ALPHA: f64 = 1e-20;

impl Alphapo {
    /// `[B]` the reward before scaling.
    fn shaped(&self, side: &Completions) -> Result<Tensor> {
        let mean = side.mean_logp()?;
        if self.alpha.abs() < SMALLEST_ALPHA {
            return Ok(mean);
        }
        power(&mean, -self.alpha)
    }
}

impl Described for Alphapo {
    fn card(&self) -> Card {
        Card {
            name: "alphapo",
            summary: "SimPO with a power of the mean-token probability as reward",
            formula: "−(1 − ε) log σ(m) − ε log σ(−m), m = β(r_w − r_l) − γ, r = (1 − p^−α)/α",
            on_negatives: "down relative to the chosen one; by βp^−α at most",
            source: "Gupta et al. 2025",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let all = [
            positive("alphapo.beta", self.beta),
            not_negative("alphapo.gamma", self.gamma),
            finite("alphapo.alpha", self.alpha),
            smoothing("alphapo.label_smoothing", self.label_smoothing),
        ];
        all.into_iter().flatten().collect()
    }
}

impl PairedLoss for Alphapo {
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
        let (chosen, rejected) = (self.shaped(&pairs.chosen)?, self.shaped(&pairs.rejected)?);
        logistic(
            &margin(&chosen, &rejected, self.beta, self.gamma)?,
            self.label_smoothing,
        )
    }

    /// `β r` of both sides: the shaped reward, not the log-probability.
    fn rewards(&self, pairs: &Pairs) -> Result<(Tensor, Tensor)> {
        let reward =
            |side: &Completions| -> Result<Tensor> { Ok(self.shaped(side)?.f_detach()?.f_mul_scalar(self.beta)?) };
        Ok((reward(&pairs.chosen)?, reward(&pairs.rejected)?))
    }

    fn samples() -> Vec<Self> {
        [(0.25, 0.0), (-0.5, 0.1), (0.0, 0.0)]
            .map(|(alpha, label_smoothing)| Alphapo {
                beta: 2.0,
                gamma: 0.5,
                alpha,
                label_smoothing,
            })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::Simpo;
    use crate::paired::pairs::tests::numbers;

    fn with(alpha: f64) -> Alphapo {
        Alphapo {
            beta: 2.0,
            gamma: 0.5,
            alpha,
            label_smoothing: 0.1,
        }
    }

    /// Pairs of completions of two and four tokens with these means, which collect gradients.
    fn pairs(means: &[f64], others: &[f64]) -> (Tensor, Tensor, Pairs) {
        let leaf = |means: &[f64]| Tensor::from_slice(means).set_requires_grad(true);
        let (chosen, rejected) = (leaf(means), leaf(others));
        let side = |mean: &Tensor, n: f64| {
            Completions::from_sums(&(mean * n), None, &Tensor::from_slice(&vec![n; means.len()])).unwrap()
        };
        let pairs = Pairs::new(side(&chosen, 2.0), side(&rejected, 4.0)).unwrap();
        (chosen, rejected, pairs)
    }

    #[test]
    fn values_rewards_and_pushes_are_those_of_the_definition() {
        let (means, others) = ([-1.0f64, -0.2, -3.0], [-0.5f64, -4.0, -3.0]);
        let mut tried = 0;
        for alpha in [0.25, 1.5, -0.5, -2.0] {
            let (chosen, rejected, pairs) = pairs(&means, &others);
            let loss = with(alpha);
            let values = loss.values(&pairs).unwrap();
            values.sum(tch::Kind::Double).backward();
            let (reward, other_reward) = loss.rewards(&pairs).unwrap();
            assert!(!reward.requires_grad());
            for i in 0..means.len() {
                let shaped = |a: f64| (1.0 - (-alpha * a).exp()) / alpha;
                let slope = |a: f64| (-alpha * a).exp();
                let m = 2.0 * (shaped(means[i]) - shaped(others[i])) - 0.5;
                let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
                let push = 2.0 * (0.1 * sigmoid(m) - 0.9 * sigmoid(-m));
                let near = |t: &Tensor, expected: f64| {
                    let got = numbers(t)[i];
                    let bound = 1e-12 * (1.0 + expected.abs());
                    assert!(
                        (got - expected).abs() < bound,
                        "{alpha}, pair {i}: {got}, not {expected}"
                    );
                };
                near(&values, -0.9 * sigmoid(m).ln() - 0.1 * sigmoid(-m).ln());
                near(&chosen.grad(), push * slope(means[i]));
                near(&rejected.grad(), -push * slope(others[i]));
                near(&reward, 2.0 * shaped(means[i]));
                near(&other_reward, 2.0 * shaped(others[i]));
            }
            tried += 1;
        }
        assert_eq!(tried, 4);
    }

    #[test]
    fn without_alpha_it_is_simpo_and_near_it_too() {
        let simpo = Simpo {
            beta: 2.0,
            gamma: 0.5,
            label_smoothing: 0.1,
            hinge: false,
        };
        let (means, others) = ([-1.0f64, -0.2, -1e4, 0.0], [-0.5f64, -4.0, 0.0, -1e4]);
        let (_, _, pairs) = pairs(&means, &others);
        let exact = numbers(&simpo.values(&pairs).unwrap());
        for alpha in [0.0, 1e-300, -1e-300, 5e-324, 1e-20, -1e-20, 1e-16] {
            for (ours, theirs) in numbers(&with(alpha).values(&pairs).unwrap()).iter().zip(&exact) {
                assert!(
                    (ours - theirs).abs() <= 1e-11 * theirs.abs(),
                    "{alpha}: {ours}, not {theirs}"
                );
            }
        }
        // The first-order difference of the reward is −α a²/2: it must show, not drown in rounding.
        let reward = |alpha: f64| numbers(&with(alpha).rewards(&pairs).unwrap().0)[0];
        assert!(((reward(1e-8) - reward(0.0)) / -1e-8 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn exponents_are_held_at_forty_so_that_nothing_overflows() {
        // −αa is 39.75 for the first and 2500 for the second.
        let (chosen, rejected, pairs) = pairs(&[-159.0, -1e4], &[-1.0, -1.0]);
        let loss = with(0.25);
        let (reward, _) = loss.rewards(&pairs).unwrap();
        let reward = numbers(&reward);
        assert!((reward[0] / (-8.0 * 39.75f64.exp_m1()) - 1.0).abs() < 1e-12);
        assert!((reward[1] / (-8.0 * 40.0f64.exp_m1()) - 1.0).abs() < 1e-12);
        let values = loss.values(&pairs).unwrap();
        values.sum(tch::Kind::Double).backward();
        let pushes = numbers(&chosen.grad());
        assert!((pushes[0] / (-2.0 * 0.9 * 39.75f64.exp()) - 1.0).abs() < 1e-12);
        assert!(pushes[1].abs() == 0.0);
        assert!(
            numbers(&values)
                .iter()
                .chain(&numbers(&rejected.grad()))
                .all(|x| x.is_finite())
        );
    }

    #[test]
    fn says_what_it_is_and_what_is_out_of_range() {
        let bad = Alphapo {
            beta: 0.0,
            gamma: -1.0,
            alpha: f64::NAN,
            label_smoothing: 0.5,
        };
        let problems: Vec<String> = bad.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "`alphapo.beta` is 0, expected a finite number above 0",
                "`alphapo.gamma` is -1, expected a finite number, at least 0",
                "`alphapo.alpha` is NaN, expected a finite number",
                "`alphapo.label_smoothing` is 0.5, expected a number from 0 up to, but not, 0.5",
            ]
        );
        let samples = Alphapo::samples();
        assert!(!samples.is_empty());
        for loss in samples {
            assert!(loss.per_token() && !loss.uses_reference() && loss.problems().is_empty());
            assert!((loss.beta() - loss.beta).abs() < 1e-15);
        }
    }
}
