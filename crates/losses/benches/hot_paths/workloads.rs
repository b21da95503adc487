//! What is timed of this crate by `cargo bench` and guarded by `just bench-gate`: names and set-ups. A work does the same each time.
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first error")]

use std::hint::black_box;

use tch::{Device, Kind, Tensor};
use unsay_losses::paired::{Batch, Dpo, Objective, PairCounts};
use unsay_losses::token::{Cringe, Loss, Nll, Unlikelihood};
use unsay_losses::{CompletionRows, TokenCounts, TokenOp, TokenRows};

/// A work that can be done again and again.
pub(crate) type Work = Box<dyn FnMut()>;

/// Makes what a work needs.
pub(crate) type Make = fn() -> Work;

/// Every work, by name: rows, width and vocabulary.
pub(crate) const WORKLOADS: [(&str, Make); 4] = [
    ("losses/nll/128x64x1024", || token(Loss::Nll(Nll {}))),
    ("losses/unlikelihood/128x64x1024", || {
        token(Loss::Unlikelihood(Unlikelihood { alpha: 1.0 }))
    }),
    ("losses/cringe/128x64x1024", || token(Loss::Cringe(Cringe::new(1.0, 5)))),
    ("losses/dpo/128x64x1024", dpo),
];

const ROWS: i64 = 128;
const WIDTH: i64 = 64;
const VOCAB: i64 = 1024;

/// Numbers between -1 and 1 that look like noise.
fn noise(size: &[i64]) -> Tensor {
    let n: i64 = size.iter().product();
    let at = Tensor::arange(n, (Kind::Double, Device::Cpu));
    (at * 12.9898).sin().to_kind(Kind::Float).view(size)
}

struct Rows {
    states: Tensor,
    embedding: Tensor,
    targets: Tensor,
}

fn rows() -> Rows {
    Rows {
        states: noise(&[ROWS, WIDTH]).set_requires_grad(true),
        embedding: (noise(&[VOCAB, WIDTH]) * 0.3).set_requires_grad(true),
        targets: Tensor::arange(ROWS, (Kind::Int64, Device::Cpu)) * 7,
    }
}

/// Value and gradient of a token loss through the op, half of the examples negative.
fn token(loss: Loss) -> Work {
    let mut given = rows();
    let example: Vec<i64> = (0..ROWS).map(|row| row / 8).collect();
    let labels: Vec<i8> = (0..16).map(|example| (example % 2) as i8).collect();
    let rows = TokenRows::new(&example, &[false; ROWS as usize], &labels, Device::Cpu).unwrap();
    let counts = TokenCounts::of(&rows).unwrap();
    let draws = (noise(&[ROWS, 1]) + 1.0) * 0.4999;
    Box::new(move || {
        let op = TokenOp::new(&given.states, &given.embedding, &given.targets, &loss.needs()).unwrap();
        let fused = op.fused_loss(&*loss, &rows, &counts, Some(&draws)).unwrap();
        fused.backward().unwrap();
        black_box(&fused);
        given.states.zero_grad();
        given.embedding.zero_grad();
    })
}

/// Value and gradient of DPO over 8 pairs, in two passes.
fn dpo() -> Work {
    let mut given = rows();
    let objective = Objective::from(unsay_losses::paired::Loss::Dpo(Dpo {
        beta: 0.1,
        label_smoothing: 0.0,
    }));
    let rows = CompletionRows::new(&[8; 16], Device::Cpu).unwrap();
    let counts = PairCounts::of(&rows);
    let reference = noise(&[ROWS]) - 4.0;
    Box::new(move || {
        let op = TokenOp::new(&given.states, &given.embedding, &given.targets, &objective.needs()).unwrap();
        let stats = op.forward().unwrap();
        let batch = Batch {
            stats: &stats,
            rows: &rows,
            reference: Some(&reference),
            draws: None,
            baseline: None,
        };
        let value = objective.evaluate(&batch, &counts).unwrap();
        value.total.backward();
        op.backward(&stats).unwrap();
        given.states.zero_grad();
        given.embedding.zero_grad();
    })
}
