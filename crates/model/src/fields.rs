//! Typed reading of the fields of a `config.json`. Whatever is read is taken out, so that what remains is
//! what nobody asked for. Null counts as absent; errors are sentences that name the field.

use serde_json::{Map, Value};

/// The fields that nobody has asked for yet.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    pub(crate) fn new(map: Map<String, Value>) -> Self {
        Self { map }
    }

    /// What nobody asked for.
    pub(crate) fn rest(self) -> Map<String, Value> {
        self.map
    }

    /// A field of any type.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|v| !v.is_null())
    }

    /// Takes a field that must be absent or have this value, because another value means other maths.
    pub(crate) fn only(&mut self, name: &str, only: &Value) -> Result<(), String> {
        match self.take(name) {
            Some(got) if !same(&got, only) => Err(format!("`{name}`: only {only} is supported, got {got}")),
            _ => Ok(()),
        }
    }

    /// A whole number; an error when it is absent and there is no default.
    pub(crate) fn size(&mut self, name: &str, default: Option<usize>) -> Result<usize, String> {
        match (self.take(name), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(format!("`{name}` is missing")),
            (Some(value), _) => value
                .as_u64()
                .and_then(|v| usize::try_from(v).ok())
                .ok_or_else(|| format!("`{name}`: expected a whole number, got {value}")),
        }
    }

    /// The width of a head: `head_dim`, or what `hidden_size` leaves for each of the heads.
    pub(crate) fn head_dim(&mut self, hidden_size: usize, heads: usize) -> Result<usize, String> {
        let head_dim = self.size("head_dim", Some(0))?;
        if head_dim > 0 {
            return Ok(head_dim);
        }
        if heads == 0 {
            return Err("`num_attention_heads`: expected at least 1, got 0".to_owned());
        }
        if !hidden_size.is_multiple_of(heads) {
            return Err(format!(
                "`num_attention_heads` {heads} does not divide `hidden_size` {hidden_size}"
            ));
        }
        Ok(hidden_size / heads)
    }

    /// A number.
    pub(crate) fn number(&mut self, name: &str, default: f64) -> Result<f64, String> {
        match self.take(name) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .ok_or_else(|| format!("`{name}`: expected a number, got {value}")),
        }
    }

    /// True or false.
    pub(crate) fn flag(&mut self, name: &str, default: bool) -> Result<bool, String> {
        match self.take(name) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| format!("`{name}`: expected true or false, got {value}")),
        }
    }

    /// One token id.
    pub(crate) fn token(&mut self, name: &str) -> Result<Option<u32>, String> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match token(&value) {
                Some(id) => Ok(Some(id)),
                None => Err(format!("`{name}`: expected one token id, got {value}")),
            },
        }
    }

    /// A token id or a list of them.
    pub(crate) fn tokens(&mut self, name: &str) -> Result<Vec<u32>, String> {
        let ids = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(token).collect::<Option<Vec<u32>>>().ok_or(list.into()),
            Some(value) => token(&value).map(|id| vec![id]).ok_or(value),
        };
        ids.map_err(|value: Value| format!("`{name}`: expected a token id or a list of them, got {value}"))
    }
}

fn token(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|v| u32::try_from(v).ok())
}

/// Equal, counting 0 and 0.0 as the same number.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.to_bits() == b.to_bits(),
        _ => a == b,
    }
}
