//! Whose token each row is, and how many there are of each kind.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::counts::{Counts, counts};
use crate::value::term;
use crate::{Error, Result, TokenStats};

/// Whose token each of the `N` rows of an op is.
#[derive(Debug)]
pub struct TokenRows {
    /// `[N]` the example in the micro-batch, `i64` in `0..n_examples`.
    pub example: Tensor,
    /// `[N]` what the example is: 1 positive, 0 negative, -1 unlabelled, `i64`.
    pub label: Tensor,
    /// `[N]` whether the target ends the completion, `bool`.
    pub is_eos: Tensor,
    /// Examples in the micro-batch.
    pub n_examples: i64,
    /// `[N]` how much each row counts in a loss that reads the text, `f64`; see [`Marks`](crate::token::Marks).
    pub weight: Option<Tensor>,
    /// `[N, C]` the tokens that each row's target is set against, `i64`, -1 for none.
    pub candidates: Option<Tensor>,
}

impl TokenRows {
    /// From plain arrays: for each row its example and whether it is the end, for each example its label.
    ///
    /// **Errors**: [`Error::Empty`] without rows, [`Error::Input`] for lengths that differ, an example that does
    /// not exist or a label other than 1, 0 and -1.
    pub fn new(example: &[i64], is_eos: &[bool], labels: &[i8], device: Device) -> Result<Self> {
        if example.is_empty() {
            return Err(Error::Empty {
                what: "the batch of token rows",
            });
        }
        if is_eos.len() != example.len() {
            return Err(Error::input("is_eos", format!("{} rows", example.len()), is_eos.len()));
        }
        if let Some(label) = labels.iter().find(|l| !(-1..=1).contains(*l)) {
            return Err(Error::input(
                "labels",
                "1 (positive), 0 (negative) or -1 (unlabelled)",
                label,
            ));
        }
        let label_of = |&e: &i64| {
            usize::try_from(e)
                .ok()
                .and_then(|e| labels.get(e))
                .map(|&l| i64::from(l))
                .ok_or(e)
        };
        let label = example
            .iter()
            .map(label_of)
            .collect::<std::result::Result<Vec<i64>, i64>>();
        let label = label.map_err(|e| Error::input("example", format!("0..{}", labels.len()), e))?;
        Ok(TokenRows {
            example: Tensor::f_from_slice(example)?.f_to_device(device)?,
            label: Tensor::f_from_slice(&label)?.f_to_device(device)?,
            is_eos: Tensor::f_from_slice(is_eos)?.f_to_device(device)?,
            n_examples: labels.len() as i64,
            weight: None,
            candidates: None,
        })
    }

    /// Some neighbouring rows; the examples keep their numbers.
    ///
    /// **Errors**: [`Error::Input`] when there are no such rows.
    pub fn narrow(&self, rows: Range<i64>) -> Result<Self> {
        let n = self.example.size().first().copied().unwrap_or(0);
        if rows.start < 0 || rows.start > rows.end || rows.end > n {
            return Err(Error::input("rows", format!("a part of 0..{n}"), format!("{rows:?}")));
        }
        let part = |t: &Tensor| t.f_narrow(0, rows.start, rows.end - rows.start);
        Ok(TokenRows {
            example: part(&self.example)?,
            label: part(&self.label)?,
            is_eos: part(&self.is_eos)?,
            n_examples: self.n_examples,
            weight: self.weight.as_ref().map(part).transpose()?,
            candidates: self.candidates.as_ref().map(part).transpose()?,
        })
    }

    /// Checks that the rows belong to `stats` and that `counts` covers them.
    pub(crate) fn check(&self, stats: &TokenStats, counts: &TokenCounts) -> Result<()> {
        self.check_for((stats.n_rows(), stats.logp.device()), counts)
    }

