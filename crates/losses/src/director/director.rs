//! Director: a language head and a head that judges every next token.

use serde::{Deserialize, Serialize};

use super::counts::lengths;
use super::{DirectorCounts, DirectorLoss};
use crate::error::{not_negative, positive};
use crate::scores::pointwise;
use crate::token::wanted;
use crate::value::{select, term};
use crate::{Card, Described, Error, LossValue, Needs, Result, TokenRows, TokenStats};

/// How the values of examples become the value of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Divided by the number of examples of the whole batch.
    #[default]
    Mean,
    /// Added up: the gradient grows with the batch.
    Sum,
}

/// Likelihood in the language head, and in the second head a judgement of every next token.
///
/// `L = (1/B) Σ_i (G_i + γ C_i)/n_i` over the `B` examples of the whole batch. With `z` and `u` the logits of the
/// two heads, the sums over the tokens of example `i`, and `ℓ` its label, 1 positive and 0 negative:
///
/// - `G_i = Σ_t −log softmax(z_t)_{y_t}` for an unlabelled example, else 0;
/// - `C_i = Σ_t BCE(σ(u_t)_{y_t}, ℓ) + ν mean_{v ≠ y_t} (σ(u_t)_v − ½)²` for a labelled example, else 0;
/// - `n_i` its number of tokens, counted twice where it trains both heads.
///
/// Every token of a completion carries the completion's label, and only the logit of the token that came is judged;
/// `ν` keeps the others undecided.
///
/// **Shapes**: see [`DirectorLoss::evaluate`]. A micro-batch must hold whole examples, as `n_i` is counted in it.
///
/// **Parameters**: `gamma` (required), finite and above 0; `norm` `ν` (`0`), finite and at least 0;
/// `train_generator_on_positives` (`false`), whether `G_i` is there for positive examples too; `reduction`
/// (`mean`), see [`Reduction`].
///
/// **Errors**: [`Error::Range`] for a parameter; otherwise those of [`DirectorLoss::evaluate`].
///
/// **On negatives**: they never reach the language head's likelihood. The second head's logit of a negative's token
/// is pushed down by `γ σ(u)/(B n_i)`, at most `γ/(B n_i)`, which fades as the judgement is learned;
/// [`decode`](super::decode) then avoids the token. What the two heads share, hidden states and in the shared form
/// the embedding, moves along.
///
/// **Reference**: K. Arora, K. Shuster, S. Sukhbaatar, J. Weston, "DIRECTOR: Generator-classifiers for supervised
/// language modeling", 2022.
///
/// **Differs from the paper**: the released code (ParlAI) adds the examples up, `reduction: sum`, so its learning
/// rate and gradient clipping depend on the batch size. The default divides by the number of examples, so that the
/// gradient does not grow with the batch, as that of no other loss here does: the same objective at a rate `B` times
/// smaller. An example without tokens, which there is `0/0`, is not counted.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use unsay_losses::director::{Director, DirectorCounts, DirectorLoss};
/// use unsay_losses::{TokenOp, TokenRows};
///
/// # fn main() -> Result<(), unsay_losses::Error> {
/// let loss = Director::new(0.5);
/// let hidden = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0, 2.0, 1.0, 0.0, -1.0]).view([2, 4]);
/// let language = Tensor::eye(4, (Kind::Double, Device::Cpu)); // hidden states are logits
/// let second = Tensor::zeros([4, 4], (Kind::Double, Device::Cpu)); // judges everything 1/2
/// let targets = Tensor::from_slice(&[0i64, 1]);
/// let rows = TokenRows::new(&[0, 1], &[true, true], &[-1, 0], Device::Cpu)?; // an unlabelled and a negative example
///
/// let generator = TokenOp::new(&hidden, &language, &targets, &loss.generator_needs())?.forward()?;
/// let classifier = TokenOp::new(&hidden, &second, &targets, &loss.classifier_needs())?.forward()?;
/// let value = loss.evaluate(&generator, &classifier, &rows, &DirectorCounts::of(&rows)?)?;
/// assert!((value.total.double_value(&[]) - 0.393382).abs() < 1e-6); // (-ln 0.6439 + 0.5 ln 2)/2
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Director {
    /// Weight of the judgement against the likelihood; finite, above 0. Published runs use 0.5 to 3.
    pub gamma: f64,
    /// Weight of keeping the second head undecided about all other tokens; finite, at least 0.
    #[serde(default)]
    pub norm: f64,
    /// Whether positive examples train the language head, too.
    #[serde(default)]
    pub train_generator_on_positives: bool,
    /// How examples become the batch.
    #[serde(default)]
    pub reduction: Reduction,
}

impl Director {
    /// With the defaults.
    pub fn new(gamma: f64) -> Self {
        Director {
            gamma,
            norm: 0.0,
            train_generator_on_positives: false,
            reduction: Reduction::Mean,
        }
    }
}

