//! Log-probabilities of given completions against the plain full softmax, one example at a time.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests

use tch::{Device, Kind, Tensor};
use unsay_data::{Example, Label, Limits, Tokenizer, encode_all, stream};
use unsay_eval::likelihoods;
use unsay_model::{Config, Decoder, Size};

const TEXT: [&str; 4] = [
    "hello there",
    "how are you today",
    "go away you fool",
    "i like long walks on the beach",
];
const LIMITS: Limits = Limits {
    max_prompt: 12,
    max_completion: 9,
};

fn model() -> (Decoder, Tokenizer) {
    tch::set_num_threads(1);
    let tokenizer = Tokenizer::train(TEXT.into_iter(), 300).unwrap();
    let size = Size {
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
    };
    let mut config = Config::new(&size, tokenizer.vocab_size(), LIMITS.width());
    config.initializer_range = 0.3;
    let decoder = Decoder::init(&config, &mut stream(3, "init", 0), Device::Cpu).unwrap();
    (decoder, tokenizer)
}

fn example(i: usize, completion: &str) -> Example {
    let label = if i.is_multiple_of(2) {
        Label::Positive
    } else {
        Label::Negative
    };
    Example {
        id: format!("e{i}"),
        prompt: TEXT[i % 4].into(),
        completion: completion.into(),
        label,
        seen_prompt: true,
        messages: Vec::new(),
    }
}

#[test]
fn sums_equal_the_full_softmax() {
    let (decoder, tokenizer) = model();
    let mut examples: Vec<Example> = (0..10).map(|i| example(i, TEXT[(i / 3 + i) % 4])).collect();
    examples[4].completion = " ".into();
    let got = likelihoods(&decoder, &tokenizer, &LIMITS, &examples, 4).unwrap();
    assert_eq!(got.dropped, ["e4"]);
    let (encoded, _) = encode_all(&tokenizer, &examples, &LIMITS).unwrap();
    assert_eq!((got.rows.len(), encoded.len()), (9, 9));
    for (row, encoded) in got.rows.iter().zip(&encoded) {
        let ids: Vec<i64> = encoded.ids.iter().map(|id| i64::from(*id)).collect();
        let hidden = decoder
            .hidden(&Tensor::from_slice(&ids).view([1, -1]))
            .unwrap()
            .squeeze_dim(0);
        let logps = hidden
            .matmul(&decoder.output_embedding().tr())
            .log_softmax(-1, Kind::Double);
        let mut sum = 0.0;
        let start = encoded.spans[0].start;
        for (t, id) in ids.iter().enumerate().skip(start) {
            sum += logps.double_value(&[t as i64 - 1, *id]);
        }
        assert_eq!(row.example, examples[encoded.example].id);
        assert_eq!(row.label, examples[encoded.example].label);
        assert_eq!(row.n_tokens, ids.len() - start);
        assert!(
            (row.logp - sum).abs() < 1e-4,
            "{}: {} against {sum}",
            row.example,
            row.logp
        );
    }
}

#[test]
fn bad_input_is_an_error() {
    let (decoder, tokenizer) = model();
    let call = |examples: &[Example], batch| likelihoods(&decoder, &tokenizer, &LIMITS, examples, batch);
    let message = |examples: &[Example], batch| call(examples, batch).unwrap_err().to_string();
    assert_eq!(message(&[], 4), "`likelihoods` got no examples to score");
    assert_eq!(message(&[example(0, "x")], 0), "`batch` must be at least 1, got 0");
    let twice = [example(0, "x"), example(0, "y")];
    assert_eq!(
        message(&twice, 1),
        "`likelihoods` got example `e0` twice; scores are paired by example"
    );
    let nothing = call(&[example(0, "")], 1).unwrap();
    assert_eq!((nothing.rows.len(), nothing.dropped.len()), (0, 1));
}
