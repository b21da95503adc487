//! What the time of a path is compared with: fixed work of libtorch that no line of this project changes.

use std::hint::black_box;

use tch::{Device, Kind, Tensor, no_grad};

/// Products, passes over memory and many small calls, in about the mixture of a training step.
pub(crate) struct Reference {
    states: Tensor,
    weights: Tensor,
    embedding: Tensor,
}

impl Reference {
    /// The same in every process.
    pub(crate) fn new() -> Self {
        let noise = |size: [i64; 2]| {
            let at = Tensor::arange(size[0] * size[1], (Kind::Double, Device::Cpu));
            (at * 12.9898).sin().to_kind(Kind::Float).view(size)
        };
        Self {
            states: noise([128, 64]),
            weights: noise([64, 64]) * 0.2,
            embedding: noise([64, 1024]),
        }
    }

    /// Once.
    pub(crate) fn work(&self) {
        no_grad(|| {
            let mut states = self.states.shallow_clone();
            for _ in 0..4 {
                states = (states.matmul(&self.weights).tanh() + &self.states) * 0.5;
            }
            let _ = black_box(states.matmul(&self.embedding).log_softmax(-1, None).sum(Kind::Float));
        });
    }
}
