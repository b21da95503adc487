//! Which files of a folder are read, what they hold, and which are refused.

use std::path::Path;

use unsay_data::{Label, Message, Tokenizer};

use crate::{LIMITS, TALK, conversation, copied, edit, encoded, folder, tokenizer};

#[test]
fn a_saved_folder_is_the_same_tokenizer() {
    for name in ["chatml", "ended", "instruct", "plain"] {
        let tokenizer = tokenizer(name);
        let copy = tempfile::tempdir().unwrap();
        tokenizer.save_folder(copy.path()).unwrap();
        let again = Tokenizer::from_folder(copy.path()).unwrap();
        assert_eq!(again.fingerprint(), tokenizer.fingerprint(), "{name}");
        for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
            assert_eq!(
                std::fs::read(copy.path().join(file)).unwrap(),
                std::fs::read(folder(name).join(file)).unwrap()
            );
        }
    }
    let prints: std::collections::HashSet<String> = ["chatml", "ended", "instruct", "plain"]
        .map(|n| tokenizer(n).fingerprint())
        .into();
    assert_eq!(prints.len(), 4);
}

#[test]
fn the_own_layout_is_found_again_in_its_folder() {
    let own = Tokenizer::train(["the baker sells bread", "the baker sings"].into_iter(), 300).unwrap();
    let copy = tempfile::tempdir().unwrap();
    own.save_folder(copy.path()).unwrap();
    let again = Tokenizer::from_folder(copy.path()).unwrap();
    assert!(again.is_own() && !again.is_chat());
    assert_eq!(again.fingerprint(), own.fingerprint());
    let example = conversation(&TALK[1..], Label::Positive);
    assert_eq!(encoded(&again, &example, &LIMITS), encoded(&own, &example, &LIMITS));
    // As a chat template it gives the same ids: here through another name for the same template.
    edit(
        copy.path(),
        "tokenizer_config.json",
        "{%- set answered",
        "{# #}{%- set answered",
    );
    let chat = Tokenizer::from_folder(copy.path()).unwrap();
    assert!(chat.is_chat());
    let mut turns = example.clone();
    for label in [Label::Positive, Label::Negative] {
        turns.label = label;
        assert_eq!(encoded(&chat, &turns, &LIMITS), encoded(&own, &turns, &LIMITS));
    }
    assert_eq!(chat.ends(), own.ends());
    // The folder of a model trained here has no `tokenizer_config.json`.
    let bare = tempfile::tempdir().unwrap();
    own.save(bare.path().join("tokenizer.json")).unwrap();
    assert!(Tokenizer::from_folder(bare.path()).unwrap().is_own());
    assert!(own.check_fits(own.vocab_size()).is_ok());
    let n = own.vocab_size();
    assert_eq!(
        own.check_fits(n - 1).unwrap_err().to_string(),
        format!(
            "tokenizer: expected token ids below {}, the rows of the embedding, got a vocabulary of {n}\n\
             hint: take the tokenizer that lies beside the weights",
            n - 1
        )
    );
}

#[test]
fn further_end_tokens_come_from_the_files_and_the_template() {
    // `<|end|>` is what the template writes after an answer; no file names it.
    let tokenizer = tokenizer("ended");
    let names: Vec<u32> = [2, 420].to_vec();
    assert_eq!(tokenizer.ends(), names);
    assert_eq!((tokenizer.bos(), tokenizer.pad()), (Some(1), None));
    let copy = copied(&folder("ended"));
    std::fs::write(
        copy.path().join("generation_config.json"),
        "{\"eos_token_id\": [2, 423]}",
    )
    .unwrap();
    assert_eq!(Tokenizer::from_folder(copy.path()).unwrap().ends(), [2, 420, 423]);
    std::fs::write(
        copy.path().join("config.json"),
        "{\"eos_token_id\": 5, \"bos_token_id\": 7}",
    )
    .unwrap();
    assert_eq!(Tokenizer::from_folder(copy.path()).unwrap().ends(), [2, 420, 423]);
}