    /// Checks that the rows belong to stats of `n` rows on `device` and that `counts` covers them.
    ///
    /// The numbers come over from the device at once: each transfer would make the host wait.
    pub(crate) fn check_for(&self, (n, device): (i64, Device), counts: &TokenCounts) -> Result<()> {
        if n == 0 {
            return Err(Error::Empty {
                what: "the batch of token rows",
            });
        }
        let columns = [
            ("example", Some(&self.example), Kind::Int64),
            ("label", Some(&self.label), Kind::Int64),
            ("is_eos", Some(&self.is_eos), Kind::Bool),
            ("weight", self.weight.as_ref(), Kind::Double),
        ];
        for (what, tensor, kind) in columns {
            let Some(tensor) = tensor else { continue };
            if tensor.size() != [n] || tensor.f_kind()? != kind {
                let got = format!("{:?} of {:?}", tensor.size(), tensor.f_kind()?);
                return Err(Error::input(
                    what,
                    format!("[{n}] of {kind:?}, as `stats` has {n} rows"),
                    got,
                ));
            }
            on_device(what, tensor, device)?;
        }
        let host = self.on_host()?;
        let outside = |column: &[i64], fine: Range<i64>| {
            let ends = [column.iter().min(), column.iter().max()];
            ends.into_iter().flatten().copied().find(|end| !fine.contains(end))
        };
        if let Some(example) = outside(&host.example, 0..self.n_examples) {
            return Err(Error::input("example", format!("0..{}", self.n_examples), example));
        }
        if let Some(label) = outside(&host.label, -1..2) {
            return Err(Error::input(
                "label",
                "1 (positive), 0 (negative) or -1 (unlabelled)",
                label,
            ));
        }
        let own = host.counts();
        counts.check_covers(&own)
    }

    /// All that is counted, in one transfer; the weights in a second.
    fn on_host(&self) -> Result<OnHost> {
        let columns = [
            self.example.shallow_clone(),
            self.label.shallow_clone(),
            self.is_eos.f_to_kind(Kind::Int64)?,
        ];
        let mut example = Vec::<i64>::try_from(Tensor::f_cat(&columns, 0)?.f_to_device(Device::Cpu)?)?;
        let n = example.len() / 3;
        let is_eos = example.split_off(2 * n);
        let label = example.split_off(n);
        let weight = match &self.weight {
            Some(weight) => Vec::<f64>::try_from(weight.f_to_device(Device::Cpu)?)?,
            None => Vec::new(),
        };
        Ok(OnHost {
            example,
            label,
            is_eos,
            weight,
        })
    }
}

/// The rows as plain numbers.
struct OnHost {
    example: Vec<i64>,
    label: Vec<i64>,
    is_eos: Vec<i64>,
    weight: Vec<f64>,
}

impl OnHost {
    fn counts(&self) -> TokenCounts {
        // Other labels count as unlabelled, those beyond an `i8` too.
        let labels = || self.label.iter().map(|&label| i8::try_from(label).unwrap_or(-1));
        let counts = TokenCounts::count(labels().zip(self.is_eos.iter().map(|&end| end == 1)));
        counts.with_weights(labels().zip(self.weight.iter().copied()))
    }
}

/// Checks the draws of a loss that takes `per_row` of them for each of `n` rows; without any, what is given is not read.
pub(crate) fn check_draws(draws: Option<&Tensor>, per_row: usize, (n, device): (i64, Device)) -> Result<()> {
    if per_row == 0 {
        return Ok(());
    }
    let expected = format!("[{n}, {per_row}], uniform in [0, 1), as many per row as the loss draws");
    let Some(draws) = draws else {
        return Err(Error::input("draws", expected, "none"));
    };
    if draws.size() != [n, per_row as i64] || !draws.is_floating_point() {
        let got = format!("{:?} of {:?}", draws.size(), draws.f_kind()?);
        return Err(Error::input("draws", expected, got));
    }
    on_device("draws", draws, device)?;
    let ends = Tensor::f_stack(&[draws.f_min()?, draws.f_max()?], 0)?.f_to_kind(Kind::Double)?;
    let ends = Vec::<f64>::try_from(ends.f_to_device(Device::Cpu)?)?;
    match ends[..] {
        // Not the other way round: a NaN must not pass.
        [low, high] if low >= 0.0 && high < 1.0 => Ok(()),
        _ => Err(Error::input(
            "draws",
            expected,
            format!("values from {} to {}", ends[0], ends[1]),
        )),
    }
}

fn on_device(what: &'static str, tensor: &Tensor, device: Device) -> Result<()> {
    if tensor.device() == device {
        return Ok(());
    }
    let on = |device: Device| format!("on {device:?}");
    Err(Error::input(what, on(device), on(tensor.device())))
}

