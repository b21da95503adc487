//! Odds ratio preference optimisation.

use serde::{Deserialize, Serialize};
use std::f64::consts::LN_2;
use tch::{Kind, Tensor};

use super::{PairedLoss, Pairs};
use crate::error::positive;
use crate::{Card, Completions, Described, Error, Result};

/// ORPO: likelihood of the chosen completion plus the odds of the pair, without a reference.
///
/// `L = NLL(y_w) − β log σ(log odds(y_w) − log odds(y_l))` with `odds = P/(1 − P)` and `P = e^a`, `a` the mean
/// log-probability of a completion's tokens. The likelihood is a mean over the tokens of chosen completions in the
/// whole batch, see [`Objective`](super::Objective).
///
/// **Shapes**: see [`PairedLoss::values`], which gives the second part.
///
/// **Parameters**: `beta` (required), the paper's `λ`, finite and above 0.
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β σ(−log odds ratio)/(1 − P_l)` per unit of mean log-probability, which is large
/// where the model is sure of the rejected completion; its logits are nevertheless pushed by at most `2β` together, as
/// `1 − P_l` bounds what is left to move. Fades as the odds part.
///
/// **Reference**: J. Hong, N. Lee, J. Thorne, "ORPO: Monolithic preference optimization without reference model", 2024,
/// eq. 6 and 7.
///
/// **Differs from the paper**: the likelihood is a mean over all tokens of chosen completions, in the paper over those
/// of each completion. TRL 0.24 takes it over the tokens of the prompt too, which the paper does not. `1 − P` is held
/// at the rounding of the number type (2.2e-16 in `f64`, 1.2e-7 in `f32`): nearer to certain a completion counts as
/// that sure, and is hardly pushed any more.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{Orpo, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let one = |x: f64| Tensor::from_slice(&[x]);
/// let side = |logp: f64, tokens: f64| Completions::from_sums(&one(logp), None, &one(tokens));
/// let pairs = Pairs::new(side(-2.0, 4.0)?, side(-3.0, 3.0)?)?; // means -0.5 and -1
/// let value = Orpo { beta: 0.1 }.values(&pairs)?; // log odds 0.432752 - (-0.541325) = 0.974077
/// assert!((value.double_value(&[0]) - 0.0320300).abs() < 1e-7); // -0.1 log sigmoid(0.974077)
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orpo {
    /// Weight of the odds against the likelihood; finite, above 0. Published runs use 0.1 to 0.25.
    pub beta: f64,
}

/// `log(1 − e^a)` for `a ≤ 0`, of any shape, exact at both ends. `a` is held below 0 by the rounding of its kind.
pub(crate) fn log1m_exp(a: &Tensor) -> Result<Tensor> {
    let rounding = match a.f_kind()? {
        Kind::Double => f64::EPSILON,
        _ => f64::from(f32::EPSILON),
    };
    let near_one = a.f_clamp_max(-rounding)?.f_expm1()?.f_neg()?.f_log()?;
    // Held where the other branch is taken: an infinite branch would give NaN as gradient even where it is not taken.
    let far = a.f_clamp_max(-LN_2)?.f_exp()?.f_neg()?.f_log1p()?;
    Ok(near_one.f_where_self(&a.f_gt(-LN_2)?, &far)?)
}

/// `[B]` the log-odds ratio of every pair.
fn log_odds_ratio(pairs: &Pairs) -> Result<Tensor> {
    let log_odds = |side: &Completions| -> Result<Tensor> {
        let mean = side.mean_logp()?;
        Ok(mean.f_sub(&log1m_exp(&mean)?)?)
    };
    Ok(log_odds(&pairs.chosen)?.f_sub(&log_odds(&pairs.rejected)?)?)
}

impl Described for Orpo {
    fn card(&self) -> Card {
        Card {
            name: "orpo",
            summary: "likelihood of the chosen completion plus the odds ratio of the pair, no reference",
            formula: "NLL(y_w) − β log σ(log odds(y_w) − log odds(y_l)), odds = P/(1 − P), P = e^a",
            on_negatives: "down relative to the chosen one; bounded by 2β in the logits",
            source: "Hong et al. 2024, eq. 6 and 7",
        }
    }

    fn problems(&self) -> Vec<Error> {
        positive("orpo.beta", self.beta).into_iter().collect()
    }
}

impl PairedLoss for Orpo {
    fn uses_reference(&self) -> bool {
        false
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn per_token(&self) -> bool {
        true
    }

    fn nll(&self) -> f64 {
        1.0
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        Ok(log_odds_ratio(pairs)?.f_log_sigmoid()?.f_mul_scalar(-self.beta)?)
    }

    fn extra_terms(&self, pairs: &Pairs) -> Result<Vec<(&'static str, Tensor)>> {
        Ok(vec![("log_odds_ratio", log_odds_ratio(pairs)?)])
    }

    fn samples() -> Vec<Self> {
        [0.1, 1.0].map(|beta| Orpo { beta }).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::pairs::tests::numbers;

    /// On both branches, at their seam and at the ends, against the form that is exact there.
    #[test]
    fn log1m_exp_is_exact_from_certain_to_impossible() {
        let points = [
            -1e-12,
            -1e-3,
            -0.5,
            -LN_2 + 1e-9,
            -LN_2,
            -LN_2 - 1e-9,
            -1.0,
            -40.0,
            -1e4,
        ];
        let a = Tensor::from_slice(&points).set_requires_grad(true);
        let ours = log1m_exp(&a).unwrap();
        ours.sum(Kind::Double).backward();
        for ((&a, ours), slope) in points.iter().zip(numbers(&ours)).zip(numbers(&a.grad())) {
            let value = if a > -0.6 {
                (-a.exp_m1()).ln()
            } else {
                (-a.exp()).ln_1p()
            };
            assert!((ours - value).abs() <= 1e-14 * value.abs(), "{a}: {ours}, not {value}");
            let exact = a.exp() / a.exp_m1();
            assert!(
                (slope - exact).abs() <= 1e-14 * exact.abs(),
                "{a}: {slope}, not {exact}"
            );
        }
        // Impossible to the last bit: only one of the two forms keeps it.
        let tiny = log1m_exp(&Tensor::from_slice(&[-50.0f64])).unwrap();
        assert!((numbers(&tiny)[0] / -(-50.0f64).exp() - 1.0).abs() < 1e-14);
    }

    #[test]
    fn a_certain_completion_is_held_at_the_rounding_of_its_kind() {
        for (kind, rounding) in [(Kind::Double, f64::EPSILON), (Kind::Float, f64::from(f32::EPSILON))] {
            let a = Tensor::from_slice(&[0.0f64, -rounding / 4.0, -2.0 * rounding])
                .to_kind(kind)
                .set_requires_grad(true);
            let ours = log1m_exp(&a).unwrap();
            ours.sum(kind).backward();
            let (values, slopes) = (numbers(&ours), numbers(&a.grad()));
            for (value, expected) in values.iter().zip([1.0, 1.0, 2.0]) {
                assert!((value - (expected * rounding).ln()).abs() < 1e-5, "{kind:?}: {value}");
            }
            assert!(slopes[0].abs() == 0.0 && slopes[1].abs() == 0.0);
            assert!((slopes[2] * 2.0 * rounding + 1.0).abs() < 1e-5, "{kind:?}: {slopes:?}");
        }
    }

    #[test]
    fn values_and_pushes_are_those_of_the_definition() {
        let (means, others) = (
            [-0.5f64, -2.0, -1e-12, -1e4, 0.0, -1.0],
            [-1.0f64, -0.1, -1.0, -1.0, 0.0, -1e4],
        );
        let leaf = |means: &[f64]| Tensor::from_slice(means).set_requires_grad(true);
        let (chosen, rejected) = (leaf(&means), leaf(&others));
        let side =
            |mean: &Tensor, n: f64| Completions::from_sums(&(mean * n), None, &Tensor::from_slice(&[n; 6])).unwrap();
        let pairs = Pairs::new(side(&chosen, 2.0), side(&rejected, 4.0)).unwrap();
        let loss = Orpo { beta: 0.7 };
        let values = loss.values(&pairs).unwrap();
        values.sum(Kind::Double).backward();
        let (_, ratio) = loss.extra_terms(&pairs).unwrap().remove(0);
        let (reward, other_reward) = loss.rewards(&pairs).unwrap();
        for i in [0, 1, 2] {
            let log_odds = |a: f64| a - (-a.exp_m1()).ln();
            let r = log_odds(means[i]) - log_odds(others[i]);
            let push = 0.7 / (1.0 + r.exp());
            let near = |t: &Tensor, expected: f64| {
                let got = numbers(t)[i];
                let bound = 1e-9 * (1e-12 + expected.abs());
                assert!((got - expected).abs() < bound, "pair {i}: {got}, not {expected}");
            };
            near(&values, 0.7 * (-r).exp().ln_1p());
            near(&ratio, r);
            near(&chosen.grad(), push / means[i].exp_m1());
            near(&rejected.grad(), -push / others[i].exp_m1());
            near(&reward, 0.7 * means[i]);
            near(&other_reward, 0.7 * others[i]);
        }
        // Both certain: even odds. Impossible: the odds are the probability.
        let (values, ratio) = (numbers(&values), numbers(&ratio));
        assert!((values[4] - 0.7 * LN_2).abs() < 1e-12 && ratio[4].abs() < 1e-12);
        let even = -1.0 - (-(-1.0f64).exp()).ln_1p();
        assert!((values[3] - 0.7 * (1e4 + even)).abs() < 1e-8);
        assert!(
            numbers(&chosen.grad())
                .iter()
                .chain(&numbers(&rejected.grad()))
                .all(|x| x.is_finite())
        );
    }

    #[test]
    fn says_what_it_is_and_what_is_out_of_range() {
        let loss = Orpo { beta: 0.1 };
        assert!(!loss.uses_reference() && loss.per_token() && loss.problems().is_empty());
        assert!((loss.nll() - 1.0).abs() < 1e-15);
        assert_eq!(
            Orpo { beta: 0.0 }.check().unwrap_err().to_string(),
            "`orpo.beta` is 0, expected a finite number above 0"
        );
    }
}
