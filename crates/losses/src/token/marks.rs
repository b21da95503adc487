//! What some losses read from the text itself, beside the stats of its tokens.

use tch::Tensor;

use crate::{Error, Result, TokenCounts, TokenRows};

/// What a loss reads from the text of one example: an entry per token of its completion.
///
/// Made on the host by [`TokenLoss::marks`](super::TokenLoss::marks), once per example; [`TokenRows::with_marks`] puts
/// them beside the rows, and [`TokenCounts::with_weights`] into the counts of the whole batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Marks {
    /// How much each token counts in the loss's own part: finite, at least 0.
    pub weights: Option<Vec<f64>>,
    /// The tokens that each token is set against; any number of them, none included.
    pub candidates: Option<Vec<Vec<i64>>>,
}

impl TokenRows {
    /// Puts marks beside the rows.
    ///
    /// `weight` becomes `[N]`, `candidates` `[N, C]` with `C` the longest list, at least 1, and -1 where a list ends:
    /// what [`TokenOp::with_candidates`](crate::TokenOp::with_candidates) takes.
    ///
    /// **Shapes**: `marks` one per example, in the order of the rows, which must be one completion's tokens after the
    /// other's.
    ///
    /// **Errors**: [`Error::Input`] when the marks of the examples have not one entry per row, when only some have
    /// weights or candidates, or for a weight that is not finite or below 0.
    ///
    /// ```
    /// use tch::Device;
    /// use unsay_losses::TokenRows;
    /// use unsay_losses::token::{TokenLoss, UnlikelihoodContext};
    ///
    /// # fn main() -> Result<(), unsay_losses::Error> {
    /// let loss = UnlikelihoodContext { alpha: 1.0, include_prompt: false };
    /// let marks = loss.marks(&[1, 9], &[5, 6, 5]).unwrap_or_default(); // the tokens said before, but not the target
    /// let rows = TokenRows::new(&[0, 0, 0], &[false; 3], &[1], Device::Cpu)?.with_marks([&marks])?;
    /// let ids = Vec::<i64>::try_from(rows.candidates.unwrap().view(-1)).unwrap();
    /// assert_eq!(ids, [-1, 5, 6]);
    /// # Ok(()) }
    /// ```
    pub fn with_marks<'a>(mut self, marks: impl IntoIterator<Item = &'a Marks>) -> Result<Self> {
        let n = self.example.size().first().copied().unwrap_or(0);
        let device = self.example.device();
        let (mut weights, mut candidates) = (Column::default(), Column::default());
        for marks in marks {
            weights.push(marks.weights.as_deref());
            candidates.push(marks.candidates.as_deref());
        }
        self.weight = match weights.whole("marks.weights", n)? {
            Some(weights) => {
                let weights = weights.concat();
                if let Some(weight) = weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
                    return Err(Error::input("marks.weights", "finite numbers, at least 0", weight));
                }
                Some(Tensor::f_from_slice(&weights)?.f_to_device(device)?)
            }
            None => None,
        };
        self.candidates = match candidates.whole("marks.candidates", n)? {
            Some(lists) => {
                let lists = || lists.iter().copied().flatten();
                let width = lists().map(Vec::len).max().unwrap_or(0).max(1);
                let mut ids = vec![-1; lists().count() * width];
                for (row, list) in ids.chunks_mut(width).zip(lists()) {
                    row.iter_mut().zip(list).for_each(|(slot, &id)| *slot = id);
                }
                let ids = Tensor::f_from_slice(&ids)?;
                Some(ids.f_view([n, width as i64])?.f_to_device(device)?)
            }
            None => None,
        };
        Ok(self)
    }
}

/// One kind of mark of all examples, where it is.
struct Column<'a, T> {
    entries: Vec<&'a [T]>,
    missing: usize,
}

impl<T> Default for Column<'_, T> {
    fn default() -> Self {
        Column {
            entries: Vec::new(),
            missing: 0,
        }
    }
}

impl<'a, T> Column<'a, T> {
    fn push(&mut self, entries: Option<&'a [T]>) {
        match entries {
            Some(entries) => self.entries.push(entries),
            None => self.missing += 1,
        }
    }

