//! The learned judge on a small random classifier.

#![allow(clippy::unwrap_used)] // the helpers of tests are tests

use tch::Device;
use unsay_data::{Limits, Tokenizer, stream};
use unsay_model::{Config, Decoder, SequenceClassifier, Size};
use unsay_reward::{Item, Judge, LearnedJudge};

const TEXT: [&str; 4] = [
    "hello there",
    "how are you today",
    "go away you fool",
    "i like long walks on the beach",
];

fn judge(batch: usize) -> LearnedJudge {
    tch::set_num_threads(1);
    let tokenizer = Tokenizer::train(TEXT.into_iter(), 300).unwrap();
    let size = Size {
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
    };
    let mut config = Config::new(&size, tokenizer.vocab_size(), 64);
    // large weights, so that a score depends visibly on its text
    config.initializer_range = 0.5;
    let mut rng = stream(3, "init", 0);
    let decoder = Decoder::init(&config, &mut rng, Device::Cpu).unwrap();
    let classifier = SequenceClassifier::from_trunk(decoder, &mut rng).unwrap();
    LearnedJudge::new(
        "a",
        classifier,
        tokenizer,
        Limits {
            max_prompt: 20,
            max_completion: 20,
        },
        batch,
    )
    .unwrap()
}

/// Sixteen pairs of different lengths, longest in the middle.
fn items() -> Vec<Item<'static>> {
    (0..16)
        .map(|i| Item {
            prompt: TEXT[i % 4],
            completion: TEXT[(i / 4 + i) % 4],
        })
        .collect()
}

#[test]
fn values_do_not_depend_on_the_batch() {
    let items = items();
    let together = judge(16).safe(&items).unwrap();
    let by_three = judge(3).safe(&items).unwrap();
    let one = judge(1);
    let mut compared = 0;
    for (i, item) in items.iter().enumerate() {
        let alone = one.safe(std::slice::from_ref(item)).unwrap()[0];
        assert!(
            (alone - together[i]).abs() < 1e-5,
            "item {i}: {alone} alone, {} together",
            together[i]
        );
        assert!(
            (alone - by_three[i]).abs() < 1e-5,
            "item {i}: {alone} alone, {} by three",
            by_three[i]
        );
        compared += 1;
    }
    assert_eq!(compared, 16);
    let (low, high) = together
        .iter()
        .fold((1.0_f64, 0.0_f64), |(l, h), p| (l.min(*p), h.max(*p)));
    assert!(
        high - low > 0.05,
        "scores must differ for the comparison to mean something: {low} to {high}"
    );
}

#[test]
fn values_come_back_in_input_order() {
    let items = items();
    let forward = judge(4).safe(&items).unwrap();
    let turned: Vec<Item<'_>> = items.iter().rev().copied().collect();
    let mut backward = judge(4).safe(&turned).unwrap();
    backward.reverse();
    for (a, b) in forward.iter().zip(&backward) {
        assert!((a - b).abs() < 1e-5);
    }
    let again = judge(4).safe(&items).unwrap();
    let bits = |v: &[f64]| v.iter().map(|p| p.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&forward), bits(&again), "the same call gives the same bits");
}

#[test]
fn silence_is_not_safe_and_moves_nothing() {
    let judge = judge(4);
    let items = [
        Item {
            prompt: "hello there",
            completion: "",
        },
        Item {
            prompt: "hello there",
            completion: "how are you today",
        },
        Item {
            prompt: "",
            completion: " \n",
        },
        Item {
            prompt: "",
            completion: "go away",
        },
    ];
    let values = judge.safe(&items).unwrap();
    assert!(
        values[0] <= 0.0 && values[2] <= 0.0 && values[1] > 0.0 && values[3] > 0.0,
        "{values:?}"
    );
    assert_eq!(judge.malformed(&items).unwrap(), [true, false, true, false]);
    assert!((judge.safe(&items[1..2]).unwrap()[0] - values[1]).abs() < 1e-5);
    assert!(judge.safe(&items[..1]).unwrap()[0] <= 0.0);
}

#[test]
fn nothing_to_judge_is_an_error() {
    assert_eq!(
        judge(1).safe(&[]).unwrap_err().to_string(),
        "judge `a` got nothing to judge"
    );
}
