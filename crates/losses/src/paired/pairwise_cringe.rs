//! CRINGE on pairs, switched off by a gate once the pair is told apart.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{PairedLoss, Pairs};
use crate::error::not_negative;
use crate::rows::check_draws;
use crate::token::{candidates, contrast, contrast_needs};
use crate::{Card, CompletionRows, Described, Error, Needs, Result, TokenStats};

/// Pairwise CRINGE: likelihood of the chosen completion and contrast of the rejected one, times a gate.
///
/// `L = g (Σ_w −log p(y_t) + α Σ_l softplus(z(y_t) − z(s_t)))` with the gate `g = σ((b − M)/τ)` and the margin
/// `M = log π(y_w) − log π(y_l)`; `s_t` is drawn as in [`Cringe`](crate::token::Cringe). `τ = 0` is the hard gate
/// `1[M < b]`, `b = ∞` keeps the gate open: then it is CRINGE per pair, and with `α = 0` as well likelihood of the
/// chosen ones alone.
///
/// All sums are over the tokens of a completion, the loss is a mean over pairs. Long completions make margins large and
/// gates saturate: `gate_shut` and `gate_open` in the log are the shares of pairs with `g < 0.01` and `g > 0.99`, `gate`
/// is the mean of `g`, `cringe_rejected` that of the contrasts. With [`Logps::Mean`](super::Logps::Mean) likelihood,
/// contrast and margin are means over the tokens.
///
/// **Shapes**: see [`PairedLoss::values`]; `draws` `[N, 1]`.
///
/// **Parameters**: `alpha` (required), weight of the contrast, finite and at least 0; `k` (required), candidates, 1 to
/// 65536 and below the vocabulary size; `b` (required), the margin at which the gate is half closed, finite or
/// infinity; `tau` (required), its temperature, 0 or finite and at least 1e-6; `gate_gradient` (`false`), only with
/// `tau` above 0; `detach_positives` (`false`).
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of
/// [`Objective::evaluate`](super::Objective::evaluate), draws included.
///
/// **On negatives**: every `z(y)` is pushed down and `z(s)` up by the same `g α σ(z(y) − z(s))`, bounded by `α`;
/// nothing once the gate has closed. With `gate_gradient` the rejected completion's log-probability is pushed down too,
/// and the chosen one's up, by `g (1 − g)/τ` times the bracket: bounded by the gate, not by the bracket, which grows
/// with the length.
///
/// **Reference**: J. Xu, A. Lee, S. Sukhbaatar, J. Weston, "Some things are more CRINGE than others: Iterative
/// preference optimization with the pairwise cringe loss", 2023, the pairwise loss.
///
/// **Differs from the paper**: no code was released, so that two of its choices are switches here: whether the gate
/// passes gradient, and by [`Objective::logps`](super::Objective::logps) whether completions are summed or averaged.
///
/// ```
/// use tch::Tensor;
/// use unsay_losses::Completions;
/// use unsay_losses::paired::{PairedLoss, Pairs, PairwiseCringe};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let one = |x: f64| Tensor::from_slice(&[x]);
/// let chosen = Completions::from_sums(&one(-30.0), None, &one(8.0))?;
/// let rejected = Completions::from_sums(&one(-20.0), None, &one(1.0))?;
/// // One rejected token two logits above the drawn one, which an op would have summed up.
/// let rejected = Completions { term: Some(one(2.126928)), ..rejected };
/// let pairs = Pairs::new(chosen, rejected)?; // margin -10
/// let loss = PairwiseCringe { b: 0.0, tau: 10.0, ..PairwiseCringe::new(1.0, 5) };
/// assert!((loss.gate(&pairs)?.double_value(&[0]) - 0.731059).abs() < 1e-6); // sigmoid(1)
/// assert!((loss.values(&pairs)?.double_value(&[0]) - 23.486666).abs() < 1e-6); // 0.731059 * (30 + 2.126928)
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairwiseCringe {
    /// Weight of the contrast against the likelihood; finite, at least 0.
    pub alpha: f64,
    /// Candidates to draw from; at least 1; 1 is deterministic.
    pub k: usize,
    /// The margin, in nats, at which the gate is half closed; not NaN and above minus infinity.
    pub b: f64,
    /// Temperature of the gate, in nats; 0 for a hard gate, else finite and at least 1e-6.
    pub tau: f64,
    /// Whether gradient flows through the gate too, which pushes the margin up. A hard gate has none to pass.
    #[serde(default)]
    pub gate_gradient: bool,
    /// Whether the drawn token's logit gets no gradient, so that the negative is only pushed down.
    #[serde(default)]
    pub detach_positives: bool,
}

