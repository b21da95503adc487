//! A pass in stages: autograd or, in bf16, products within attention, closed forms in norms and feed-forward blocks, the linear
//! maps between them by hand.

use tch::{Kind, Tensor};

use crate::Result;
use crate::attended::Attended;
use crate::block::{Block, Way};
use crate::linear;
use crate::norm::Norm;
use crate::products::Input;
use crate::trunk::{Frame, Trunk};

/// Final states with what the way back needs: of every block the states before and behind its linear maps or, where it is
/// replayed, only what entered it. Then the way back computes each block again, from the last to the first, so that at any
/// time the states of one block are there.
///
/// A linear map needs nothing but what entered it, once; autograd would keep copies of its output and, where oneDNN
/// multiplies, of its input too, and sum in more passes. Gradients are those of autograd but for rounding, and the same bit
/// for bit whether replayed or not.
#[derive(Debug)]
pub struct Staged<'a> {
    trunk: &'a Trunk,
    states: Tensor,
    /// Token ids, where the embedding is trained.
    ids: Option<Tensor>,
    frame: Frame,
    /// Those from the first one on that is not frozen.
    blocks: Vec<Kept>,
    /// What entered the final norm, and the norm.
    norm: Stage,
}

/// What is kept of a block.
#[derive(Debug)]
enum Kept {
    Stages(Box<StagedBlock>),
    Input(Tensor),
}

impl<'a> Staged<'a> {
    /// Runs the blocks from `first` on over x [B, T, D], to the states that the frame wants. With `ids` the embedding gets
    /// its gradient, too; without them nothing before block `first` is trained.
    pub(crate) fn new(
        trunk: &'a Trunk,
        x: Tensor,
        first: usize,
        (frame, replay): (Frame, bool),
        ids: Option<Tensor>,
    ) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let mut x = trunk.entering(first, x, &frame)?.f_detach()?;
        let mut blocks = Vec::new();
        for index in first..trunk.n_blocks() {
            if replay {
                blocks.push(Kept::Input(x.shallow_clone()));
                x = trunk.blocks(index..index + 1, x, &frame)?;
            } else {
                let (kept, y) = StagedBlock::forward(trunk, &x, (index, &frame), index > first || ids.is_some())?;
                blocks.push(Kept::Stages(Box::new(kept)));
                x = y;
            }
        }
        let norm = Stage::of_norm(&trunk.norm, &x, !blocks.is_empty() || ids.is_some())?;
        Ok(Self {
            trunk,
            states: norm.output()?.f_set_requires_grad(true)?,
            ids,
            frame,
            blocks,
            norm,
        })
    }

    /// The final states, [B, T, D] or of the rows that were asked for [N, D]: a leaf that collects the gradient of
    /// whatever is computed from it.
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
            mut blocks,
            norm,
        } = self;
        drop(states);
        let _guard = tch::no_grad_guard();
        let first = trunk.n_blocks() - blocks.len();
        let mut gradient = norm.norm_backward(&trunk.norm, &gradient)?;
        while let Some(kept) = blocks.pop() {
            let index = first + blocks.len();
            let at = (index, &frame);
            let staged = match kept {
                Kept::Stages(staged) => *staged,
                Kept::Input(x) => StagedBlock::forward(trunk, &x, at, index > first || ids.is_some())?.0,
            };
            gradient = staged.backward(trunk, at, &gradient)?;
        }
        match &ids {
            Some(ids) => trunk.embed_backward(ids, &frame.place, &gradient),
            None => Ok(()),
        }
    }
}

/// One block between its linear maps.
#[derive(Debug)]
struct StagedBlock {
    before_attention: Stage,
    attention: Seen,
    before_mlp: Stage,
    mlp: Stage,
    /// The size of what entered it, where the gradient of that is wanted.
    wanted: Option<Vec<i64>>,
}

impl StagedBlock {
    /// [`Block::forward`] over x [B, T, D], without a graph through its linear maps.
    fn forward(trunk: &Trunk, x: &Tensor, at: (usize, &Frame), wanted: bool) -> Result<(Self, Tensor)> {
        let (block, way) = trunk.way(at.0, at.1);
        let Block { attention, mlp, .. } = block;
        let first = Stage::of_norm(&block.before_attention, x, wanted)?;
        let maps = linear::all(&attention.maps(), &first.input(way)?)?;
        let seen = Seen::forward(trunk, &maps, at)?;
        let x = way.wanted(x)?.f_add(&attention.out.of(&seen.input(way)?)?)?;
        let second = Stage::of_norm(&block.before_mlp, &x, true)?;
        let maps = linear::all(&mlp.maps(), &second.input(way)?)?;
        let output = mlp.join(&maps)?;
        let inner = Stage { inputs: maps, output };
        let y = x.f_add(&mlp.down.of(&inner.input(way)?)?)?;
        let kept = Self {
            wanted: wanted.then(|| first.inputs[0].size()),
            before_attention: first,
            attention: seen,
            before_mlp: second,
            mlp: inner,
        };
        Ok((kept, y))
    }

