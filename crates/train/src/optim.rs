//! AdamW and gradient clipping, with every piece of state in plain view.

use std::collections::HashMap;
use std::path::Path;

use tch::{Kind, Tensor};
use unsay_model::weights;

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
/// This is the rule of PyTorch's `AdamW`. Moments have the precision of the parameters, single or double.
/// A parameter without a gradient counts as one whose gradient is zero, so that an update is a function of
/// weights, moments and gradients alone. Every operation is in place; the gradient serves as the scratch
/// space, so an update allocates nothing.
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

impl AdamW {
    /// An optimiser at rest: all moments zero.
    pub fn new<'a>(
        params: impl Iterator<Item = (&'a str, &'a Tensor)>,
        betas: (f64, f64),
        eps: f64,
        weight_decay: f64,
    ) -> Result<Self> {
        let mut moments = Vec::new();
        for (name, param) in params {
            let kind = param.f_kind()?;
            if !matches!(kind, Kind::Float | Kind::Double) {
                let message = format!("parameter `{name}`: expected float32 or float64, got {kind:?}");
                return Err(Error::Data(message));
            }
            let zeros = || Tensor::f_zeros(param.size(), (kind, param.device()));
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

    /// One update of the parameters given to [`AdamW::new`], in the same order. The gradients are used up:
    /// afterwards they are zero.
    pub fn step<'a>(&mut self, params: impl Iterator<Item = (&'a str, &'a Tensor)>, lr: f64) -> Result<()> {
        self.step += 1;
        let (beta1, beta2) = self.betas;
        let correction1 = 1.0 - beta1.powf(self.step as f64);
        let correction2 = 1.0 - beta2.powf(self.step as f64);
        let _guard = tch::no_grad_guard();
        for ((name, param), moments) in params.zip(&mut self.moments) {
            if name != moments.name {
                return Err(Error::Data(format!(
                    "optimiser: expected parameter `{}`, got `{name}`",
                    moments.name
                )));
            }
            let mut param = param.shallow_clone();
            let mut grad = param.f_grad()?;
            if !grad.defined() {
                grad = param.f_zeros_like()?;
            }
            if self.weight_decay > 0.0 && param.dim() > 1 {
                let _ = param.f_mul_scalar_(1.0 - lr * self.weight_decay)?;
            }
            let _ = moments.first.f_lerp_(&grad, 1.0 - beta1)?;
            let _ = grad.f_square_()?;
            let _ = moments.second.f_lerp_(&grad, 1.0 - beta2)?;
            if lr > 0.0 {
                // p - s·m / (sqrt(v)/r + eps) as p + m / (sqrt(v)·(-1/(s·r)) - eps/s), in the gradient's memory.
                let size = lr / correction1;
                let _ = moments.second.f_sqrt_out(&grad)?;
                let _ = grad.f_mul_scalar_(-1.0 / (size * correction2.sqrt()))?;
                let _ = grad.f_add_scalar_(-self.eps / size)?;
                let _ = param.f_addcdiv_(&moments.first, &grad)?;
            }
            let _ = grad.f_zero_()?;
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

/// The Euclidean norm of all gradients together, as a scalar on the parameters' device; nothing is read by the host.
pub fn grad_norm<'a>(params: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let mut norms = Vec::new();
    for (_, param) in params {
        let grad = param.f_grad()?;
        if grad.defined() {
            norms.push(grad.f_norm()?.f_to_kind(Kind::Double)?);
        }
    }
    if norms.is_empty() {
        return Err(Error::Data("no parameter has a gradient".into()));
    }
    Ok(Tensor::f_stack(&norms, 0)?.f_norm()?)
}

/// Scales all gradients so that a whole gradient of norm `norm` gets a norm of at most `max_norm`, as PyTorch's
/// `clip_grad_norm_` does: by `max_norm / (norm + 1e-6)` where that is below 1.
pub fn scale_gradients<'a>(
    params: impl Iterator<Item = (&'a str, &'a Tensor)>,
    norm: f64,
    max_norm: f64,
) -> Result<()> {
    let factor = max_norm / (norm + 1e-6);
    if factor >= 1.0 {
        return Ok(());
    }
    let _guard = tch::no_grad_guard();
    for (_, param) in params {
        let mut grad = param.f_grad()?;
        if grad.defined() {
            let _ = grad.f_mul_scalar_(factor)?;
        }
    }
    Ok(())
}

/// The names of the parameters whose gradient is not finite; for messages, it reads from the device.
pub fn non_finite_gradients<'a>(params: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<Vec<String>> {
    let _guard = tch::no_grad_guard();
    let mut names = Vec::new();
    for (name, param) in params {
        let grad = param.f_grad()?;
        if grad.defined() && grad.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LR: [f64; 5] = [0.1, 0.05, 0.2, 0.0, 0.01];

    fn leaf(values: &[f64], size: &[i64], kind: Kind) -> Tensor {
        Tensor::from_slice(values)
            .to_kind(kind)
            .view(size)
            .set_requires_grad(true)
    }

    /// Leaves `g` as the gradient of `param`.
    fn set_gradient(param: &Tensor, g: &[f64]) {
        let g = Tensor::from_slice(g)
            .to_kind(param.kind())
            .view(param.size().as_slice());
        (param * g).sum(None::<Kind>).backward();
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.detach().to_kind(Kind::Double).view(-1)).unwrap()
    }

    fn gradient(i: usize, step: usize) -> f64 {
        ((i * 7 + step * 3) % 11) as f64 / 4.0 - 1.0
    }

    /// The rule in plain scalars, bias-corrected moments first, as in the paper's listing.
    fn by_hand(start: &[f64], decay: f64, (beta1, beta2): (f64, f64), eps: f64) -> Vec<f64> {
        let run = |(i, &start): (usize, &f64)| {
            let (mut p, mut m, mut v) = (start, 0.0, 0.0);
            for (step, lr) in LR.iter().enumerate() {
                let g = gradient(i, step);
                p -= lr * decay * p;
                m = beta1 * m + (1.0 - beta1) * g;
                v = beta2 * v + (1.0 - beta2) * g * g;
                let m_hat = m / (1.0 - beta1.powi(step as i32 + 1));
                let v_hat: f64 = v / (1.0 - beta2.powi(step as i32 + 1));
                p -= lr * m_hat / (v_hat.sqrt() + eps);
            }
            p
        };
        start.iter().enumerate().map(run).collect()
    }

    fn run(kind: Kind) -> (Vec<f64>, Vec<f64>) {
        let (matrix, vector) = (
            leaf(&[1.0, -2.0, 0.5, 3.0], &[2, 2], kind),
            leaf(&[1.0, -1.0], &[2], kind),
        );
        let params = || [("w", &matrix), ("b", &vector)].into_iter();
        let mut optimizer = AdamW::new(params(), (0.9, 0.99), 1e-8, 0.1).unwrap();
        for (step, &lr) in LR.iter().enumerate() {
            set_gradient(&matrix, &[0, 1, 2, 3].map(|i| gradient(i, step)));
            set_gradient(&vector, &[0, 1].map(|i| gradient(i, step)));
            optimizer.step(params(), lr).unwrap();
        }
        (values(&matrix), values(&vector))
    }

    fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn the_trajectory_is_that_of_the_scalar_rule() {
        tch::set_num_threads(1);
        let matrix = by_hand(&[1.0, -2.0, 0.5, 3.0], 0.1, (0.9, 0.99), 1e-8);
        let vector = by_hand(&[1.0, -1.0], 0.0, (0.9, 0.99), 1e-8);
        for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-6)] {
            let (found_matrix, found_vector) = run(kind);
            assert!(
                largest_difference(&found_matrix, &matrix) < tolerance,
                "{found_matrix:?} != {matrix:?}"
            );
            assert!(
                largest_difference(&found_vector, &vector) < tolerance,
                "{found_vector:?} != {vector:?}"
            );
        }
    }

    #[test]
    fn a_restored_state_continues_bit_for_bit() {
        tch::set_num_threads(1);
        let param = leaf(&[1.0, -2.0, 0.5, 3.0], &[2, 2], Kind::Float);
        let params = || [("w", &param)].into_iter();
        let mut first = AdamW::new(params(), (0.9, 0.99), 1e-8, 0.1).unwrap();
        set_gradient(&param, &[1.0, 2.0, 3.0, 4.0]);
        first.step(params(), 0.1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b", "c"].map(|name| folder.path().join(name));
        first.save(&paths[0]).unwrap();
        let copy = leaf(&values(&param), &[2, 2], Kind::Float);
        let copies = || [("w", &copy)].into_iter();
        let mut second = AdamW::new(copies(), (0.9, 0.99), 1e-8, 0.1).unwrap();
        second.load(&paths[0]).unwrap();
        assert_eq!(second.step_count(), 1);
        for (optimizer, param) in [(&mut first, &param), (&mut second, &copy)] {
            set_gradient(param, &[0.3, -0.1, 0.0, 2.0]);
            optimizer.step([("w", param)].into_iter(), 0.1).unwrap();
        }
        let bits = |tensor| values(tensor).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&param), bits(&copy));
        first.save(&paths[1]).unwrap();
        second.save(&paths[2]).unwrap();
        assert_eq!(std::fs::read(&paths[1]).unwrap(), std::fs::read(&paths[2]).unwrap());
    }

    #[test]
    fn a_state_of_other_parameters_is_refused() {
        let (param, other) = (
            leaf(&[1.0; 4], &[2, 2], Kind::Float),
            leaf(&[1.0; 4], &[4], Kind::Float),
        );
        let state = |name, tensor| AdamW::new([(name, tensor)].into_iter(), (0.9, 0.99), 1e-8, 0.0).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        state("w", &param).save(&path).unwrap();
        let refused = |mut own: AdamW| own.load(&path).unwrap_err().to_string();
        assert!(refused(state("v", &param)).contains("`v.exp_avg`: missing"));
        assert!(refused(state("w", &other)).contains("expected [4] Float, got [2, 2] Float"));
        let none = AdamW::new(std::iter::empty(), (0.9, 0.99), 1e-8, 0.0).unwrap();
        assert!(refused(none).contains("`w.exp_avg`: no parameter"));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(refused(state("w", &param)).contains("optimizer.safetensors"));
    }

    #[test]
    fn gradients_are_scaled_to_the_norm_and_no_further() {
        let (a, b) = (leaf(&[0.0], &[1], Kind::Double), leaf(&[0.0, 0.0], &[2], Kind::Double));
        let params = || [("a", &a), ("b", &b)].into_iter();
        assert!(grad_norm(params()).is_err());
        set_gradient(&a, &[3.0]);
        set_gradient(&b, &[0.0, 4.0]);
        let norm = grad_norm(params()).unwrap().double_value(&[]);
        assert!((norm - 5.0).abs() < 1e-12);
        scale_gradients(params(), norm, 10.0).unwrap();
        assert!(largest_difference(&values(&b.grad()), &[0.0, 4.0]) < 1e-12);
        scale_gradients(params(), norm, 1.0).unwrap();
        assert!(largest_difference(&values(&b.grad()), &[0.0, 0.8]) < 1e-6);
        assert!(largest_difference(&values(&a.grad()), &[0.6]) < 1e-6);
        assert!(non_finite_gradients(params()).unwrap().is_empty());
        set_gradient(&b, &[f64::NAN, 0.0]);
        assert_eq!(non_finite_gradients(params()).unwrap(), ["b"]);
        assert!(grad_norm(params()).unwrap().double_value(&[]).is_nan());
    }

    #[test]
    fn a_missing_gradient_counts_as_zero() {
        let param = leaf(&[1.0, 2.0], &[1, 2], Kind::Double);
        let mut optimizer = AdamW::new([("w", &param)].into_iter(), (0.9, 0.99), 1e-8, 0.5).unwrap();
        optimizer.step([("w", &param)].into_iter(), 0.1).unwrap();
        assert!(largest_difference(&values(&param), &[0.95, 1.9]) < 1e-12);
    }
}