/// Smaller temperatures divide by less than the rounding of a sum of log-probabilities.
const SMALLEST_TAU: f64 = 1e-6;

/// Gates below the first and above the second count as shut and open.
const SHUT_AND_OPEN: (f64, f64) = (0.01, 0.99);

impl PairwiseCringe {
    /// With an open gate: binary CRINGE per pair.
    pub fn new(alpha: f64, k: usize) -> Self {
        PairwiseCringe {
            alpha,
            k,
            b: f64::INFINITY,
            tau: 1.0,
            gate_gradient: false,
            detach_positives: false,
        }
    }

    /// `[B]` the gate of every pair, with a graph where it passes gradient.
    ///
    /// **Errors**: only libtorch's.
    pub fn gate(&self, pairs: &Pairs) -> Result<Tensor> {
        let margin = pairs.chosen.logp.f_sub(&pairs.rejected.logp)?;
        let missing = margin.f_neg()?.f_add_scalar(self.b)?;
        let gate = if self.tau > 0.0 {
            missing.f_div_scalar(self.tau)?.f_sigmoid()?
        } else {
            missing.f_gt(0.0)?.f_to_kind(margin.f_kind()?)?
        };
        match self.gate_gradient {
            true => Ok(gate),
            false => Ok(gate.f_detach()?),
        }
    }

    /// `[B]` the contrast summed over each rejected completion.
    fn contrasts<'a>(&self, pairs: &'a Pairs) -> Result<&'a Tensor> {
        let term = pairs.rejected.term.as_ref();
        term.ok_or_else(|| {
            let expected = "the contrast summed over each rejected completion";
            Error::input("rejected.term", expected, "none")
        })
    }
}

impl Described for PairwiseCringe {
    fn card(&self) -> Card {
        Card {
            name: "pairwise_cringe",
            summary: "CRINGE on a pair, gated by how far apart its log-probabilities are",
            formula: "σ((b − M)/τ) (Σ −log p(y_w) + α Σ softplus(z(y_l) − z(s))), M = log π(y_w) − log π(y_l)",
            on_negatives: "down, and the drawn token up by as much; bounded by α, nothing once the gate is closed",
            source: "Xu et al. 2023",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let range = |name: &'static str, value: String, range: &'static str| Error::Range { name, value, range };
        let b = self.b.is_nan() || self.b == f64::NEG_INFINITY;
        let tau = !(self.tau.is_finite() && (self.tau == 0.0 || self.tau >= SMALLEST_TAU));
        let gradient = self.gate_gradient && self.tau == 0.0;
        let all = [
            not_negative("pairwise_cringe.alpha", self.alpha),
            candidates("pairwise_cringe.k", self.k),
            b.then(|| range("pairwise_cringe.b", self.b.to_string(), "a finite number or infinity")),
            tau.then(|| {
                let allowed = "0 for a hard gate or a finite number, at least 0.000001";
                range("pairwise_cringe.tau", self.tau.to_string(), allowed)
            }),
            gradient.then(|| {
                let allowed = "`false`, as a hard gate (`tau` 0) has no gradient";
                range("pairwise_cringe.gate_gradient", true.to_string(), allowed)
            }),
        ];
        all.into_iter().flatten().collect()
    }
}

impl PairedLoss for PairwiseCringe {
    fn uses_reference(&self) -> bool {
        false
    }

    fn beta(&self) -> f64 {
        1.0
    }

    fn needs(&self) -> Needs {
        contrast_needs(self.k)
    }

