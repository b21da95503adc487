//! Comparing a model with what is expected of it.

use std::fmt;

use tch::{Device, Kind, Tensor};
use unsay_model::Decoder;

use crate::case::Case;

/// Where a computation rounds to f32. In f32 there is one way. Expectations in f64 may come from transformers as
/// it is, which rounds norms, angles, the loss and (with eager attention) the softmax of attention to f32 whatever
/// the kind of the weights, or from code that computes in f64 throughout; a case must agree with one of them in
/// everything that it expects.
#[derive(Clone, Copy)]
pub(crate) struct Rounding {
    parts: Option<Softmax>,
    loss: bool,
}

#[derive(Clone, Copy)]
enum Softmax {
    Kept,
    Rounded,
}

impl Rounding {
    pub(crate) fn of(kind: Kind) -> Vec<Self> {
        let parts: &[Option<Softmax>] = match kind {
            Kind::Double => &[None, Some(Softmax::Kept), Some(Softmax::Rounded)],
            _ => &[None],
        };
        let losses: &[bool] = if kind == Kind::Double { &[false, true] } else { &[false] };
        let each = |&parts| losses.iter().map(move |&loss| Self { parts, loss });
        parts.iter().flat_map(each).collect()
    }

    pub(crate) fn model(self, case: &Case) -> Result<Decoder, unsay_model::Error> {
        let model = Decoder::load_kind(&case.checkpoint, Device::Cpu, case.kind())?;
        Ok(match self.parts {
            None => model,
            Some(softmax) => model.rounded_like_transformers(matches!(softmax, Softmax::Rounded)),
        })
    }
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = match self.parts {
            None => "one kind throughout",
            Some(Softmax::Kept) => "f64 with norms and angles in f32",
            Some(Softmax::Rounded) => "f64 with norms, angles and softmax in f32",
        };
        write!(f, "{parts}{}", if self.loss { ", loss in f32" } else { "" })
    }
}

/// What differs by more than the tolerance.
pub(crate) fn mistakes(case: &Case, model: &Decoder, rounding: Rounding) -> Vec<String> {
    let mut out = Vec::new();
    let logits = case.forward(model);
    let expected = &case.expected["logits"];
    if logits.size() != expected.size() {
        return vec![format!(
            "logits: expected {:?}, got {:?}",
            expected.size(),
            logits.size()
        )];
    }
    let at_real = |x: &Tensor| {
        let rows = case.real.reshape([-1]).nonzero().squeeze_dim(-1);
        x.reshape([-1, x.size()[2]]).index_select(0, &rows)
    };
    out.extend(difference("logits", &at_real(&logits), &at_real(expected)));
    let Some(labels) = &case.labels else {
        let loss = case.expected.keys().any(|n| n == "loss" || n.starts_with("grad."));
        return if loss {
            vec!["inputs.json: `labels` are missing".to_owned()]
        } else {
            out
        };
    };
    let width = labels.size()[1];
    let before = logits.narrow(1, 0, width - 1).reshape([-1, logits.size()[2]]);
    let before = if rounding.loss {
        before.to_kind(Kind::Float)
    } else {
        before
    };
    let targets = labels.narrow(1, 1, width - 1).reshape([-1]);
    let loss = before.cross_entropy_loss::<Tensor>(&targets, None, tch::Reduction::Mean, -100, 0.0);
    if let Some(expected) = case.expected.get("loss") {
        out.extend(difference("loss", &loss.reshape([1]), &expected.reshape([1])));
    }
    let mut gradients: Vec<(&String, &Tensor)> = case.expected.iter().filter(|(n, _)| n.starts_with("grad.")).collect();
    gradients.sort_by_key(|(name, _)| *name);
    if gradients.is_empty() {
        return out;
    }
    model.params().zero_grad().unwrap();
    loss.backward();
    for (name, expected) in gradients {
        match gradient(model, &name["grad.".len()..]) {
            Some(found) => out.extend(difference(name, &found, expected)),
            None => out.push(format!("{name}: no such parameter")),
        }
    }
    out
}

/// The gradient of a parameter: by its name, by its name without or with what all names of the trunk begin with,
/// or, for a tied output embedding, that of the input embedding.
fn gradient(model: &Decoder, name: &str) -> Option<Tensor> {
    let params = model.params();
    let tied = model.config().tie_word_embeddings && name == "lm_head.weight";
    let ends_alike = |full: &str| {
        ["model.", "transformer."]
            .iter()
            .any(|p| full.strip_prefix(p) == Some(name) || name.strip_prefix(p) == Some(full))
    };
    let found = match params.get(name) {
        Some(value) => value,
        None if tied => params.iter().next()?.1,
        None => params.iter().find(|(full, _)| ends_alike(full))?.1,
    };
    let grad = found.grad();
    Some(if grad.defined() { grad } else { found.zeros_like() })
}

/// Names the largest difference when it is beyond 1e-5 (f64: 1e-10) of the tensor's largest number and of the
/// number itself.
fn difference(name: &str, found: &Tensor, expected: &Tensor) -> Option<String> {
    if found.size() != expected.size() {
        return Some(format!(
            "{name}: expected shape {:?}, got {:?}",
            expected.size(),
            found.size()
        ));
    }
    let tolerance = if expected.kind() == Kind::Double { 1e-10 } else { 1e-5 };
    let (found, expected) = (found.detach().to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let largest = expected.abs().max().double_value(&[]).max(1e-3);
    let allowed: Tensor = (expected.abs() + largest) * tolerance;
    let beyond = (&found - &expected).abs() / allowed;
    let worst = beyond.max().double_value(&[]);
    let finite = found.isfinite().all().int64_value(&[]) == 1;
    (!finite || worst > 1.0).then(|| format!("{name}: {worst:.2e} times the tolerance (largest {largest:.2e})"))
}
