//! From log-probabilities of tokens to those of whole completions.

use tch::{Device, Kind, Tensor};

use crate::{Error, Result, TokenStats};

/// Which of the `N` rows of an op belong to which completion: one completion's tokens after the other's.
#[derive(Debug)]
pub struct CompletionRows {
    lengths: Vec<i64>,
    /// `[N]` where each row goes in a `[B, T]` table, flattened.
    slot: Tensor,
}

impl CompletionRows {
    /// From the number of tokens of each completion, in the order of the rows.
    ///
    /// **Errors**: [`Error::Empty`] without completions, [`Error::Input`] for one without tokens (its mean would be
    /// a division by zero), or where all completions at the length of the longest have more than 2²⁸ tokens.
    pub fn new(lengths: &[usize], device: Device) -> Result<Self> {
        if lengths.is_empty() {
            return Err(Error::Empty {
                what: "the batch of completions",
            });
        }
        if let Some(at) = lengths.iter().position(|&n| n == 0) {
            let got = format!("none in completion {at}");
            return Err(Error::input("lengths", "at least one token in every completion", got));
        }
        let longest = lengths.iter().copied().max().unwrap_or(1);
        let places = longest.checked_mul(lengths.len());
        if places.is_none_or(|places| places > MAX_PLACES) {
            return Err(Error::input(
                "lengths",
                format!("at most {MAX_PLACES} tokens, were all completions as long as the longest"),
                format!("{} completions of up to {longest} tokens", lengths.len()),
            ));
        }
        let slots = lengths.iter().enumerate();
        let slots: Vec<i64> = slots
            .flat_map(|(completion, &n)| (0..n).map(move |position| (completion * longest + position) as i64))
            .collect();
        Ok(CompletionRows {
            lengths: lengths.iter().map(|&n| n as i64).collect(),
            slot: Tensor::f_from_slice(&slots)?.f_to_device(device)?,
        })
    }

    /// How many completions there are.
    pub fn n_completions(&self) -> usize {
        self.lengths.len()
    }

    /// How many rows there are.
    pub fn n_rows(&self) -> i64 {
        self.lengths.iter().sum()
    }

    /// The number of tokens of each completion.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// `[B, T]` from one value per row `[N]`, zeros after the end of each completion; keeps the graph.
    ///
    /// Every value has a place of its own, so the sums that losses take over `T` have one fixed order on every
    /// device, which adding by index does not promise.
    ///
    /// **Errors**: [`Error::Input`] for another number of rows.
    pub fn table(&self, per_row: &Tensor) -> Result<Tensor> {
        let n = self.n_rows();
        if per_row.size() != [n] || per_row.device() != self.slot.device() {
            return Err(Error::input(
                "values per row",
                format!("[{n}] on {:?}, as the completions have {n} tokens", self.slot.device()),
                format!("{:?} on {:?}", per_row.size(), per_row.device()),
            ));
        }
        let (b, t) = (self.lengths.len() as i64, self.longest());
        let empty = per_row
            .f_zeros_like()?
            .f_new_zeros([b * t], (per_row.f_kind()?, per_row.device()))?;
        Ok(empty.f_scatter(0, &self.slot, per_row)?.f_view([b, t])?)
    }

    /// `[B]` sums over each completion of one value per row `[N]`; keeps the graph.
    ///
    /// **Errors**: as [`CompletionRows::table`].
    pub fn sums(&self, per_row: &Tensor) -> Result<Tensor> {
        Ok(self.table(per_row)?.f_sum_dim_intlist([1i64].as_slice(), false, None)?)
    }

    /// As [`CompletionRows::sums`], with every value multiplied by its weight `[N]` first.
    ///
    /// **Errors**: as [`CompletionRows::table`].
    pub(crate) fn weighted_sums(&self, per_row: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        let Some(weights) = weights else {
            return self.sums(per_row);
        };
        // Tables, not rows, are multiplied: each is checked, where a product of rows could stretch one to fit.
        let weighted = self.table(per_row)?.f_mul(&self.table(weights)?)?;
        Ok(weighted.f_sum_dim_intlist([1i64].as_slice(), false, None)?)
    }

