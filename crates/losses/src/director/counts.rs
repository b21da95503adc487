//! What losses over two heads divide by.

use tch::{Kind, Tensor};

use crate::counts::{Counts, counts};
use crate::{Error, Result, TokenCounts, TokenRows, TokenStats};

/// Sizes of the **whole** batch, over all its micro-batches of whole examples.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DirectorCounts {
    /// Examples that have rows.
    pub examples: f64,
    /// Rows of each kind.
    pub tokens: TokenCounts,
}

impl DirectorCounts {
    /// Counts one micro-batch.
    ///
    /// **Errors**: only libtorch's.
    pub fn of(rows: &TokenRows) -> Result<Self> {
        Ok(DirectorCounts {
            examples: examples(rows)?,
            tokens: TokenCounts::of(rows)?,
        })
    }

    /// Checks that the rows belong to `stats` and that these counts cover them.
    pub(super) fn check(&self, stats: &TokenStats, rows: &TokenRows) -> Result<()> {
        rows.check(stats, &self.tokens)?;
        let own = examples(rows)?;
        if self.examples.covers(&own) {
            return Ok(());
        }
        let expected = format!("examples of the whole batch, at least this part's {own}");
        Err(Error::input("counts.examples", expected, self.examples))
    }
}

fn examples(rows: &TokenRows) -> Result<f64> {
    Ok(lengths(rows)?.f_gt(0)?.f_sum(Kind::Double)?.double_value(&[]))
}

/// `[B]` how many rows each example has.
pub(super) fn lengths(rows: &TokenRows) -> Result<Tensor> {
    Ok(rows.example.f_bincount::<Tensor>(None, rows.n_examples)?)
}

counts!(DirectorCounts { examples, tokens });

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn examples_without_rows_are_not_counted() {
        let rows = |example: &[i64], labels: &[i8]| {
            TokenRows::new(example, &vec![false; example.len()], labels, Device::Cpu).unwrap()
        };
        let first = rows(&[2, 0, 2], &[1, 0, -1]);
        assert_eq!(Vec::<i64>::try_from(lengths(&first).unwrap()).unwrap(), [1, 0, 2]);
        let first = DirectorCounts::of(&first).unwrap();
        let second = DirectorCounts::of(&rows(&[0], &[0])).unwrap();
        let mut all = first;
        all += second;
        assert_eq!(all, [first, second].into_iter().sum());
        assert!((all.examples - 3.0).abs() < 1e-12, "{all:?}");
        assert!((all.tokens.negative - 1.0).abs() < 1e-12 && (all.tokens.total() - 4.0).abs() < 1e-12);
    }
}
