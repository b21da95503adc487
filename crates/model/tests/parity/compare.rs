//! Comparing a model with what is expected of it.

use std::fmt;

use tch::{Device, Kind, Tensor};
use unsay_model::{Architecture, Config, Decoder, Rounding};

use crate::case::Case;

/// How an expectation may have been computed. transformers rounds norms, angles and the loss to f32 whatever the
/// kind of the weights, and with eager attention the softmax; code that makes cases may leave some of it in f64. What
/// padding itself computes differs too, and a loss sees it where a label follows padding. A case must agree with one
/// way in everything that it expects, and roughly with the first way, which is how this project computes.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    inside: Rounding,
    loss: bool,
}

/// How far roundings alone may lead, as a part of a tensor's largest number.
const ROUGHLY: f64 = 1e-3;

impl Way {
    /// All ways that may matter to a case, that of this project first.
    pub(crate) fn all(case: &Case, config: &Config) -> Vec<Self> {
        let learned = matches!(config.architecture, Architecture::Gpt2(_));
        let double = case.kind() == Kind::Double;
        let mut all = Vec::new();
        for bits in 0..128 {
            let bit = |n: u32| bits >> n & 1 == 1;
            let (loss, eager) = (bit(0), bit(4));
            let (norms, frequencies, angles) = (bit(1), bit(2), bit(3));
            let (later_too, padding_at_one) = (bit(5), bit(6));
            let inside = Rounding {
                norms,
                frequencies,
                angles,
                eager,
                later_too,
                padding_at_one,
            };
            // Angles in f32 take frequencies with them. A loss in f32 is nothing new to f32, and there only all of
            // it or nothing of it is as in transformers. GPT-2 has neither RMS norms nor angles.
            let known = match double {
                true => frequencies || !angles,
                false => !loss && norms == angles && norms == frequencies,
            };
            let rotary = !learned || !(norms || frequencies || angles);
            let padded = !padding_at_one || case.is_padded();
            if known && rotary && padded && (!later_too || (eager && learned)) {
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
            later_too,
            padding_at_one,
        } = self.inside;
        let places = [
            (norms, "norms"),
            (frequencies && !angles, "frequencies"),
            (angles, "angles"),
            (eager && !later_too, "eager attention"),
            (later_too, "eager attention of transformers 5"),
            (padding_at_one, "padding at position 1"),
            (self.loss, "loss"),
        ];
        let rounded: Vec<&str> = places.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        match rounded.as_slice() {
            [] => f.write_str("as this project computes"),
            names => write!(f, "as transformers does in {}", names.join(", ")),
        }
    }
}

/// What differs by more than the tolerance.
pub(crate) fn mistakes(case: &Case, model: &Decoder, way: Way) -> Vec<String> {
    differences(case, model, way, 0.0)
}

/// What no rounding explains in how this project computes, which is what other ways than its own stand in for. What
/// padding predicts is left out: there ways differ in more than rounding.
pub(crate) fn rough_mistakes(case: &Case, model: &Decoder) -> Vec<String> {
    let own = Way {
        inside: Rounding::default(),
        loss: false,
    };
    let mut found = differences(case, model, own, ROUGHLY);
    if case.padding_predicts() {
        found.retain(|what| what.starts_with("logits"));
    }
    found
}

/// What differs by more than the tolerance and `least`.
fn differences(case: &Case, model: &Decoder, way: Way, least: f64) -> Vec<String> {
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
    out.extend(difference("logits", &at_real(&logits), &at_real(expected), least, 1e-3));
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
        out.extend(difference(
            "loss",
            &loss.reshape([1]),
            &expected.reshape([1]),
            least,
            1e-3,
        ));
    }
    let mut gradients: Vec<(&String, &Tensor)> = case.expected.iter().filter(|(n, _)| n.starts_with("grad.")).collect();
    gradients.sort_by_key(|(name, _)| *name);
    if gradients.is_empty() {
        return out;
    }
    model.params().zero_grad().unwrap();
    loss.backward();
    // Where gradients cancel, as those of queries that see one key do, what is left is noise of the others' size.
    let largest = gradients.iter().map(|(_, g)| g.abs().max().double_value(&[]));
    let floor = largest.fold(0.0, f64::max) * 0.02;
    for (name, expected) in gradients {
        match gradient(model, &name["grad.".len()..]) {
            Some(found) => out.extend(difference(name, &found, expected, least, floor)),
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

/// Names the largest difference when it is beyond the tolerance, 1e-5 or in f64 1e-10 but not below `least`, times the
/// number itself plus the tensor's largest number, or plus `floor` where that is larger.
fn difference(name: &str, found: &Tensor, expected: &Tensor, least: f64, floor: f64) -> Option<String> {
    if found.size() != expected.size() {
        return Some(format!(
            "{name}: expected shape {:?}, got {:?}",
            expected.size(),
            found.size()
        ));
    }
    let tolerance: f64 = if expected.kind() == Kind::Double { 1e-10 } else { 1e-5 };
    let (found, expected) = (found.detach().to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let largest = expected.abs().max().double_value(&[]);
    let allowed: Tensor = (expected.abs() + largest.max(floor).max(f64::MIN_POSITIVE)) * tolerance.max(least);
    let beyond = (&found - &expected).abs() / allowed;
    let worst = beyond.max().double_value(&[]);
    let finite = beyond.isfinite().all().int64_value(&[]) == 1;
    (!finite || worst > 1.0).then(|| format!("{name}: {worst:.2e} times the tolerance (largest {largest:.2e})"))
}
