//! AdamW and gradient clipping, with every piece of state in plain view.

use std::collections::HashMap;
use std::path::Path;

use tch::{Kind, Tensor};
use unsay_model::{Params, weights};

use crate::error::{Error, Result};

/// AdamW with decoupled weight decay.
///
/// With gradient `g`, moments `m` and `v`, update number `t` (from 1) and learning rate `lr`:
///
/// ```text
/// p <- p (1 - lr decay)                      only for parameters of two or more dimensions
/// m <- m + (1 - beta1) (g - m)
/// v <- v + (1 - beta2) (g² - v)
/// p <- p - lr / (1 - beta1^t) · m / (sqrt(v / (1 - beta2^t)) + eps)
/// ```
///
/// This is the rule of PyTorch's `AdamW`. Moments have the precision of the weights, single or double; where the model
/// computes in bf16 the weights are the masters ([`unsay_model::Param::master`]), updated in f32 and then rounded into the leaves. A
/// parameter without a gradient counts as one whose gradient is zero, so that an update is a function of weights,
/// moments and gradients alone. Every operation is in place, a piece of a parameter at a time; the gradient serves as the
/// scratch space, or where it is narrow a small piece of memory, so an update allocates next to nothing.
#[derive(Debug)]
pub struct AdamW {
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    step: u64,
    moments: Vec<Moments>,
}

#[derive(Debug)]
struct Moments {
    name: String,
    first: Tensor,
    second: Tensor,
}

/// So many numbers are updated at a time (0.5 MB each of weights, moments and gradient), so that the passes of an update
/// find them in the cache.
const PIECE: i64 = 1 << 17;

impl AdamW {
    /// An optimiser at rest, for the parameters that are trained: all moments zero.
    pub fn new(params: &Params, betas: (f64, f64), eps: f64, weight_decay: f64) -> Result<Self> {
        let mut moments = Vec::new();
        for param in params.trainable() {
            let (name, weights) = (param.name(), param.full());
            let kind = weights.f_kind()?;
            if !matches!(kind, Kind::Float | Kind::Double) {
                let message = format!("parameter `{name}`: expected float32 or float64, got {kind:?}");
                return Err(Error::Data(message));
            }
            let zeros = || Tensor::f_zeros(weights.size(), (kind, weights.device()));
            moments.push(Moments {
                name: name.to_owned(),
                first: zeros()?,
                second: zeros()?,
            });
        }
        Ok(Self {
            betas,
            eps,
            weight_decay,
            step: 0,
            moments,
        })
    }

    /// Updates made so far.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// One update of the parameters given to [`AdamW::new`], by their gradients times `scale`. The gradients are used
    /// up: afterwards they are zero.
    ///
    /// The scale is applied to a narrow gradient after widening, so that clipping rounds nothing.
    pub fn step(&mut self, params: &Params, lr: f64, scale: f64) -> Result<()> {
        let n_trained = params.trainable().count();
        if n_trained != self.moments.len() {
            let message = format!("expected {} trained parameters, got {n_trained}", self.moments.len());
            return Err(Error::Data(format!("optimiser: {message}")));
        }
        self.step += 1;
        let (beta1, beta2) = self.betas;
        let update = Update {
            scale,
            lr,
            betas: self.betas,
            eps: self.eps,
            corrections: (1.0 - beta1.powf(self.step as f64), 1.0 - beta2.powf(self.step as f64)),
        };
        let _guard = tch::no_grad_guard();
        for (param, moments) in params.trainable().zip(&self.moments) {
            if param.name() != moments.name {
                return Err(Error::Data(format!(
                    "optimiser: expected parameter `{}`, got `{}`",
                    moments.name,
                    param.name()
                )));
            }
            let weights = param.full();
            let gradient = match param.gradient()? {
                Some(gradient) => gradient,
                None => weights.f_zeros_like()?,
            };
            let decay = match weights.dim() > 1 {
                true => 1.0 - lr * self.weight_decay,
                false => 1.0,
            };
            let kind = weights.f_kind()?;
            let flat = |tensor: &Tensor| tensor.f_view([-1]);
            let [weights, first, second] = [flat(weights)?, flat(&moments.first)?, flat(&moments.second)?];
            let rounded = param.rounded().map(flat).transpose()?;
            // Of a gradient that is no plain array this is a copy.
            let gradients = gradient.f_reshape([-1])?;
            let n = weights.size()[0];
            for start in (0..n).step_by(PIECE as usize) {
                let piece = |tensor: &Tensor| tensor.f_narrow(0, start, PIECE.min(n - start));
                let (weights, own) = (piece(&weights)?, piece(&gradients)?);
                // Gives the piece itself where the kinds agree.
                let wide = own.f_to_kind(kind)?;
                update.apply([&weights, &piece(&first)?, &piece(&second)?, &wide], decay)?;
                let _ = own.shallow_clone().f_zero_()?;
                if let Some(rounded) = &rounded {
                    piece(rounded)?.f_copy_(&weights)?;
                }
            }
            if !gradient.is_contiguous() {
                let _ = gradient.shallow_clone().f_zero_()?;
            }
        }
        Ok(())
    }

