//! Activations of feed-forward blocks, by the names that configurations use.

use tch::Tensor;

use crate::Result;

/// A function of each number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// x · sigmoid(x): `silu`, also called `swish`.
    #[default]
    Silu,
    /// x · Φ(x): `gelu`.
    Gelu,
    /// Its approximation with tanh: `gelu_new`, also called `gelu_pytorch_tanh`.
    GeluNew,
    /// max(x, 0): `relu`.
    Relu,
}

impl Activation {
    const NAMES: [(&'static str, Self); 6] = [
        ("silu", Self::Silu),
        ("swish", Self::Silu),
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluNew),
        ("gelu_pytorch_tanh", Self::GeluNew),
        ("relu", Self::Relu),
    ];

    /// The activation of a name; an error lists the names there are.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        let names = Self::NAMES.map(|(n, _)| n).join(", ");
        Self::NAMES
            .into_iter()
            .find_map(|(n, activation)| (n == name).then_some(activation))
            .ok_or_else(|| format!("expected one of {names}, got \"{name}\""))
    }

    /// Its first name.
    pub fn name(self) -> &'static str {
        Self::NAMES
            .into_iter()
            .find_map(|(name, activation)| (activation == self).then_some(name))
            .unwrap_or_default()
    }

    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Silu => x.f_silu()?,
            Self::Gelu => x.f_gelu("none")?,
            Self::GeluNew => x.f_gelu("tanh")?,
            Self::Relu => x.f_relu()?,
        })
    }

    /// From the gradient of what came out to that of x.
    pub(crate) fn backward(self, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Silu => x.f_silu_backward(gradient)?,
            Self::Gelu => x.f_gelu_backward(gradient, "none")?,
            Self::GeluNew => x.f_gelu_backward(gradient, "tanh")?,
            Self::Relu => x.f_threshold_backward(gradient, 0.0)?,
        })
    }
}