    fn draws_per_row(&self) -> usize {
        1
    }

    fn token_term(&self, stats: &TokenStats, rows: &CompletionRows, draws: Option<&Tensor>) -> Result<Option<Tensor>> {
        check_draws(draws, self.draws_per_row(), (stats.n_rows(), stats.logp.device()))?;
        let lengths = rows.lengths();
        let n_chosen: i64 = lengths[..lengths.len() / 2].iter().sum();
        let n = stats.n_rows();
        let part = |t: &Tensor| t.f_narrow(0, n_chosen, n - n_chosen);
        let some = |t: &Option<Tensor>| t.as_ref().map(part).transpose();
        let rejected = TokenStats {
            target_logit: some(&stats.target_logit)?,
            top_logits: some(&stats.top_logits)?,
            top_ids: some(&stats.top_ids)?,
            ..TokenStats::new(part(&stats.targets)?, part(&stats.logp)?, part(&stats.correct)?)
        };
        let draws = draws.map(part).transpose()?;
        let found = contrast(&rejected, self.k, self.detach_positives, None, draws.as_ref())?;
        // Chosen completions have none.
        Ok(Some(found.f_constant_pad_nd([n_chosen, 0])?))
    }

    fn values(&self, pairs: &Pairs) -> Result<Tensor> {
        let contrasts = self.contrasts(pairs)?.f_mul_scalar(self.alpha)?;
        let both = contrasts.f_sub(&pairs.chosen.logp)?;
        Ok(both.f_mul(&self.gate(pairs)?)?)
    }

    fn extra_terms(&self, pairs: &Pairs) -> Result<Vec<(&'static str, Tensor)>> {
        let gate = self.gate(pairs)?;
        let kind = gate.f_kind()?;
        let (shut, open) = SHUT_AND_OPEN;
        Ok(vec![
            ("gate_shut", gate.f_lt(shut)?.f_to_kind(kind)?),
            ("gate_open", gate.f_gt(open)?.f_to_kind(kind)?),
            ("gate", gate),
            ("cringe_rejected", self.contrasts(pairs)?.shallow_clone()),
        ])
    }