    /// `[N]` each completion's value of `[B]` for every row of it; keeps the graph.
    ///
    /// **Errors**: [`Error::Input`] for another number of completions.
    pub(crate) fn spread(&self, per_completion: &Tensor) -> Result<Tensor> {
        let b = self.lengths.len() as i64;
        if per_completion.size() != [b] {
            let got = format!("{:?}", per_completion.size());
            return Err(Error::input("values per completion", format!("[{b}]"), got));
        }
        // By way of the table, as every place of it is read once: the gradient is a sum in one fixed order.
        let table = per_completion.f_unsqueeze(1)?.f_expand([b, self.longest()], false)?;
        Ok(table.f_reshape([-1])?.f_gather(0, &self.slot, false)?)
    }

    /// Where the rows live.
    pub(crate) fn device(&self) -> Device {
        self.slot.device()
    }

    /// `[B]` the numbers of tokens, in a floating-point kind.
    pub(crate) fn tokens(&self, kind: Kind) -> Result<Tensor> {
        Ok(Tensor::f_from_slice(&self.lengths)?
            .f_to_device(self.slot.device())?
            .f_to_kind(kind)?)
    }

    pub(crate) fn longest(&self) -> i64 {
        self.lengths.iter().copied().max().unwrap_or(1)
    }
}

/// Far beyond any micro-batch, as each token has a hidden state beside its place in the table.
const MAX_PLACES: usize = 1 << 28;

/// Log-probabilities of `B` whole completions.
#[derive(Debug)]
pub struct Completions {
    /// `[B]` sum of the log-probabilities of the completion's tokens, the end included, with its graph.
    pub logp: Tensor,
    /// `[B]` the same under the frozen reference; no graph.
    pub reference: Option<Tensor>,
    /// `[B]` how many tokens were summed, in the kind of `logp`; no graph.
    pub tokens: Tensor,
    /// `[B]` mean over the tokens of `log p(y_t) − log Σ_v p(v)²`, which WPO weights are made of; no graph.
    pub confidence: Option<Tensor>,
    /// `[B]` sum of a loss's own term over the tokens, with its graph: CRINGE of a rejected completion.
    pub term: Option<Tensor>,
}

impl Completions {
    /// From the stats of an op and, where the loss has a reference, the reference's log-probability of every row
    /// `[N]`. `weights` `[N]` multiply every token's log-probability in both (LD-DPO).
    ///
    /// **Errors**: [`Error::Input`] when the numbers of rows differ, or the reference is not floating point.
    pub fn of(
        stats: &TokenStats,
        rows: &CompletionRows,
        reference: Option<&Tensor>,
        weights: Option<&Tensor>,
    ) -> Result<Self> {
        let sums = |logp: &Tensor| rows.weighted_sums(logp, weights);
        let kind = stats.logp.f_kind()?;
        let reference = match reference {
            Some(logp) => {
                floating(logp)?;
                Some(sums(&logp.f_detach()?.f_to_kind(kind)?)?)
            }
            None => None,
        };
        Ok(Completions {
            logp: sums(&stats.logp)?,
            reference,
            tokens: rows.tokens(kind)?,
            confidence: None,
            term: None,
        })
    }

