//! Alignment via optimal transport, paired.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs, dpo::logistic};
use crate::error::{positive, smoothing};
use crate::{Card, Described, Error, Result};

/// Paired AOT: over the batch, the distribution of the policy's margins should lie above that of the reference's.
///
/// `L_i = −(1 − ε) log σ(β x_i) − ε log σ(−β x_i)` with `x_i = m_i − m′_i`: `m_i` the policy's margin `log π(y_w) −
/// log π(y_l)` of a pair, `m′_i` the reference's margin **of the same rank** in the batch, not of the same pair. The
/// sum over the batch is that over the two sorted lists. Equal margins rank in their order; the gradient takes the
/// ranks as given.
///
/// **Shapes**: see [`PairedLoss::values`].
///
/// **Parameters**: `beta` (required), finite and above 0; `label_smoothing` `ε` (`0`), in `[0, 0.5)`.
///
/// **Errors**: [`Error::Range`] for a parameter, also for weights per pair; [`Error::Input`] for a part of a batch;
/// otherwise those of [`Objective::evaluate`](super::Objective::evaluate).
///
/// **On negatives**: pushed down by `β σ(−βx)` per unit of log-probability, at most `β`; fades as `x` grows. A batch
/// of one is DPO.
///
/// **Reference**: I. Melnyk, Y. Mroueh, B. Belgodere, M. Rigotti, A. Nitsure, M. Yurochkin, K. Greenewald, J.
/// Navratil, J. Ross, "Distributional preference alignment of LLMs via optimal transport", 2024, paired AOT.
///
/// **Differs from the paper**: no. The value of a rank is reported with the pair whose policy margin has it.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{Aot, PairedLoss, Pairs};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let side = |logps: [f64; 2], references: [f64; 2]| {
///     let two = |x: [f64; 2]| Tensor::from_slice(&x);
///     Completions::from_sums(&two(logps), Some(&two(references)), &two([5.0, 5.0]))
/// };
/// let pairs = Pairs::new(side([-10.0, -9.0], [-12.0, -9.0])?, side([-11.0, -12.0], [-13.0, -8.0])?)?;
/// // The policy's margins are 1 and 3, the reference's 1 and -1, sorted -1 and 1: x = 2 and 2.
/// let value = Aot { beta: 0.1, label_smoothing: 0.0 }.values(&pairs)?;
/// assert!((value.double_value(&[0]) - 0.598139).abs() < 1e-6); // -log sigmoid(0.2)
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aot {
    /// Strength of the pull to the reference; finite, above 0.
    pub beta: f64,
    /// Share of labels believed to be wrong, in `[0, 0.5)`.
    #[serde(default)]
    pub label_smoothing: f64,
}

/// `[B]` for every element of `of`, the element of `from` that has the same rank; keeps the graph of `from`.
pub(crate) fn same_rank(of: &Tensor, from: &Tensor) -> Result<Tensor> {
    let order = |t: &Tensor| -> Result<Tensor> { Ok(t.f_detach()?.f_argsort_stable(true, 0, false)?) };
    let rank = order(&order(of)?)?;
    Ok(from.f_gather(0, &order(from)?.f_gather(0, &rank, false)?, false)?)
}

impl Described for Aot {
    fn card(&self) -> Card {
        Card {
            name: "aot",
            summary: "logistic loss between the sorted margins of policy and reference over the batch",
            formula: "−(1 − ε) log σ(βx) − ε log σ(−βx), x = sort(log π(y_w) − log π(y_l)) − sort(log π_ref(y_w) − log π_ref(y_l))",
            on_negatives: "down relative to the chosen one; bounded by β",
            source: "Melnyk et al. 2024, paired AOT",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let beta = positive("aot.beta", self.beta);
        beta.into_iter()
            .chain(smoothing("aot.label_smoothing", self.label_smoothing))
            .collect()
    }
}

impl PairedLoss for Aot {
    fn uses_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn couples_pairs(&self) -> bool {
        true
    }

