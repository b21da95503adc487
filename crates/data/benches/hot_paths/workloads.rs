//! What is timed of this crate by `cargo bench` and guarded by `just bench-gate`: names and set-ups. A work does the same each time.
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first error")]

use std::hint::black_box;
use std::path::Path;

use unsay_data::testbed::safety::{Split, World};
use unsay_data::{Batch, Encoded, Example, Limits, Message, Mixture, Tokenizer, encode_all, encode_chat};

/// A work that can be done again and again.
pub(crate) type Work = Box<dyn FnMut()>;

/// Makes what a work needs.
pub(crate) type Make = fn() -> Work;

/// Every work, by name.
pub(crate) const WORKLOADS: [(&str, Make); 7] = [
    ("data/testbed/200", testbed),
    ("data/train_tokenizer/200", train_tokenizer),
    ("data/tokenise/200", tokenise),
    ("data/encode/200", encode),
    ("data/encode_chat/20", chat),
    ("data/batch/16x64", batch),
    ("data/mixture/1000", mixture),
];

const LIMITS: Limits = Limits {
    max_prompt: 48,
    max_completion: 16,
};

fn examples() -> Vec<Example> {
    World::new(0).labelled(Split::Train, 200)
}

fn trained(examples: &[Example]) -> Tokenizer {
    let texts = examples
        .iter()
        .flat_map(|example| [example.prompt.as_str(), example.completion.as_str()]);
    Tokenizer::train(texts, 400).unwrap()
}

fn testbed() -> Work {
    let world = World::new(0);
    Box::new(move || drop(black_box(world.labelled(Split::Train, 200))))
}

fn train_tokenizer() -> Work {
    let examples = examples();
    Box::new(move || drop(black_box(trained(&examples))))
}

fn tokenise() -> Work {
    let examples = examples();
    let tokenizer = trained(&examples);
    Box::new(move || {
        for example in &examples {
            black_box(tokenizer.encode(&example.prompt).unwrap());
        }
    })
}

fn encode() -> Work {
    let examples = examples();
    let tokenizer = trained(&examples);
    Box::new(move || drop(black_box(encode_all(&tokenizer, &examples, &LIMITS).unwrap())))
}

/// Twenty conversations of nine messages through a ChatML template.
fn chat() -> Work {
    // From the gate's crate as well as from this one.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/tokenizers/chatml");
    let tokenizer = Tokenizer::from_folder(folder).unwrap();
    let examples = examples();
    let conversations: Vec<Vec<Message>> = examples[..180]
        .chunks(9)
        .map(|texts| {
            let roles = ["user", "assistant"].iter().cycle();
            roles
                .zip(texts)
                .map(|(role, text)| Message::new(*role, &*text.prompt))
                .collect()
        })
        .collect();
    Box::new(move || {
        for messages in &conversations {
            black_box(encode_chat(&tokenizer, messages, 100).unwrap());
        }
    })
}

/// Two hundred examples in batches of 16.
fn batch() -> Work {
    let examples = examples();
    let (encoded, _) = encode_all(&trained(&examples), &examples, &LIMITS).unwrap();
    Box::new(move || {
        for part in encoded.chunks(16) {
            let part: Vec<&Encoded> = part.iter().collect();
            black_box(Batch::new(&part).unwrap());
        }
    })
}

/// A thousand steps of 16 examples from three sources.
fn mixture() -> Work {
    let mixture = Mixture::new(&[1000, 300, 50], &[3.0, 2.0, 1.0], 16, 0).unwrap();
    Box::new(move || {
        for step in 0..1000 {
            black_box(mixture.batch(step));
        }
    })
}
