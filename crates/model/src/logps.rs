//! Scoring given tokens.

use tch::{Kind, Tensor, no_grad};

use crate::linear::linear;
use crate::{Decoder, Error, Result};

/// Logits held at once; about 4 MB in f32.
const CHUNK: i64 = 1 << 20;

/// Log-probabilities `[N]` of targets `[N]` (Int64) given final states [N, D]: the log-softmax over the whole
/// vocabulary at temperature 1, in f32 (f64 for f64 weights), a chunk of rows at a time and without gradients.
pub fn logps(decoder: &Decoder, hidden_rows: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let dim = decoder.config().hidden_size as i64;
    let rows = targets.numel() as i64;
    if hidden_rows.size() != [rows, dim] || targets.dim() != 1 {
        let got = format!("{:?} and {:?}", hidden_rows.size(), targets.size());
        return Err(Error::input("states and targets", format!("[N, {dim}] and [N]"), got));
    }
    let vocab = decoder.config().vocab_size as i64;
    check_targets(targets, vocab)?;
    no_grad(|| {
        let embedding = decoder.output_embedding();
        let targets = targets.f_to(decoder.device())?.f_unsqueeze(-1)?;
        let step = (CHUNK / vocab).clamp(1, rows.max(1));
        let mut parts = Vec::new();
        for start in (0..rows).step_by(step as usize) {
            let n = step.min(rows - start);
            let logits = wide(linear(&hidden_rows.f_narrow(0, start, n)?, &embedding)?)?;
            parts.push(chosen_logps(&logits, &targets.f_narrow(0, start, n)?)?);
        }
        if parts.is_empty() {
            return Ok(Tensor::f_zeros([0], (Kind::Float, decoder.device()))?);
        }
        Ok(Tensor::f_cat(&parts, 0)?)
    })
}

fn check_targets(targets: &Tensor, vocab: i64) -> Result<()> {
    let kind = targets.f_kind()?;
    if kind != Kind::Int64 {
        return Err(Error::input("targets", "Int64", format!("{kind:?}")));
    }
    if targets.numel() > 0 {
        let (least, most) = targets.f_aminmax(None, false)?;
        for id in [least.f_int64_value(&[])?, most.f_int64_value(&[])?] {
            if id < 0 || id >= vocab {
                return Err(Error::input("target token", format!("0 to {}", vocab - 1), id));
            }
        }
    }
    Ok(())
}

/// At least f32.
pub(crate) fn wide(logits: Tensor) -> Result<Tensor> {
    match logits.f_kind()? {
        Kind::Float | Kind::Double => Ok(logits),
        _ => Ok(logits.f_to_kind(Kind::Float)?),
    }
}

/// Log-softmax of logits [N, V] at targets [N, 1] → `[N]`.
pub(crate) fn chosen_logps(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let total = logits.f_logsumexp([-1], false)?;
    Ok(logits.f_gather(-1, targets, false)?.f_squeeze_dim(-1)?.f_sub(&total)?)
}
