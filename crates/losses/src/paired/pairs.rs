//! Pairs of completions, and what their log-ratios mean.

use std::fmt;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::baseline::wanted_baseline;
use crate::counts::counts;
use crate::error::finite;
use crate::{CompletionRows, Completions, Error, Result};

/// `B` pairs: the chosen and the rejected completion of each prompt.
#[derive(Debug)]
pub struct Pairs {
    /// The completions to prefer.
    pub chosen: Completions,
    /// The completions to avoid, in the same order.
    pub rejected: Completions,
    /// What the log-ratios of both sides become before they are compared.
    pub divergence: Divergence,
    /// Whether log-ratios are taken against nothing, so that they are log-probabilities.
    pub reference_free: bool,
    /// The whole-batch number that [`PairedLoss::baseline`](super::PairedLoss::baseline) asks for.
    pub baseline: Option<f64>,
}

impl Pairs {
    /// Two sides of the same size.
    ///
    /// **Errors**: [`Error::Input`] when their sizes differ, or only one has a reference.
    pub fn new(chosen: Completions, rejected: Completions) -> Result<Self> {
        if chosen.n() != rejected.n() {
            return Err(Error::input(
                "rejected",
                format!("{} completions, one for each chosen one", chosen.n()),
                rejected.n(),
            ));
        }
        if chosen.reference.is_some() != rejected.reference.is_some() {
            return Err(Error::input("reference", "on both sides or on none", "one"));
        }
        Ok(Pairs {
            chosen,
            rejected,
            divergence: Divergence::ReverseKl,
            reference_free: false,
            baseline: None,
        })
    }

    /// From `2B` completions: first the `B` chosen ones, then the `B` rejected ones in the same order.
    ///
    /// **Errors**: [`Error::Input`] for an odd number.
    pub fn split(both: &Completions) -> Result<Self> {
        let n = both.n();
        if n == 0 || n % 2 != 0 {
            return Err(Error::input(
                "completions",
                "the chosen ones and then as many rejected ones",
                format!("{n} completions"),
            ));
        }
        Pairs::new(both.narrow(0, n / 2)?, both.narrow(n / 2, n / 2)?)
    }

    /// `[B]` and `[B]` the log-ratios to the reference of chosen and rejected completions, as the divergence reads them.
    ///
    /// **Errors**: [`Error::Input`] without a reference, unless the pairs are reference-free.
    pub fn log_ratios(&self) -> Result<(Tensor, Tensor)> {
        let score = |side: &Completions| self.divergence.score(&self.log_ratio(side)?);
        Ok((score(&self.chosen)?, score(&self.rejected)?))
    }

    /// `[B]` the log-ratio of one side to the reference, before the divergence.
    fn log_ratio(&self, side: &Completions) -> Result<Tensor> {
        match self.reference_free {
            true => Ok(side.logp.shallow_clone()),
            false => side.log_ratio(),
        }
    }

    /// `[B]` whether the score of either side is held, so that the side gets no gradient; `None` for divergences that hold
    /// nothing.
    pub(super) fn held(&self) -> Result<Option<Tensor>> {
        let Some(slope) = self.divergence.slope() else {
            return Ok(None);
        };
        let held = |side: &Completions| -> Result<Tensor> {
            let exponent = self.log_ratio(side)?.f_detach()?.f_mul_scalar(slope)?;
            Ok(exponent.f_gt(LARGEST_EXPONENT)?)
        };
        Ok(Some(held(&self.chosen)?.f_logical_or(&held(&self.rejected)?)?))
    }

    /// `[B]` how far the chosen log-ratio is above the rejected one, as the divergence reads them.
    ///
    /// **Errors**: as [`Pairs::log_ratios`].
    pub fn margin(&self) -> Result<Tensor> {
        let (chosen, rejected) = self.log_ratios()?;
        Ok(chosen.f_sub(&rejected)?)
    }

    /// The whole-batch number for a loss that asked for it.
    pub(crate) fn wanted_baseline(&self) -> Result<f64> {
        wanted_baseline(self.baseline)
    }
}

