//! Causal sequences as the reference code sees them: logits for every position, labels that are -100 where nothing is
//! trained, and the shift by one between the two.

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unsay_losses::{CompletionRows, Needs, TokenOp};

use crate::files::{floats, integers, shape};
use crate::plain::numbers;

/// `B` sequences of `T` positions over `V` tokens.
pub(crate) struct Sequences {
    /// `[B * T, V]`.
    pub(crate) logits: Tensor,
    positions: Vec<i64>,
    pub(crate) targets: Vec<i64>,
    pub(crate) lengths: Vec<usize>,
}

impl Sequences {
    /// From two fields of a case's inputs.
    pub(crate) fn of(inputs: &Value, logits: &str, labels: &str) -> Sequences {
        let table = shape(&inputs[labels]);
        let width = table[1];
        assert_eq!(shape(&inputs[logits])[..2], table, "logits for every label");
        let labels = integers(&inputs[labels]);
        let flat = floats(&inputs[logits]);
        let mut sequences = Sequences {
            logits: Tensor::from_slice(&flat).view([labels.len() as i64, -1]),
            positions: Vec::new(),
            targets: Vec::new(),
            lengths: vec![0; labels.len() / width],
        };
        for (at, &label) in labels.iter().enumerate() {
            // The logits of a position predict the next one, so a first label is predicted by none.
            if label != -100 && at % width > 0 {
                sequences.positions.push(at as i64 - 1);
                sequences.targets.push(label);
                sequences.lengths[at / width] += 1;
            }
        }
        sequences
    }

    /// One after the other.
    pub(crate) fn then(self, other: &Sequences) -> Sequences {
        let shift = self.logits.size()[0];
        Sequences {
            logits: Tensor::cat(&[&self.logits, &other.logits], 0),
            positions: [
                self.positions,
                other.positions.iter().map(|p| p + shift).collect::<Vec<_>>(),
            ]
            .concat(),
            targets: [self.targets, other.targets.clone()].concat(),
            lengths: [self.lengths, other.lengths.clone()].concat(),
        }
    }

    /// Which rows belong to which sequence.
    pub(crate) fn rows(&self) -> CompletionRows {
        CompletionRows::new(&self.lengths, Device::Cpu).unwrap()
    }

    /// The logits as a leaf, and the op over the rows that predict something: the embedding is the identity.
    pub(crate) fn op(&self, needs: &Needs) -> (Tensor, TokenOp) {
        let leaf = self.logits.copy().set_requires_grad(true);
        let hidden = leaf.index_select(0, &Tensor::from_slice(&self.positions));
        let identity = Tensor::eye(self.logits.size()[1], (Kind::Double, Device::Cpu));
        let op = TokenOp::new(&hidden, &identity, &Tensor::from_slice(&self.targets), needs).unwrap();
        (leaf, op)
    }

    /// `[N]` the log-probability of every row, the plain way.
    pub(crate) fn logps(&self) -> Tensor {
        let rows = self.logits.index_select(0, &Tensor::from_slice(&self.positions));
        let column = Tensor::from_slice(&self.targets).unsqueeze(1);
        rows.log_softmax(-1, None).gather(1, &column, false).squeeze_dim(1)
    }

    /// The sum of [`Sequences::logps`] of each sequence.
    pub(crate) fn sums(&self) -> Vec<f64> {
        numbers(&self.rows().sums(&self.logps()).unwrap())
    }
}
