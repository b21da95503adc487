//! Feed-forward blocks.

use tch::Tensor;

use crate::linear::Linear;
use crate::{Activation, Result};

/// A feed-forward block.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) inner: Inner,
    /// F → D.
    pub(crate) down: Linear,
    pub(crate) activation: Activation,
}

/// The maps of the state to the inner width F.
#[derive(Debug)]
pub(crate) enum Inner {
    /// a(gate(x)) · up(x), each D → F.
    Gated { gate: Linear, up: Linear },
    /// The same with one map D → 2F, the gate's part first.
    FusedGate(Linear),
    /// a(up(x)), D → F.
    Plain(Linear),
}

impl Mlp {
    /// x [.., D] → [.., D].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let act = |x: &Tensor| self.activation.apply(x);
        let inner = match &self.inner {
            Inner::Gated { gate, up } => act(&gate.forward(x)?)?.f_mul(&up.forward(x)?)?,
            Inner::FusedGate(both) => {
                let both = both.forward(x)?;
                let width = both.size().last().copied().unwrap_or(0) / 2;
                act(&both.f_narrow(-1, 0, width)?)?.f_mul(&both.f_narrow(-1, width, width)?)?
            }
            Inner::Plain(up) => act(&up.forward(x)?)?,
        };
        self.down.forward(&inner)
    }

    /// Its linear maps.
    pub(crate) fn linear_maps(&mut self) -> Vec<&mut Linear> {
        let mut maps = match &mut self.inner {
            Inner::Gated { gate, up } => vec![gate, up],
            Inner::FusedGate(map) | Inner::Plain(map) => vec![map],
        };
        maps.push(&mut self.down);
        maps
    }
}