    /// Writes the state as a safetensors file: `<parameter>.exp_avg`, `<parameter>.exp_avg_sq`, and the number of
    /// updates as `step`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let step = Tensor::from(self.step as i64);
        let mut named = vec![("step".to_owned(), &step)];
        for Moments { name, first, second } in &self.moments {
            named.push((format!("{name}.exp_avg"), first));
            named.push((format!("{name}.exp_avg_sq"), second));
        }
        Ok(weights::write(
            path,
            named.iter().map(|(name, tensor)| (name.as_str(), *tensor)),
        )?)
    }

    /// Takes over a saved state. Names, shapes and precision must be those of this optimiser's parameters.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let mut saved: HashMap<String, Tensor> = weights::read(path)?.into_iter().collect();
        let mut take = |name: &str, like: &Tensor| {
            let broken = |problem: String| Error::checkpoint(path, format!("`{name}`: {problem}"));
            let tensor = saved.remove(name).ok_or_else(|| broken("missing".into()))?;
            let form = |tensor: &Tensor| Ok::<_, Error>(format!("{:?} {:?}", tensor.size(), tensor.f_kind()?));
            let (expected, found) = (form(like)?, form(&tensor)?);
            if expected == found {
                Ok(tensor)
            } else {
                Err(broken(format!("expected {expected}, got {found}")))
            }
        };
        let step = take("step", &Tensor::from(0_i64))?.f_int64_value(&[])?;
        for Moments { name, first, second } in &mut self.moments {
            for (part, tensor) in [("exp_avg", first), ("exp_avg_sq", second)] {
                let saved = take(&format!("{name}.{part}"), tensor)?;
                tch::no_grad(|| tensor.f_copy_(&saved))?;
            }
        }
        if let Some(name) = saved.keys().min() {
            return Err(Error::checkpoint(path, format!("`{name}`: no parameter of that name")));
        }
        self.step = u64::try_from(step).map_err(|_| Error::checkpoint(path, format!("`step`: got {step}")))?;
        Ok(())
    }
}

/// The numbers of one update.
struct Update {
    scale: f64,
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    corrections: (f64, f64),
}

impl Update {
    /// The rule for weights, first and second moment and gradient; of the gradient nothing is left.
    fn apply(&self, [weights, first, second, gradient]: [&Tensor; 4], decay: f64) -> Result<()> {
        let [mut weights, mut first, mut second, mut gradient] =
            [weights, first, second, gradient].map(Tensor::shallow_clone);
        if decay < 1.0 {
            let _ = weights.f_mul_scalar_(decay)?;
        }
        if self.scale < 1.0 {
            let _ = gradient.f_mul_scalar_(self.scale)?;
        }
        let _ = first.f_lerp_(&gradient, 1.0 - self.betas.0)?;
        let _ = gradient.f_square_()?;
        let _ = second.f_lerp_(&gradient, 1.0 - self.betas.1)?;
        if self.lr > 0.0 {
            // p - s·m / (sqrt(v)/r + eps) as p + m / (sqrt(v)·(-1/(s·r)) - eps/s), in the gradient's memory.
            let size = self.lr / self.corrections.0;
            let _ = second.f_sqrt_out(&gradient)?;
            let _ = gradient.f_mul_scalar_(-1.0 / (size * self.corrections.1.sqrt()))?;
            let _ = gradient.f_add_scalar_(-self.eps / size)?;
            let _ = weights.f_addcdiv_(&first, &gradient)?;
        }
        Ok(())
    }
}

/// The Euclidean norm of all gradients together, as a scalar on the parameters' device; nothing is read by the host.
/// Sums are taken in f32 or wider, whatever the kind of the gradients.
pub fn grad_norm(params: &Params) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let mut norms = Vec::new();
    for param in params.trainable() {
        if let Some(gradient) = param.gradient()? {
            if matches!(gradient.f_kind()?, Kind::Float | Kind::Double) {
                norms.push(gradient.f_norm()?.f_to_kind(Kind::Double)?);
                continue;
            }
            // libtorch widens a narrow tensor as a whole before it adds up.
            for piece in gradient.f_reshape([-1])?.f_split(PIECE, 0)? {
                norms.push(piece.f_to_kind(Kind::Float)?.f_norm()?.f_to_kind(Kind::Double)?);
            }
        }
    }
    if norms.is_empty() {
        return Err(Error::Data("no parameter has a gradient".into()));
    }
    Ok(Tensor::f_stack(&norms, 0)?.f_norm()?)
}

/// What a whole gradient of norm `norm` is multiplied by so that its norm is at most `max_norm`, as PyTorch's
/// `clip_grad_norm_` does: `max_norm / (norm + 1e-6)` where that is below 1, otherwise 1.
pub fn clip_scale(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// The names of the parameters whose gradient is not finite; for messages, it reads from the device.
pub fn non_finite_gradients(params: &Params) -> Result<Vec<String>> {
    let _guard = tch::no_grad_guard();
    let mut names = Vec::new();
    for param in params.trainable() {
        if let Some(gradient) = param.gradient()?
            && gradient.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0
        {
            names.push(param.name().to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