/// The divergence between policy and reference behind the implicit rewards: what a log-ratio `u` becomes.
///
/// With another divergence than the reverse KL the optimal policy has another form, and `u` is replaced by
/// `f′(π/π_ref)` up to a constant: `u`, `1 − e^{−u}`, `log σ(u)`, `(e^{(α−1)u} − 1)/(α − 1)`. So only losses of the
/// difference of two scores take one. With [`Logps::Mean`](super::Logps::Mean), `u` is the mean log-ratio per token.
///
/// **On negatives**: the push on a side is that of the loss times the slope of the score at that side's log-ratio: `1`,
/// `e^{−u}`, `σ(−u)`, `e^{(α−1)u}`. Bounds that a loss states hold for the reverse KL and Jensen-Shannon. With the other
/// two a completion far from the reference on the wrong side is pushed by much more than `β`, and past `e^{40}`, where
/// exponents are held, not at all.
///
/// **Reference**: C. Wang, Y. Jiang, C. Yang, H. Liu, Y. Chen, "Beyond reverse KL: Generalizing direct preference
/// optimization with diverse divergence constraints", 2023, table 1. Its `α`, and that of TRL 0.24, is `1 − α` here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Divergence {
    /// `u`, as in DPO.
    #[default]
    ReverseKl,
    /// `1 − e^{−u}`.
    ForwardKl,
    /// Jensen-Shannon: `log σ(u)`.
    Js,
    /// `(e^{(α−1)u} − 1)/(α − 1)`; `α → 1` is the reverse KL, `α = 0` the forward KL.
    Alpha {
        /// Finite and not 1.
        alpha: f64,
    },
}

impl fmt::Display for Divergence {
    /// As the manifest spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Divergence::ReverseKl => f.write_str("reverse_kl"),
            Divergence::ForwardKl => f.write_str("forward_kl"),
            Divergence::Js => f.write_str("js"),
            Divergence::Alpha { alpha } => write!(f, "{{ alpha: {{ alpha: {alpha} }} }}"),
        }
    }
}

/// Beyond this the exponential of a log-ratio is held: `e^{40}` is `2e17`, and `f32` still holds its square, which
/// squared losses take in value and gradient.
const LARGEST_EXPONENT: f64 = 40.0;

/// `(e^{su} − 1)/s` for a slope `s` other than 0, of any shape, exponents held at 40.
///
/// The constant makes it 0 at `u = 0`: near `s = 0`, where it becomes `u`, it carries all digits.
pub(super) fn power(u: &Tensor, slope: f64) -> Result<Tensor> {
    let exponent = u.f_mul_scalar(slope)?.f_clamp_max(LARGEST_EXPONENT)?;
    Ok(exponent.f_expm1()?.f_div_scalar(slope)?)
}

impl Divergence {
    /// The parameter outside its range, if any.
    pub fn problem(&self) -> Option<Error> {
        match self {
            // At 1 itself the formula divides by zero; so near to it the value is the reverse KL's to six digits.
            Divergence::Alpha { alpha } if (alpha - 1.0).abs() < 1e-6 => Some(Error::Range {
                name: "divergence.alpha.alpha",
                value: alpha.to_string(),
                range: "a finite number other than 1, whose limit is `reverse_kl`",
            }),
            Divergence::Alpha { alpha } => finite("divergence.alpha.alpha", *alpha),
            _ => None,
        }
    }

    /// What the log-ratio `u` becomes, of any shape; keeps the graph.
    ///
    /// Exponents are held at 40, beyond which the value no longer moves and its gradient is zero; the objective logs the
    /// share of pairs that this concerns as `held_fraction`.
    ///
    /// **Errors**: only libtorch's.
    pub fn score(&self, u: &Tensor) -> Result<Tensor> {
        match (self, self.slope()) {
            (_, Some(slope)) => power(u, slope),
            (Divergence::Js, None) => Ok(u.f_log_sigmoid()?),
            (_, None) => Ok(u.shallow_clone()),
        }
    }

    /// The factor of the log-ratio in the exponent, for those that have one.
    fn slope(&self) -> Option<f64> {
        match self {
            Divergence::ReverseKl | Divergence::Js => None,
            Divergence::ForwardKl => Some(-1.0),
            Divergence::Alpha { alpha } => Some(alpha - 1.0),
        }
    }
}

/// Sizes of the **whole** batch of pairs, over all its micro-batches: what the objective divides by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairCounts {
    /// Pairs.
    pub pairs: f64,
    /// Tokens of chosen completions.
    pub chosen_tokens: f64,
}

counts!(PairCounts { pairs, chosen_tokens });