    /// From the gradient of what left the block to that of what entered it, undefined where that is not wanted.
    fn backward(self, trunk: &Trunk, at: (usize, &Frame), gradient: &Tensor) -> Result<Tensor> {
        let (block, way) = trunk.way(at.0, at.1);
        let inner = block.mlp.down.backward(&self.mlp.input(way)?, gradient)?;
        let entered = self.before_mlp.input(way)?;
        let joined = block.mlp.join_backward(&self.mlp.inputs, &inner)?;
        drop(self.mlp);
        let middle = linear::backward(&block.mlp.maps(), &entered, &joined)?;
        let before = self.before_mlp.norm_backward(&block.before_mlp, &middle)?;
        let middle = before.shallow_clone().f_add_(gradient)?;
        let seen = block.attention.out.backward(&self.attention.input(way)?, &middle)?;
        let entered = self.before_attention.input(way)?;
        let first = linear::backward(
            &block.attention.maps(),
            &entered,
            &self.attention.backward(trunk, at, &seen)?,
        )?;
        let mut first = self.before_attention.norm_backward(&block.before_attention, &first)?;
        let Some(size) = &self.wanted else {
            return Ok(first);
        };
        match way.rows {
            // No row twice.
            Some(rows) => Ok(first
                .f_view([-1, size[2]])?
                .f_index_add_(0, rows, &middle)?
                .f_view(size.as_slice())?),
            None => Ok(first.f_add_(&middle)?),
        }
    }
}

/// Attention between its maps.
#[derive(Debug)]
enum Seen {
    /// It goes back by autograd.
    Graph(Stage),
    /// It goes back by products.
    Products { attended: Box<Attended>, output: Tensor },
}

impl Seen {
    /// What is attended to, from what the maps gave.
    fn forward(trunk: &Trunk, maps: &[Tensor], (index, frame): (usize, &Frame)) -> Result<Self> {
        let (block, way) = trunk.way(index, frame);
        let Some(sight) = trunk.sight_of_products(index, &frame.sights, maps[0].size3()?.1) else {
            let maps: Vec<&Tensor> = maps.iter().collect();
            let attend = |q: &Tensor, k: &Tensor, v: &Tensor| trunk.attend(index, q, k, v, &frame.sights);
            return Stage::run(&maps, true, |maps| block.attention.seen(maps, way, attend)).map(Self::Graph);
        };
        let (attended, output) = Attended::forward(block.attention.turned(maps, way)?, sight)?;
        Ok(Self::Products {
            attended: Box::new(attended),
            output: way.wanted(&output)?,
        })
    }

    /// On its way into the next map.
    fn input(&self, way: Way<'_>) -> Result<Input> {
        match self {
            Self::Graph(stage) => stage.input(way),
            Self::Products { output, .. } => Input::new(output, way.products),
        }
    }

    /// From the gradient of what was attended to, to those of what the maps gave.
    fn backward(self, trunk: &Trunk, (index, frame): (usize, &Frame), gradient: &Tensor) -> Result<Vec<Tensor>> {
        let (block, way) = trunk.way(index, frame);
        match self {
            Self::Graph(stage) => stage.backward(gradient),
            Self::Products { attended, output } => {
                drop(output);
                let gradient = way.spread(gradient, attended.size())?;
                let found = attended.backward(&gradient, trunk.sight(index, &frame.sights))?;
                block.attention.turned_backward(found, way)
            }
        }
    }
}

/// A piece of the computation, cut off from what is before and behind it. It goes back by autograd, or without a graph by a
/// closed form.
#[derive(Debug)]
struct Stage {
    inputs: Vec<Tensor>,
    output: Tensor,
}

impl Stage {
    /// Computes it from inputs whose gradients are `wanted`.
    fn run(inputs: &[&Tensor], wanted: bool, compute: impl FnOnce(&[Tensor]) -> Result<Tensor>) -> Result<Self> {
        let leaf = |input: &&Tensor| Ok(input.f_detach()?.f_set_requires_grad(wanted)?);
        let inputs = inputs.iter().map(leaf).collect::<Result<Vec<_>>>()?;
        let output = tch::with_grad(|| compute(&inputs))?;
        Ok(Self { inputs, output })
    }

    /// A norm of x, without a graph where it can do without.
    fn of_norm(norm: &Norm, x: &Tensor, wanted: bool) -> Result<Self> {
        match norm.goes_back() {
            true => Ok(Self {
                inputs: vec![x.f_detach()?],
                output: norm.forward(x)?,
            }),
            false => Self::run(&[x], wanted, |x| norm.forward(&x[0])),
        }
    }

    /// [`Stage::backward`] of such a stage.
    fn norm_backward(self, norm: &Norm, gradient: &Tensor) -> Result<Tensor> {
        match norm.backward(&self.inputs[0], gradient)? {
            Some(found) => Ok(found),
            None => Ok(self.backward(gradient)?.remove(0)),
        }
    }

    /// What came out, without a graph.
    fn output(&self) -> Result<Tensor> {
        Ok(self.output.f_detach()?)
    }

    /// The same on its way into linear maps.
    fn input(&self, way: Way<'_>) -> Result<Input> {
        Input::new(&self.output()?, way.products)
    }

    /// From the gradient of the output to those of the inputs, undefined where they are not wanted.
    fn backward(self, gradient: &Tensor) -> Result<Vec<Tensor>> {
        push(&self.output, gradient)?;
        drop(self.output);
        self.inputs.into_iter().map(|input| Ok(input.f_grad()?)).collect()
    }
}

/// Backward from an output with a known gradient. The bindings start from a scalar alone, and that of the scalar
/// `output · gradient` is the gradient itself, whatever the scalar's value.
pub(crate) fn push(output: &Tensor, gradient: &Tensor) -> Result<()> {
    // The stage holds nothing that is trained, nor does anything before it.
    if !output.requires_grad() {
        return Ok(());
    }
    let flat = |tensor: &Tensor| tensor.f_reshape([-1]);
    let product = tch::with_grad(|| match output.f_kind()? {
        Kind::Float | Kind::Double => flat(output)?.f_dot(&flat(gradient)?),
        // The dot product of narrow numbers is one plain loop on the processor, twenty times as slow.
        _ => output.f_mul(gradient)?.f_sum(None),
    })?;
    Ok(product.f_backward()?)
}
