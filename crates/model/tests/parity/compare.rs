//! Comparing a model with what is expected of it.

use std::fmt;

use tch::{Device, Kind, Tensor};
use unsay_model::{Decoder, Rounding};

use crate::case::Case;

/// How an expectation may have been computed. transformers rounds norms, angles and the loss to f32 whatever the
/// kind of the weights, and with eager attention the softmax; code that makes cases may leave some of it in f64. A
/// case must agree with one way in everything that it expects.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    inside: Rounding,
    loss: bool,
}

impl Way {
    /// All ways of a kind, that of this project first.
    pub(crate) fn all(kind: Kind) -> Vec<Self> {
        let mut all = Vec::new();
        for bits in 0..32 {
            let bit = |n: u32| bits >> n & 1 == 1;
            let (loss, eager) = (bit(0), bit(4));
            let (norms, frequencies, angles) = (bit(1), bit(2), bit(3));
            let inside = Rounding {
                norms,
                frequencies,
                angles,
                eager,
            };
            // Angles in f32 take frequencies with them. A loss in f32 is nothing new to f32, and there only all of
            // it or nothing of it is as in transformers.
            let known = match kind {
                Kind::Double => frequencies || !angles,
                _ => !loss && norms == angles && norms == frequencies,
            };
            if known {
                all.push(Self { inside, loss });
            }
        }
        all
    }

    pub(crate) fn model(self, case: &Case) -> Result<Decoder, unsay_model::Error> {
        let model = Decoder::load_kind(&case.checkpoint, Device::Cpu, case.kind())?;
        Ok(model.rounding_like_transformers(self.inside))
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rounding {
            norms,
            frequencies,
            angles,
            eager,
        } = self.inside;
        let places = [
            (norms, "norms"),
            (frequencies && !angles, "frequencies"),
            (angles, "angles"),
            (eager, "eager attention"),
            (self.loss, "loss"),
        ];
        let rounded: Vec<&str> = places.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        match rounded.as_slice() {
            [] => f.write_str("as this project computes"),
            names => write!(f, "rounding {} as transformers does", names.join(", ")),
        }
    }
}

/// What differs by more than the tolerance.
pub(crate) fn mistakes(case: &Case, model: &Decoder, way: Way) -> Vec<String> {
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
    let before = if way.loss { before.to_kind(Kind::Float) } else { before };
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
    let finite = beyond.isfinite().all().int64_value(&[]) == 1;
    (!finite || worst > 1.0).then(|| format!("{name}: {worst:.2e} times the tolerance (largest {largest:.2e})"))
}
