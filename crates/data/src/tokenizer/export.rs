//! The files that transformers reads.

use std::path::Path;

use serde_json::{Value, json};

use super::{OWN, Tokenizer};
use crate::atomic;
use crate::error::{Error, Result};

/// The own layout as a chat template: the turns of the prompt on lines of their own, and the answer when there is one.
pub(super) const TEMPLATE: &str = "\
{%- set answered = messages | length > 0 and messages[-1]['role'] == 'assistant' and not add_generation_prompt %}
{%- set prompt = messages[:-1] if answered else messages %}
{{- bos_token }}
{%- for message in prompt %}
    {%- if not loop.first %}
        {{- '\\n' }}
    {%- endif %}
    {{- message['content'] }}
{%- endfor %}
{%- if answered %}
    {{- '<|sep|>' + messages[-1]['content'] + eos_token }}
{%- elif add_generation_prompt %}
    {{- '<|sep|>' }}
{%- endif %}
";

/// See [`Tokenizer::save_folder`].
pub(super) fn write(tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    if !tokenizer.is_own() {
        for (name, bytes) in tokenizer.files.iter() {
            let path = folder.join(name);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            }
            atomic::write(&path, |w| w.write_all(bytes))?;
        }
        return Ok(());
    }
    let [pad, bos, sep, eos] = OWN;
    let added = |(id, token): (usize, &&str)| {
        let token = json!({
            "content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true,
        });
        (id.to_string(), token)
    };
    let config = json!({
        "added_tokens_decoder": OWN.iter().enumerate().map(added).collect::<serde_json::Map<String, Value>>(),
        "bos_token": bos,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": eos,
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": pad,
        "sep_token": sep,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    let map = json!({ "bos_token": bos, "eos_token": eos, "pad_token": pad, "sep_token": sep });
    tokenizer.save(folder.join("tokenizer.json"))?;
    for (name, value) in [("tokenizer_config.json", config), ("special_tokens_map.json", map)] {
        let text = format!("{value:#}\n");
        atomic::write(&folder.join(name), |w| w.write_all(text.as_bytes()))?;
    }
    Ok(())
}