    fn takes_divergence(&self) -> bool {
        // The margins of policy and reference are ranked apart: there is no ratio to take a score of.
        false
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        let (chosen, rejected) = (&pairs.chosen, &pairs.rejected);
        let margin = chosen.logp.f_sub(&rejected.logp)?;
        let reference = match pairs.reference_free {
            true => margin.f_zeros_like()?,
            false => chosen.wanted_reference()?.f_sub(rejected.wanted_reference()?)?,
        };
        let x = margin.f_sub(&same_rank(&margin, &reference)?)?;
        logistic(&x.f_mul_scalar(self.beta)?, self.label_smoothing)
    }

    fn samples() -> Vec<Self> {
        [(0.1, 0.0), (0.5, 0.2)]
            .map(|(beta, label_smoothing)| Aot { beta, label_smoothing })
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::Dpo;
    use crate::paired::pairs::tests::{assert_pair, numbers, pairs};

    #[test]
    fn ranks_pair_up_whatever_the_order_and_ties_keep_theirs() {
        let same =
            |of: &[f64], from: &[f64]| numbers(&same_rank(&Tensor::from_slice(of), &Tensor::from_slice(from)).unwrap());
        assert_eq!(same(&[3.0, 1.0, 2.0], &[10.0, 30.0, 20.0]), [30.0, 10.0, 20.0]);
        assert_eq!(same(&[5.0, 1.0, 5.0, 5.0], &[4.0, 3.0, 2.0, 1.0]), [2.0, 1.0, 3.0, 4.0]);
        let from = Tensor::from_slice(&[10.0f64, 30.0, 20.0, 20.0]).set_requires_grad(true);
        let weighted = same_rank(&Tensor::from_slice(&[3.0f64, 1.0, 2.0, 4.0]), &from).unwrap()
            * Tensor::from_slice(&[1.0f64, 2.0, 3.0, 4.0]);
        weighted.sum(tch::Kind::Double).backward();
        // Ranks of `of` are 2, 0, 1, 3; those of `from` are 0, 3, 1, 2.
        assert_eq!(numbers(&from.grad()), [2.0, 4.0, 3.0, 1.0]);
    }

    #[test]
    fn a_batch_of_one_is_dpo() {
        for label_smoothing in [0.0, 0.2] {
            let beta = 0.1;
            let aot = Aot { beta, label_smoothing };
            let dpo = Dpo { beta, label_smoothing };
            let one = pairs(&[[-10.0, -12.0, 5.0]], &[[-20.0, -15.0, 5.0]]);
            let (a, d) = (aot.values(&one).unwrap(), dpo.values(&one).unwrap());
            assert!((a - d).abs().double_value(&[0]) < 1e-12);
        }
        let aot = Aot {
            beta: 0.1,
            label_smoothing: 0.1,
        };
        assert_pair(&aot, [2.0, -5.0], [0.473186, -0.0231812, 0.0231812]);
        assert_pair(&aot, [-1e4, 1e4], [1800.0, -0.09, 0.09]);
    }

    #[test]
    fn margins_meet_by_rank_and_report_with_their_own_pair() {
        let loss = Aot {
            beta: 1.0,
            label_smoothing: 0.0,
        };
        // Margins 3, 1 (policy) and -1, 2 (reference): 3 meets 2 and 1 meets -1.
        let mut two = pairs(
            &[[3.0, -1.0, 5.0], [1.0, 2.0, 5.0]],
            &[[0.0, 0.0, 5.0], [0.0, 0.0, 5.0]],
        );
        let softplus = |x: f64| (1.0 + (-x).exp()).ln();
        let near = |ours: Tensor, exact: [f64; 2]| numbers(&ours).iter().zip(exact).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near(loss.values(&two).unwrap(), [softplus(1.0), softplus(2.0)]));
        two.reference_free = true;
        assert!(near(loss.values(&two).unwrap(), [softplus(3.0), softplus(1.0)]));
        two.reference_free = false;
        two.rejected.reference = None;
        assert!(
            loss.values(&two)
                .unwrap_err()
                .to_string()
                .starts_with("reference: expected")
        );
    }
}
