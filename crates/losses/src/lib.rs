//! Every training objective, as pure functions over per-token log-probabilities.
//!
//! The way of a batch through this crate:
//!
//! 1. [`TokenOp`] takes the hidden states that predict something, the output embedding and the targets,
//!    and gives [`TokenStats`]: a few numbers per predicted token. It never builds `[B, T, V]` logits.
//! 2. A [`TokenLoss`](token::TokenLoss), picked by the manifest through the registry [`Loss`](token::Loss), turns the stats into a
//!    [`LossValue`]. It divides by [`TokenCounts`] of the whole batch, so the values and gradients of
//!    micro-batches add up to those of the batch.
//! 3. `value.total.backward()` leaves gradients on the stats, and [`TokenOp::surrogate`] carries them on to
//!    the hidden states and the embedding.
//!
//! A token loss is a sum over rows, so all three can be done chunk by chunk in one pass, which is faster and takes less
//! memory: [`TokenOp::fused_loss`]. Both ways give the same numbers up to rounding.
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//! use unsay_losses::token::Loss;
//! use unsay_losses::{TokenCounts, TokenOp, TokenRows};
//!
//! # fn main() -> Result<(), unsay_losses::Error> {
//! let hidden = Tensor::from_slice(&[0.1f32, 0.2, 0.3, -0.4]).view([2, 2]).set_requires_grad(true);
//! let embedding = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0, 1.0, 1.0]).view([3, 2]).set_requires_grad(true);
//! let targets = Tensor::from_slice(&[2i64, 0]);
//! let rows = TokenRows::new(&[0, 1], &[false, false], &[1, 0], Device::Cpu)?; // one positive, one negative example
//!
//! let loss = Loss::Nll(Default::default());
//! let op = TokenOp::new(&hidden, &embedding, &targets, &loss.needs())?;
//! let stats = op.forward()?;
//! let value = loss.evaluate(&stats, &rows, &TokenCounts::of(&rows)?, None)?;
//! value.total.backward();
//! op.surrogate(&stats)?.backward();
//! assert_eq!(hidden.grad().size(), [2, 2]);
//! assert_eq!(hidden.grad().get(1).abs().sum(Kind::Float).double_value(&[]), 0.0); // nll skips negatives
//!
//! let fused = op.fused_loss(&*loss, &rows, &TokenCounts::of(&rows)?, None)?; // the same again, at once
//! assert!((&fused.value.total - &value.total).abs().double_value(&[]) < 1e-6);
//! fused.backward()?; // comes on top of the gradients that are there
//! # Ok(()) }
//! ```

mod baseline;
mod card;
mod catalog;
mod completions;
mod counts;
pub mod director;
mod error;
mod op;
pub mod paired;
pub mod policy;
pub mod ranked;
mod registry;
mod retain;
mod rows;
mod running_mean;
pub mod scores;
pub mod token;
pub mod unpaired;
mod value;

pub use baseline::{Baseline, mismatched_kl};
pub use card::{Card, Described};
pub use catalog::{Entry, Family, families, page};
pub use completions::{CompletionRows, Completions};
pub use error::{Error, Result};
pub use op::{Fused, Kl, Needs, TokenOp, TokenStats};
pub use retain::Retain;
pub use rows::{TokenCounts, TokenRows, token_metrics};
pub use running_mean::RunningMean;
pub use value::LossValue;