/// Rows of each kind in the **whole** batch, over all its micro-batches: what losses divide by.
///
/// Add up those of the micro-batches; [`TokenCounts::of`] and [`TokenCounts::count`] give one micro-batch's.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TokenCounts {
    /// Rows of positive examples, ends included.
    pub positive: f64,
    /// Rows of positive examples that are ends.
    pub positive_eos: f64,
    /// Rows of negative examples, ends included.
    pub negative: f64,
    /// Rows of negative examples that are ends.
    pub negative_eos: f64,
    /// Rows of unlabelled examples, ends included.
    pub unlabelled: f64,
    /// Rows of unlabelled examples that are ends.
    pub unlabelled_eos: f64,
    /// The sum of [`TokenRows::weight`] over the rows of positive examples.
    pub positive_weight: f64,
    /// The sum of the weights over the rows of negative examples.
    pub negative_weight: f64,
    /// The sum of the weights over the rows of unlabelled examples.
    pub unlabelled_weight: f64,
}

impl TokenCounts {
    /// Counts rows given as label (1, 0, -1) and whether they are an end; other labels count as unlabelled.
    pub fn count(rows: impl IntoIterator<Item = (i8, bool)>) -> Self {
        let mut counts = TokenCounts::default();
        for (label, is_eos) in rows {
            let (rows, ends) = match label {
                1 => (&mut counts.positive, &mut counts.positive_eos),
                0 => (&mut counts.negative, &mut counts.negative_eos),
                _ => (&mut counts.unlabelled, &mut counts.unlabelled_eos),
            };
            *rows += 1.0;
            *ends += f64::from(u8::from(is_eos));
        }
        counts
    }

    /// Counts the rows of one micro-batch.
    ///
    /// **Errors**: only libtorch's.
    pub fn of(rows: &TokenRows) -> Result<Self> {
        Ok(rows.on_host()?.counts())
    }

    /// All rows.
    pub fn total(&self) -> f64 {
        self.positive + self.negative + self.unlabelled
    }
}

counts!(TokenCounts {
    positive,
    positive_eos,
    negative,
    negative_eos,
    unlabelled,
    unlabelled_eos,
    positive_weight,
    negative_weight,
    unlabelled_weight,
});

