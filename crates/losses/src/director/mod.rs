//! Losses over two heads on one trunk: a language head that learns what to say, and a second head of the same width
//! that judges every next token. At generation [`decode`] adds the two.
//!
//! The second head is an op of its own over the same hidden states, with an embedding `[V, D]` of its own or with
//! the language head's embedding and [`TokenOp::with_affine`](crate::TokenOp::with_affine): `u = scale · z + bias`.
//! What the two ops give back to the hidden states, and to a shared embedding, adds up:
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//! use unsay_losses::director::{DirectorCounts, Loss};
//! use unsay_losses::{TokenOp, TokenRows};
//!
//! # fn main() -> Result<(), unsay_losses::Error> {
//! let leaf = |values: &[f32]| Tensor::from_slice(values).set_requires_grad(true);
//! let hidden = Tensor::from_slice(&[0.1f32, 0.2, 0.3, -0.4]).view([2, 2]).set_requires_grad(true);
//! let embedding = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0, 1.0, 1.0]).view([3, 2]).set_requires_grad(true);
//! let (scale, bias) = (leaf(&[1.0]).view(()), leaf(&[0.0]).view(()));
//! let targets = Tensor::from_slice(&[2i64, 0]);
//! let rows = TokenRows::new(&[0, 1], &[true, true], &[-1, 0], Device::Cpu)?; // one unlabelled, one negative example
//!
//! let loss: Loss = serde_json::from_str(r#"{ "director": { "gamma": 0.5 } }"#).unwrap();
//! let language = TokenOp::new(&hidden, &embedding, &targets, &loss.generator_needs())?;
//! let second = TokenOp::new(&hidden, &embedding, &targets, &loss.classifier_needs())?.with_affine(&scale, &bias)?;
//! let (generator, classifier) = (language.forward()?, second.forward()?);
//! let value = loss.evaluate(&generator, &classifier, &rows, &DirectorCounts::of(&rows)?)?;
//! value.total.backward();
//! (language.surrogate(&generator)? + second.surrogate(&classifier)?).backward();
//! assert!(hidden.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0);
//! # Ok(()) }
//! ```

mod counts;
mod decode;
#[expect(clippy::module_inception, reason = "the family is named after its one method so far")]
mod director;

pub use counts::DirectorCounts;
pub use decode::decode;
pub use director::Reduction;

use crate::registry::registry;
use crate::{Described, LossValue, Needs, Result, TokenRows, TokenStats};

registry! {
    /// Every loss over two heads, in its manifest form: a map of one key, `{ director: { gamma: 0.5 } }`.
    dyn DirectorLoss:
    Director => director,
}

/// A loss over a language head and a second head that judges tokens.
///
/// Ask it what it needs; never compare its name.
pub trait DirectorLoss: Described {
    /// What it reads from the op of the language head.
    fn generator_needs(&self) -> Needs;

    /// What it reads from the op of the second head.
    fn classifier_needs(&self) -> Needs;

    /// The value on one micro-batch of **whole** examples: an example's rows are divided by their own number.
    ///
    /// **Shapes**: `generator`, `classifier` and `rows` of the same `N` rows.
    ///
    /// **Errors**: [`Error::Range`](crate::Error::Range) for a parameter outside its range;
    /// [`Error::Input`](crate::Error::Input) when the inputs do not fit together or lack what the needs ask for;
    /// [`Error::Empty`](crate::Error::Empty) without rows.
    fn evaluate(
        &self,
        generator: &TokenStats,
        classifier: &TokenStats,
        rows: &TokenRows,
        counts: &DirectorCounts,
    ) -> Result<LossValue>;

    /// Settings that between them use every switch.
    fn samples() -> Vec<Self>
    where
        Self: Sized;
}
