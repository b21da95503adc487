//! What the op is given beside hidden states and embedding, and whether all of it fits together.

use tch::{Device, Kind, Tensor};

use super::{Needs, TokenOp};
use crate::{Error, Result};

/// The map from `z` to the logits, `u = (scale · z + bias)/T`.
#[derive(Debug)]
pub(super) struct Affine {
    pub(super) scale: Tensor,
    pub(super) bias: Tensor,
}

impl TokenOp {
    /// Makes the logits `u = scale · z + bias` of the products `z = hidden · embeddingᵀ`.
    ///
    /// Everything this op gives is then about `u`. [`surrogate`](TokenOp::surrogate) carries the gradients of
    /// `scale` and `bias`, too, where they require one.
    ///
    /// **Shapes**: both without dimensions, floating point, on the device of the states.
    ///
    /// **Errors**: [`Error::Input`] naming the one that does not fit.
    pub fn with_affine(mut self, scale: &Tensor, bias: &Tensor) -> Result<Self> {
        for (what, tensor) in [("scale", scale), ("bias", bias)] {
            if !tensor.size().is_empty() || !tensor.is_floating_point() {
                return Err(Error::input(
                    what,
                    "a floating-point number without dimensions",
                    format!("{:?} of {:?}", tensor.size(), tensor.f_kind()?),
                ));
            }
            same_device(what, tensor, &self.hidden)?;
        }
        self.kept.take();
        self.affine = Some(Affine {
            scale: scale.shallow_clone(),
            bias: bias.shallow_clone(),
        });
        Ok(self)
    }

    /// Divides the logits, those of the reference too, by a temperature.
    ///
    /// **Errors**: [`Error::Range`] unless `t` is finite and above 0.
    pub fn with_temperature(mut self, t: f64) -> Result<Self> {
        if !(t > 0.0 && t.is_finite() && t.recip().is_finite()) {
            return Err(Error::Range {
                name: "temperature",
                value: t.to_string(),
                range: "a finite number above 0",
            });
        }
        self.kept.take();
        self.temperature = Some(t);
        Ok(self)
    }

    /// Gives the reference that [`Needs::kl`] measures against: its logits are
    /// `hidden · embeddingᵀ` of these two, over the same vocabulary. It is never trained.
    ///
    /// **Shapes**: `hidden` `[N, D']`, row by row the same tokens as the policy's; `embedding` `[V, D']`; of one kind.
    ///
    /// **Errors**: [`Error::Input`] naming the tensor that does not fit.
    pub fn with_reference(mut self, hidden: &Tensor, embedding: &Tensor) -> Result<Self> {
        let (n, v) = (self.rows.len(), self.n_tokens());
        let (rows, d) = matrix("the reference's hidden", hidden)?;
        if rows != n {
            return Err(Error::input(
                "the reference's hidden",
                format!("[{n}, D'] as the policy's has {n} rows"),
                format!("[{rows}, {d}]"),
            ));
        }
        let (tokens, e) = matrix("the reference's embedding", embedding)?;
        if (tokens, e) != (v, d) {
            return Err(Error::input(
                "the reference's embedding",
                format!("[{v}, {d}] as the policy has {v} tokens and the reference's hidden is [{n}, {d}]"),
                format!("[{tokens}, {e}]"),
            ));
        }
        same_float("the reference's hidden", hidden, "the reference's embedding", embedding)?;
        same_device("the reference's hidden", hidden, &self.hidden)?;
        same_device("the reference's embedding", embedding, &self.hidden)?;
        self.rows.reference = Some(hidden.f_detach()?);
        self.reference_embedding = Some(embedding.f_detach()?);
        Ok(self)
    }

    /// Gives each row the tokens that [`Needs::candidates`] and [`Needs::candidate_log1m_p`] are about.
    ///
    /// **Shapes**: `ids` `[N, C]`, `i64`, in `0..V`, or -1 for none; a token may be there more than once.
    ///
    /// **Errors**: [`Error::Input`] when they are not.
    pub fn with_candidates(mut self, ids: &Tensor) -> Result<Self> {
        let (n, v) = (self.rows.len(), self.n_tokens());
        let fits = matches!(*ids.size(), [rows, columns] if rows == n && columns > 0);
        if !fits || ids.f_kind()? != Kind::Int64 {
            return Err(Error::input(
                "candidates",
                format!("[{n}, C] of Int64, C at least 1"),
                format!("{:?} of {:?}", ids.size(), ids.f_kind()?),
            ));
        }
        same_device("candidates", ids, &self.hidden)?;
        check_ids("candidates", ids, -1, v)?;
        self.rows.candidates = Some(ids.shallow_clone());
        Ok(self)
    }