    /// From sums that were taken elsewhere.
    ///
    /// **Shapes**: all `[B]`.
    ///
    /// **Errors**: [`Error::Input`] when the shapes differ, log-probabilities are not floating point, or a number of
    /// tokens is below 1 or not finite; [`Error::Empty`] without completions.
    pub fn from_sums(logp: &Tensor, reference: Option<&Tensor>, tokens: &Tensor) -> Result<Self> {
        let size = logp.size();
        if size.len() != 1 || !logp.is_floating_point() {
            return Err(Error::input(
                "logp",
                "[B], floating point",
                format!("{size:?} of {:?}", logp.f_kind()?),
            ));
        }
        if size == [0] {
            return Err(Error::Empty {
                what: "the batch of completions",
            });
        }
        for (what, column) in [("reference", reference), ("tokens", Some(tokens))] {
            let Some(column) = column else { continue };
            if column.size() != size || column.device() != logp.device() {
                return Err(Error::input(
                    what,
                    format!("{size:?} on {:?}, as `logp`", logp.device()),
                    format!("{:?} on {:?}", column.size(), column.device()),
                ));
            }
        }
        let kind = logp.f_kind()?;
        let reference = match reference {
            Some(reference) => {
                floating(reference)?;
                Some(reference.f_detach()?.f_to_kind(kind)?)
            }
            None => None,
        };
        let counted = tokens.f_to_kind(Kind::Double)?;
        let (fewest, most) = (counted.f_min()?.double_value(&[]), counted.f_max()?.double_value(&[]));
        if !(fewest >= 1.0 && most.is_finite()) {
            let got = format!("numbers from {fewest} to {most}");
            return Err(Error::input("tokens", "finite numbers, at least 1", got));
        }
        Ok(Completions {
            logp: logp.shallow_clone(),
            reference,
            tokens: tokens.f_detach()?.f_to_kind(kind)?,
            confidence: None,
            term: None,
        })
    }

    /// How many completions there are.
    pub fn n(&self) -> i64 {
        self.logp.size().first().copied().unwrap_or(0)
    }

    /// Some of the completions: `n` from `start`.
    pub(crate) fn narrow(&self, start: i64, n: i64) -> Result<Self> {
        let part = |t: &Tensor| t.f_narrow(0, start, n);
        let maybe = |t: &Option<Tensor>| t.as_ref().map(part).transpose();
        Ok(Completions {
            logp: part(&self.logp)?,
            reference: maybe(&self.reference)?,
            tokens: part(&self.tokens)?,
            confidence: maybe(&self.confidence)?,
            term: maybe(&self.term)?,
        })
    }

    /// `[B]` mean log-probability per token.
    pub(crate) fn mean_logp(&self) -> Result<Tensor> {
        Ok(self.logp.f_div(&self.tokens)?)
    }

    /// `[B]` log-ratio to the reference, `log π(y) − log π_ref(y)`.
    ///
    /// **Errors**: [`Error::Input`] without a reference.
    pub(crate) fn log_ratio(&self) -> Result<Tensor> {
        Ok(self.logp.f_sub(self.wanted_reference()?)?)
    }

    /// `[B]` log-probability under the reference, for a loss that compares with it.
    pub(crate) fn wanted_reference(&self) -> Result<&Tensor> {
        self.reference.as_ref().ok_or_else(missing_reference)
    }

    /// `[B]` implicit rewards, for the log: `beta` times the log-ratio to the reference, or the log-probability where
    /// there is none; its mean per token where `per_token`. No graph.
    ///
    /// **Errors**: as [`Completions::log_ratio`].
    pub(crate) fn reward(&self, beta: f64, uses_reference: bool, per_token: bool) -> Result<Tensor> {
        let logp = match uses_reference {
            true => self.log_ratio()?,
            false => self.logp.shallow_clone(),
        };
        let logp = match per_token {
            true => logp.f_div(&self.tokens)?,
            false => logp,
        };
        Ok(logp.f_detach()?.f_mul_scalar(beta)?)
    }

    /// The same completions with means per token in place of sums: policy, reference and the loss's own term.
    pub(crate) fn per_token(self) -> Result<Self> {
        let mean = |sum: &Option<Tensor>| sum.as_ref().map(|sum| sum.f_div(&self.tokens)).transpose();
        Ok(Completions {
            logp: self.mean_logp()?,
            reference: mean(&self.reference)?,
            term: mean(&self.term)?,
            ..self
        })
    }
}

/// The reference's log-probabilities for a loss that compares with it, nothing for one that does not.
///
/// **Errors**: [`Error::Input`] when they are missing.
pub(crate) fn wanted_reference(wanted: bool, given: Option<&Tensor>) -> Result<Option<&Tensor>> {
    match (wanted, given) {
        (true, None) => Err(missing_reference()),
        (true, given) => Ok(given),
        (false, _) => Ok(None),
    }
}

fn missing_reference() -> Error {
    let expected = "the reference's log-probabilities, as the loss compares with it";
    Error::input("reference", expected, "none")
}

