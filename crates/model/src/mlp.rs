//! Feed-forward blocks.

use tch::Tensor;

use crate::linear::{self, Linear};
use crate::products::Input;
use crate::{Activation, Products, Result};

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
    pub(crate) fn forward(&self, x: &Tensor, products: Products) -> Result<Tensor> {
        let maps = linear::all(&self.maps(), &Input::new(x, products)?)?;
        self.down.of(&Input::new(&self.join(&maps)?, products)?)
    }

    /// The maps of the state.
    pub(crate) fn maps(&self) -> Vec<&Linear> {
        match &self.inner {
            Inner::Gated { gate, up } => vec![gate, up],
            Inner::FusedGate(map) | Inner::Plain(map) => vec![map],
        }
    }

    /// From what the maps gave to [.., F].
    pub(crate) fn join(&self, maps: &[Tensor]) -> Result<Tensor> {
        let act = |x: &Tensor| self.activation.apply(x);
        Ok(match (&self.inner, maps) {
            (Inner::Gated { .. }, [gate, up]) => act(gate)?.f_mul(up)?,
            (Inner::FusedGate(_), [both]) => {
                let width = both.size().last().copied().unwrap_or(0) / 2;
                act(&both.f_narrow(-1, 0, width)?)?.f_mul(&both.f_narrow(-1, width, width)?)?
            }
            _ => act(&maps[0])?,
        })
    }

    /// From the gradient of what [`Mlp::join`] gave to those of what the maps gave.
    pub(crate) fn join_backward(&self, maps: &[Tensor], gradient: &Tensor) -> Result<Vec<Tensor>> {
        let act = self.activation;
        let gated = |gate: &Tensor, up: &Tensor| -> Result<[Tensor; 2]> {
            let of_gate = act.backward(gate, &gradient.f_mul(up)?)?;
            Ok([of_gate, act.apply(gate)?.f_mul_(gradient)?])
        };
        Ok(match (&self.inner, maps) {
            (Inner::Gated { .. }, [gate, up]) => gated(gate, up)?.into(),
            (Inner::FusedGate(_), [both]) => {
                let width = both.size().last().copied().unwrap_or(0) / 2;
                let parts = gated(&both.f_narrow(-1, 0, width)?, &both.f_narrow(-1, width, width)?)?;
                vec![Tensor::f_cat(&parts, -1)?]
            }
            _ => vec![act.backward(&maps[0], gradient)?],
        })
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
