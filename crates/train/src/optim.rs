//! AdamW and gradient clipping, with every piece of state in plain view.

mod rule;

use std::collections::HashMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};
use unsay_model::{Param, Params, weights};

use crate::error::{Error, Result};
use rule::{OnePass, Rule};

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
/// scratch space, or where it is narrow a small piece of memory, so an update allocates next to nothing. In f32 on the
/// processor one operator of libtorch makes all of it in one pass.
#[derive(Debug)]
pub struct AdamW {
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    step: u64,
    moments: Vec<Moments>,
    one_pass: Option<OnePass>,
}

#[derive(Debug)]
struct Moments {
    name: String,
    first: Tensor,
    second: Tensor,
}

/// So many numbers are updated at a time (4 MB each of weights, moments and widened gradient), so that each pass of an update
/// finds in the cache what the one before it left there, and the passes are few.
const PIECE: i64 = 1 << 20;

/// A norm is taken of so many rows and then of their norms: libtorch adds up a row in one go on one core.
const ROWS: usize = 32;

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
            one_pass: OnePass::find(),
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
        let rule = Rule {
            scale,
            lr,
            betas: self.betas,
            eps: self.eps,
            step: self.step,
        };
        let _guard = tch::no_grad_guard();
        let (mut decayed, mut others) = (Vec::new(), Vec::new());
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
            let kind = weights.f_kind()?;
            let at_once = kind == Kind::Float && weights.device() == Device::Cpu;
            let one_pass = self.one_pass.as_ref().filter(|_| at_once);
            let flat = |tensor: &Tensor| tensor.f_view([-1]);
            let [weights, first, second] = [flat(weights)?, flat(&moments.first)?, flat(&moments.second)?];
            let group = match param.full().dim() > 1 {
                true => &mut decayed,
                false => &mut others,
            };
            // Whole and all together: a call costs as much as a small parameter.
            if one_pass.is_some() && gradient.f_kind()? == kind && gradient.is_contiguous() {
                group.push((param, [weights, first, second, flat(&gradient)?]));
                continue;
            }
            let decay = self.decay(param);
            let rounded = param.rounded().map(flat).transpose()?;
            // Of a gradient that is no plain array this is a copy.
            let gradients = gradient.f_reshape([-1])?;
            let n = weights.size()[0];
            for start in (0..n).step_by(PIECE as usize) {
                let piece = |tensor: &Tensor| tensor.f_narrow(0, start, PIECE.min(n - start));
                let (weights, own) = (piece(&weights)?, piece(&gradients)?);
                // Gives the piece itself where the kinds agree.
                let wide = own.f_to_kind(kind)?;
                let pieces = [&weights, &piece(&first)?, &piece(&second)?, &wide];
                match one_pass {
                    Some(one_pass) => one_pass.apply(&rule, &[pieces], decay)?,
                    None => rule.apply(pieces, decay)?,
                }
                let _ = own.shallow_clone().f_zero_()?;
                if let Some(rounded) = &rounded {
                    piece(rounded)?.f_copy_(&weights)?;
                }
            }
            if !gradient.is_contiguous() {
                let _ = gradient.shallow_clone().f_zero_()?;
            }
            param.note_zero_gradient()?;
        }
        for group in [decayed, others] {
            let Some(((param, _), one_pass)) = group.first().zip(self.one_pass.as_ref()) else {
                continue;
            };
            let pieces: Vec<[&Tensor; 4]> = group.iter().map(|(_, pieces)| pieces.each_ref()).collect();
            one_pass.apply(&rule, &pieces, self.decay(param))?;
            for (param, [weights, .., gradient]) in &group {
                let _ = gradient.shallow_clone().f_zero_()?;
                if let Some(rounded) = param.rounded() {
                    rounded.f_view([-1])?.f_copy_(weights)?;
                }
                param.note_zero_gradient()?;
            }
        }
        Ok(())
    }

    /// The weight decay of a parameter.
    fn decay(&self, param: &Param) -> f64 {
        match param.full().dim() > 1 {
            true => self.weight_decay,
            false => 0.0,
        }
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

/// The Euclidean norm of all gradients together, as a scalar on the parameters' device; nothing is read by the host.
/// Sums are taken in f32 or wider, whatever the kind of the gradients.
pub fn grad_norm(params: &Params) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let mut norms = Vec::new();
    for param in params.trainable() {
        let Some(gradient) = param.gradient()? else { continue };
        let kind = match gradient.f_kind()? {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        };
        // libtorch widens a narrow tensor as a whole before it adds up.
        for piece in gradient.f_reshape([-1])?.f_split(PIECE, 0)? {
            let rows = if piece.numel().is_multiple_of(ROWS) { ROWS } else { 1 };
            let wide = piece.f_to_kind(kind)?.f_view([rows as i64, -1])?;
            let norm = wide.f_norm_scalaropt_dim(2.0, [1i64].as_slice(), false)?;
            norms.push(norm.f_to_kind(Kind::Double)?);
        }
    }
    if norms.is_empty() {
        return Err(Error::Data("no parameter has a gradient".into()));
    }
    Ok(Tensor::f_cat(&norms, 0)?.f_norm()?)
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