/// What every run wants to see, whatever its loss: token accuracy and mean log-probability on each side.
///
/// `token_acc_positive`, `logp_positive`, `token_acc_negative`, `logp_negative`, means over the rows of the whole
/// batch that add up over micro-batches; unlabelled rows count as positive, a side without rows is left out.
/// On negatives both should fall during training.
///
/// **Shapes**: as [`TokenStats`] and [`TokenRows`]; the results are detached scalars.
///
/// **Errors**: [`Error::Input`] when rows, stats and counts do not fit together.
pub fn token_metrics(
    stats: &TokenStats,
    rows: &TokenRows,
    counts: &TokenCounts,
) -> Result<Vec<(&'static str, Tensor)>> {
    rows.check(stats, counts)?;
    let correct = stats.correct.f_to_kind(stats.logp.kind())?;
    let (negative, positive) = (rows.label.f_eq(0)?, rows.label.f_ne(0)?);
    let n_positive = counts.positive + counts.unlabelled;
    let terms = [
        term("token_acc_positive", &correct, &positive, n_positive)?,
        term("logp_positive", &stats.logp, &positive, n_positive)?,
        term("token_acc_negative", &correct, &negative, counts.negative)?,
        term("logp_negative", &stats.logp, &negative, counts.negative)?,
    ];
    Ok(terms.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Needs, TokenOp};

    #[test]
    fn metrics_are_means_over_each_side_of_the_whole_batch() {
        let logits = Tensor::from_slice(&[2.0f64, 1.0, 0.0, -1.0])
            .view([1, 4])
            .repeat([5, 1]);
        let identity = Tensor::eye(4, (Kind::Double, Device::Cpu));
        let targets = Tensor::from_slice(&[0i64, 1, 0, 0, 3]);
        let stats = TokenOp::new(&logits, &identity, &targets, &Needs::default())
            .unwrap()
            .forward()
            .unwrap();
        let rows = TokenRows::new(&[0, 0, 1, 2, 2], &[false; 5], &[1, -1, 0], Device::Cpu).unwrap();
        // Another micro-batch holds two more negative rows.
        let counts = TokenCounts::of(&rows).unwrap() + TokenCounts::count([(0, false), (0, true)]);
        assert!((counts.total() - 7.0).abs() < 1e-15 && (counts.negative_eos - 1.0).abs() < 1e-15);
        let (first, last) = (-0.4401897, -3.4401897);
        let expected = [
            ("token_acc_positive", 2.0 / 3.0),
            ("logp_positive", first - 1.0 / 3.0),
            ("token_acc_negative", 1.0 / 4.0),
            ("logp_negative", (first + last) / 4.0),
        ];
        let metrics = token_metrics(&stats, &rows, &counts).unwrap();
        assert_eq!(metrics.len(), expected.len());
        for ((name, value), (expected_name, expected)) in metrics.iter().zip(expected) {
            assert_eq!(*name, expected_name);
            assert!(
                (value.double_value(&[]) - expected).abs() < 1e-7,
                "{name}: {value:?} is not {expected}"
            );
        }
    }

    #[test]
    fn counts_of_parts_add_up_kind_by_kind() {
        let first = TokenCounts::count([(1, false), (1, true), (0, true), (-1, true), (-1, false)]);
        let first = first.with_weights([(1, 0.5), (0, 0.25), (-1, 4.0)]);
        let second = TokenCounts::count([(1, true), (0, false), (0, true), (-1, true)]).with_weights([(-1, 1.0)]);
        let mut both = first;
        both += second;
        assert_eq!(both, [first, second].into_iter().sum());
        let expected = TokenCounts {
            positive: 3.0,
            positive_eos: 2.0,
            negative: 3.0,
            negative_eos: 2.0,
            unlabelled: 3.0,
            unlabelled_eos: 2.0,
            positive_weight: 0.5,
            negative_weight: 0.25,
            unlabelled_weight: 5.0,
        };
        assert_eq!(both, expected);
    }

    #[test]
    fn labels_that_are_none_are_counted_as_unlabelled_whatever_their_size() {
        let rows = TokenRows::new(&[0, 0, 1], &[false, true, true], &[1, 0], Device::Cpu).unwrap();
        let label = Tensor::from_slice(&[257i64, 0, -1 - (1 << 40)]);
        let counts = TokenCounts::of(&TokenRows { label, ..rows }).unwrap();
        assert_eq!(counts, TokenCounts::count([(-1, false), (0, true), (-1, true)]));
    }

    #[test]
    fn counts_are_finite_and_cover_the_rows() {
        let stats = TokenStats::new(
            Tensor::from_slice(&[0i64, 1]),
            Tensor::from_slice(&[-1.0f64, -2.0]),
            Tensor::from_slice(&[true, false]),
        );
        let rows = TokenRows::new(&[0, 1], &[false; 2], &[1, 0], Device::Cpu).unwrap();
        let own = TokenCounts::of(&rows).unwrap();
        assert!(rows.check(&stats, &own).is_ok() && rows.check(&stats, &(own + own)).is_ok());
        for negative in [0.0, f64::NAN, f64::INFINITY] {
            let error = rows.check(&stats, &TokenCounts { negative, ..own }).unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with("counts: expected sizes of the whole batch, at least this part's"),
                "{text}"
            );
        }
    }

    #[test]
    fn plain_arrays_that_do_not_fit_are_errors() {
        let text = |example: &[i64], is_eos: &[bool], labels: &[i8]| {
            TokenRows::new(example, is_eos, labels, Device::Cpu)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(text(&[0, 1], &[true], &[1, 0]), "is_eos: expected 2 rows, got 1");
        assert_eq!(text(&[0, 2], &[true; 2], &[1, 0]), "example: expected 0..2, got 2");
        assert_eq!(text(&[0, -1], &[true; 2], &[1, 0]), "example: expected 0..2, got -1");
        assert_eq!(
            text(&[0], &[true], &[2]),
            "labels: expected 1 (positive), 0 (negative) or -1 (unlabelled), got 2"
        );
    }
}
