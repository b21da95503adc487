//! Tables of numbers per token, of which a mask says what counts, and losses of reinforcement learning on them.

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unsay_losses::policy::{Batch, Objective, PolicyCounts, Ppo};
use unsay_losses::{CompletionRows, LossValue, TokenStats};

use crate::files::{all_close, close, floats, shape, total};
use crate::plain::numbers;

/// A table `[B, T]` of which some positions count.
pub(crate) struct Table {
    pub(crate) width: usize,
    pub(crate) lengths: Vec<usize>,
    /// Where what counts lies in the flattened table.
    kept: Vec<i64>,
}

impl Table {
    /// From a list of lists, and which of its numbers are those of positions that count.
    pub(crate) fn new(list: &Value, counts: impl Fn(f64) -> bool) -> Self {
        let &[height, width] = &shape(list)[..] else {
            panic!("{list} is not a table");
        };
        let list = floats(list);
        let kept: Vec<usize> = (0..list.len()).filter(|&at| counts(list[at])).collect();
        Table {
            width,
            lengths: (0..height)
                .map(|row| kept.iter().filter(|&&at| at / width == row).count())
                .collect(),
            kept: kept.iter().map(|&at| at as i64).collect(),
        }
    }

    /// From a mask in which what counts is 1.
    pub(crate) fn of_mask(mask: &Value) -> Self {
        Table::new(mask, |x| (x - 1.0).abs() < 1e-12)
    }

    pub(crate) fn rows(&self) -> CompletionRows {
        CompletionRows::new(&self.lengths, Device::Cpu).unwrap()
    }

    /// What counts of a flattened table, with any dimensions behind.
    pub(crate) fn pick(&self, table: &Tensor) -> Tensor {
        assert_eq!(
            table.size()[0] as usize,
            self.lengths.len() * self.width,
            "another table"
        );
        table.index_select(0, &Tensor::from_slice(&self.kept))
    }

    /// What counts of a list of lists like this.
    pub(crate) fn read(&self, table: &Value) -> Tensor {
        assert_eq!(shape(table), [self.lengths.len(), self.width], "another table");
        self.pick(&Tensor::from_slice(&floats(table)))
    }

    /// One number per completion at each of its rows.
    pub(crate) fn spread(&self, each: &[f64]) -> Tensor {
        assert_eq!(each.len(), self.lengths.len(), "one for each completion");
        let rows = self.kept.iter().map(|&at| each[at as usize / self.width]);
        Tensor::from_slice(&rows.collect::<Vec<f64>>())
    }

    /// Compares the gradient of a flattened table: theirs where it counts, zero elsewhere.
    pub(crate) fn same(&self, id: &str, ours: &Tensor, theirs: &Value, rtol: f64) {
        assert_eq!(shape(theirs), [self.lengths.len(), self.width], "{id} gradient");
        let mut expected = vec![0.0; self.lengths.len() * self.width];
        let theirs = floats(theirs);
        self.kept
            .iter()
            .for_each(|&at| expected[at as usize] = theirs[at as usize]);
        all_close(&format!("{id} gradient"), &numbers(ours), &expected, rtol);
    }
}

/// What an op would have said of these log-probabilities.
pub(crate) fn stats(logp: &Tensor) -> TokenStats {
    let whole = |kind| Tensor::zeros(logp.size(), (kind, Device::Cpu));
    TokenStats::new(whole(Kind::Int64), logp.shallow_clone(), whole(Kind::Bool))
}

pub(crate) fn leaf(table: &Value) -> Tensor {
    Tensor::from_slice(&floats(table)).set_requires_grad(true)
}

/// The objective on a whole batch, with gradients left on the leaves.
pub(crate) fn run(objective: &Objective, batch: &Batch<'_>) -> LossValue {
    let value = objective.evaluate(batch, &PolicyCounts::of(batch.rows)).unwrap();
    value.total.backward();
    let each = value.per_example.sum(Kind::Double).double_value(&[]);
    close("per example", each, total(&value), 1e-9);
    value
}

pub(crate) fn ppo(clip: f64) -> Ppo {
    Ppo {
        clip_low: clip,
        clip_high: clip,
        dual_clip: None,
        log_ratio_clamp: None,
    }
}

#[test]
fn golden_tables_may_have_holes() {
    let table = Table::of_mask(&serde_json::json!([[1, 0, 1], [0.0, 1.0, 0.0]]));
    assert_eq!((&table.lengths[..], table.width), (&[2, 1][..], 3));
    let read = table.read(&serde_json::json!([[1, 2, 3], [4, 5, 6]]));
    assert_eq!(format!("{:?}", numbers(&read)), "[1.0, 3.0, 5.0]");
    assert_eq!(format!("{:?}", numbers(&table.spread(&[7.0, 8.0]))), "[7.0, 7.0, 8.0]");
}