    /// All entries, example by example; nothing where no example has any.
    fn whole(self, what: &'static str, n_rows: i64) -> Result<Option<Vec<&'a [T]>>> {
        let given = self.entries.len();
        if given == 0 {
            return Ok(None);
        }
        if self.missing > 0 {
            let got = format!("{given} with and {} without", self.missing);
            return Err(Error::input(what, "in the marks of every example or of none", got));
        }
        let n: usize = self.entries.iter().map(|entries| entries.len()).sum();
        if n as i64 != n_rows {
            return Err(Error::input(what, format!("{n_rows}, one per row"), n));
        }
        Ok(Some(self.entries))
    }
}

impl TokenCounts {
    /// Adds the weights of rows, given as label (1, 0, -1) and weight; other labels count as unlabelled.
    #[must_use]
    pub fn with_weights(mut self, rows: impl IntoIterator<Item = (i8, f64)>) -> Self {
        for (label, weight) in rows {
            match label {
                1 => self.positive_weight += weight,
                0 => self.negative_weight += weight,
                _ => self.unlabelled_weight += weight,
            }
        }
        self
    }
}

/// The weights of the rows, in the kind of the stats.
pub(super) fn weights(rows: &TokenRows, like: &Tensor) -> Result<Tensor> {
    let weight = rows.weight.as_ref().ok_or_else(|| {
        let expected = "the weights that the loss's `marks` gives, by `TokenRows::with_marks`";
        Error::input("rows.weight", expected, "none")
    })?;
    Ok(weight.f_to_kind(like.f_kind()?)?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn rows() -> TokenRows {
        TokenRows::new(&[0, 0, 1], &[false; 3], &[1, 0], Device::Cpu).unwrap()
    }

    fn weighted(weights: &[f64]) -> Marks {
        Marks {
            weights: Some(weights.to_vec()),
            candidates: None,
        }
    }

    #[test]
    fn marks_become_columns_and_sums_per_label() {
        let first = Marks {
            weights: Some(vec![0.5, 0.0]),
            candidates: Some(vec![vec![], vec![7, 8]]),
        };
        let second = Marks {
            weights: Some(vec![2.0]),
            candidates: Some(vec![vec![9]]),
        };
        let rows = rows().with_marks([&first, &second]).unwrap();
        let weight = rows.weight.as_ref().unwrap();
        assert_eq!(Vec::<f64>::try_from(weight).unwrap(), [0.5, 0.0, 2.0]);
        let candidates = rows.candidates.as_ref().unwrap();
        assert_eq!(candidates.size(), [3, 2]);
        assert_eq!(
            Vec::<i64>::try_from(candidates.view(-1)).unwrap(),
            [-1, -1, 7, 8, 9, -1]
        );
        let counts = TokenCounts::of(&rows).unwrap() + TokenCounts::default().with_weights([(-1, 0.25), (0, 1.0)]);
        let sums = [counts.positive_weight, counts.negative_weight, counts.unlabelled_weight];
        assert_eq!(sums.map(f64::to_bits), [0.5, 3.0, 0.25].map(f64::to_bits));
    }

    #[test]
    fn lists_that_are_all_empty_still_make_a_column() {
        let none = Marks {
            weights: None,
            candidates: Some(vec![vec![]; 3]),
        };
        let rows = rows().with_marks([&none]).unwrap();
        assert_eq!(rows.candidates.unwrap().size(), [3, 1]);
        assert!(rows.weight.is_none());
    }

    #[test]
    fn marks_that_do_not_fit_the_rows_are_errors() {
        let text = |marks: &[Marks]| rows().with_marks(marks).unwrap_err().to_string();
        assert_eq!(
            text(&[weighted(&[1.0]), weighted(&[1.0])]),
            "marks.weights: expected 3, one per row, got 2"
        );
        assert_eq!(
            text(&[weighted(&[1.0, 1.0, 1.0]), Marks::default()]),
            "marks.weights: expected in the marks of every example or of none, got 1 with and 1 without"
        );
        for bad in [f64::NAN, f64::INFINITY, -0.5] {
            assert_eq!(
                text(&[weighted(&[1.0, 0.0, bad])]),
                format!("marks.weights: expected finite numbers, at least 0, got {bad}")
            );
        }
        assert_eq!(
            text(&[Marks {
                weights: None,
                candidates: Some(vec![vec![1]; 4])
            }]),
            "marks.candidates: expected 3, one per row, got 4"
        );
        assert!(rows().with_marks(&[]).unwrap().candidates.is_none());
    }

    #[test]
    fn a_loss_that_needs_weights_says_so() {
        let error = weights(&rows(), &Tensor::from(0f64)).unwrap_err().to_string();
        assert_eq!(
            error,
            "rows.weight: expected the weights that the loss's `marks` gives, by `TokenRows::with_marks`, got none"
        );
    }
}
