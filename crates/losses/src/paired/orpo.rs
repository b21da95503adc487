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
/// log-probability of a completion's tokens. The likelihood is a mean over the tokens of chosen completions in the whole
/// batch, see [`Objective`](super::Objective).
///
/// **Shapes**: see [`PairedLoss::values`], which gives the second part.
///
/// **Parameters**: `beta` (required), the paper's `λ`, finite and above 0.
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β σ(−log odds ratio)/(1 − P_l)` per unit of mean log-probability, which is large where
/// the model is sure of the rejected completion; its logits are nevertheless pushed by at most `2β` together, as
/// `1 − P_l` bounds what is left to move. Fades as the odds part.
///
/// **Reference**: J. Hong, N. Lee, J. Thorne, "ORPO: Monolithic preference optimization without reference model", 2024, eq. 6
/// and 7.
///
/// **Differs from the paper**: the likelihood is a mean over all tokens of chosen completions, in the paper over those of
/// each completion. TRL 0.24 takes it over the tokens of the prompt too, which the paper does not. `1 − P` is held at the
/// rounding of the number type (2.2e-16 in `f64`, 1.2e-7 in `f32`), so that a completion the model is sure of stays finite.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{Orpo, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logp: f64, tokens: f64| Completions::from_sums(&Tensor::from_slice(&[logp]), None, &Tensor::from_slice(&[tokens]));
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