    /// Takes the largest logits ([`Needs::top_k`]) of some rows alone: those of the others are 0, with the first ids. For a
    /// loss that reads them nowhere else, as [`TokenLoss::top_rows`](crate::token::TokenLoss::top_rows) says. Only on the
    /// processor, where they cost a walk over the row; elsewhere the host would wait to learn which rows there are, and those
    /// of all rows are taken.
    ///
    /// **Shapes**: `wanted` `[N]`, `bool`.
    ///
    /// **Errors**: [`Error::Input`] when it is not.
    pub fn with_top_rows(mut self, wanted: &Tensor) -> Result<Self> {
        let n = self.rows.len();
        if wanted.size() != [n] || wanted.f_kind()? != Kind::Bool {
            return Err(Error::input(
                "rows of largest logits",
                format!("[{n}] of Bool"),
                format!("{:?} of {:?}", wanted.size(), wanted.f_kind()?),
            ));
        }
        same_device("rows of largest logits", wanted, &self.hidden)?;
        self.rows.top = match wanted.device() {
            Device::Cpu => Some(wanted.shallow_clone()),
            _ => None,
        };
        Ok(self)
    }

    /// Checks that what the needs are about was given.
    pub(super) fn check_given(&self) -> Result<()> {
        if (self.needs.candidates || self.needs.candidate_log1m_p) && self.rows.candidates.is_none() {
            return Err(Error::input(
                "candidates",
                "ids by `with_candidates`, as the needs ask about them",
                "none",
            ));
        }
        if self.needs.kl.is_some() && self.rows.reference.is_none() {
            return Err(Error::input(
                "the reference",
                "hidden states by `with_reference`, as the needs ask for a divergence from it",
                "none",
            ));
        }
        Ok(())
    }
}

/// What [`TokenOp::new`] checks.
pub(super) fn check(hidden: &Tensor, embedding: &Tensor, targets: &Tensor, needs: &Needs) -> Result<()> {
    let (n, d) = matrix("hidden", hidden)?;
    let (v, e) = matrix("embedding", embedding)?;
    if d != e {
        return Err(Error::input(
            "embedding",
            format!("[V, {d}] as `hidden` is [{n}, {d}]"),
            format!("[{v}, {e}]"),
        ));
    }
    if n == 0 {
        return Err(Error::Empty {
            what: "the batch of hidden states",
        });
    }
    if v == 0 || d == 0 {
        return Err(Error::Empty {
            what: "the output embedding",
        });
    }
    same_float("hidden", hidden, "embedding", embedding)?;
    same_device("embedding", embedding, hidden)?;
    same_device("targets", targets, hidden)?;
    if targets.size() != [n] || targets.f_kind()? != Kind::Int64 {
        return Err(Error::input(
            "targets",
            format!("[{n}] of Int64"),
            format!("{:?} of {:?}", targets.size(), targets.kind()),
        ));
    }
    check_ids("targets", targets, 0, v)?;
    if i64::try_from(needs.top_k).map_or(true, |k| k > v) {
        let expected = format!("at least {} tokens, to take the {0} largest logits", needs.top_k);
        return Err(Error::input("embedding", expected, format!("{v} tokens")));
    }
    let others = [
        (needs.log1m_p, "`log(1 - p)` is"),
        (needs.candidate_log1m_p, "`log(1 - p)` of candidates is"),
        (needs.off_target, "the tokens other than the target are"),
    ];
    for (wanted, what) in others {
        if wanted && v < 2 {
            return Err(Error::input(
                "embedding",
                format!("at least 2 tokens, as {what} asked for"),
                v,
            ));
        }
    }
    Ok(())
}

/// The two sizes of a matrix.
fn matrix(what: &'static str, tensor: &Tensor) -> Result<(i64, i64)> {
    match *tensor.size() {
        [rows, columns] => Ok((rows, columns)),
        ref other => Err(Error::input(what, "two dimensions", format!("{other:?}"))),
    }
}

fn same_float(what: &'static str, tensor: &Tensor, of: &'static str, other: &Tensor) -> Result<()> {
    let kind = tensor.f_kind()?;
    if !matches!(kind, Kind::Double | Kind::Float | Kind::BFloat16) {
        return Err(Error::input(
            what,
            "f64, f32 or bf16 (in f16 the gradients of rare tokens are zero)",
            format!("{kind:?}"),
        ));
    }
    if other.f_kind()? != kind {
        let expected = format!("{kind:?}, as `{what}` is");
        return Err(Error::input(of, expected, format!("{:?}", other.f_kind()?)));
    }
    Ok(())
}

fn same_device(what: &'static str, tensor: &Tensor, hidden: &Tensor) -> Result<()> {
    if tensor.device() == hidden.device() {
        return Ok(());
    }
    let on = |t: &Tensor| format!("on {:?}", t.device());
    Err(Error::input(what, on(hidden), on(tensor)))
}

/// Checks that ids are in `low..v`.
fn check_ids(what: &'static str, ids: &Tensor, low: i64, v: i64) -> Result<()> {
    let (least, most) = (ids.f_min()?.int64_value(&[]), ids.f_max()?.int64_value(&[]));
    if least >= low && most < v {
        return Ok(());
    }
    let expected = format!("ids in {low}..{v}");
    Err(Error::input(what, expected, if least < low { least } else { most }))
}