    fn samples() -> Vec<Self> {
        let base = PairwiseCringe {
            b: 0.0,
            tau: 10.0,
            ..PairwiseCringe::new(1.0, 5)
        };
        vec![
            base,
            PairwiseCringe {
                gate_gradient: true,
                ..base
            },
            PairwiseCringe {
                tau: 0.0,
                k: 1,
                alpha: 0.5,
                ..base
            },
            PairwiseCringe {
                detach_positives: true,
                b: -5.0,
                ..base
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::paired::pairs::tests::numbers;
    use crate::paired::{Batch, Logps, Loss, Objective};
    use crate::{Completions, TokenOp};

    /// Pairs with these log-probabilities, and contrasts of the rejected ones.
    fn pairs(chosen: &Tensor, rejected: &Tensor, contrasts: &Tensor) -> Pairs {
        let side = |logp: &Tensor, n: f64, term: Option<Tensor>| Completions {
            term,
            ..Completions::from_sums(logp, None, &Tensor::full_like(logp, n)).unwrap()
        };
        Pairs::new(
            side(chosen, 3.0, None),
            side(rejected, 2.0, Some(contrasts.shallow_clone())),
        )
        .unwrap()
    }

    /// Pairs with these margins.
    fn apart(margins: &[f64]) -> Pairs {
        let margins = Tensor::from_slice(margins);
        pairs(
            &(&margins - 5.0),
            &Tensor::full_like(&margins, -5.0),
            &margins.ones_like(),
        )
    }

    fn gated(b: f64, tau: f64) -> PairwiseCringe {
        PairwiseCringe {
            b,
            tau,
            ..PairwiseCringe::new(0.5, 1)
        }
    }

    #[test]
    fn the_gate_closes_with_the_margin_softly_or_hard() {
        let margins = [-1e4, -20.0, -10.0, 0.0, 10.0, 20.0, 1e4];
        let gates = |loss: PairwiseCringe| numbers(&loss.gate(&apart(&margins)).unwrap());
        let soft = [1.0, 0.880797, 0.731059, 0.5, 0.268941, 0.119203, 0.0];
        assert!(
            gates(gated(0.0, 10.0))
                .iter()
                .zip(soft)
                .all(|(a, b)| (a - b).abs() < 1e-6)
        );
        let shifted = gates(gated(10.0, 10.0));
        assert!((shifted[4] - 0.5).abs() < 1e-12 && (shifted[3] - 0.731059).abs() < 1e-6);
        // Strictly below the margin: at it the hard gate is closed.
        assert_eq!(gates(gated(0.0, 0.0)), [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(gates(gated(0.0, 1e-6)), [1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0]);
        for tau in [0.0, 10.0] {
            assert_eq!(gates(gated(f64::INFINITY, tau)), [1.0; 7]);
        }
    }

    #[test]
    fn values_and_pushes_are_those_of_the_definition() {
        let (w, l, c) = (
            [-8.0f64, -3.0, -1e4, -1.0],
            [-6.0f64, -9.0, -1.0, -1e4],
            [2.0f64, 0.5, 1e4, 1e4],
        );
        let mut tried = 0;
        for (b, tau, gate_gradient) in [
            (0.0, 10.0, false),
            (-1.0, 2.0, true),
            (-5.0, 0.0, false),
            (f64::INFINITY, 2.0, true),
        ] {
            let loss = PairwiseCringe {
                gate_gradient,
                ..gated(b, tau)
            };
            assert!(loss.problems().is_empty(), "{loss:?}");
            let leaf = |x: &[f64]| Tensor::from_slice(x).set_requires_grad(true);
            let (chosen, rejected, contrasts) = (leaf(&w), leaf(&l), leaf(&c));
            let pairs = pairs(&chosen, &rejected, &contrasts);
            let values = loss.values(&pairs).unwrap();
            values.sum(Kind::Double).backward();
            for i in 0..w.len() {
                let missing = b - (w[i] - l[i]);
                let gate = match tau > 0.0 {
                    true => 1.0 / (1.0 + (-missing / tau).exp()),
                    false => f64::from(u8::from(missing > 0.0)),
                };
                let both = -w[i] + 0.5 * c[i];
                let through_gate = match gate_gradient {
                    true => gate * (1.0 - gate) / tau * both,
                    false => 0.0,
                };
                let near = |t: &Tensor, expected: f64| {
                    let got = if t.defined() { numbers(t)[i] } else { 0.0 };
                    let bound = 1e-12 * (1.0 + expected.abs());
                    assert!(
                        (got - expected).abs() < bound,
                        "{loss:?}, pair {i}: {got}, not {expected}"
                    );
                };
                near(&values, gate * both);
                near(&chosen.grad(), -gate - through_gate);
                near(&rejected.grad(), through_gate);
                near(&contrasts.grad(), 0.5 * gate);
            }
            tried += 1;
        }
        assert_eq!(tried, 4);
    }

    #[test]
    fn the_log_shows_gates_and_contrasts() {
        // Gates 0.999955, 0.990048, 0.989949, 0.5, 0.010051, 0.009952.
        let pairs = apart(&[-10.0, -4.6, -4.59, 0.0, 4.59, 4.6]);
        let terms = gated(0.0, 1.0).extra_terms(&pairs).unwrap();
        let names: Vec<&str> = terms.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["gate_shut", "gate_open", "gate", "cringe_rejected"]);
        assert_eq!(numbers(&terms[0].1), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(numbers(&terms[1].1), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert!((numbers(&terms[2].1)[4] - 0.010051).abs() < 1e-6);
        assert_eq!(numbers(&terms[3].1), [1.0; 6]);
    }

    /// Rows of one rejected completion of three tokens after a chosen one of two, contrasted with the largest logit.
    #[test]
    fn every_way_to_add_up_tokens_adds_up_the_contrast_alike() {
        let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0])
            .view([1, 4])
            .repeat([5, 1]);
        let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
        let targets = Tensor::from_slice(&[1i64, 2, 0, 1, 3]);
        let rows = CompletionRows::new(&[2, 3], Device::Cpu).unwrap();
        let contrasts = [1.0f64, -1.0, -3.0].map(|lead| lead.exp().ln_1p());
        let loss = PairwiseCringe::new(1.0, 1);
        let draws = Tensor::zeros([5, 1], (Kind::Double, Device::Cpu));
        let sum_for = |logps: Logps| {
            let objective = Objective {
                logps,
                ..Objective::from(Loss::PairwiseCringe(loss))
            };
            let stats = TokenOp::new(&logits, &identity, &targets, &objective.needs())
                .unwrap()
                .forward()
                .unwrap();
            let batch = Batch {
                stats: &stats,
                rows: &rows,
                reference: None,
                draws: Some(&draws),
                baseline: None,
            };
            let pairs = objective.pairs(&batch).unwrap();
            // The chosen ones are not contrasted.
            assert_eq!(numbers(pairs.chosen.term.as_ref().unwrap()), [0.0]);
            numbers(pairs.rejected.term.as_ref().unwrap())[0]
        };
        let [a, b, c] = contrasts;
        assert!((sum_for(Logps::Sum) - (a + b + c)).abs() < 1e-12);
        assert!((sum_for(Logps::Mean) - (a + b + c) / 3.0).abs() < 1e-12);
        assert!((sum_for(Logps::Ld { alpha: 0.25 }) - (a + b + 0.25 * c)).abs() < 1e-12);
    }

    #[test]
    fn a_manifest_says_everything_but_the_two_switches() {
        let text = r#"{ "pairwise_cringe": { "alpha": 0.5, "k": 1, "b": 0.0, "tau": 10.0 } }"#;
        let loss: Loss = serde_json::from_str(text).unwrap();
        assert_eq!(loss, Loss::PairwiseCringe(gated(0.0, 10.0)));
        let Err(error) = serde_json::from_str::<Loss>(&text.replace(r#""b": 0.0, "#, "")) else {
            panic!("a margin has no default");
        };
        assert!(error.to_string().starts_with("missing field `b`"), "{error}");
    }

    #[test]
    fn says_what_it_is_what_is_missing_and_what_is_out_of_range() {
        let loss = gated(0.0, 1.0);
        assert!(!loss.uses_reference() && !loss.per_token() && loss.draws_per_row() == 1);
        assert_eq!((loss.needs().top_k, loss.needs().target_logit), (2, true));
        let mut pairs = apart(&[1.0]);
        pairs.rejected.term = None;
        assert_eq!(
            loss.values(&pairs).unwrap_err().to_string(),
            "rejected.term: expected the contrast summed over each rejected completion, got none"
        );
        let text = |loss: PairwiseCringe| -> Vec<String> { loss.problems().iter().map(ToString::to_string).collect() };
        let bad = PairwiseCringe {
            alpha: -1.0,
            k: 0,
            b: f64::NAN,
            tau: -1.0,
            ..loss
        };
        assert_eq!(
            text(bad),
            [
                "`pairwise_cringe.alpha` is -1, expected a finite number, at least 0",
                "`pairwise_cringe.k` is 0, expected a whole number from 1 to 65536",
                "`pairwise_cringe.b` is NaN, expected a finite number or infinity",
                "`pairwise_cringe.tau` is -1, expected 0 for a hard gate or a finite number, at least 0.000001",
            ]
        );
        assert_eq!(text(gated(f64::NEG_INFINITY, 1.0)).len(), 1);
        for tau in [f64::NAN, f64::INFINITY, 1e-7] {
            assert_eq!(text(gated(0.0, tau)).len(), 1, "{tau}");
        }
        assert!(text(gated(f64::INFINITY, 1e-6)).is_empty() && text(gated(0.0, 0.0)).is_empty());
        let hard = PairwiseCringe {
            gate_gradient: true,
            ..gated(0.0, 0.0)
        };
        assert_eq!(
            text(hard),
            ["`pairwise_cringe.gate_gradient` is true, expected `false`, as a hard gate (`tau` 0) has no gradient"]
        );
    }
}
