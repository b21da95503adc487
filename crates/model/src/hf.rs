//! `config.json` to [`Config`] and back. Whatever changes the computation and is not implemented is
//! refused by name; what does not is kept and written back.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{Config, Error, Result, files};

/// No honest description is larger; a larger file is not read into memory.
const LARGEST_FILE: u64 = 1 << 20;

/// Which model class a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    CausalLm,
    SequenceClassification,
}

impl Architecture {
    fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "LlamaForCausalLM",
            Self::SequenceClassification => "LlamaForSequenceClassification",
        }
    }
}

/// Fields that must be absent or have this value (or null), because another value means other maths.
fn fixed() -> [(&'static str, Value); 15] {
    [
        ("model_type", json!("llama")),
        ("hidden_act", json!("silu")),
        ("attention_bias", json!(false)),
        ("mlp_bias", json!(false)),
        ("attention_dropout", json!(0.0)),
        ("rope_scaling", Value::Null),
        ("partial_rotary_factor", json!(1.0)),
        ("sliding_window", Value::Null),
        ("quantization_config", Value::Null),
        ("add_cross_attention", json!(false)),
        ("final_logit_softcapping", Value::Null),
        ("embedding_multiplier", json!(1.0)),
        ("residual_multiplier", json!(1.0)),
        ("attention_multiplier", Value::Null),
        ("logits_scaling", json!(1.0)),
    ]
}

/// Reads and checks a description.
pub(crate) fn read(path: &Path, wanted: Architecture) -> Result<Config> {
    let map = read_object(path)?;
    let place = format!("`{}`", path.display());
    let config = parse(map, wanted).map_err(|what| Error::Config {
        place: place.clone(),
        what,
    })?;
    config.check_at(&place)?;
    Ok(config)
}

/// Reads a JSON object of a description's size.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    let broken = |what: String| Error::Config {
        place: format!("`{}`", path.display()),
        what,
    };
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(broken(format!(
            "larger than {LARGEST_FILE} bytes, not a model description"
        )));
    }
    match serde_json::from_slice(&bytes).map_err(|e| broken(format!("not JSON: {e}")))? {
        Value::Object(map) => Ok(map),
        _ => Err(broken("expected a JSON object".to_owned())),
    }
}

/// Writes a description that [`read`] and Hugging Face read back.
pub(crate) fn write(path: &Path, config: &Config, architecture: Architecture, dtype: &str) -> Result<()> {
    let mut map = Map::new();
    map.insert("architectures".to_owned(), json!([architecture.name()]));
    let mut own = json!({
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "torch_dtype": dtype,
    });
    if let Value::Object(own) = &mut own {
        map.append(own);
    }
    if architecture == Architecture::SequenceClassification {
        map.insert("num_labels".to_owned(), json!(1));
    }
    for (name, value) in &config.other {
        map.entry(name.clone()).or_insert_with(|| value.clone());
    }
    let mut text = serde_json::to_string_pretty(&Value::Object(map)).unwrap_or_default();
    text.push('\n');
    files::write_atomic(path, |out| out.write_all(text.as_bytes()))
}

fn parse(mut map: Map<String, Value>, wanted: Architecture) -> Result<Config, String> {
    architecture(&mut map, wanted)?;
    for (name, only) in fixed() {
        match map.remove(name) {
            None | Some(Value::Null) if name != "model_type" => {}
            Some(got) if same(&got, &only) => {}
            None => return Err(format!("`{name}` is missing; expected {only}")),
            Some(got) => return Err(format!("`{name}`: only {only} is supported, got {got}")),
        }
    }
    let rope_theta = rope_theta(&mut map)?;
    let hidden_size = size(&mut map, "hidden_size", None)?;
    let num_attention_heads = size(&mut map, "num_attention_heads", None)?;
    if num_attention_heads == 0 {
        return Err("`num_attention_heads`: expected at least 1, got 0".to_owned());
    }
    let head_dim = size(&mut map, "head_dim", Some(0))?;
    if head_dim == 0 && hidden_size % num_attention_heads != 0 {
        return Err(format!(
            "`num_attention_heads` {num_attention_heads} does not divide `hidden_size` {hidden_size}"
        ));
    }
    let head_dim = if head_dim == 0 {
        hidden_size / num_attention_heads
    } else {
        head_dim
    };
    // `torch_dtype` and `dtype` say how weights are stored; the weight file itself decides.
    for name in ["torch_dtype", "dtype"] {
        map.remove(name);
    }
    Ok(Config {
        vocab_size: size(&mut map, "vocab_size", None)?,
        hidden_size,
        intermediate_size: size(&mut map, "intermediate_size", None)?,
        num_hidden_layers: size(&mut map, "num_hidden_layers", None)?,
        num_attention_heads,
        num_key_value_heads: size(&mut map, "num_key_value_heads", Some(num_attention_heads))?,
        head_dim,
        max_position_embeddings: size(&mut map, "max_position_embeddings", Some(2048))?,
        rope_theta,
        rms_norm_eps: number(&mut map, "rms_norm_eps", 1e-6)?,
        tie_word_embeddings: flag(&mut map, "tie_word_embeddings", false)?,
        initializer_range: number(&mut map, "initializer_range", 0.02)?,
        bos_token_id: token(&mut map, "bos_token_id")?,
        eos_token_id: token(&mut map, "eos_token_id")?,
        pad_token_id: token(&mut map, "pad_token_id")?,
        other: map,
    })
}

