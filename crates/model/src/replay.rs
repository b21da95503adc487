//! A forward pass that keeps little, and the way back through it.

use tch::Tensor;

use crate::Result;
use crate::trunk::{Frame, Trunk};

/// Final states whose activations were not kept: only what entered each block was. The way back computes each block
/// again, from the last to the first, so that at any time the activations of one block are there.
///
/// The gradients are those of the plain backward pass.
#[derive(Debug)]
pub struct Replayed<'a> {
    trunk: &'a Trunk,
    states: Tensor,
    /// Token ids, where the embedding is trained.
    ids: Option<Tensor>,
    frame: Frame,
    /// The first block of which the input was kept.
    first: usize,
    /// What entered each block from there on, and last what entered the final norm.
    inputs: Vec<Tensor>,
}

impl<'a> Replayed<'a> {
    /// Runs the blocks from `first` on over x [B, T, D] without a graph. With `ids` the embedding gets its
    /// gradient, too; without them nothing before block `first` is trained.
    pub(crate) fn new(trunk: &'a Trunk, x: Tensor, first: usize, frame: Frame, ids: Option<Tensor>) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let mut inputs = vec![x.f_detach()?];
        let mut x = x;
        for index in first..trunk.n_blocks() {
            x = trunk.blocks(index..index + 1, x, &frame)?;
            inputs.push(x.shallow_clone());
        }
        Ok(Self {
            trunk,
            states: trunk.finish(&x)?.f_set_requires_grad(true)?,
            ids,
            frame,
            first,
            inputs,
        })
    }

    /// The final states [B, T, D]: a leaf that collects the gradient of whatever is computed from it.
    pub fn states(&self) -> &Tensor {
        &self.states
    }

    /// Pushes the gradient that the states have collected into the parameters. Does nothing where none came.
    ///
    /// **Errors**: only libtorch's.
    pub fn backward(self) -> Result<()> {
        let gradient = self.states.f_grad()?;
        if !gradient.defined() {
            return Ok(());
        }
        let Self {
            trunk,
            states,
            ids,
            frame,
            first,
            mut inputs,
        } = self;
        drop(states);
        let wanted = |index: usize| index > first || ids.is_some();
        let mut gradient = match inputs.pop() {
            Some(x) => replay(&x, &gradient, wanted(trunk.n_blocks()), |x| trunk.finish(x))?,
            None => gradient,
        };
        for index in (first..trunk.n_blocks()).rev() {
            let Some(x) = inputs.pop() else { break };
            gradient = replay(&x, &gradient, wanted(index), |x| {
                trunk.blocks(index..index + 1, x.shallow_clone(), &frame)
            })?;
        }
        match &ids {
            Some(ids) => push(&tch::with_grad(|| trunk.embed(ids, &frame.place))?, &gradient),
            None => Ok(()),
        }
    }
}

/// Computes a stage again with a graph, pushes the gradient of its output back, and gives that of its input, where
/// one is `wanted`.
fn replay(
    input: &Tensor,
    gradient: &Tensor,
    wanted: bool,
    stage: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let input = input.f_detach()?.f_set_requires_grad(wanted)?;
    let output = tch::with_grad(|| stage(&input))?;
    push(&output, gradient)?;
    Ok(input.f_grad()?)
}

/// Backward from an output with a known gradient. The bindings start from a scalar alone, and that of the scalar
/// `output · gradient` is the gradient itself, whatever the scalar's value.
fn push(output: &Tensor, gradient: &Tensor) -> Result<()> {
    // The stage holds nothing that is trained, nor does anything before it.
    if !output.requires_grad() {
        return Ok(());
    }
    let flat = |tensor: &Tensor| tensor.f_reshape([-1]);
    let product = tch::with_grad(|| flat(output)?.f_dot(&flat(gradient)?))?;
    Ok(product.f_backward()?)
}
