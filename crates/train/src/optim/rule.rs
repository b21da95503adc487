//! The rule of an update over a piece of a parameter: in one pass where libtorch has it, in several everywhere.

use tch::{CModule, Device, IValue, Kind, Tensor};
use unsay_model::operators;

use crate::error::Result;

/// The numbers of one update.
pub(super) struct Rule {
    /// The gradient is multiplied by it; at most 1.
    pub(super) scale: f64,
    pub(super) lr: f64,
    pub(super) betas: (f64, f64),
    pub(super) eps: f64,
    /// The number of the update, from 1.
    pub(super) step: u64,
}

impl Rule {
    /// Updates weights, first and second moment by a gradient, of which nothing is left. `decay` is the weight decay of
    /// this parameter.
    pub(super) fn apply(&self, [weights, first, second, gradient]: [&Tensor; 4], decay: f64) -> Result<()> {
        let [mut weights, mut first, mut second, mut gradient] =
            [weights, first, second, gradient].map(Tensor::shallow_clone);
        let (beta1, beta2) = self.betas;
        let kept = 1.0 - self.lr * decay;
        if kept < 1.0 {
            let _ = weights.f_mul_scalar_(kept)?;
        }
        if self.scale < 1.0 {
            let _ = gradient.f_mul_scalar_(self.scale)?;
        }
        let _ = first.f_lerp_(&gradient, 1.0 - beta1)?;
        let _ = gradient.f_square_()?;
        let _ = second.f_lerp_(&gradient, 1.0 - beta2)?;
        if self.lr > 0.0 {
            // p - s·m / (sqrt(v)/r + eps) as p + m / (sqrt(v)·(-1/(s·r)) - eps/s), in the gradient's memory.
            let correction = |beta: f64| 1.0 - beta.powf(self.step as f64);
            let size = self.lr / correction(beta1);
            let _ = second.f_sqrt_out(&gradient)?;
            let _ = gradient.f_mul_scalar_(-1.0 / (size * correction(beta2).sqrt()))?;
            let _ = gradient.f_add_scalar_(-self.eps / size)?;
            let _ = weights.f_addcdiv_(&first, &gradient)?;
        }
        Ok(())
    }
}

/// TorchScript leaves out an operator whose lists are made beside it, as if it changed nothing that is seen outside.
const METHODS: &str = "\
def forward(self: __torch__.AdamW, p: List[Tensor], m: List[Tensor], v: List[Tensor], g: List[Tensor], \
step: List[Tensor], scale: Optional[Tensor], lr: float, beta1: float, beta2: float, decay: float, eps: float) \
-> List[Tensor]:
  none = annotate(List[Tensor], [])
  _0 = ops.aten._fused_adamw_(p, g, m, v, none, step, lr=lr, beta1=beta1, beta2=beta2, weight_decay=decay, \
eps=eps, amsgrad=False, maximize=False, grad_scale=scale, found_inf=None)
  return p
";

/// [`Rule::apply`] in one pass over the four pieces, for f32 on the processor; the bindings have no function for it.
#[derive(Debug)]
pub(super) struct OnePass(CModule);

impl OnePass {
    /// `None` where this build of libtorch has no such operator, or one that does something else.
    pub(super) fn find() -> Option<Self> {
        let found = Self(operators::module("AdamW", METHODS).ok()?);
        let rule = Rule {
            scale: 0.5,
            lr: 0.5,
            betas: (0.5, 0.5),
            eps: 0.5,
            step: 1,
        };
        let _guard = tch::no_grad_guard();
        let one = || Tensor::f_ones([1], (Kind::Float, Device::Cpu)).ok();
        let pieces = || Some([one()?, one()?, one()?, one()?]);
        let (ours, theirs) = (pieces()?, pieces()?);
        rule.apply(ours.each_ref(), 0.5).ok()?;
        found.apply(&rule, &[theirs.each_ref()], 0.5).ok()?;
        // Of the gradient both make what they like.
        let mut same = ours
            .iter()
            .zip(&theirs)
            .take(3)
            .map(|(a, b)| a.allclose(b, 1e-5, 1e-5, false));
        same.all(|same| same).then_some(found)
    }

