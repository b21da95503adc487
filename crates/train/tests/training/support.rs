//! Tiny models and examples for the tests of the loop.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind};
use unsay_data::{Branch, Encoded, EncodedPair, Label, Span, Tokenizer, stream};
use unsay_model::{Config, Decoder, Layers, LoraConfig, Params, SequenceClassifier, Size, TargetModules, Trained};
use unsay_train::{Examples, Source};

pub(crate) const VOCAB: usize = 24;

/// The first token that is not special.
pub(crate) const FIRST: u32 = 4;

pub(crate) fn config() -> Config {
    let size = Size {
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
    };
    let mut config = Config::new(&size, VOCAB, 16);
    config.initializer_range = 0.1;
    config.pad_token_id = Some(Tokenizer::PAD);
    config
}

pub(crate) fn decoder(kind: Kind) -> Decoder {
    tch::set_num_threads(1);
    Decoder::init_kind(&config(), &mut stream(5, "init", 0), Device::Cpu, kind).unwrap()
}

pub(crate) fn classifier(kind: Kind) -> SequenceClassifier {
    SequenceClassifier::from_trunk(decoder(kind), &mut stream(5, "head", 0)).unwrap()
}

/// An adapter in one block.
pub(crate) fn lora(layer: usize) -> Trained {
    Trained::Lora(LoraConfig {
        r: 3,
        alpha: 6.0,
        target_modules: TargetModules::AllLinear,
        layers: Some(Layers::List(vec![layer])),
        use_rslora: false,
    })
}

/// `[bos] prompt [sep] completion [eos]`.
pub(crate) fn encode(prompt: &[u32], completion: &[u32], label: Label, example: usize) -> Encoded {
    let mut ids = vec![Tokenizer::BOS];
    ids.extend(prompt);
    ids.push(Tokenizer::SEP);
    let start = ids.len();
    ids.extend(completion);
    ids.push(Tokenizer::EOS);
    Encoded {
        spans: vec![Span {
            start,
            end: ids.len(),
            ended: true,
        }],
        ids,
        label,
        example,
    }
}

pub(crate) fn source(encoded: Vec<Encoded>, weight: f64) -> Source {
    let ids = (0..encoded.len()).map(|i| format!("id-{i}")).collect();
    Source { encoded, ids, weight }
}

/// Examples of several lengths and all labels given, in a fixed pattern.
pub(crate) fn assorted(n: usize, labels: &[Label]) -> Source {
    let make = |i: usize| {
        let token = |at: usize| FIRST + ((i * 7 + at * 5 + i * at) % (VOCAB - FIRST as usize)) as u32;
        let prompt: Vec<u32> = (0..1 + i % 3).map(token).collect();
        let completion: Vec<u32> = (3..4 + (i * 3) % 5).map(token).collect();
        encode(&prompt, &completion, labels[i % labels.len()], i)
    };
    source((0..n).map(make).collect(), 1.0)
}

pub(crate) fn mixed() -> Examples {
    let labels = [Label::Positive, Label::Negative, Label::Unlabelled];
    let mut benign = assorted(7, &[Label::Unlabelled]);
    benign.weight = 0.5;
    Examples::new(vec![assorted(11, &labels), benign], assorted(6, &labels)).unwrap()
}

/// `[bos] prompt [sep]`, then `completion [eos]` and something that a template may write after it.
pub(crate) fn pair(prompt: &[u32], chosen: &[u32], rejected: &[u32], example: usize) -> EncodedPair {
    let branch = |said: &[u32]| {
        let mut ids = said.to_vec();
        ids.push(Tokenizer::EOS);
        let n_learnt = ids.len();
        ids.extend((0..example % 2).map(|_| FIRST));
        Branch { ids, n_learnt }
    };
    EncodedPair {
        prompt: [&[Tokenizer::BOS], prompt, &[Tokenizer::SEP]].concat(),
        chosen: branch(chosen),
        rejected: branch(rejected),
        example,
    }
}

pub(crate) fn pairs_source(encoded: Vec<EncodedPair>) -> Source<EncodedPair> {
    Source {
        ids: (0..encoded.len()).map(|i| format!("pair-{i}")).collect(),
        encoded,
        weight: 1.0,
    }
}

/// Pairs of several lengths.
pub(crate) fn some_pairs() -> Examples<EncodedPair> {
    let make = |i: usize| {
        let token = |at: usize| FIRST + ((i * 7 + at * 5 + i * at) % (VOCAB - FIRST as usize)) as u32;
        let said = |from: usize, n: usize| (from..from + n).map(token).collect::<Vec<_>>();
        pair(
            &said(0, 1 + i % 3),
            &said(4, 1 + (i * 3) % 5),
            &said(9, 1 + (i * 2) % 6),
            i,
        )
    };
    let source = |n| pairs_source((0..n).map(make).collect());
    Examples::new(vec![source(11), source(5)], source(6)).unwrap()
}

/// All numbers of all parameters.
pub(crate) fn numbers(params: &Params) -> Vec<f64> {
    let all = params
        .iter()
        .map(|(_, tensor)| Vec::<f64>::try_from(tensor.detach().to_kind(Kind::Double).view(-1)));
    all.flat_map(Result::unwrap).collect()
}

pub(crate) fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Every file under a folder with its content.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}