impl Described for Director {
    fn card(&self) -> Card {
        Card {
            name: "director",
            summary: "likelihood in one head, a judgement of every next token in a second one; both at generation",
            formula: "−log p(y) on unlabelled; γ (BCE(σ(u(y)), label) + ν mean (σ(u(v)) − ½)²) on labelled, u of the second head",
            on_negatives: "down in the second head, which generation listens to; bounded by γ/n",
            source: "Arora et al. 2022",
        }
    }

    fn problems(&self) -> Vec<Error> {
        let gamma = positive("director.gamma", self.gamma);
        gamma
            .into_iter()
            .chain(not_negative("director.norm", self.norm))
            .collect()
    }
}

impl DirectorLoss for Director {
    fn generator_needs(&self) -> Needs {
        Needs::default()
    }

    fn classifier_needs(&self) -> Needs {
        Needs {
            target_logit: true,
            off_target: self.norm > 0.0,
            without_logp: true,
            ..Needs::default()
        }
    }

    fn evaluate(
        &self,
        generator: &TokenStats,
        classifier: &TokenStats,
        rows: &TokenRows,
        counts: &DirectorCounts,
    ) -> Result<LossValue> {
        self.check()?;
        counts.check(generator, rows)?;
        let logit = wanted("classifier.target_logit", &classifier.target_logit)?;
        same_tokens(generator, classifier)?;
        let kind = generator.logp.f_kind()?;

        let nll = generator.logp.f_neg()?;
        let (positive, labelled) = (rows.label.f_eq(1)?, rows.label.f_ge(0)?);
        let unlabelled = labelled.f_logical_not()?;
        let bce = pointwise(logit, &positive)?;
        let (learns, n_learns) = match self.train_generator_on_positives {
            true => (
                unlabelled.f_logical_or(&positive)?,
                counts.tokens.unlabelled + counts.tokens.positive,
            ),
            false => (unlabelled, counts.tokens.unlabelled),
        };
        let n_labelled = counts.tokens.positive + counts.tokens.negative;
        let judged_good = logit.f_gt(0)?;
        let (good, bad) = (
            judged_good.f_to_kind(kind)?,
            judged_good.f_logical_not()?.f_to_kind(kind)?,
        );
        let negative = rows.label.f_eq(0)?;
        let mut terms = vec![
            term("ce_loss", &nll, &learns, n_learns)?,
            term("bce_loss", &bce, &labelled, n_labelled)?,
            term("judge_acc_positive", &good, &positive, counts.tokens.positive)?,
            term("judge_acc_negative", &bad, &negative, counts.tokens.negative)?,
        ];

        let mut judgement = bce;
        if self.norm > 0.0 {
            let off_target = wanted("classifier.off_target", &classifier.off_target)?;
            judgement = judgement.f_add(&off_target.f_mul_scalar(self.norm)?)?;
            terms.push(term("norm_loss", off_target, &labelled, n_labelled)?);
        }
        let judged = select(&judgement, &labelled)?.f_mul_scalar(self.gamma)?;
        let heads = learns.f_to_kind(kind)?.f_add(&labelled.f_to_kind(kind)?)?;
        let share = heads.f_mul(&lengths(rows)?.f_index_select(0, &rows.example)?)?;
        let values = select(&nll, &learns)?.f_add(&judged)?.f_div(&share)?;
        let values = match self.reduction {
            Reduction::Mean => values.f_div_scalar(counts.examples)?,
            Reduction::Sum => values,
        };
        LossValue::from_rows(&values, rows, terms.into_iter().flatten().collect())
    }

    fn samples() -> Vec<Self> {
        let every_switch = Director {
            norm: 0.3,
            train_generator_on_positives: true,
            reduction: Reduction::Sum,
            ..Director::new(3.0)
        };
        vec![Director::new(0.5), every_switch]
    }
}

