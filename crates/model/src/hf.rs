//! `config.json` to [`Config`] and back. Whatever changes the computation and is not implemented is
//! refused by name; what does not is kept and written back.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::arch::Architecture;
use crate::decoder::CONFIG;
use crate::fields::Fields;
use crate::folder::file_in;
use crate::{Config, Error, Result, files};

/// No honest description is larger; a larger file is not read into memory.
const LARGEST_FILE: u64 = 1 << 20;

/// Which model class a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModelClass {
    CausalLm,
    SequenceClassification,
}

/// Fields of any architecture that must be absent or have this value (or null), because another value means
/// other maths. Each architecture's file adds its own.
fn fixed() -> [(&'static str, Value); 26] {
    [
        ("quantization_config", Value::Null),
        ("compression_config", Value::Null),
        ("add_cross_attention", json!(false)),
        ("is_encoder_decoder", json!(false)),
        ("pruned_heads", json!({})),
        ("is_causal", json!(true)),
        ("use_bidirectional_attention", json!(false)),
        ("attention_chunk_size", Value::Null),
        ("no_rope_layers", Value::Null),
        ("alibi", json!(false)),
        ("clip_qkv", Value::Null),
        ("qk_layernorm", json!(false)),
        ("use_qk_norm", json!(false)),
        ("query_pre_attn_scalar", Value::Null),
        ("attn_logit_softcapping", Value::Null),
        ("final_logit_softcapping", Value::Null),
        ("embedding_multiplier", json!(1.0)),
        ("residual_multiplier", json!(1.0)),
        ("attention_multiplier", Value::Null),
        ("logits_scaling", json!(1.0)),
        ("logit_scale", Value::Null),
        ("scale_emb", json!(1)),
        ("scale_depth", Value::Null),
        ("lm_head_bias", json!(false)),
        ("num_local_experts", Value::Null),
        ("num_experts", Value::Null),
    ]
}

/// Fields that matter in their authors' training or to other tools only: whatever they say is kept and written
/// back, and nothing here reads them. Dropout is never applied. Fields that no list knows are kept in the same way.
#[cfg(test)]
pub(crate) const NO_EFFECT: [&str; 18] = [
    "attention_dropout",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "hidden_dropout",
    "classifier_dropout",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "n_ctx",
    "use_cache",
    "pretraining_tp",
    "original_max_position_embeddings",
    "output_attentions",
    "transformers_version",
];

/// Reads and checks a description.
pub(crate) fn read(dir: &Path, wanted: ModelClass) -> Result<Config> {
    let map = read_object(dir, CONFIG)?;
    let place = format!("`{}`", dir.join(CONFIG).display());
    let config = parse(map, wanted).map_err(|what| Error::Config {
        place: place.clone(),
        what,
    })?;
    config.check_at(&place)?;
    Ok(config)
}

/// Reads a JSON object of a description's size.
pub(crate) fn read_object(dir: &Path, name: &str) -> Result<Map<String, Value>> {
    let path = &file_in(dir, name)?;
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
pub(crate) fn write(path: &Path, config: &Config, class: ModelClass, dtype: &str) -> Result<()> {
    let form = config.architecture.form();
    let mut map = Map::new();
    map.insert("architectures".to_owned(), json!([form.class_name(class)]));
    map.insert("model_type".to_owned(), json!(form.model_type()));
    map.append(&mut form.write(config));
    map.insert("bos_token_id".to_owned(), json!(config.bos_token_id));
    let eos = match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    };
    map.insert("eos_token_id".to_owned(), eos);
    map.insert("pad_token_id".to_owned(), json!(config.pad_token_id));
    map.insert("torch_dtype".to_owned(), json!(dtype));
    for (name, value) in &config.other {
        map.entry(name.clone()).or_insert_with(|| value.clone());
    }
    let mut text = serde_json::to_string_pretty(&Value::Object(map)).unwrap_or_default();
    text.push('\n');
    files::write_atomic(path, |out| out.write_all(text.as_bytes()))
}

fn parse(map: Map<String, Value>, wanted: ModelClass) -> Result<Config, String> {
    let mut fields = Fields::new(map);
    let architecture = match fields.take("model_type") {
        Some(Value::String(name)) => Architecture::named(&name).ok_or(Value::String(name)),
        other => Err(other.unwrap_or_default()),
    };
    let architecture = architecture.map_err(|got| {
        let names: Vec<_> = Architecture::all().iter().map(|a| a.form().model_type()).collect();
        format!("`model_type`: expected one of {}, got {got}", names.join(", "))
    })?;
    let form = architecture.form();
    class(&mut fields, form.class_name(wanted), wanted)?;
    for (name, only) in fixed() {
        fields.only(name, &only)?;
    }
    let mut config = form.read(&mut fields)?;
    // These say how weights are stored; the weight file itself decides.
    for name in ["torch_dtype", "dtype"] {
        let _ = fields.take(name);
    }
    config.other = fields.rest();
    Ok(config)
}

fn class(fields: &mut Fields, expected: &str, wanted: ModelClass) -> Result<(), String> {
    if let Some(list) = fields.take("architectures") {
        let mut names = list.as_array().into_iter().flatten().filter_map(Value::as_str);
        if !names.any(|name| name == expected) {
            return Err(format!("`architectures`: expected `{expected}`, got {list}"));
        }
    }
    if wanted == ModelClass::CausalLm {
        // Says how many outputs another head had.
        let _ = fields.take("num_labels");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(architecture: &Architecture) -> Map<String, Value> {
        let size = crate::Size {
            hidden_size: 16,
            intermediate_size: 20,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 2,
        };
        let config = Config {
            architecture: architecture.clone(),
            ..Config::new(&size, 30, 32)
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONFIG);
        write(&path, &config, ModelClass::CausalLm, "float32").unwrap();
        assert_eq!(read(folder.path(), ModelClass::CausalLm).unwrap(), config);
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
    }

    #[test]
    fn fields_without_effect_are_kept_and_those_with_one_are_refused() {
        let mut checked = 0;
        for architecture in Architecture::all() {
            let good = small(&architecture);
            for name in NO_EFFECT {
                let mut map = good.clone();
                map.insert(name.to_owned(), json!(0.25));
                let config = parse(map, ModelClass::CausalLm).unwrap();
                assert_eq!(config.other.get(name), Some(&json!(0.25)), "{name}");
                checked += 1;
            }
            for (name, _) in fixed() {
                let mut map = good.clone();
                map.insert(name.to_owned(), json!("other"));
                let error = parse(map, ModelClass::CausalLm).unwrap_err();
                assert!(error.contains(&format!("`{name}`: only ")), "{error}");
                checked += 1;
            }
        }
        assert_eq!(checked, 5 * (18 + 26));
    }
}