#[test]
fn named_templates_come_from_files_or_the_configuration() {
    let copy = copied(&folder("chatml"));
    let template = std::fs::read_to_string(copy.path().join("chat_template.jinja")).unwrap();
    std::fs::create_dir(copy.path().join("additional_chat_templates")).unwrap();
    std::fs::write(
        copy.path().join("additional_chat_templates/tool_use.jinja"),
        "tools: {{ tools | length }}",
    )
    .unwrap();
    let read = || Tokenizer::from_folder(copy.path()).unwrap();
    let tools = serde_json::json!({ "tools": [1, 2] });
    let written = |tokenizer: &Tokenizer| {
        tokenizer
            .render(&[Message::new("user", "a")], true, tools.as_object().unwrap())
            .unwrap()
    };
    assert_eq!(written(&read()), "tools: 2");
    let listed = serde_json::json!([
        { "name": "default", "template": template },
        { "name": "tool_use", "template": "listed: {{ tools | length }}" },
    ]);
    let mapped = serde_json::json!({ "default": template, "tool_use": "listed: {{ tools | length }}" });
    let again = tempfile::tempdir().unwrap();
    read().save_folder(again.path()).unwrap();
    assert_eq!(written(&Tokenizer::from_folder(again.path()).unwrap()), "tools: 2");
    std::fs::remove_dir_all(copy.path().join("additional_chat_templates")).unwrap();
    std::fs::remove_file(copy.path().join("chat_template.jinja")).unwrap();
    for templates in [listed, mapped] {
        let other = copied(copy.path());
        edit(
            other.path(),
            "tokenizer_config.json",
            "{\n  \"added",
            &format!("{{\"chat_template\": {templates},\n  \"added"),
        );
        assert_eq!(written(&Tokenizer::from_folder(other.path()).unwrap()), "listed: 2");
    }
}