/// That a reference's log-probabilities can be some.
fn floating(reference: &Tensor) -> Result<()> {
    if reference.is_floating_point() {
        return Ok(());
    }
    let got = format!("{:?}", reference.f_kind()?);
    Err(Error::input("reference", "floating point", got))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Needs, TokenOp};

    fn numbers(t: &Tensor) -> Vec<f64> {
        Vec::try_from(t.detach().to_kind(Kind::Double).reshape([-1])).unwrap()
    }

    #[test]
    fn tables_and_sums_follow_the_lengths_and_carry_gradients() {
        let rows = CompletionRows::new(&[2, 1, 3], Device::Cpu).unwrap();
        assert_eq!((rows.n_completions(), rows.n_rows(), rows.longest()), (3, 6, 3));
        let values = Tensor::from_slice(&[1.0f64, 2.0, 3.0, 4.0, 5.0, 6.0]).set_requires_grad(true);
        let table = rows.table(&values).unwrap();
        assert_eq!(numbers(&table), [1.0, 2.0, 0.0, 3.0, 0.0, 0.0, 4.0, 5.0, 6.0]);
        let sums = rows.sums(&values).unwrap();
        assert_eq!(numbers(&sums), [3.0, 3.0, 15.0]);
        (sums * Tensor::from_slice(&[1.0f64, 10.0, 100.0]))
            .sum(Kind::Double)
            .backward();
        assert_eq!(numbers(&values.grad()), [1.0, 1.0, 10.0, 100.0, 100.0, 100.0]);
    }

    #[test]
    fn a_value_per_completion_is_spread_over_its_rows_and_collects_their_gradients() {
        let rows = CompletionRows::new(&[2, 1, 3], Device::Cpu).unwrap();
        let values = Tensor::from_slice(&[1.0f64, 2.0, 3.0]).set_requires_grad(true);
        let spread = rows.spread(&values).unwrap();
        assert_eq!(numbers(&spread), [1.0, 1.0, 2.0, 3.0, 3.0, 3.0]);
        (spread * Tensor::from_slice(&[1.0f64, 10.0, 5.0, 1.0, 2.0, 3.0]))
            .sum(Kind::Double)
            .backward();
        assert_eq!(numbers(&values.grad()), [11.0, 5.0, 6.0]);
        let error = rows.spread(&values.narrow(0, 0, 2)).unwrap_err().to_string();
        assert_eq!(error, "values per completion: expected [3], got [2]");
    }

    #[test]
    fn completions_sum_policy_and_reference_with_the_same_weights() {
        let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0])
            .view([1, 4])
            .repeat([3, 1]);
        let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
        let stats = TokenOp::new(
            &logits,
            &identity,
            &Tensor::from_slice(&[0i64, 1, 3]),
            &Needs::default(),
        )
        .unwrap()
        .forward()
        .unwrap();
        let rows = CompletionRows::new(&[2, 1], Device::Cpu).unwrap();
        let reference = Tensor::from_slice(&[-1.0f64, -2.0, -4.0]);
        let plain = Completions::of(&stats, &rows, Some(&reference), None).unwrap();
        let near = |a: &Tensor, b: &[f64]| numbers(a).iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near(&plain.logp, &[-1.880379, -3.440190]) && near(&plain.tokens, &[2.0, 1.0]));
        assert!(near(plain.reference.as_ref().unwrap(), &[-3.0, -4.0]));
        assert!(near(&plain.log_ratio().unwrap(), &[1.119621, 0.559810]));
        let weights = Tensor::from_slice(&[1.0f64, 0.5, 1.0]);
        let ld = Completions::of(&stats, &rows, Some(&reference), Some(&weights)).unwrap();
        assert!(near(&ld.logp, &[-1.160285, -3.440190]) && near(ld.reference.as_ref().unwrap(), &[-2.0, -4.0]));
        for (reference, weights) in [
            (&reference, weights.narrow(0, 0, 1)),
            (&reference.narrow(0, 0, 1), weights),
        ] {
            let error = Completions::of(&stats, &rows, Some(reference), Some(&weights)).unwrap_err();
            assert!(error.to_string().starts_with("values per row: expected [3]"), "{error}");
        }
        let whole = reference.to_kind(Kind::Int64);
        let sums = Completions::from_sums(&reference, Some(&whole), &Tensor::ones_like(&reference));
        for refused in [Completions::of(&stats, &rows, Some(&whole), None), sums] {
            let error = refused.unwrap_err().to_string();
            assert_eq!(error, "reference: expected floating point, got Int64");
        }
        let mean = plain.per_token().unwrap();
        assert!(near(&mean.logp, &[-0.940190, -3.440190]) && near(mean.reference.as_ref().unwrap(), &[-1.5, -4.0]));
        let second = mean.narrow(1, 1).unwrap();
        assert!(second.n() == 1 && near(&second.logp, &[-3.440190]) && near(&second.tokens, &[1.0]));
    }

    #[test]
    fn sums_from_elsewhere_train_the_policy_alone() {
        let leaf = |values: [f64; 2]| Tensor::from_slice(&values).set_requires_grad(true);
        let (logp, reference, tokens) = (leaf([-6.0, -4.0]), leaf([-5.0, -8.0]), leaf([2.0, 4.0]));
        let completions = Completions::from_sums(&logp, Some(&reference), &tokens).unwrap();
        let mean = completions.per_token().unwrap().log_ratio().unwrap();
        assert_eq!(numbers(&mean), [-0.5, 1.0]);
        mean.sum(Kind::Double).backward();
        assert_eq!(numbers(&logp.grad()), [0.5, 0.25]);
        assert!(!reference.grad().defined() && !tokens.grad().defined());
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let text = |lengths: &[usize]| CompletionRows::new(lengths, Device::Cpu).unwrap_err().to_string();
        assert_eq!(text(&[]), "the batch of completions is empty");
        assert_eq!(
            text(&[2, 0]),
            "lengths: expected at least one token in every completion, got none in completion 1"
        );
        for lengths in [
            &[usize::MAX][..],
            &[usize::MAX, 1],
            &[1, MAX_PLACES / 2 + 1],
            &[MAX_PLACES + 1],
        ] {
            let text = text(lengths);
            assert!(
                text.starts_with("lengths: expected at most 268435456 tokens, were all"),
                "{text}"
            );
        }
        let rows = CompletionRows::new(&[2, 1], Device::Cpu).unwrap();
        let zeros = |n: i64| Tensor::zeros([n], (Kind::Double, Device::Cpu));
        assert_eq!(
            rows.sums(&zeros(2)).unwrap_err().to_string(),
            "values per row: expected [3] on Cpu, as the completions have 3 tokens, got [2] on Cpu"
        );
        let sums = |logp: i64, reference: i64, tokens: i64| {
            Completions::from_sums(&zeros(logp), Some(&zeros(reference)), &zeros(tokens))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(sums(0, 0, 0), "the batch of completions is empty");
        assert_eq!(
            sums(2, 1, 2),
            "reference: expected [2] on Cpu, as `logp`, got [1] on Cpu"
        );
        assert_eq!(sums(2, 2, 3), "tokens: expected [2] on Cpu, as `logp`, got [3] on Cpu");
        let one = |tokens: f64| Completions::from_sums(&zeros(2), None, &Tensor::from_slice(&[3.0, tokens]));
        assert!(one(1.0).is_ok());
        for (tokens, ends) in [
            (0.0, "from 0 to 3"),
            (-3.0, "from -3 to 3"),
            (0.5, "from 0.5 to 3"),
            (f64::INFINITY, "from 3 to inf"),
            (f64::NAN, "from NaN to NaN"),
        ] {
            assert_eq!(
                one(tokens).unwrap_err().to_string(),
                format!("tokens: expected finite numbers, at least 1, got numbers {ends}")
            );
        }
        let none = Completions::from_sums(&zeros(1), None, &(zeros(1) + 1.0)).unwrap();
        assert!(
            none.log_ratio()
                .unwrap_err()
                .to_string()
                .starts_with("reference: expected the reference's")
        );
    }
}