    /// The same but for rounding, over several pieces, in as many calls as one of them takes; the scale is rounded to f32
    /// whatever the kind.
    pub(super) fn apply(&self, rule: &Rule, pieces: &[[&Tensor; 4]], decay: f64) -> Result<()> {
        let number = |value: f64| Tensor::f_from_slice(&[value as f32]);
        let list = |which: usize| IValue::TensorList(pieces.iter().map(|piece| piece[which].shallow_clone()).collect());
        let mut arguments: Vec<IValue> = (0..4).map(list).collect();
        let step = number(rule.step as f64)?;
        arguments.push(IValue::TensorList(
            pieces.iter().map(|_| step.shallow_clone()).collect(),
        ));
        arguments.push(match rule.scale < 1.0 {
            // What the gradient is divided by.
            true => IValue::Tensor(number(rule.scale.recip())?),
            false => IValue::None,
        });
        let (beta1, beta2) = rule.betas;
        arguments.extend([rule.lr, beta1, beta2, decay, rule.eps].map(IValue::Double));
        self.0.method_is("forward", &arguments)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of lengths that fill vectors and leave numbers over, with every part of the rule at work.
    #[test]
    fn one_pass_is_the_rule() {
        tch::set_num_threads(1);
        let _guard = tch::no_grad_guard();
        let one_pass = OnePass::find().unwrap();
        let mut compared = 0;
        for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-6)] {
            for n in [1, 16, 37, 5000] {
                let of = |shift: f64| {
                    (Tensor::arange(n, (Kind::Double, Device::Cpu)) + shift)
                        .sin()
                        .to_kind(kind)
                };
                let start = || [of(0.5), of(1.5) * 0.1, of(2.5).square() * 0.1];
                let (ours, theirs) = (start(), start());
                for (step, lr, decay, scale) in [
                    (1, 0.1, 0.0, 1.0),
                    (2, 0.05, 0.3, 1.0),
                    (3, 0.0, 0.3, 1.0),
                    (4, 0.2, 0.1, 0.25),
                ] {
                    // A scale of a power of two, since the operator takes it in f32.
                    let rule = Rule {
                        scale,
                        lr,
                        betas: (0.9, 0.97),
                        eps: 1e-2,
                        step,
                    };
                    let gradient = || of(step as f64 * 3.7) * 2.0;
                    let [p, m, v] = &ours;
                    rule.apply([p, m, v, &gradient()], decay).unwrap();
                    let [p, m, v] = &theirs;
                    one_pass.apply(&rule, &[[p, m, v, &gradient()]], decay).unwrap();
                    for (ours, theirs) in ours.iter().zip(&theirs) {
                        let difference = (ours - theirs).abs().max().double_value(&[]);
                        assert!(
                            difference < tolerance,
                            "{kind:?}, {n} numbers, update {step}: {difference}"
                        );
                        compared += 1;
                    }
                }
            }
        }
        assert_eq!(compared, 2 * 4 * 4 * 3);
    }

    /// What is divided by is 1/scale in f32, so a scale of no power of two is within rounding.
    #[test]
    fn one_pass_clips_as_the_rule_does() {
        let _guard = tch::no_grad_guard();
        let rule = Rule {
            scale: 0.3,
            lr: 0.1,
            betas: (0.0, 0.0),
            eps: 1.0,
            step: 1,
        };
        let pieces = || [0.0_f32, 0.0, 0.0, 3.0].map(|value| Tensor::from_slice(&[value]));
        let (ours, theirs) = (pieces(), pieces());
        rule.apply(ours.each_ref(), 0.0).unwrap();
        OnePass::find()
            .unwrap()
            .apply(&rule, &[theirs.each_ref()], 0.0)
            .unwrap();
        for found in [&ours[0], &theirs[0]] {
            // -0.1 · 0.9 / (0.9 + 1)
            assert!((found.double_value(&[0]) + 0.09 / 1.9).abs() < 1e-7, "{found}");
        }
    }
}
