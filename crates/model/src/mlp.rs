//! Feed-forward blocks.

use tch::Tensor;

use crate::Result;
use crate::linear::Linear;

/// A feed-forward block with its weights.
#[derive(Debug)]
pub(crate) enum Mlp {
    /// down(silu(gate(x)) · up(x)).
    Gated {
        /// D → F.
        gate: Linear,
        /// D → F.
        up: Linear,
        /// F → D.
        down: Linear,
    },
}

impl Mlp {
    /// x [.., D] → [.., D].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gated { gate, up, down } => {
                let gated = gate.forward(x)?.f_silu()?.f_mul(&up.forward(x)?)?;
                down.forward(&gated)
            }
        }
    }
}