impl PairCounts {
    /// Counts one micro-batch: rows of the chosen completions, then of the rejected ones.
    pub fn of(rows: &CompletionRows) -> Self {
        let pairs = rows.n_completions() / 2;
        PairCounts {
            pairs: pairs as f64,
            chosen_tokens: rows.lengths().iter().take(pairs).sum::<i64>() as f64,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tch::Kind;

    use super::*;
    use crate::paired::PairedLoss;

    pub(crate) fn numbers(t: &Tensor) -> Vec<f64> {
        Vec::try_from(t.detach().to_kind(Kind::Double).reshape([-1])).unwrap()
    }

    /// From log-probability, reference and number of tokens of each completion; the log-probabilities are leaves.
    pub(crate) fn pairs_of(kind: Kind, chosen: &[[f64; 3]], rejected: &[[f64; 3]]) -> Pairs {
        let side = |rows: &[[f64; 3]]| {
            let column =
                |at: usize| Tensor::from_slice(&rows.iter().map(|row| row[at]).collect::<Vec<_>>()).to_kind(kind);
            Completions::from_sums(&column(0).set_requires_grad(true), Some(&column(1)), &column(2)).unwrap()
        };
        Pairs::new(side(chosen), side(rejected)).unwrap()
    }

    pub(crate) fn pairs(chosen: &[[f64; 3]], rejected: &[[f64; 3]]) -> Pairs {
        pairs_of(Kind::Double, chosen, rejected)
    }

    /// Asserts the value of one pair with log-ratios `c` (4 tokens) and `r` (10 tokens), and its slopes in both; finite
    /// in `f32` too.
    pub(crate) fn assert_pair(loss: &dyn PairedLoss, [c, r]: [f64; 2], expected: [f64; 3]) {
        for kind in [Kind::Double, Kind::Float] {
            let one = pairs_of(kind, &[[c - 8.0, -8.0, 4.0]], &[[r - 16.0, -16.0, 10.0]]);
            let value = loss.values(&one).unwrap();
            assert_eq!(value.size(), [1]);
            value.sum(kind).backward();
            let parts = [&value, &one.chosen.logp.grad(), &one.rejected.logp.grad()].map(|t| numbers(t)[0]);
            for (ours, exact) in parts.into_iter().zip(expected) {
                let near = kind == Kind::Float || (ours - exact).abs() < 1e-6 * exact.abs().max(1.0);
                assert!(
                    ours.is_finite() && near,
                    "{} {kind:?}: {parts:?} is not {expected:?}",
                    loss.name()
                );
            }
        }
    }

    #[test]
    fn sides_that_do_not_fit_are_errors() {
        let side = |n: i64, reference: bool| {
            let ones = Tensor::ones([n], (Kind::Double, tch::Device::Cpu));
            Completions::from_sums(&ones, reference.then_some(&ones), &ones).unwrap()
        };
        let text = |a, b| Pairs::new(a, b).unwrap_err().to_string();
        assert_eq!(
            text(side(2, true), side(3, true)),
            "rejected: expected 2 completions, one for each chosen one, got 3"
        );
        assert_eq!(
            text(side(2, true), side(2, false)),
            "reference: expected on both sides or on none, got one"
        );
        let odd = "completions: expected the chosen ones and then as many rejected ones, got 3 completions";
        assert_eq!(Pairs::split(&side(3, true)).unwrap_err().to_string(), odd);
        let split = Pairs::split(&side(4, true)).unwrap();
        assert_eq!((split.chosen.n(), split.rejected.n()), (2, 2));
    }

    #[test]
    fn ratios_compare_with_the_reference_or_with_nothing() {
        let mut two = pairs(
            &[[-3.0, -5.0, 1.0], [-1.0, -1.5, 1.0]],
            &[[-4.0, -1.0, 1.0], [-6.0, -7.0, 1.0]],
        );
        let both = |pairs: &Pairs| pairs.log_ratios().map(|(c, r)| (numbers(&c), numbers(&r)));
        assert_eq!(both(&two).unwrap(), (vec![2.0, 0.5], vec![-3.0, 1.0]));
        assert_eq!(numbers(&two.margin().unwrap()), [5.0, -0.5]);
        two.divergence = Divergence::ForwardKl;
        assert!((numbers(&two.margin().unwrap())[0] - (3f64.exp() - (-2f64).exp())).abs() < 1e-12);
        two.divergence = Divergence::ReverseKl;
        two.reference_free = true;
        assert_eq!(both(&two).unwrap(), (vec![-3.0, -1.0], vec![-4.0, -6.0]));
        two.chosen.reference = None;
        assert!(two.margin().is_ok());
        two.reference_free = false;
        assert!(
            two.margin()
                .unwrap_err()
                .to_string()
                .starts_with("reference: expected the reference's")
        );
    }

    /// Score and slope of each divergence at one log-ratio.
    fn score(divergence: Divergence, u: f64) -> [f64; 2] {
        let u = Tensor::from_slice(&[u]).set_requires_grad(true);
        let score = divergence.score(&u).unwrap();
        score.backward();
        [&score, &u.grad()].map(|t| numbers(t)[0])
    }

    #[test]
    fn each_divergence_has_its_score_and_slope() {
        let e = std::f64::consts::E;
        let cases = [
            (Divergence::ReverseKl, 2.0, [2.0, 1.0]),
            (Divergence::ForwardKl, 1.0, [1.0 - 1.0 / e, 1.0 / e]),
            (Divergence::ForwardKl, -1.0, [1.0 - e, e]),
            (Divergence::Js, 2f64.ln(), [(2.0f64 / 3.0).ln(), 1.0 / 3.0]),
            (Divergence::Alpha { alpha: 0.5 }, 2.0, [2.0 - 2.0 / e, 1.0 / e]),
            (Divergence::Alpha { alpha: 3.0 }, 0.5, [(e - 1.0) / 2.0, e]),
        ];
        for (divergence, u, exact) in cases {
            let ours = score(divergence, u);
            let near = ours.iter().zip(exact).all(|(a, b)| (a - b).abs() < 1e-12);
            assert!(near, "{divergence:?} at {u}: {ours:?} is not {exact:?}");
        }
    }

    #[test]
    fn alpha_has_its_limits_and_exponents_are_held() {
        for u in [-3.0, -0.1, 0.0, 0.7, 4.0] {
            let near = |a: [f64; 2], b: [f64; 2], bound: f64| a.iter().zip(b).all(|(a, b)| (a - b).abs() < bound);
            let forward = score(Divergence::ForwardKl, u);
            assert!(near(score(Divergence::Alpha { alpha: 0.0 }, u), forward, 1e-15));
            for alpha in [1.0 - 1e-6, 1.0 + 1e-6] {
                let ours = score(Divergence::Alpha { alpha }, u);
                assert!(
                    near(ours, score(Divergence::ReverseKl, u), 1e-5),
                    "{alpha} at {u}: {ours:?}"
                );
            }
        }
        let held = 40f64.exp_m1();
        let extremes = [
            (Divergence::ForwardKl, -39.0, [-39f64.exp_m1(), 39f64.exp()]),
            (Divergence::ForwardKl, -41.0, [-held, 0.0]),
            (Divergence::ForwardKl, -1e4, [-held, 0.0]),
            (Divergence::ForwardKl, 1e4, [1.0, 0.0]),
            (Divergence::Alpha { alpha: 2.0 }, 1e4, [held, 0.0]),
            (Divergence::Js, -1e4, [-1e4, 1.0]),
            (Divergence::Js, 1e4, [0.0, 0.0]),
        ];
        for (divergence, u, exact) in extremes {
            let ours = score(divergence, u);
            let near = |(a, b): (&f64, f64)| (a - b).abs() <= 1e-12 * b.abs();
            assert!(
                ours.iter().zip(exact).all(near),
                "{divergence:?} at {u}: {ours:?} is not {exact:?}"
            );
        }
    }

    #[test]
    fn alpha_has_a_range() {
        let problem = |alpha| Divergence::Alpha { alpha }.problem().map(|error| error.to_string());
        let text = "`divergence.alpha.alpha` is 1, expected a finite number other than 1, whose limit is `reverse_kl`";
        assert_eq!(problem(1.0).unwrap(), text);
        assert!(problem(1.0 + 0.9e-6).is_some() && problem(1.0 - 0.9e-6).is_some());
        assert!(problem(f64::NAN).is_some() && problem(f64::INFINITY).is_some());
        for alpha in [0.0, -2.0, 0.5, 3.0, 1.00001] {
            assert_eq!(problem(alpha), None);
        }
        assert!(Divergence::Js.problem().is_none());
    }

    #[test]
    fn counts_add_up() {
        let rows = |lengths: &[usize]| CompletionRows::new(lengths, tch::Device::Cpu).unwrap();
        let (first, second) = (PairCounts::of(&rows(&[3, 2, 5, 1])), PairCounts::of(&rows(&[4, 9])));
        let counts = |pairs, chosen_tokens| PairCounts { pairs, chosen_tokens };
        assert_eq!((first, second), (counts(2.0, 5.0), counts(1.0, 4.0)));
        assert_eq!([first, second].into_iter().sum::<PairCounts>(), counts(3.0, 9.0));
        let mut sum = first;
        sum += second;
        assert_eq!(sum, counts(3.0, 9.0));
    }

    #[test]
    fn a_baseline_must_be_a_number() {
        let mut one = pairs(&[[0.0, 0.0, 1.0]], &[[0.0, 0.0, 1.0]]);
        assert!(one.wanted_baseline().is_err());
        one.baseline = Some(f64::NAN);
        assert!(one.wanted_baseline().is_err());
        one.baseline = Some(0.25);
        assert!((one.wanted_baseline().unwrap() - 0.25).abs() < 1e-15);
    }
}
