//! Model folders as others bring them, made on the spot: nothing is fetched, and nothing of others is in here.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tch::Device;
use unsay_data::testbed::safety::{Split, World};
use unsay_data::{Tokenizer, stream};
use unsay_model::{Config, Decoder, Size};

/// Blocks of the model.
pub(crate) const BLOCKS: usize = 2;

/// A template that numbers its turns, tells roles apart, and refuses a role that it does not know.
const TEMPLATE: &str = "\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('no role ' ~ message.role) }}
    {%- endif %}
    {{- message.role[0] ~ ' ' ~ message.content ~ ('<|eos|>' if message.role == 'assistant' else '') ~ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'a ' }}
{%- endif %}
";

/// A small decoder with random weights and a tokenizer of the project's own kind.
pub(crate) fn model(folder: &Path) {
    let world = World::new(1);
    let texts: Vec<String> = world
        .dialogue(Split::Train, 200)
        .into_iter()
        .flat_map(|e| [e.prompt, e.completion])
        .collect();
    let tokenizer = Tokenizer::train(texts.iter().map(String::as_str), 400).unwrap();
    let size = Size {
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: BLOCKS,
        num_attention_heads: 2,
        num_key_value_heads: 1,
    };
    let mut config = Config::new(&size, tokenizer.vocab_size(), 160);
    config.bos_token_id = Some(Tokenizer::BOS);
    config.eos_token_ids = vec![Tokenizer::EOS];
    config.pad_token_id = Some(Tokenizer::PAD);
    // So that it does not say its last token again and again.
    config.tie_word_embeddings = false;
    config.initializer_range = 0.3;
    tch::set_num_threads(1);
    let decoder = Decoder::init(&config, &mut stream(0, "init", 0), Device::Cpu).unwrap();
    decoder.save(folder).unwrap();
    tokenizer.save_folder(folder).unwrap();
}

/// The same with a chat template.
pub(crate) fn chat_model(folder: &Path) {
    model(folder);
    template(folder, TEMPLATE);
}

/// Gives a folder another chat template.
pub(crate) fn template(folder: &Path, text: &str) {
    edit_json(&folder.join("tokenizer_config.json"), |config| {
        config["chat_template"] = json!(text)
    });
}

/// Changes a JSON file.
pub(crate) fn edit_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}