fn architecture(map: &mut Map<String, Value>, wanted: Architecture) -> Result<(), String> {
    if let Some(list) = map.remove("architectures").filter(|v| !v.is_null()) {
        let names: Vec<&str> = list
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if !names.contains(&wanted.name()) {
            return Err(format!("`architectures`: expected `{}`, got {list}", wanted.name()));
        }
    }
    let labels = map.remove("num_labels").filter(|v| !v.is_null());
    if let Some(labels) = labels
        && wanted == Architecture::SequenceClassification
        && labels != json!(1)
    {
        return Err(format!("`num_labels`: only 1 is supported, got {labels}"));
    }
    Ok(())
}

/// The base of the rotary frequencies, in the old form or in that of newer files
/// (`rope_parameters: {rope_type: default, rope_theta: …}`).
fn rope_theta(map: &mut Map<String, Value>) -> Result<f64, String> {
    let inner = match map.remove("rope_parameters") {
        None | Some(Value::Null) => None,
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
    let outer = map.remove("rope_theta").filter(|v| !v.is_null());
    match (outer, inner) {
        (None, None) => Ok(10_000.0),
        (Some(a), Some(b)) if !same(&a, &b) => Err(format!("`rope_theta` is {a} and `rope_parameters.rope_theta` {b}")),
        (Some(theta), _) | (None, Some(theta)) => theta
            .as_f64()
            .ok_or_else(|| format!("`rope_theta`: expected a number, got {theta}")),
    }
}

/// Equal, counting 0 and 0.0 as the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.to_bits() == b.to_bits(),
        _ => a == b,
    }
}

fn size(map: &mut Map<String, Value>, name: &str, default: Option<usize>) -> Result<usize, String> {
    match (map.remove(name).filter(|v| !v.is_null()), default) {
        (None, Some(default)) => Ok(default),
        (None, None) => Err(format!("`{name}` is missing")),
        (Some(value), _) => value
            .as_u64()
            .and_then(|v| usize::try_from(v).ok())
            .ok_or_else(|| format!("`{name}`: expected a whole number, got {value}")),
    }
}

fn number(map: &mut Map<String, Value>, name: &str, default: f64) -> Result<f64, String> {
    match map.remove(name).filter(|v| !v.is_null()) {
        None => Ok(default),
        Some(value) => value
            .as_f64()
            .ok_or_else(|| format!("`{name}`: expected a number, got {value}")),
    }
}

fn flag(map: &mut Map<String, Value>, name: &str, default: bool) -> Result<bool, String> {
    match map.remove(name).filter(|v| !v.is_null()) {
        None => Ok(default),
        Some(value) => value
            .as_bool()
            .ok_or_else(|| format!("`{name}`: expected true or false, got {value}")),
    }
}

fn token(map: &mut Map<String, Value>, name: &str) -> Result<Option<u32>, String> {
    match map.remove(name).filter(|v| !v.is_null()) {
        None => Ok(None),
        Some(value) => match value.as_u64().and_then(|v| u32::try_from(v).ok()) {
            Some(id) => Ok(Some(id)),
            None => Err(format!("`{name}`: expected one token id, got {value}")),
        },
    }
}
