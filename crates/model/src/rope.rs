//! Rotary positions in the Hugging Face layout: coordinate i of a head turns with coordinate i + d/2.

use std::cell::RefCell;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::fields::{Fields, same};
use crate::{Config, Result};

/// Cosines and sines of every position, made once and grown when a longer sequence comes.
#[derive(Debug)]
pub(crate) struct Rope {
    theta: f64,
    head_dim: usize,
    longest: usize,
    kind: Kind,
    device: Device,
    table: RefCell<Option<Table>>,
}

#[derive(Debug)]
struct Table {
    positions: usize,
    /// [positions, head_dim]; both halves alike.
    cos: Tensor,
    /// [positions, head_dim]; the first half negated, so that turning needs no negation.
    sin: Tensor,
}

/// The angles of one batch, shaped to broadcast over [B, T, heads, head_dim].
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Tensor,
    sin: Tensor,
    half: i64,
}

impl Rotation {
    /// Turns each head of x [B, T, heads, head_dim] by its position.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let swapped = x.f_roll([self.half], [-1])?;
        Ok(x.f_mul(&self.cos)?.f_addcmul(&swapped, &self.sin)?)
    }
}

impl Rope {
    pub(crate) fn new(config: &Config, kind: Kind, device: Device) -> Self {
        Self {
            theta: config.rope_theta,
            head_dim: config.head_dim,
            longest: config.max_position_embeddings,
            kind,
            device,
            table: RefCell::new(None),
        }
    }

    /// Positions 0 to `n` - 1, the same in every row.
    pub(crate) fn first(&self, n: usize) -> Result<Rotation> {
        self.with_table(n, |table| {
            let shape = [1, n as i64, 1, self.head_dim as i64];
            let of = |t: &Tensor| -> Result<Tensor> { Ok(t.f_narrow(0, 0, n as i64)?.f_view(shape)?) };
            Ok(self.rotation(of(&table.cos)?, of(&table.sin)?))
        })
    }

    /// Position ids [B, T] of their own per row, each below `n`.
    pub(crate) fn at(&self, positions: &Tensor, n: usize) -> Result<Rotation> {
        let (b, t) = positions.size2()?;
        let flat = positions.f_reshape([-1])?;
        self.with_table(n, |table| {
            let shape = [b, t, 1, self.head_dim as i64];
            let of = |t: &Tensor| -> Result<Tensor> { Ok(t.f_index_select(0, &flat)?.f_view(shape)?) };
            Ok(self.rotation(of(&table.cos)?, of(&table.sin)?))
        })
    }

    fn rotation(&self, cos: Tensor, sin: Tensor) -> Rotation {
        Rotation {
            cos,
            sin,
            half: self.head_dim as i64 / 2,
        }
    }

    fn with_table<T>(&self, n: usize, read: impl FnOnce(&Table) -> Result<T>) -> Result<T> {
        let mut slot = self.table.borrow_mut();
        let table = match slot.take() {
            Some(table) if table.positions >= n => table,
            _ => self.make(n.next_power_of_two().max(64).min(self.longest.max(n)))?,
        };
        read(slot.insert(table))
    }

    /// Angles in f64, rounded once.
    fn make(&self, positions: usize) -> Result<Table> {
        let half = self.head_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|i| self.theta.powf(-2.0 * i as f64 / self.head_dim as f64))
            .collect();
        let mut cos = vec![0.0; positions * self.head_dim];
        let mut sin = cos.clone();
        for position in 0..positions {
            let row = position * self.head_dim;
            for (i, frequency) in frequencies.iter().enumerate() {
                let (s, c) = (position as f64 * frequency).sin_cos();
                (cos[row + i], cos[row + half + i]) = (c, c);
                (sin[row + i], sin[row + half + i]) = (-s, s);
            }
        }
        let tensor = |values: &[f64]| -> Result<Tensor> {
            let shape = [positions as i64, self.head_dim as i64];
            Ok(Tensor::f_from_slice(values)?
                .f_view(shape)?
                .f_to_kind(self.kind)?
                .f_to(self.device)?)
        };
        Ok(Table {
            positions,
            cos: tensor(&cos)?,
            sin: tensor(&sin)?,
        })
    }
}

/// The base of the frequencies, in the old form or in that of newer files
/// (`rope_parameters: {rope_type: default, rope_theta: …}`).
pub(crate) fn read_theta(fields: &mut Fields) -> Result<f64, String> {
    fields.only("rope_scaling", &Value::Null)?;
    let inner = match fields.take("rope_parameters") {
        None => None,
        Some(Value::Object(mut rope)) => {
            let kind = rope.remove("rope_type").or_else(|| rope.remove("type"));
            if let Some(kind) = kind.filter(|k| *k != json!("default")) {
                return Err(format!(
                    "`rope_parameters.rope_type`: only \"default\" is supported, got {kind}"
                ));
            }
            let theta = rope.remove("rope_theta").filter(|v| !v.is_null());
            if let Some((name, value)) = rope.iter().next() {
                return Err(format!("`rope_parameters.{name}` is not supported, got {value}"));
            }
            theta
        }
        Some(other) => return Err(format!("`rope_parameters`: expected an object, got {other}")),
    };
    match (fields.take("rope_theta"), inner) {
        (None, None) => Ok(10_000.0),
        (Some(a), Some(b)) if !same(&a, &b) => Err(format!("`rope_theta` is {a} and `rope_parameters.rope_theta` {b}")),
        (Some(theta), _) | (None, Some(theta)) => theta
            .as_f64()
            .ok_or_else(|| format!("`rope_theta`: expected a number, got {theta}")),
    }
}

/// What is wrong with a description whose positions are rotary.
pub(crate) fn problem(config: &Config) -> Option<String> {
    let (head_dim, theta) = (config.head_dim, config.rope_theta);
    if !head_dim.is_multiple_of(2) {
        return Some(format!(
            "head width: expected an even number (rotary positions), got {head_dim}"
        ));
    }
    if !(f64::MIN_POSITIVE..=1e12).contains(&theta) {
        return Some(format!(
            "`rope_theta`: expected {:e} to 1e12, got {theta}",
            f64::MIN_POSITIVE
        ));
    }
    None
}