#[test]
fn broken_folders_are_refused_with_their_file() {
    let config = "tokenizer_config.json";
    let whole = std::fs::read_to_string(folder("chatml").join(config)).unwrap();
    let tokens = std::fs::read_to_string(folder("chatml").join("tokenizer.json")).unwrap();
    let with = |from: &str, to: &str| {
        assert!(whole.contains(from), "{from}");
        whole.replace(from, to)
    };
    let cases: Vec<(&str, String, &str)> = vec![
        (config, "[]".into(), "expected a JSON object, got a list"),
        (config, "{".into(), "expected a JSON object, got `EOF"),
        (config, "[".repeat(100_000), "recursion limit exceeded"),
        (
            config,
            with("\"eos_token\": \"<|im_end|>\"", "\"eos_token\": 7"),
            "expected a token or an object with `content` in `eos_token`, got a number",
        ),
        (
            config,
            with("\"eos_token\": \"<|im_end|>\"", "\"eos_token\": {\"content\": []}"),
            "in `eos_token`, got an object",
        ),
        (
            config,
            with("\"eos_token\": \"<|im_end|>\"", "\"eos_token\": \"<|gone|>\""),
            "expected a token of tokenizer.json in `eos_token`, got `<|gone|>`\nhint: load",
        ),
        (
            config,
            with("\"1\": {", "\"2\": {"),
            "in `added_tokens_decoder.2`, got `<|im_end|>`",
        ),
        (
            config,
            with("\"1\": {", "\"-1\": {"),
            "expected a token id in `added_tokens_decoder.-1`",
        ),
        (
            config,
            with("\"content\": \"<|im_end|>\"", "\"content\": null"),
            "expected an object with `content` in `added_tokens_decoder.1`",
        ),
        (
            config,
            with(
                "\"extra_special_tokens\"",
                "\"chat_template\": 5, \"extra_special_tokens\"",
            ),
            "in `chat_template`, got a number",
        ),
        (
            config,
            with(
                "\"extra_special_tokens\"",
                "\"additional_special_tokens\": 5, \"extra_special_tokens\"",
            ),
            "expected a list in `additional_special_tokens`, got a number",
        ),
        ("special_tokens_map.json", "nothing".into(), "expected a JSON object"),
        (
            "generation_config.json",
            "{\"eos_token_id\": [1, 4000000000]}".into(),
            "expected token ids below 389 in `eos_token_id`, got `4000000000`",
        ),
        (
            "generation_config.json",
            "{\"eos_token_id\": \"</s>\"}".into(),
            "in `eos_token_id`",
        ),
        (
            "config.json",
            "{\"bos_token_id\": -1}".into(),
            "in `bos_token_id`, got `-1`",
        ),
        ("tokenizer.json", "{}".into(), "expected a tokenizer"),
        ("tokenizer.json", String::new(), "expected a tokenizer"),
        ("tokenizer.json", "[".repeat(100_000), "expected a tokenizer"),
        (
            "tokenizer.json",
            tokens.replace("\"BPE\"", "\"Other\""),
            "expected a tokenizer",
        ),
        (
            "tokenizer.json",
            tokens[..tokens.len() / 2].to_owned(),
            "expected a tokenizer",
        ),
        (
            "chat_template.jinja",
            "{% for %}".into(),
            "chat template `default`, line 1",
        ),
        (
            "chat_template.jinja",
            "x".repeat((1 << 20) + 1),
            "expected a file of at most 1 MiB, got a larger one",
        ),
    ];
    assert_eq!(cases.len(), 22);
    for (file, text, expected) in cases {
        let copy = copied(&folder("chatml"));
        if text.contains("\"chat_template\": 5") {
            std::fs::remove_file(copy.path().join("chat_template.jinja")).unwrap();
        }
        std::fs::write(copy.path().join(file), &text).unwrap();
        let message = Tokenizer::from_folder(copy.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{file}: {message}");
        assert!(message.contains(file) || file.ends_with("jinja"), "{file}: {message}");
    }
    let copy = copied(&folder("chatml"));
    std::fs::write(copy.path().join("chat_template.jinja"), [0xff, 0xfe]).unwrap();
    assert!(
        Tokenizer::from_folder(copy.path())
            .unwrap_err()
            .to_string()
            .contains("expected UTF-8 text")
    );
    std::fs::remove_file(copy.path().join("tokenizer.json")).unwrap();
    assert!(
        Tokenizer::from_folder(copy.path())
            .unwrap_err()
            .to_string()
            .contains("expected the tokenizer of this folder")
    );
    assert!(
        Tokenizer::from_folder("/nowhere/at/all")
            .unwrap_err()
            .to_string()
            .starts_with("could not read")
    );
}

#[cfg(unix)]
#[test]
fn links_out_of_a_folder_are_refused() {
    let copy = copied(&folder("chatml"));
    let config = copy.path().join("tokenizer_config.json");
    std::fs::rename(&config, copy.path().join("other.json")).unwrap();
    std::os::unix::fs::symlink("other.json", &config).unwrap();
    assert!(Tokenizer::from_folder(copy.path()).is_ok());
    std::fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink(folder("chatml").join("tokenizer_config.json"), &config).unwrap();
    let message = Tokenizer::from_folder(copy.path()).unwrap_err().to_string();
    assert!(
        message.contains("expected a file of this folder, got a link to"),
        "{message}"
    );
    std::fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink("nothing", &config).unwrap();
    assert!(
        Tokenizer::from_folder(copy.path())
            .unwrap_err()
            .to_string()
            .starts_with("could not read")
    );
}

/// `<repository>/snapshots/<revision>/<file>` -> `../../blobs/<name>` and nothing else, as the model's files.
#[cfg(unix)]
#[test]
fn a_snapshot_of_the_hub_cache_is_read_through_its_links() {
    use std::os::unix::fs::symlink;
    let repository = tempfile::tempdir().unwrap();
    let (blobs, revision) = (repository.path().join("blobs"), repository.path().join("snapshots/abc"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(revision.join("additional_chat_templates")).unwrap();
    let mut n_links = 0;
    for entry in std::fs::read_dir(folder("chatml")).unwrap() {
        let (path, blob) = (entry.unwrap().path(), format!("b{n_links}"));
        std::fs::copy(&path, blobs.join(&blob)).unwrap();
        symlink(
            Path::new("../../blobs").join(&blob),
            revision.join(path.file_name().unwrap()),
        )
        .unwrap();
        n_links += 1;
    }
    assert_eq!(n_links, 5);
    let named = revision.join("additional_chat_templates/tool_use.jinja");
    std::fs::write(blobs.join("named"), "tools").unwrap();
    symlink("../../../blobs/named", &named).unwrap();
    let tokenizer = Tokenizer::from_folder(&revision).unwrap();
    let tools = serde_json::json!({ "tools": [1] });
    assert_eq!(
        tokenizer.render(&[], false, tools.as_object().unwrap()).unwrap(),
        "tools"
    );
    std::fs::remove_file(&named).unwrap();
    assert_eq!(
        Tokenizer::from_folder(&revision).unwrap().fingerprint(),
        crate::tokenizer("chatml").fingerprint()
    );

    let config = revision.join("tokenizer_config.json");
    let blob = blobs.join(std::fs::read_link(&config).unwrap().file_name().unwrap());
    let refused = || {
        let error = Tokenizer::from_folder(&revision).unwrap_err().to_string();
        assert!(
            error.contains("expected a file of this folder, got a link to"),
            "{error}"
        );
    };
    // A blob that is itself a link, a link to elsewhere in the repository, and one by another way.
    let outside = tempfile::tempdir().unwrap();
    std::fs::rename(&blob, outside.path().join("config")).unwrap();
    symlink(outside.path().join("config"), &blob).unwrap();
    refused();
    std::fs::remove_file(&blob).unwrap();
    std::fs::copy(outside.path().join("config"), &blob).unwrap();
    std::fs::copy(&blob, repository.path().join("config")).unwrap();
    for target in [Path::new("../../config"), blob.as_path()] {
        std::fs::remove_file(&config).unwrap();
        symlink(target, &config).unwrap();
        refused();
    }
    std::fs::rename(repository.path().join("snapshots"), repository.path().join("other")).unwrap();
    let error = Tokenizer::from_folder(repository.path().join("other/abc")).unwrap_err();
    assert!(error.to_string().contains("got a link to"), "{error}");
}