/// Checks that both heads were asked about the same tokens, in the same kind.
fn same_tokens(generator: &TokenStats, classifier: &TokenStats) -> Result<()> {
    let of = |stats: &TokenStats| -> Result<String> {
        let logp = &stats.logp;
        Ok(format!(
            "{} rows of {:?} on {:?}",
            stats.n_rows(),
            logp.f_kind()?,
            logp.device()
        ))
    };
    let (expected, got) = (of(generator)?, of(classifier)?);
    if expected != got {
        return Err(Error::input("classifier", format!("{expected}, as `generator`"), got));
    }
    if !generator.targets.f_equal(&classifier.targets)? {
        return Err(Error::input("classifier.targets", "those of `generator`", "others"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::TokenOp;

    /// Two heads whose logits are leaves, through ops with the identity as embedding.
    struct Heads {
        z: Tensor,
        u: Tensor,
    }

    impl Heads {
        fn new(z: &[f64], u: &[f64], v: i64) -> Self {
            let leaf = |x: &[f64]| Tensor::from_slice(x).view([-1, v]).set_requires_grad(true);
            Heads { z: leaf(z), u: leaf(u) }
        }

        fn run(&self, loss: &Director, targets: &[i64], rows: &TokenRows) -> Result<LossValue> {
            let identity = Tensor::eye(self.z.size()[1], (Kind::Double, Device::Cpu));
            let targets = Tensor::from_slice(targets);
            let language = TokenOp::new(&self.z, &identity, &targets, &loss.generator_needs())?;
            let second = TokenOp::new(&self.u, &identity, &targets, &loss.classifier_needs())?;
            let (generator, classifier) = (language.forward()?, second.forward()?);
            let value = loss.evaluate(&generator, &classifier, rows, &DirectorCounts::of(rows)?)?;
            value.total.backward();
            (language.surrogate(&generator)? + second.surrogate(&classifier)?).backward();
            Ok(value)
        }
    }

    fn numbers(t: &Tensor) -> Vec<f64> {
        Vec::try_from(t.detach().to_kind(Kind::Double).view([-1])).unwrap()
    }

    fn close(ours: &[f64], by_hand: &[f64]) -> bool {
        ours.len() == by_hand.len() && ours.iter().zip(by_hand).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    /// Three examples: unlabelled (rows 0 and 2, whose targets have p = .6439 and .2369), positive (row 1) and
    /// negative (row 3).
    fn made() -> (Heads, [i64; 4], TokenRows) {
        let (l2, l4) = (2f64.ln(), 4f64.ln());
        let z = [2.0, 1.0, 0.0, -1.0].repeat(4);
        let u = [
            [9.0, 9.0, 9.0, 9.0],
            [l2, 0.0, l4, -l4],
            [9.0, -9.0, 9.0, 9.0],
            [0.0, l4, 0.0, l4],
        ];
        let rows = TokenRows::new(&[0, 1, 0, 2], &[false; 4], &[-1, 1, 0], Device::Cpu).unwrap();
        (Heads::new(&z, &u.concat(), 4), [0, 0, 1, 3], rows)
    }

    // -log .6439, -log .2369; BCE of the positive -log 2/3, of the negative -log 1/5; their other tokens are off
    // one half by (0, .3, .3) and (0, .3, 0).
    const NLL: [f64; 2] = [0.440190, 1.440190];
    const BCE: [f64; 2] = [0.405465, 1.609438];
    const OFF: [f64; 2] = [0.06, 0.03];

    #[test]
    fn by_hand_with_the_defaults() {
        let (heads, targets, rows) = made();
        let value = heads.run(&Director::new(0.5), &targets, &rows).unwrap();
        let each = [(NLL[0] + NLL[1]) / 2.0 / 3.0, 0.5 * BCE[0] / 3.0, 0.5 * BCE[1] / 3.0];
        assert!(close(&numbers(&value.per_example), &each), "{value:?}");
        assert!(close(&[value.total.double_value(&[])], &[each.iter().sum()]));
        let terms: Vec<(&str, f64)> = value.terms.iter().map(|(n, t)| (*n, t.double_value(&[]))).collect();
        let names: Vec<&str> = terms.iter().map(|t| t.0).collect();
        assert_eq!(
            names,
            ["ce_loss", "bce_loss", "judge_acc_positive", "judge_acc_negative"]
        );
        let values: Vec<f64> = terms.iter().map(|t| t.1).collect();
        assert!(
            close(&values, &[(NLL[0] + NLL[1]) / 2.0, (BCE[0] + BCE[1]) / 2.0, 1.0, 0.0]),
            "{terms:?}"
        );
        // The unlabelled example alone moves the language head, the labelled ones alone the second head.
        let (z, u) = (numbers(&heads.z.grad()), numbers(&heads.u.grad()));
        let p = [0.643914, 0.236883, 0.087144, 0.032059].map(|p| p / 6.0);
        let first = [p[0] - 1.0 / 6.0, p[1], p[2], p[3]];
        let third = [p[0], p[1] - 1.0 / 6.0, p[2], p[3]];
        assert!(close(&z, &[first, [0.0; 4], third, [0.0; 4]].concat()), "{z:?}");
        let pushes = [[-1.0 / 3.0 / 6.0, 0.0, 0.0, 0.0], [0.0; 4], [0.0, 0.0, 0.0, 0.8 / 6.0]];
        assert!(close(&u, &[&[0.0; 4][..], &pushes.concat()].concat()), "{u:?}");
    }

    #[test]
    fn by_hand_with_every_switch() {
        let (heads, targets, rows) = made();
        let loss = Director {
            norm: 2.0,
            train_generator_on_positives: true,
            reduction: Reduction::Sum,
            ..Director::new(3.0)
        };
        let value = heads.run(&loss, &targets, &rows).unwrap();
        let each = [
            (NLL[0] + NLL[1]) / 2.0,
            // Both heads learn from the positive: its one token counts twice.
            (NLL[0] + 3.0 * (BCE[0] + 2.0 * OFF[0])) / 2.0,
            3.0 * (BCE[1] + 2.0 * OFF[1]),
        ];
        assert!(close(&numbers(&value.per_example), &each), "{value:?}");
        assert!(close(&[value.total.double_value(&[])], &[each.iter().sum()]));
        let term = |name: &str| {
            let found = value.terms.iter().find(|t| t.0 == name).unwrap();
            found.1.double_value(&[])
        };
        assert_eq!(value.terms.len(), 5);
        assert!(close(&[term("ce_loss")], &[(2.0 * NLL[0] + NLL[1]) / 3.0]));
        assert!(close(&[term("norm_loss")], &[(OFF[0] + OFF[1]) / 2.0]));
        // 3/2 · 2 · mean over three others of 2(σ − ½)σ(1 − σ) on the positive's third token, σ = .8.
        assert!(close(
            &[heads.u.grad().double_value(&[1, 2])],
            &[3.0 * 2.0 * 0.3 * 0.16 / 3.0]
        ));
    }

    #[test]
    fn each_switch_does_its_own() {
        let total = |loss: Director| {
            let (heads, targets, rows) = made();
            heads.run(&loss, &targets, &rows).unwrap().total.double_value(&[])
        };
        let plain = Director::new(0.5);
        let mean = total(plain);
        let sum = total(Director {
            reduction: Reduction::Sum,
            ..plain
        });
        let norm = total(Director { norm: 1.0, ..plain });
        let positives = total(Director {
            train_generator_on_positives: true,
            ..plain
        });
        assert!(close(
            &[sum, norm - mean, positives - mean],
            &[
                3.0 * mean,
                0.5 * (OFF[0] + OFF[1]) / 3.0,
                (NLL[0] / 2.0 - 0.5 * BCE[0] / 2.0) / 3.0
            ]
        ));
    }

    #[test]
    fn one_side_alone_trains_one_head() {
        for (labels, names) in [
            ([-1i8, -1], vec!["ce_loss"]),
            ([0, 0], vec!["bce_loss", "judge_acc_negative"]),
            ([1, 1], vec!["bce_loss", "judge_acc_positive"]),
        ] {
            let heads = Heads::new(&[0.3, 0.1, -0.5, 0.7], &[0.2, 0.4, -0.6, 0.1], 2);
            let rows = TokenRows::new(&[0, 1], &[true; 2], &labels, Device::Cpu).unwrap();
            let value = heads.run(&Director::new(1.0), &[0, 1], &rows).unwrap();
            assert_eq!(value.terms.iter().map(|t| t.0).collect::<Vec<_>>(), names);
            let moved = |t: &Tensor| t.grad().abs().max().double_value(&[]) > 0.0;
            assert_eq!((moved(&heads.z), moved(&heads.u)), (labels[0] < 0, labels[0] >= 0));
        }
    }

    #[test]
    fn margins_of_ten_thousand_stay_finite() {
        for loss in Director::samples() {
            let (x, y) = (1e4, -1e4);
            let heads = Heads::new(&[x, y, y, x, x, y, y, x], &[x, y, y, x, y, x, x, y], 2);
            let rows = TokenRows::new(&[0, 1, 2, 3], &[true; 4], &[1, 0, 0, -1], Device::Cpu).unwrap();
            let value = heads.run(&loss, &[0, 0, 1, 0], &rows).unwrap();
            for t in [&value.total, &value.per_example, &heads.z.grad(), &heads.u.grad()] {
                assert_eq!(t.isfinite().all().int64_value(&[]), 1, "{loss:?}");
            }
        }
    }

    #[test]
    fn the_second_head_is_asked_for_all_other_tokens_only_where_they_count() {
        let norm = Director {
            norm: 0.1,
            ..Director::new(1.0)
        };
        assert!(!Director::new(1.0).classifier_needs().off_target && norm.classifier_needs().off_target);
        assert!(Director::new(1.0).classifier_needs().target_logit);
        let read: Director = serde_json::from_str(r#"{ "gamma": 1.0 }"#).unwrap();
        assert_eq!(read, Director::new(1.0));
        assert!(serde_json::from_str::<Director>("{}").is_err());
        let sum: Director = serde_json::from_str(r#"{ "gamma": 1.0, "reduction": "sum" }"#).unwrap();
        assert_eq!(sum.reduction, Reduction::Sum);
    }
}
