//! What a model that unlearns is to keep.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::not_negative;
use crate::token::wanted;
use crate::value::{select, term};
use crate::{CompletionRows, Error, Kl, Needs, Result, TokenStats};

/// Terms that hold a model to completions it should keep, beside a loss that takes others away.
///
/// `(w_nll / n) Σ −log p(y_t) + (w_kl / n) Σ_t KL(π_ref(· | t) ‖ π(· | t))` over the `n` tokens of the retained
/// completions of the whole batch. Both are means over tokens; the divergence is exact, over the whole vocabulary.
///
/// Which completions are retained is the family's: the desirable ones in [`unpaired`](crate::unpaired), those after the
/// negatives in [`ranked`](crate::ranked). A batch without any has no such term.
///
/// **Parameters**: `nll` and `kl` (`0`), finite, at least 0. The loss itself has the weight 1: where others weigh both
/// sides, `γ · forget + α · retain`, the weight here is `α/γ` with `γ` left to the learning rate.
///
/// **Reference**: R. Zhang, L. Lin, Y. Bai, S. Mei, "Negative preference optimization: From catastrophic collapse to
/// effective unlearning", 2024, the companions "RT" (`nll`) and "KL" (`kl`) of each method.
///
/// **Differs from the paper**: the released code takes the divergence over every position, those of prompt and padding too.
///
/// ```
/// let retain: unsay_losses::Retain = serde_json::from_str(r#"{ "nll": 1.0 }"#).unwrap();
/// assert!(retain.problems().is_empty() && retain.kl == 0.0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retain {
    /// Weight of the negative log-likelihood; finite, at least 0.
    #[serde(default)]
    pub nll: f64,
    /// Weight of the divergence from the reference; finite, at least 0. Takes
    /// [`TokenOp::with_reference`](crate::TokenOp::with_reference).
    #[serde(default)]
    pub kl: f64,
}

/// What [`Retain`] gives on one micro-batch.
pub(crate) struct Retained {
    /// `[B]` what each completion adds, with its graph; zero for those that are not retained.
    pub(crate) values: Option<Tensor>,
    /// `retain_nll` and `retain_kl`, unweighted means over tokens.
    pub(crate) terms: Vec<(&'static str, Tensor)>,
}

impl Retain {
    /// Every weight outside its range.
    pub fn problems(&self) -> Vec<Error> {
        let nll = not_negative("retain.nll", self.nll);
        nll.into_iter().chain(not_negative("retain.kl", self.kl)).collect()
    }

    /// Whether any term is on.
    pub fn is_on(&self) -> bool {
        self.nll > 0.0 || self.kl > 0.0
    }

    /// What it reads from the op.
    pub fn needs(&self) -> Needs {
        Needs {
            kl: (self.kl > 0.0).then_some(Kl::Forward),
            ..Needs::default()
        }
    }

    /// The terms of the completions where `kept` `[B]` is true, which have `tokens` tokens in the whole batch.
    ///
    /// **Errors**: [`Error::Input`] when the divergence is needed and missing.
    pub(crate) fn evaluate(
        &self,
        stats: &TokenStats,
        rows: &CompletionRows,
        kept: &Tensor,
        tokens: f64,
    ) -> Result<Retained> {
        let mut retained = Retained {
            values: None,
            terms: Vec::new(),
        };
        let mut add = |name: &'static str, weight: f64, per_row: &Tensor| -> Result<()> {
            let sums = rows.sums(per_row)?;
            let values = select(&sums, kept)?.f_mul_scalar(weight / tokens)?;
            retained.values = Some(match &retained.values {
                Some(others) => others.f_add(&values)?,
                None => values,
            });
            retained.terms.extend(term(name, &sums, kept, tokens)?);
            Ok(())
        };
        if self.nll > 0.0 && tokens > 0.0 {
            add("retain_nll", self.nll, &stats.logp.f_neg()?)?;
        }
        if self.kl > 0.0 && tokens > 0.0 {
            add("retain_kl", self.kl, wanted("stats.kl", &stats.kl)?)?;
        }
        Ok(retained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_is_asked_of_the_op() {
        for (nll, kl) in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)] {
            let retain = Retain { nll, kl };
            assert!(retain.problems().is_empty());
            assert_eq!(retain.is_on(), nll > 0.0 || kl > 0.0);
            assert_eq!(retain.needs().kl, (kl > 0.0).then_some(Kl::Forward));
        }
        let texts: Vec<String> = (Retain { nll: -1.0, kl: -2.0 }.problems().iter())
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            texts,
            [
                "`retain.nll` is -1, expected a finite number, at least 0",
                "`retain.kl` is -2, expected a finite number, at least 0",
            ]
        );
        let typo = serde_json::from_str::<Retain>(r#"{"mse": 1.0}"#).unwrap_err();
        assert!(typo.to_string().starts_with("unknown field `mse`"));
    }
}
