//! Typed reading of the fields of a `config.json`. Whatever is read is taken out, so that what remains is
//! what nobody asked for. Null counts as absent; errors are sentences that name the field.

use serde_json::{Map, Value};

/// What a block sees: everything before it, or a window of it.
pub(crate) const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];

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
        self.map.shift_remove(name).filter(|v| !v.is_null())
    }

    /// Whether a field is there without a value.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    /// Takes `sliding_window`, where null means none and absence the default.
    pub(crate) fn window(&mut self, default: Option<usize>) -> Result<Option<usize>, String> {
        if !self.map.contains_key("sliding_window") {
            return Ok(default);
        }
        let null = self.is_null("sliding_window");
        let window = self.size("sliding_window", Some(0))?;
        Ok((!null).then_some(window))
    }

    /// Takes a number out of a field that is an object.
    pub(crate) fn number_within(&mut self, object: &str, name: &str) -> Result<Option<f64>, String> {
        let Some(Value::Object(inner)) = self.map.get_mut(object) else {
            return Ok(None);
        };
        match inner.remove(name).filter(|v| !v.is_null()) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(format!("`{object}.{name}`: expected a number, got {value}")),
            },
        }
    }

    /// Takes `layer_types` of an architecture whose blocks are all alike.
    pub(crate) fn layer_types(&mut self, windowed: bool) -> Result<(), String> {
        let only = LAYER_TYPES[usize::from(windowed)];
        match self.take("layer_types") {
            Some(Value::Array(list)) if list.iter().all(|kind| kind == only) => Ok(()),
            None => Ok(()),
            Some(got) => Err(format!("`layer_types`: only \"{only}\" is supported here, got {got}")),
        }
    }

    /// Takes `layer_types`: for each block, whether it has a window.
    pub(crate) fn windowed_layers(&mut self) -> Result<Option<Vec<bool>>, String> {
        let Some(got) = self.take("layer_types") else {
            return Ok(None);
        };
        let windowed = |kind: &Value| LAYER_TYPES.iter().position(|name| kind == name).map(|at| at == 1);
        let list = got.as_array().and_then(|list| list.iter().map(windowed).collect());
        match list {
            Some(list) => Ok(Some(list)),
            None => Err(format!("`layer_types`: expected a list of {LAYER_TYPES:?}, got {got}")),
        }
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
        Ok(self.maybe(name)?.unwrap_or(default))
    }

    /// A number that must be there.
    pub(crate) fn needed(&mut self, name: &str) -> Result<f64, String> {
        self.maybe(name)?.ok_or_else(|| format!("`{name}` is missing"))
    }

    /// A number that may be absent.
    pub(crate) fn maybe(&mut self, name: &str) -> Result<Option<f64>, String> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(format!("`{name}`: expected a number, got {value}")),
            },
        }
    }

    /// A text that may be absent.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(format!("`{name}`: expected a text, got {value}")),
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
