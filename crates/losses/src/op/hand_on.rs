//! Handing finished gradients to autograd.

use tch::{Kind, Tensor};

use super::{KEPT_LOGITS, TokenOp};
use crate::Result;

/// What is trained, each with its gradient, on its way to autograd.
#[derive(Debug, Default)]
pub(super) struct HandOn(pub(super) Vec<(Tensor, Tensor)>);

impl HandOn {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Σ value ⊙ gradient`.
    pub(super) fn surrogate(&self) -> Result<Tensor> {
        let sums = self.0.iter().map(|(value, gradient)| {
            let sum = dot(value, gradient)?;
            Ok(sum.f_to_kind(if sum.f_kind()? == Kind::Double {
                Kind::Double
            } else {
                Kind::Float
            })?)
        });
        if self.is_empty() {
            // Its gradient goes nowhere, which is no error.
            return Ok(Tensor::from(0.0f32).f_set_requires_grad(true)?);
        }
        Ok(Tensor::f_stack(&sums.collect::<Result<Vec<_>>>()?, 0)?.f_sum(None)?)
    }

    /// Hands the gradients on.
    ///
    /// Autograd would make a second tensor of the size of each before it adds it. Where a gradient is there already,
    /// adding to it is all that autograd would do.
    pub(super) fn backward(self) -> Result<()> {
        let mut rest = Vec::new();
        for (value, gradient) in self.0 {
            // libtorch warns where the gradient of anything but a leaf is asked for.
            match value.is_leaf().then(|| value.grad()).filter(Tensor::defined) {
                Some(mut known) => {
                    let _ = tch::no_grad(|| known.f_add_(&gradient))?;
                }
                None => rest.push((value, gradient)),
            }
        }
        match HandOn(rest) {
            rest if rest.is_empty() => Ok(()),
            rest => Ok(rest.surrogate()?.f_backward()?),
        }
    }
}

impl TokenOp {
    /// Whether the embedding's gradient is added to the one that it has.
    pub(super) fn adds_in_place(&self) -> bool {
        let embedding = &self.embedding;
        let asked = self.in_place && embedding.requires_grad() && embedding.is_leaf();
        asked && (embedding.kind() == self.wide() || self.adds_at_once())
    }

    /// Whether that happens once, behind the last chunk: in a narrow kind a sum over chunks would lose too much. It takes the
    /// gradients of all logits, which may be as many bytes as logits that are kept, or as a sum in f32 would be.
    pub(super) fn adds_at_once(&self) -> bool {
        let embedding = &self.embedding;
        let asked = self.in_place && embedding.requires_grad() && embedding.is_leaf();
        let narrow = embedding.kind() != self.wide() && self.affine.is_none() && self.temperature.is_none();
        let (n, width) = (self.rows.len(), self.hidden.size()[1]);
        asked && narrow && (n <= 2 * width || n * self.n_tokens() <= 2 * KEPT_LOGITS)
    }

    /// The gradient that the embedding has; zeros where it had none.
    pub(super) fn known_gradient(&self) -> Result<Tensor> {
        if !self.embedding.grad().defined() {
            // The bindings cannot set a gradient, but this one is zero everywhere.
            let nothing = tch::with_grad(|| self.embedding.f_narrow(0, 0, 1)?.f_sum(None)?.f_mul_scalar(0.0))?;
            nothing.f_backward()?;
        }
        Ok(self.embedding.grad())
    }
}

/// `Σ a ⊙ b` as one product: nothing of their size is made.
pub(super) fn dot(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(a.f_reshape([-1])?.f_dot(&b.f_reshape([-1])?)?)
}
