use super::{OWN, Tokenizer};
use proptest::prelude::*;

const TEXTS: [&str; 5] = [
    "the cat sat on the mat",
    "the dog sat on the log\nthe cat saw the dog",
    "what do you think of the cat?",
    "I think the cat is a good cat <|eos|> <|eos|> <|eos|>",
    "naïve café, 12 34 12 34",
];

fn small() -> Tokenizer {
    Tokenizer::train(TEXTS.into_iter(), 320).unwrap()
}

#[test]
fn training_twice_gives_the_same_file() {
    let words = ["ab", "abc", "bca", "cab", "abcab", "aab", "bb", "cca"];
    let texts: Vec<String> = (0..400usize)
        .map(|i| {
            (0..7)
                .map(|j| words[(i * 31 + j * j * 17 + i * j) % words.len()])
                .collect::<Vec<_>>()
                .concat()
        })
        .collect();
    let train = || Tokenizer::train(texts.iter().map(String::as_str), 700).unwrap();
    let first = train().to_json().unwrap();
    for _ in 0..5 {
        assert_eq!(first, train().to_json().unwrap());
    }
}

#[test]
fn special_tokens_have_their_ids_and_are_not_read_from_text() {
    let tokenizer = small();
    for (id, special) in OWN.iter().enumerate() {
        assert_eq!(tokenizer.inner.token_to_id(special), Some(id as u32));
        let ids = tokenizer.encode(special).unwrap();
        assert!(ids.iter().all(|&i| i > Tokenizer::EOS), "{special}: {ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), *special);
    }
}

#[test]
fn special_tokens_are_left_out_of_decoded_text() {
    let tokenizer = small();
    let mut ids = vec![Tokenizer::BOS];
    ids.extend(tokenizer.encode("the cat").unwrap());
    ids.extend([Tokenizer::SEP, Tokenizer::EOS, Tokenizer::PAD]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "the cat");
}

#[test]
fn merges_shorten_common_words() {
    let tokenizer = small();
    assert_eq!(tokenizer.encode(" the").unwrap().len(), 1);
    assert!(tokenizer.vocab_size() > Tokenizer::LEAST_VOCAB_SIZE);
    assert!(tokenizer.vocab_size() <= 320);
}

#[test]
fn a_vocabulary_holds_the_bytes() {
    let error = Tokenizer::train(TEXTS.into_iter(), 259).unwrap_err();
    assert_eq!(error.to_string(), "vocab_size: expected at least 260, got 259");
    let bytes = Tokenizer::train(TEXTS.into_iter(), 260).unwrap();
    assert_eq!(bytes.vocab_size(), 260);
    assert_eq!(bytes.encode("cat").unwrap().len(), 3);
    let untrained = Tokenizer::train(std::iter::empty(), 1000).unwrap();
    assert_eq!(untrained.vocab_size(), 260);
}

#[test]
fn unknown_ids_are_refused() {
    let tokenizer = small();
    let n = tokenizer.vocab_size();
    let error = tokenizer.decode(&[5, n as u32]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("tokenizer: expected token ids below {n}, got {n}")
    );
}

#[test]
fn a_saved_tokenizer_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let tokenizer = small();
    tokenizer.save(&path).unwrap();
    let loaded = Tokenizer::load(&path).unwrap();
    assert_eq!(loaded.to_json().unwrap(), tokenizer.to_json().unwrap());
    assert_eq!(loaded.vocab_size(), tokenizer.vocab_size());
    let text = "the cat <|eos|> sat";
    assert_eq!(loaded.encode(text).unwrap(), tokenizer.encode(text).unwrap());
}

#[test]
fn a_tokenizer_with_other_special_tokens_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let refused = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Tokenizer::load(&path).unwrap_err().to_string()
    };
    let json = small().to_json().unwrap();
    let renamed = refused(&json.replace("<|sep|>", "<|middle|>"));
    assert!(
        renamed.ends_with("the special token `<|sep|>` with id 2, got no such token"),
        "{renamed}"
    );
    let swapped = json
        .replace("<|bos|>", "<|x|>")
        .replace("<|eos|>", "<|bos|>")
        .replace("<|x|>", "<|eos|>");
    let swapped = refused(&swapped);
    assert!(swapped.ends_with("`<|bos|>` with id 1, got id 3"), "{swapped}");
    assert!(refused("{}").contains("expected a tokenizer"));
    assert!(refused("").contains("expected a tokenizer"));
    // A cut inside of the decoder made the library panic.
    let cuts: Vec<usize> = json
        .match_indices(['{', '"', ','])
        .map(|(at, _)| at)
        .take(200)
        .collect();
    assert_eq!(cuts.len(), 200);
    for cut in cuts {
        assert!(refused(&json[..cut]).contains("expected a tokenizer"), "cut at {cut}");
    }
    let missing = Tokenizer::load(folder.path().join("none.json"))
        .unwrap_err()
        .to_string();
    assert!(missing.starts_with("could not read `"), "{missing}");
}

proptest! {
    #[test]
    fn any_text_comes_back(text in any::<String>(), at in 0usize..4, head in ".{0,5}") {
        let tokenizer = small();
        let text = format!("{head}{}{text}\r\n {}", OWN[at], OWN[3 - at]);
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert!(ids.iter().all(|&i| i > Tokenizer::EOS));
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}
