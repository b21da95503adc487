//! Rows of logits with what is known of each, run through a token loss.

use tch::{Device, Kind, Tensor};
use unsay_losses::token::{Loss, Marks};
use unsay_losses::{LossValue, TokenCounts, TokenOp, TokenRows, TokenStats};

use crate::plain::numbers;

/// Aligned tokens as a reference sees them, one row per token.
pub(crate) struct Tokens {
    pub(crate) logits: Vec<Vec<f64>>,
    pub(crate) targets: Vec<i64>,
    /// Of the example of each row.
    pub(crate) labels: Vec<i8>,
    pub(crate) example: Vec<i64>,
    /// Which rows are none of ours: paddings.
    pub(crate) padded: Vec<bool>,
    /// Of each row, where the loss takes one.
    pub(crate) draws: Option<Vec<f64>>,
    /// Of each example, where the loss reads its text.
    pub(crate) marks: Vec<Marks>,
}

/// What our side gives for [`Tokens`].
pub(crate) struct Ours {
    pub(crate) value: LossValue,
    /// Of the rows that are no padding.
    pub(crate) stats: TokenStats,
    /// With zeros where the reference has paddings.
    pub(crate) gradient: Vec<Vec<f64>>,
    pub(crate) counts: TokenCounts,
}

impl Tokens {
    /// The rows that are no padding.
    pub(crate) fn kept(&self) -> Vec<usize> {
        let n = self.targets.len();
        let others = [
            self.logits.len(),
            self.labels.len(),
            self.example.len(),
            self.padded.len(),
        ];
        assert_eq!(others, [n; 4], "one of each for every token");
        (0..n).filter(|&i| !self.padded[i]).collect()
    }

    /// Runs a loss through the op: the hidden states are the logits and the embedding is the identity.
    pub(crate) fn run(&self, loss: &Loss) -> Ours {
        let (v, kept) = (self.logits[0].len(), self.kept());
        let flat: Vec<f64> = kept.iter().flat_map(|&i| self.logits[i].clone()).collect();
        let logits = Tensor::from_slice(&flat).view([-1, v as i64]).set_requires_grad(true);
        let identity = Tensor::eye(v as i64, (Kind::Double, Device::Cpu));
        let targets: Vec<i64> = kept.iter().map(|&i| self.targets[i]).collect();
        let example: Vec<i64> = kept.iter().map(|&i| self.example[i]).collect();
        let n_examples = self.example.iter().max().unwrap() + 1;
        let labels: Vec<i8> = (0..n_examples)
            .map(|e| self.labels[self.example.iter().position(|&x| x == e).unwrap()])
            .collect();
        let rows = TokenRows::new(&example, &vec![false; kept.len()], &labels, Device::Cpu).unwrap();
        let rows = match self.marks.is_empty() {
            true => rows,
            false => rows.with_marks(&self.marks).unwrap(),
        };
        let draws = self.draws.as_ref().map(|draws| {
            let draws: Vec<f64> = kept.iter().map(|&i| draws[i]).collect();
            Tensor::from_slice(&draws).view([-1, 1])
        });
        let op = TokenOp::new(&logits, &identity, &Tensor::from_slice(&targets), &loss.needs()).unwrap();
        let op = match &rows.candidates {
            Some(ids) => op.with_candidates(ids).unwrap(),
            None => op,
        };
        let stats = op.forward().unwrap();
        let counts = TokenCounts::of(&rows).unwrap();
        let value = loss.evaluate(&stats, &rows, &counts, draws.as_ref()).unwrap();
        value.total.backward();
        op.surrogate(&stats).unwrap().backward();
        let mut gradient = vec![vec![0.0; v]; self.targets.len()];
        for (row, values) in kept.iter().zip(numbers(&logits.grad()).chunks(v)) {
            gradient[*row] = values.to_vec();
        }
        Ours {
            value,
            stats,
            gradient,
            counts,
        }
    }
}

/// Which of the targets are paddings.
pub(crate) fn paddings(targets: &[i64], padding: i64) -> Vec<bool> {
    targets.iter().map(|&target| target == padding).collect()
}

pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

pub(crate) fn log_sum_exp(row: &[f64]) -> f64 {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
}

/// The ids of the `k + 1` largest logits and the probability that each is drawn.
pub(crate) fn candidates(row: &[f64], target: i64, k: usize) -> (Vec<usize>, Vec<f64>) {
    let mut ids: Vec<usize> = (0..row.len()).collect();
    ids.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    ids.truncate(k + 1);
    let out = ids.iter().position(|&id| id as i64 == target).unwrap_or(k);
    let largest = row[ids[0]];
    let weights: Vec<f64> = ids
        .iter()
        .enumerate()
        .map(|(place, &id)| if place == out { 0.0 } else { (row[id] - largest).exp() })
        .collect();
    let sum: f64 = weights.iter().sum();
    (ids, weights.iter().map(|w| w / sum).collect())
}

/// The draw at a share of the interval that picks the candidate at `place`.
pub(crate) fn draw_for(probabilities: &[f64], place: usize, share: f64) -> f64 {
    probabilities[..place].iter().sum::<f64>() + share * probabilities[place]
}

/// What the unlikelihood `−log(1 − p)` of a token is where the reference clamps `1 − p`, which it subtracts, from below:
/// there its value is that of the clamp and its push is nothing. Ours is exact: from the other logits, with the full push.
pub(crate) struct Clamped {
    /// Our value less theirs.
    pub(crate) value: f64,
    /// Our slope with respect to the logits; theirs is zero.
    pub(crate) push: Vec<f64>,
}

impl Clamped {
    /// Nothing where the clamp does nothing.
    pub(crate) fn of(z: &[f64], token: usize, clamp: f64) -> Option<Clamped> {
        let p = (z[token] - log_sum_exp(z)).exp();
        if 1.0 - p >= clamp {
            return None;
        }
        let mut others = z.to_vec();
        others[token] = f64::NEG_INFINITY;
        let rest = log_sum_exp(&others);
        let mut push: Vec<f64> = others.iter().map(|x| -p * (x - rest).exp()).collect();
        push[token] = p;
        Some(Clamped {
            value: log_sum_exp(z) - rest + clamp.ln(),
            push,
        })
    }
}
